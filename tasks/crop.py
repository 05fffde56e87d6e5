"""Stage `crop`: the videos of the manifest -> square face clips (clips.zarr) and the clip table (clips.parquet).

Workers leave finished videos in a spool inside the store; this process alone writes the shards, each as a whole and
once, when all its videos are in. Everything appears by renaming, so a run that is killed at any moment goes on where it
was and ends with the same bytes; it loses the videos that were being worked on.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from models.config import Crop, Params
from tasks.clip_table import ok_clips, read_table, write_table
from tasks.crop_video import CropJob, crop_video, refusal
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.stores import clip_arrays, open_or_create, write_rows
from tasks.workers import Outcome, run_jobs

REASONS = {"failed": "crashed", "crashed": "crashed", "deadline": "deadline"}


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """Crop every video of the manifest, or go on with that.

    Args:
        params: All settings; `crop` and `runtime` are used.
        paths: The data folder.
        fingerprint: Hash of the settings, code and inputs; a store of another one is thrown away.

    Returns:
        Counts by status and reason, clips, and, for a run that worked, seconds and videos per second.

    Raises:
        StageError: There is no manifest, or not a single clip came out.
    """
    jobs = _jobs(params.crop, paths)
    group = _open(params.crop, paths, fingerprint, len(jobs))
    if group.attrs.get("complete"):
        shutil.rmtree(_spool(paths), ignore_errors=True)
        return summary(read_table(paths.clip_table))
    start = time.monotonic()
    spool = _Spool(_spool(paths), group, jobs, params.crop)
    todo = [job for job in jobs if job.index not in spool.records]

    def keep(position: int, outcome: Outcome) -> None:
        job = todo[position]
        if outcome.kind == "ok":
            spool.add(job.index, outcome.value)
        else:
            detail = f"{job.path.name}: {outcome.detail}"
            spool.add(job.index, [refusal(job, "error", REASONS[outcome.kind], detail)])

    run_jobs(
        crop_video,
        todo,
        workers=params.runtime.workers,
        deadline_s=params.runtime.video_deadline_s,
        label="crop",
        on_result=keep,
        initial=len(jobs) - len(todo),
    )
    write_table(paths.clip_table, spool.table())
    figures = summary(read_table(paths.clip_table))
    if not figures["clips"]:
        shutil.rmtree(_spool(paths))  # the next run tries all of them again
        raise StageError(f"not one clip came out of {len(jobs)} videos ({_reasons(figures)}); see {paths.clip_table}")
    group.attrs["complete"] = True
    shutil.rmtree(_spool(paths))
    seconds = time.monotonic() - start
    return {**figures, "seconds": round(seconds, 2), "videos_per_s": round(len(todo) / max(seconds, 1e-9), 3)}


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Counts of a clip table.

    Args:
        table: As `read_table` gives it.

    Returns:
        `videos`, `clips`, `clips_train`, `clips_test`, `videos_ok`, `videos_rejected`, `videos_error` and, for each
        reason that occurs, `reason_<code>`.
    """
    videos = table.drop_duplicates("video")
    clips = ok_clips(table)
    figures: dict[str, Any] = {
        "videos": len(videos),
        "clips": len(clips),
        "clips_train": int((clips["split"] == "train").sum()),
        "clips_test": int((clips["split"] == "test").sum()),
    }
    for status in ("ok", "rejected", "error"):
        figures[f"videos_{status}"] = int((videos["status"] == status).sum())
    counts = videos.loc[videos["status"] != "ok", "reason"].value_counts()
    return {**figures, **{f"reason_{reason}": int(counts[reason]) for reason in sorted(counts.index)}}


