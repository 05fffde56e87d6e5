"""What the preparation costs: raw videos to cropped, labelled clips in Zarr, beside decoding and parsing alone.

Every part runs on the same videos, in the same number of worker processes, one part after the other:

- `decode`: the frames that the pipeline reads, decoded once and thrown away;
- `look`: these frames decoded again, and the faces found in them;
- `parse`: the parser on the cropped clips, nothing written;
- `whole`: the stages `crop` and `parse` as they always run.

The ratio is whole / (decode + parse). The seconds that the workers take to start (`start`, imports mostly) are taken
off every part, so that it holds for any number of videos; `ratio_with_start` leaves them in. Detection, cutting, the
stores and the measures all count against the pipeline.
"""

from __future__ import annotations

import csv
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import psutil

from models.config import Params
from tasks import bench_jobs, crop, parse
from tasks.bench_jobs import Reading
from tasks.clip_table import ok_clips, read_table
from tasks.crop_video import CropJob
from tasks.errors import StageError
from tasks.parse_clip import ParseJob
from tasks.paths import Paths
from tasks.stores import clip_arrays, geometry_arrays, mask_arrays
from tasks.workers import Outcome, run_jobs

HASH_BYTES = 512_000_000
"""At most so much of the stores is hashed to learn the rate."""
SAMPLE_S = 0.1
METADATA_FILES = 4
"""zarr.json of a group and of an array, and the array `done`."""


