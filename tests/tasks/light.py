"""Stages `crop` and `parse` with workers that start at once: the real stages, but videos are small text files and a
"decoder" draws what they say. Workers import this file instead of torch."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.config import Crop, Params, Parse
from tasks.disk import save_arrays
from tasks.paths import Paths

if TYPE_CHECKING:
    import pytest

    from tasks.stores import ClipArray

FRAMES, SIZE = 4, 16


@dataclass(frozen=True)
class LightCropJob:
    """As `tasks.crop_video.CropJob`."""

    index: int
    manifest: dict[str, str]
    path: Path
    crop: Crop
    spool: Path


@dataclass(frozen=True)
class LightParseJob:
    """As `tasks.parse_clip.ParseJob`."""

    clips: Path
    file: Path
    row: int
    settings: Parse
    device: str


def light_crop(job: LightCropJob) -> list[dict[str, Any]]:
    """Clips of noise; the file says how many, from which seed and how slowly."""
    from tasks.clip_table import NOTHING

    names = ("video", "dataset", "identity", "split", "sha256")
    row: dict[str, Any] = {**NOTHING, **{name: job.manifest[name] for name in names}}
    row |= {"clip": job.manifest["video"], "source": job.manifest["path"]}
    if not job.path.is_file():
        return [{**row, "status": "error", "reason": "missing", "detail": "it is not there"}]
    says = json.loads(job.path.read_text(encoding="utf-8"))
    time.sleep(says["seconds"])
    if not says["clips"]:
        return [{**row, "status": "rejected", "reason": "no_face", "detail": "nobody to be seen"}]
    random, count, size = np.random.default_rng(says["seed"]), says["clips"], job.crop.size_px
    frames = random.integers(0, 256, (count, job.crop.clip_frames, size, size, 3), np.uint8)
    landmarks = random.random((count, job.crop.clip_frames, 5, 2), np.float32)
    save_arrays(job.spool, frames=frames, landmarks=landmarks, face_box=landmarks[:, :, :2].reshape(count, -1, 4))
    return [
        {**row, "status": "ok", "segment": segment, "clip": f"{row['video']}_{segment}", "start_frame": 4 * segment}
        for segment in range(count)
    ]


def light_parse(job: LightParseJob) -> dict[str, Any]:
    """Labels that follow from the first frame; every seventh clip fails."""
    frames = _frames(job.clips)[job.row]
    time.sleep(0.05)
    if frames[0, 0, 0, 0] % 7 == 0:
        return {"code": "no_face", "text": "nobody to be seen", "measures": {}}
    save_arrays(job.file, labels=(frames[None, ..., 0] % 19).astype(np.uint8))
    return {"code": "", "text": "", "measures": {"sharpness": float(frames.mean()), "least_yaw_deg": float("nan")}}


@lru_cache(maxsize=1)
def _frames(clips: Path) -> ClipArray:
    from tasks.stores import array, open_store

    return array(open_store(clips), "frames")


def light_params(**runtime: Any) -> Params:
    """Settings that fit; three clips a shard and two a video, so that videos lie across shards."""
    from tests.tasks.factory import make_params

    crop = {"size_px": SIZE, "clip_frames": FRAMES, "clips_per_video": 2, "train_clips_per_video": 2, "shard_clips": 3}
    return make_params(crop=crop, runtime={"workers": 2, "video_deadline_s": 60.0, **runtime})


def light_project(root: Path, videos: int, seconds: float = 0.0, names: list[str] | None = None) -> Paths:
    """A data folder with a manifest; every fifth video is refused, every third has one clip only.

    Args:
        root: Where `data` goes; may hold one already, whose manifest is replaced.
        videos: How many.
        seconds: How long each of them takes.
        names: Their names, if they are not to be v0, v1, ...; the digits decide about the contents.
    """
    paths = Paths(root / "data")
    paths.raw.mkdir(parents=True, exist_ok=True)
    with paths.manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["video", "path", "dataset", "identity", "split", "sha256", "bytes", "section", "box"])
        for name in names or [f"v{index}" for index in range(videos)]:
            seed = int(name[1:])
            clips = 0 if seed % 5 == 4 else 1 if seed % 3 == 2 else 2
            says = {"seed": seed, "clips": clips, "seconds": seconds}
            (paths.raw / f"{name}.json").write_text(json.dumps(says), encoding="utf-8")
            split = "test" if seed % 2 else "train"
            table.writerow([name, f"data/raw/{name}.json", "light", f"id{seed}", split, f"{seed:064d}", 1, "", ""])
    return paths


def make_light(patch: pytest.MonkeyPatch) -> None:
    """The stages of this process work on such projects from now on."""
    from tasks import crop, parse

    patch.setattr(crop, "CropJob", LightCropJob)
    patch.setattr(crop, "crop_video", light_crop)
    patch.setattr(parse, "ParseJob", LightParseJob)
    patch.setattr(parse, "parse_clip", light_parse)
    for stage in (crop, parse):  # a file that is saved while the tests run is no other version
        patch.setattr(stage, "code_hash", lambda *_, **__: "code")


def snapshot(*places: Path) -> dict[str, bytes]:
    """Every file below some places, with its content."""
    files = [(place, path) for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
    return {f"{place.name}/{path.relative_to(place)}": path.read_bytes() for place, path in files if path.is_file()}
