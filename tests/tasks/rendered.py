"""Rendered heads with their true landmarks and masks, as clips: what the segmentation is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.config import Params
from tasks.demo_motion import make_tracks
from tasks.demo_person import generator, make_person
from tasks.demo_render import HeadRenderer
from tasks.paths import Paths
from tasks.stores import clip_arrays, open_or_create, write_rows
from tests.tasks.factory import make_params


@dataclass(frozen=True)
class RenderedClip:
    """Frames `(T, S, S, 3)` u1, landmarks `(T, 5, 2)`, face boxes `(T, 4)` and true head masks `(T, S, S)` bool."""

    frames: np.ndarray
    landmarks: np.ndarray
    face_box: np.ndarray
    head: np.ndarray


@lru_cache(maxsize=16)
def rendered_clip(person: int, frames: int, size_px: int) -> RenderedClip:
    """A person of the demo in every 8th frame of a video, turning up to 40 degrees."""
    tracks = make_tracks(generator(0, person, 1), 8 * frames, 25.0, 40.0, True)
    renderer = HeadRenderer(make_person(0, person), size_px, tracks.translation_m.mean(axis=0))
    drawn = [renderer.frame(tracks, 8 * index) for index in range(frames)]
    landmarks = np.stack([frame.landmarks for frame in drawn])
    eyes, mouth = landmarks[:, :2].mean(axis=1), landmarks[:, 3:].mean(axis=1)
    middle, reach = (eyes + mouth) / 2, 1.4 * np.linalg.norm(mouth - eyes, axis=1, keepdims=True)
    box = np.concatenate([middle - reach, middle + reach], axis=1).astype(np.float32)
    return RenderedClip(
        np.stack([frame.image for frame in drawn]), landmarks, box, np.stack([frame.depth > 0 for frame in drawn])
    )


def make_clip_store(root: Path, clips: int, blind: set[int], frames: int = 3, size_px: int = 48) -> Paths:
    """A finished `crop` stage: row 0 stays empty, rows 1 to `clips` hold three people in turn.

    Args:
        root: An empty folder.
        clips: How many clips.
        blind: Rows whose face is unknown in every frame, so that they cannot be parsed.
        frames: Of a clip.
        size_px: Side of a clip.

    Returns:
        The data folder; `parse_params` fits it.
    """
    paths = Paths(root / "data")
    paths.data.mkdir(parents=True)
    group = open_or_create(paths.clips, clip_arrays(frames, size_px), clips + 1, 4, "crop")
    rows: list[dict[str, Any]] = []
    done = np.ones(clips + 1, np.uint8)
    done[0] = 0
    values: dict[str, np.ndarray] = {
        "frames": np.zeros((clips + 1, frames, size_px, size_px, 3), np.uint8),
        "landmarks": np.full((clips + 1, frames, 5, 2), np.nan, np.float32),
        "face_box": np.full((clips + 1, frames, 4), np.nan, np.float32),
    }
    common: dict[str, Any] = {"dataset": "demo", "split": "train", "start_frame": 0, "end_frame": frames}
    refused = {"status": "rejected", "reason": "no_face", "detail": "no face in 3 of 3 frames"}
    rows.append({**common, **refused, "clip": "none", "video": "none", "row": -1, "identity": "nobody"})
    for row in range(1, clips + 1):
        clip = rendered_clip(row % 3, frames, size_px)
        values["frames"][row] = clip.frames
        if row not in blind:
            values["landmarks"][row], values["face_box"][row] = clip.landmarks, clip.face_box
        names = {"clip": f"clip{row}_0", "video": f"clip{row}", "row": row, "identity": f"p{row % 3}"}
        rows.append({**common, **names, "status": "ok", "reason": "", "detail": ""})
    for first in range(0, clips + 1, 4):
        part = slice(first, first + 4)
        write_rows(group, first, {name: value[part] for name, value in values.items()}, done[part])
    pd.DataFrame(rows).to_parquet(paths.clip_table)
    return paths


def parse_params(frames: int = 3, size_px: int = 48, **changes: dict[str, Any]) -> Params:
    """The demo's settings for `make_clip_store`, parsed by the method that needs a face: a blind clip fails."""
    crop = {"size_px": size_px, "clip_frames": frames, "clips_per_video": 1, "shard_clips": 4}
    parser = {"parser": "grabcut", **changes.pop("parse", {})}
    return make_params(crop=crop, parse=parser, **changes)
