"""The Zarr stores between the stages: layout, creation, and what makes a half-written one safe to go on with.

Every store is a Zarr v3 group whose arrays share their first axis, the row of a clip. A chunk is one clip and a shard
`shard_clips` of them, so that 22,500 clips are a few hundred files. `done[row]` is written last: a row without it does
not count. The group's attributes hold the fingerprint of the code, settings and inputs that wrote it (design: a stage
throws away what another fingerprint wrote and goes on with what its own did).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

NO_LABEL = 255
"""Fill value of `labels`: not parsed."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store: `shape` and `dtype` of a single clip."""

    shape: tuple[int, ...]
    dtype: str
    fill: float = 0


def clip_arrays(frames: int, size_px: int) -> dict[str, ArraySpec]:
    """Arrays of clips.zarr: RGB frames, MTCNN's five landmarks and the face box, in pixels of the crop (x, y)."""
    nan = float("nan")
    return {
        "frames": ArraySpec((frames, size_px, size_px, 3), "uint8"),
        "landmarks": ArraySpec((frames, 5, 2), "float32", nan),
        "face_box": ArraySpec((frames, 4), "float32", nan),
    }


def mask_arrays(frames: int, size_px: int) -> dict[str, ArraySpec]:
    """Arrays of masks.zarr: CelebAMask-HQ class ids and the 0/1 head mask made from them."""
    return {
        "labels": ArraySpec((frames, size_px, size_px), "uint8", NO_LABEL),
        "head": ArraySpec((frames, size_px, size_px), "uint8"),
    }


def geometry_arrays(frames: int, size_px: int) -> dict[str, ArraySpec]:
    """Arrays of geometry.zarr: depth in metres, (yaw, pitch, roll) in degrees, predicted translation in metres."""
    return {
        "depth": ArraySpec((frames, size_px, size_px), "float16"),
        "angles_deg": ArraySpec((frames, 3), "float32"),
        "translation_m": ArraySpec((frames, 3), "float32"),
    }


def open_or_create(
    path: Path, arrays: Mapping[str, ArraySpec], rows: int, shard_clips: int, fingerprint: str
) -> zarr.Group:
    """Open the store for writing; one that another fingerprint wrote is thrown away and made anew.

    Args:
        path: The store's folder.
        arrays: Array name -> per-clip shape and type.
        rows: How many clips it can hold.
        shard_clips: Clips per shard file.
        fingerprint: Hash of the code, settings and inputs of the stage that writes.

    Returns:
        The group, opened `r+`, with an extra array `done (rows,)` u1.
    """
    if path.exists():
        if read_fingerprint(path) == fingerprint:
            for stray in path.rglob("*.partial"):  # kill -9 in the middle of a write leaves at most one
                stray.unlink()
            return zarr.open_group(path, mode="r+", zarr_format=3)
        shutil.rmtree(path)
    group = zarr.create_group(path, zarr_format=3)
    for name, spec in arrays.items():
        group.create_array(
            name,
            shape=(rows, *spec.shape),
            chunks=(1, *spec.shape),
            shards=(shard_clips, *spec.shape),
            dtype=spec.dtype,
            fill_value=spec.fill,
            compressors=ZstdCodec(level=1),
        )
    group.create_array("done", shape=(rows,), chunks=(max(rows, 1),), dtype="uint8", fill_value=0)
    group.attrs["fingerprint"] = fingerprint
    return group


def open_store(path: Path) -> zarr.Group:
    """Open a finished store for reading.

    Raises:
        FileNotFoundError: There is none; the text says which command makes it.
    """
    if not (path / "zarr.json").is_file():
        raise FileNotFoundError(f"{path} does not exist; `dvc repro` makes it (or `dvc pull`, if someone pushed it)")
    return zarr.open_group(path, mode="r", zarr_format=3)


def read_fingerprint(path: Path) -> str | None:
    """The fingerprint of the stage run that wrote the store; None where there is none to read."""
    try:
        value: Any = zarr.open_group(path, mode="r", zarr_format=3).attrs.get("fingerprint")
    except (OSError, ValueError, KeyError):
        return None
    return value if isinstance(value, str) else None


def write_rows(group: zarr.Group, first: int, values: Mapping[str, np.ndarray], done: np.ndarray) -> None:
    """Write a whole shard (or its last, shorter part) and mark it done.

    Args:
        group: The store, opened for writing.
        first: Row of the first clip; a multiple of the shard size.
        values: Array name -> `(n, ...)`; rows that hold nothing keep the fill value.
        done: `(n,)` 0/1.
    """
    count = len(done)
    for name, rows in values.items():
        array(group, name)[first : first + count] = rows
    array(group, "done")[first : first + count] = done.astype("uint8")


def array(group: zarr.Group, name: str) -> zarr.Array:
    """The array `name` of a store, typed."""
    found = group[name]
    assert isinstance(found, zarr.Array)
    return found


def read_rows(group: zarr.Group, name: str, rows: Iterable[int]) -> np.ndarray:
    """Some rows of an array, one clip at a time (reading `z[row]` is faster than an orthogonal selection).

    Args:
        group: The store.
        name: Which array.
        rows: Which clips.

    Returns:
        `(n, ...)` with the type of the array.
    """
    source, wanted = array(group, name), list(rows)
    out = np.empty((len(wanted), *source.shape[1:]), source.dtype)
    for position, row in enumerate(wanted):
        out[position] = source[int(row)]
    return out
