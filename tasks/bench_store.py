"""What the clips' store costs: writing shards, reading clips in order and at random, and a training set into memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.config import Params
from tasks.bench_animate import drawn_frames
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.stores import array, clip_arrays, mask_arrays, open_or_create, open_store, read_rows, write_rows

NOISE = 2
"""A camera's noise, grey levels to either side: painted areas alone would be packed to nothing."""
SAMPLE_FRAMES = 6
"""Of a clip: N + 1 frames of a training step."""
PAPER_CLIPS = 7_500
"""VoxCeleb's training clips (Sec. 4.1)."""


def made_clips(params: Params, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips that pack about as camera pictures do.

    Args:
        params: `crop` gives their size.
        count: How many.

    Returns:
        Frames `(n, T, S, S, 3)` and head masks `(n, T, S, S)`, uint8.
    """
    length, size = params.crop.clip_frames, params.crop.size_px
    painted, heads = (part.numpy() for part in drawn_frames(length + count, size))
    rng = np.random.default_rng(0)
    noise = rng.integers(-NOISE, NOISE + 1, (length, size, size, 3), np.int16)
    frames = np.empty((count, length, size, size, 3), np.uint8)
    masks = np.empty(frames.shape[:-1], np.uint8)
    for clip in range(count):
        moved = np.roll(noise, (clip, 3 * clip), (0, 1))
        frames[clip] = np.clip(painted[clip : clip + length] + moved, 0, 255)
        masks[clip] = heads[clip : clip + length]
    return frames, masks


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bench_store(params: Params, folder: Path, count: int, reads: int) -> dict[str, Any]:
    """Write a store, read it, and load it as a training does.

    Reads come from the system's memory where that still holds the files, as it does right after writing.

    Args:
        params: Sizes of clips and shards, and where stores go (`runtime.stores`).
        folder: Empty; the stores are made there.
        count: Clips.
        reads: Random reads.

    Returns:
        Rates in clips and in MB (10^6 bytes, as they are in memory) a second.

    Raises:
        StageError: There is not a clip, or no place for it.
    """
    if count < 1 or reads < 1:
        raise StageError(f"{count} clips and {reads} reads measure nothing; take one at least of each")
    frames, masks = made_clips(params, count)
    need = 2 * (frames.nbytes + masks.nbytes)
    if shutil.disk_usage(folder).free < need:
        raise StageError(f"{folder} has not the {need / 1e9:.1f} GB that {count} clips need; take fewer with --clips")
    paths, shard = Paths(folder), params.crop.shard_clips
    length, size = params.crop.clip_frames, params.crop.size_px

    def written(path: Path, kind: str, values: np.ndarray) -> float:
        specs = clip_arrays(length, size) if kind == "frames" else mask_arrays(length, size)
        group = open_or_create(path, {kind: specs[kind]}, count, shard, "bench", params.runtime.stores)
        started = time.perf_counter()
        for first in range(0, count, shard):
            part = values[first : first + shard]
            write_rows(group, first, {kind: part}, np.ones(len(part)))
        return time.perf_counter() - started

    wrote = written(paths.clips, "frames", frames)
    written(paths.masks, "head", masks)
    clips = array(open_store(paths.clips), "frames")
    rng = np.random.default_rng(1)
    rows = rng.integers(0, count, reads)
    in_order = _seconds(lambda: [clips[row] for row in range(count)])
    single = [_seconds(lambda row=row: clips[int(row)]) for row in rows]  # type: ignore[misc]
    chosen = np.sort(rng.integers(0, length, SAMPLE_FRAMES))
    sample = [_seconds(lambda row=row: clips[int(row)][chosen]) for row in rows]  # type: ignore[misc]
    loaded = _seconds(lambda: _load(paths, count))
    if not np.array_equal(clips[count - 1], frames[-1]):
        raise StageError(f"the store in {folder} does not give back what was written; look at the disk")
    megabytes, whole = frames.nbytes / 1e6, (frames.nbytes + masks.nbytes) / 1e6
    packed = sum(file.stat().st_size for file in paths.clips.rglob("*") if file.is_file()) / 1e6
    return {
        "clips": count,
        "frames": length,
        "size_px": size,
        "shard_clips": shard,
        "where": params.runtime.stores or "local folder",
        "megabytes": megabytes,
        "packed_to": packed / megabytes if not params.runtime.stores else None,
        "write": {"clips_per_s": count / wrote, "mb_per_s": megabytes / wrote},
        "read_in_order": {"clips_per_s": count / in_order, "mb_per_s": megabytes / in_order},
        "read_at_random": {
            "clip_ms_median": 1e3 * float(np.median(single)),
            "clip_ms_p95": 1e3 * float(np.quantile(single, 0.95)),
            "clips_per_s": reads / sum(single),
            "six_frames_ms_median": 1e3 * float(np.median(sample)),
        },
        "load_training_set": {"clips_per_s": count / loaded, "mb_per_s": whole / loaded},
        "paper_training_set": {
            "clips": PAPER_CLIPS,
            "gigabytes": PAPER_CLIPS * whole / count / 1e3,
            "load_s": PAPER_CLIPS * loaded / count,
        },
    }


def _load(paths: Paths, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames, with the channels first, and head masks in memory, as `tasks.clip_data.load_clips` reads them."""
    frames = read_rows(open_store(paths.clips), "frames", range(count))
    return np.ascontiguousarray(frames.transpose(0, 1, 4, 2, 3)), read_rows(
        open_store(paths.masks), "head", range(count)
    )