def bench_prepare(params: Params, videos: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Measure the preparation.

    Args:
        params: `crop`, `parse` and `runtime` count.
        videos: The raw videos.
        folder: Empty; the stores are made there.

    Returns:
        Counts, `seconds` of each part, `ratio`, rates and peak memory; see the module's text.

    Raises:
        StageError: No video gave a clip.
    """
    paths = Paths(folder / "data")
    _write_manifest(paths, videos)
    jobs = [CropJob(at, _entry(at, path), path.resolve(), params.crop, Path()) for at, path in enumerate(videos)]
    counts, _ = _each(bench_jobs.frames_read, jobs, params)  # untimed: it also brings the files into memory
    readings = [Reading(job, int(count or 0)) for job, count in zip(jobs, counts, strict=True)]
    decode, look = _each(bench_jobs.decode, readings, params)[1], _each(bench_jobs.decode_and_look, readings, params)[1]
    with _Memory() as memory:
        begin = time.monotonic()
        cropped = crop.run(params, paths, "bench")
        middle = time.monotonic()
        parsed = parse.run(params, paths, "bench")
        end = time.monotonic()
    rows = ok_clips(read_table(paths.clip_table))["row"].astype(int).tolist()
    clips = paths.clips.resolve()
    alone = [ParseJob(clips, Path(), row, params.parse, params.runtime.device) for row in rows]
    parse_alone = _each(bench_jobs.parse_alone, alone, params)[1]
    seconds = {
        "start": (look.start_s + parse_alone.start_s) / 2,
        "decode": decode.work_s,
        "look": look.work_s,
        "parse": parse_alone.work_s,
        "crop_stage": max(middle - begin - look.start_s, 1e-3),
        "parse_stage": max(end - middle - parse_alone.start_s, 1e-3),
    }
    frames = sum(reading.frames for reading in readings)
    return _figures(params, seconds, frames, cropped, parsed) | {
        "peak_rss_mb": memory.figures(),
        "bytes_per_clip": {name: _bytes(path) / len(rows) for name, path in _stores(paths).items()},
        "hash_bytes_per_s": round(_hash_rate([*_stores(paths).values()])),
    }


def _figures(
    params: Params, seconds: dict[str, float], frames: int, cropped: dict[str, Any], parsed: dict[str, Any]
) -> dict[str, Any]:
    start, net = seconds["start"], seconds
    whole, alone = net["crop_stage"] + net["parse_stage"], net["decode"] + net["parse"]
    clip_frames = int(parsed["clips"]) * params.crop.clip_frames
    return {
        "videos": int(cropped["videos"]),
        "clips": int(parsed["clips"]),
        "frames_read": frames,
        "frames_parsed": clip_frames,
        "workers": params.runtime.workers,
        "parser": params.parse.parser,
        "size_px": params.crop.size_px,
        "seconds": {name: round(value, 2) for name, value in {**net, "whole": whole}.items()},
        "ratio": round(whole / alone, 3),
        "ratio_with_detection": round(whole / (net["look"] + net["parse"]), 3),
        "ratio_with_start": round((whole + 2 * start) / (alone + 2 * start), 3),
        "decode_frames_per_s": round(frames / net["decode"], 1),
        "look_frames_per_s": round(frames / net["look"], 1),
        "parse_frames_per_s": round(clip_frames / net["parse"], 1),
        "clips_per_s": round(int(parsed["clips"]) / whole, 3),
    }


def plan(params: Params, figures: dict[str, Any], clips: int) -> dict[str, Any]:
    """What a data set of so many clips needs, worked out from a measurement.

    Args:
        params: The settings of that data set.
        figures: From `bench_prepare`.
        clips: How many.

    Returns:
        Per store files, bytes and seconds of DVC's hashing, and the hours of the preparation. geometry.zarr (after
        stage 1) is counted without compression.
    """
    crop_settings = params.crop
    shards = -(-clips // crop_settings.shard_clips)
    length, size = crop_settings.clip_frames, crop_settings.size_px
    specs = {
        "clips": clip_arrays(length, size),
        "masks": mask_arrays(length, size),
        "geometry": geometry_arrays(length, size),
    }
    raw = sum(int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in specs["geometry"].values())
    per_clip = {**figures["bytes_per_clip"], "geometry": float(raw)}
    stores = {}
    for name, arrays in specs.items():
        total = round(per_clip[name] * clips)
        stores[f"{name}.zarr"] = {
            "files": len(arrays) * (shards + 1) + METADATA_FILES,
            "bytes": total,
            "hash_seconds": round(total / figures["hash_bytes_per_s"], 1),
        }
    return {
        "clips": clips,
        "shards": shards,
        "stores": stores,
        "files": sum(int(store["files"]) for store in stores.values()),
        "bytes": sum(int(store["bytes"]) for store in stores.values()),
        "hash_seconds": round(sum(float(store["hash_seconds"]) for store in stores.values()), 1),
        "hours": round(clips / figures["clips_per_s"] / 3600, 2),
        "workers": figures["workers"],
    }


def _write_manifest(paths: Paths, videos: Sequence[Path]) -> None:
    if not videos:
        raise StageError("there is no video to measure with")
    paths.raw.mkdir(parents=True)
    with paths.manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(_entry(0, videos[0])))
        table.writeheader()
        table.writerows(_entry(at, path) for at, path in enumerate(videos))


def _entry(index: int, path: Path) -> dict[str, str]:
    """A row of the manifest."""
    name = f"{index:05d}_{path.stem}"
    return {
        "video": name, "path": str(path.resolve()), "dataset": "bench", "identity": name, "split": "test",
        "sha256": "0" * 64, "bytes": str(path.stat().st_size), "section": "", "box": "",
    }  # fmt: skip


class _Times(NamedTuple):
    """Seconds until the first worker was ready, and from then to the last result."""

    start_s: float
    work_s: float


def _each(function: Callable[[Any], Any], jobs: Sequence[Any], params: Params) -> tuple[list[Any], _Times]:
    """What the jobs return, in their order (None for one that failed), and how long it took."""
    results: list[Any] = [None] * len(jobs)
    begins, ends = [], []

    def keep(index: int, outcome: Outcome) -> None:
        results[index] = outcome.value
        ends.append(time.monotonic())
        begins.append(ends[-1] - outcome.seconds)

    begin = time.monotonic()
    run_jobs(
        function,
        jobs,
        workers=params.runtime.workers,
        deadline_s=params.runtime.video_deadline_s,
        label=f"bench: {function.__name__}",
        on_result=keep,
        unit="job",
    )
    first = max(min(begins, default=begin), begin)
    return results, _Times(first - begin, max(max(ends, default=first) - first, 1e-3))


def _stores(paths: Paths) -> dict[str, Path]:
    return {"clips": paths.clips, "masks": paths.masks}


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _hash_rate(stores: Sequence[Path]) -> float:
    """Bytes per second of MD5 over a store's files, as DVC reads them."""
    files = [file for store in stores for file in store.rglob("*") if file.is_file()]
    total, begin = 0, time.monotonic()
    while files and total < HASH_BYTES and time.monotonic() - begin < 1.0:
        for file in files:
            digest = hashlib.md5(usedforsecurity=False)
            with file.open("rb") as data:
                while block := data.read(1 << 20):
                    digest.update(block)
                    total += len(block)
    return total / max(time.monotonic() - begin, 1e-9)


class _Memory:
    """Peak resident memory of this process and of its largest worker, sampled while it is open."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._parent = self._worker = self._all = 0

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def figures(self) -> dict[str, int]:
        """MB (10^6 bytes) of the parent, the largest worker, and all together."""
        return {
            "parent": self._parent // 1_000_000, "worker": self._worker // 1_000_000, "together": self._all // 1_000_000
        }  # fmt: skip

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(SAMPLE_S):
            sizes = []
            for child in me.children(recursive=True):
                try:
                    sizes.append(child.memory_info().rss)
                except psutil.Error:
                    continue
            own = me.memory_info().rss
            self._parent, self._all = max(self._parent, own), max(self._all, own + sum(sizes))
            self._worker = max([self._worker, *sizes])