class _Spool:
    """Finished videos that wait for their shard: `<index>.npz` the clips, `<index>.json` the rows, written last."""

    def __init__(self, folder: Path, group: zarr.Group, jobs: list[CropJob], crop: Crop) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._group, self._jobs, self._crop = folder, group, jobs, crop
        self._rows = len(jobs) * crop.clips_per_video
        self.records: dict[int, list[dict[str, Any]]] = {
            int(path.stem): json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")
        }
        for shard in range(-(-self._rows // crop.shard_clips)):
            self._write_if_complete(shard)

    def add(self, index: int, record: list[dict[str, Any]]) -> None:
        """Take a video's rows, and write the shards it was the last for."""
        partial = self._folder / f"{index}.json.partial"
        partial.write_text(json.dumps(record), encoding="utf-8")
        partial.replace(self._folder / f"{index}.json")
        self.records[index] = record
        for shard in self._shards_of(index):
            self._write_if_complete(shard)

    def table(self) -> list[dict[str, Any]]:
        """Rows of the clip table in the manifest's order."""
        rows = []
        for job in self._jobs:
            for row in self.records[job.index]:
                if row["status"] == "ok":
                    rows.append({**row, "row": job.index * self._crop.clips_per_video + row["segment"]})
                else:
                    rows.append(row)
        return rows

    def _shards_of(self, index: int) -> range:
        first = index * self._crop.clips_per_video
        return range(
            first // self._crop.shard_clips, (first + self._crop.clips_per_video - 1) // self._crop.shard_clips + 1
        )

    def _videos_of(self, shard: int) -> range:
        first = shard * self._crop.shard_clips
        last = min(first + self._crop.shard_clips, self._rows) - 1
        return range(first // self._crop.clips_per_video, last // self._crop.clips_per_video + 1)

    def _written(self, shard: int) -> Path:
        return self._folder / f"shard_{shard}.written"

    def _write_if_complete(self, shard: int) -> None:
        videos = self._videos_of(shard)
        if any(index not in self.records for index in videos):
            return
        if not self._written(shard).exists():
            self._write(shard, videos)
            self._written(shard).touch()
        for index in videos:
            if all(self._written(other).exists() for other in self._shards_of(index)):
                (self._folder / f"{index}.npz").unlink(missing_ok=True)

    def _write(self, shard: int, videos: range) -> None:
        first, per_video = shard * self._crop.shard_clips, self._crop.clips_per_video
        count = min(self._crop.shard_clips, self._rows - first)
        specs = clip_arrays(self._crop.clip_frames, self._crop.size_px)
        values = {name: np.full((count, *spec.shape), spec.fill, spec.dtype) for name, spec in specs.items()}
        done = np.zeros(count, np.uint8)
        for index in videos:
            clips = [row["segment"] for row in self.records[index] if row["status"] == "ok"]
            rows = [index * per_video + segment - first for segment in clips]
            inside = [position for position, row in enumerate(rows) if 0 <= row < count]
            if not inside:
                continue
            with np.load(self._folder / f"{index}.npz") as stored:
                for name in specs:
                    values[name][[rows[position] for position in inside]] = stored[name][inside]
            done[[rows[position] for position in inside]] = 1
        if done.any():
            write_rows(self._group, first, values, done)


def _spool(paths: Paths) -> Path:
    return paths.clips / ".spool"


def _open(crop: Crop, paths: Paths, fingerprint: str, videos: int) -> zarr.Group:
    rows = videos * crop.clips_per_video
    arrays = clip_arrays(crop.clip_frames, crop.size_px)
    group = open_or_create(paths.clips, arrays, rows, crop.shard_clips, fingerprint)
    if group.attrs.get("complete") and not paths.clip_table.is_file():  # someone deleted the table: make both again
        shutil.rmtree(paths.clips)
        group = open_or_create(paths.clips, arrays, rows, crop.shard_clips, fingerprint)
    return group


def _jobs(crop: Crop, paths: Paths) -> list[CropJob]:
    if not paths.manifest.is_file():
        raise StageError(f"{paths.manifest} does not exist; run the stage `acquire` first (`dvc repro` does)")
    manifest = pd.read_csv(paths.manifest, dtype=str, keep_default_na=False)
    if manifest.empty:
        raise StageError(f"{paths.manifest} lists no video; check `acquire` in params.yaml")
    root = paths.data.resolve().parent
    return [
        CropJob(
            index=index,
            manifest={name: row[name] for name in ("video", "dataset", "identity", "split", "sha256", "path")},
            path=root / row["path"],
            crop=crop,
            spool=_spool(paths) / f"{index}.npz",
        )
        for index, row in enumerate(manifest.to_dict("records"))
    ]


def _reasons(figures: dict[str, Any]) -> str:
    return ", ".join(f"{count} {name[7:]}" for name, count in figures.items() if name.startswith("reason_"))
