"""One clip -> its class labels: what a worker of the stage `parse` does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

import numpy as np
import zarr

from models.config import Parse
from tasks import labels
from tasks.disk import save_arrays
from tasks.labels import head_mask
from tasks.quality import measure
from tasks.segment import SegmentationError, segment
from tasks.stores import array, open_store

AREA_MIN, AREA_MAX = 0.03, 0.92
"""Share of the frame that a head may take; outside it the segmentation has failed. (A crop is made about the face.)"""


@dataclass(frozen=True)
class ParseJob:
    """What a worker needs: the clip's store and row, where the labels go, how, and on which device (runtime.device)."""

    clips: Path
    file: Path
    row: int
    settings: Parse
    device: str


@lru_cache(maxsize=1)
def _opened(path: Path) -> zarr.Group:
    return open_store(path)


class ParseRecord(TypedDict):
    """What became of a clip: why it has no labels (`code` and `text`, empty if it has), and how good they are."""

    code: str
    text: str
    measures: dict[str, float]


def parse_clip(job: ParseJob) -> ParseRecord:
    """Segment one clip into `job.file`."""
    group = _opened(job.clips)
    frames, landmarks, box = (np.asarray(array(group, name)[job.row]) for name in ("frames", "landmarks", "face_box"))
    try:
        class_ids = segment(frames, landmarks, box, job.settings, job.device)
        check_area(class_ids)
    except SegmentationError as error:
        return ParseRecord(code=error.code, text=str(error), measures={})
    save_arrays(job.file, labels=class_ids[None])
    return ParseRecord(code="", text="", measures=measure(frames, class_ids, landmarks))


def check_area(class_ids: np.ndarray) -> None:
    """Refuse labels without a plausible head.

    Raises:
        SegmentationError: A frame has no head, or the head takes an implausible share of the clip.
    """
    area = head_mask(class_ids, list(labels.HEAD_AND_HAT)).mean(axis=(1, 2))
    if not area.all():
        text = f"no head in {int((area == 0).sum())} of {len(area)} frames"
        raise SegmentationError("empty_mask", text)
    mean = float(area.mean())
    if not AREA_MIN <= mean <= AREA_MAX:
        text = f"the head takes {mean:.0%} of the frame; {AREA_MIN:.0%} to {AREA_MAX:.0%} is plausible"
        raise SegmentationError("implausible_area", text)
