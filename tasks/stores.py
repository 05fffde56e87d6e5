"""The Zarr stores between the stages: layout, creation, and what makes a half-written one safe to go on with.

Every store is a Zarr v3 group whose arrays share their first axis, the row of a clip. A chunk is one clip and a shard
`shard_clips` of them, so that 22,500 clips are a few hundred files. `done[row]` is written last: a row without it does
not count. The group's attributes hold the fingerprint of the code, settings and inputs that wrote it (design: a stage
throws away what another fingerprint wrote and goes on with what its own did), and for every shard and array a digest of
what was written. Each chunk ends with a checksum, so that a damaged file is an error and never a wrong picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from tasks.errors import StageError
from tasks.store_location import (
    Location,
    check_url,
    clear_errors,
    new_url,
    read_location,
    remove_objects,
    remove_store,
    write_location,
    zarr_store,
)

NO_LABEL = 255
"""Fill value of `labels`: not parsed."""
DIGEST_DIGITS = 32


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store: `shape` and `dtype` of a single clip."""

    shape: tuple[int, ...]
    dtype: str
    fill: float = 0

    @property
    def clip_bytes(self) -> int:
        """Size of a clip's values in memory."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


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


# -- opening ----------------------------------------------------------------------------------------------------------


def open_or_create(
    path: Path, arrays: Mapping[str, ArraySpec], rows: int, shard_clips: int, fingerprint: str, stores: str = ""
) -> zarr.Group:
    """Open the store for writing; one that another fingerprint wrote is thrown away and made anew.

    Args:
        path: The store's folder.
        arrays: Array name -> per-clip shape and type.
        rows: How many clips it can hold.
        shard_clips: Clips per shard file.
        fingerprint: Hash of the code, settings and inputs of the stage that writes.
        stores: Where a new store's arrays go (runtime.stores); empty: into the folder itself.

    Returns:
        The group, opened `r+`, with an extra array `done (rows,)` u1.

    Raises:
        StageError: Nothing can be written there, or the store's header is damaged.
    """
    if read_fingerprint(path) == fingerprint:
        for stray in path.rglob("*.partial"):  # kill -9 in the middle of a write leaves at most one
            stray.unlink()
        return _open(path, read_only=False)
    remove_store(path)
    url = new_url(stores, path, fingerprint) if stores else ""
    if url:
        check_url(url)
        remove_objects(path, url)
        write_location(path, Location(url, fingerprint, ""))
    with clear_errors(url):
        group = zarr.create_group(zarr_store(path, read_only=False), zarr_format=3)
        for name, spec in arrays.items():
            group.create_array(
                name,
                shape=(rows, *spec.shape),
                chunks=(1, *spec.shape),
                shards=(shard_clips, *spec.shape),
                dtype=spec.dtype,
                fill_value=spec.fill,
                compressors=[ZstdCodec(level=1), Crc32cCodec()],
            )
        # a chunk for each shard: writing one never reads another, and damage to it costs one shard
        chunks = (max(min(shard_clips, rows), 1),)
        group.create_array(
            "done", shape=(rows,), chunks=chunks, dtype="uint8", fill_value=0, compressors=[Crc32cCodec()]
        )
        group.attrs.update({"shard_clips": shard_clips, "digests": {}})
        group.attrs["fingerprint"] = fingerprint
    return group


def open_store(path: Path) -> zarr.Group:
    """Open a finished store for reading, wherever its arrays lie.

    Raises:
        FileNotFoundError: There is none; the text says which command makes it.
        StageError: Its address cannot be reached, or its header is damaged.
    """
    location = read_location(path)
    if location is None and not (path / "zarr.json").is_file():
        raise FileNotFoundError(f"{path} does not exist; `dvc repro` makes it (or `dvc pull`, if someone pushed it)")
    try:
        return _open(path, read_only=True)
    except FileNotFoundError:
        assert location is not None
        raise FileNotFoundError(
            f"{path} points to {location.url}, where no store is (any more); "
            "`dvc repro --force --single-item` of its stage makes it"
        ) from None


def open_for_writing(path: Path) -> zarr.Group:
    """Open a store that is there, whatever its fingerprint."""
    return _open(path, read_only=False)


def finish_store(path: Path, group: zarr.Group) -> None:
    """Mark a store as complete; where it lies elsewhere, note its contents' digest for DVC."""
    location = read_location(path)
    with clear_errors(location.url if location else ""):
        if not group.attrs.get("complete"):
            group.attrs["complete"] = True
        if location is not None:
            digest = hashlib.sha256(json.dumps(group.attrs.asdict(), sort_keys=True).encode()).hexdigest()
            if location.digest != digest:
                write_location(path, Location(location.url, location.fingerprint, digest))


def attributes(path: Path) -> dict[str, Any]:
    """The attributes of a store; none where there is no store.

    Raises:
        StageError: There is one that cannot be read.
    """
    try:
        if read_location(path) is None and not (path / "zarr.json").is_file():
            return {}
        return dict(_open(path, read_only=True).attrs.asdict())
    except FileNotFoundError:
        return {}


def read_fingerprint(path: Path) -> str | None:
    """The fingerprint of the stage run that wrote the store; None where there is none."""
    value = attributes(path).get("fingerprint")
    return value if isinstance(value, str) else None


def _open(path: Path, read_only: bool) -> zarr.Group:
    location = read_location(path)
    with clear_errors(location.url if location else "", missing=FileNotFoundError):
        try:
            return zarr.open_group(zarr_store(path, read_only), mode="r" if read_only else "r+", zarr_format=3)
        except FileNotFoundError:
            raise
        except (ValueError, KeyError) as error:
            raise StageError(
                f"the header of {path} is damaged ({type(error).__name__}: {error}); "
                f"`dvc checkout --force {path}` brings back the last version, or delete {path} to make it again"
            ) from None


# -- rows -------------------------------------------------------------------------------------------------------------


class ClipArray:
    """An array of a store; what cannot be read or written is an error that says what to do."""

    def __init__(self, source: zarr.Array) -> None:
        self._source = source
        self.shape: tuple[int, ...] = source.shape
        self.dtype: np.dtype[Any] = source.dtype
        self._where = address(source.store_path.store)

    @property
    def shards(self) -> int:
        """Clips per file."""
        return int((self._source.shards or self._source.chunks)[0])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Values of one clip (an integer), of several (a slice or a list), or a part of these (a tuple)."""
        rows, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if isinstance(rows, int | np.integer):
            return self._clip(int(rows), rest)
        if self._source.shards is None:
            return self._read(key)
        # clip by clip: that is faster, and Zarr takes an empty file for "nothing written" when it reads a whole shard
        chosen = np.arange(self.shape[0])[rows]
        if not len(chosen):
            return self._read(key)
        return np.stack([self._clip(int(row), rest) for row in chosen])

    def __setitem__(self, key: Any, values: Any) -> None:
        with clear_errors(self._where):
            self._source[key] = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self[:]
        return values if dtype is None else values.astype(dtype)

    def drop_shard(self, first: int) -> None:
        """Delete the file that holds the clips from `first` on, so that a damaged one can be written anew."""
        blocks = (first // self.shards, *[0] * (len(self.shape) - 1))
        key = f"{self._source.store_path.path}/{self._source.metadata.encode_chunk_key(blocks)}"
        with clear_errors(self._where):
            sync(self._source.store_path.store.delete(key))

    def _clip(self, row: int, rest: tuple[Any, ...]) -> np.ndarray:
        return self._read((row, *rest) if rest else row, row)

    def _read(self, key: Any, row: int = 0) -> np.ndarray:
        with clear_errors(self._where):
            try:
                return np.asarray(self._source[key])
            except (ValueError, RuntimeError, TypeError) as error:  # checksum, zstd, a file that is too short
                raise self._damage(row, error) from None

    def _damage(self, row: int, error: Exception) -> StageError:
        first = row // self.shards * self.shards
        last = min(first + self.shards, self.shape[0]) - 1
        path = self._source.store_path
        return StageError(
            f"{path} is damaged: clips {first} to {last} cannot be read ({error}). `head3d inspect --store` lists the "
            "damage; `dvc checkout --force` of that folder brings back the last version, or `dvc repro` of the stage "
            "makes these clips again"
        )


def address(store: Store) -> str:
    """Where a Zarr storage lies, if not in a local folder: for example `s3://bucket/folder`."""
    if isinstance(store, FsspecStore):
        protocol = store.fs.protocol
        return f"{protocol if isinstance(protocol, str) else protocol[0]}://{store.path}"
    return ""


def array(group: zarr.Group, name: str) -> ClipArray:
    """The array `name` of a store."""
    found = group[name]
    assert isinstance(found, zarr.Array)
    return ClipArray(found)


def write_rows(group: zarr.Group, first: int, values: Mapping[str, np.ndarray], done: np.ndarray) -> None:
    """Write a whole shard (or its last, shorter part) and mark it done.

    Args:
        group: The store, opened for writing.
        first: Row of the first clip; a multiple of the shard size.
        values: Array name -> `(n, ...)`; rows that hold nothing keep the fill value.
        done: `(n,)` 0/1.
    """
    count = len(done)
    marks = {"done": done.astype("uint8")}
    for name, rows in [*values.items(), *marks.items()]:
        array(group, name)[first : first + count] = rows
    known = attribute(group, "digests", {})
    new = {name: digest_of(rows) for name, rows in {**values, **marks}.items()}
    known[str(first)] = dict(sorted({**known.get(str(first), {}), **new}.items()))
    with clear_errors(address(group.store)):
        group.attrs["digests"] = dict(sorted(known.items(), key=lambda item: int(item[0])))


def attribute(group: zarr.Group, name: str, otherwise: Any) -> Any:
    """An attribute of a store, or what stands for it where it is missing."""
    return group.attrs.asdict().get(name, otherwise)


def digest_of(*values: np.ndarray) -> str:
    """Digest of arrays' values."""
    digest = hashlib.sha256()
    for rows in values:
        plain = rows + rows.dtype.type(0) if rows.dtype.kind == "f" else rows  # Zarr reads -0.0 back as 0.0
        digest.update(np.ascontiguousarray(plain).data)
    return digest.hexdigest()[:DIGEST_DIGITS]


def damaged(group: zarr.Group, tell: Callable[[], Any] = lambda: None) -> dict[int, list[str]]:
    """Read all that was written and compare it with what it was.

    Args:
        group: The store.
        tell: Called after every shard, for a progress bar.

    Returns:
        First row of each damaged shard -> its arrays that are missing, unreadable or changed.
    """
    found: dict[int, list[str]] = {}
    for first, digests in attribute(group, "digests", {}).items():
        wrong = [name for name, digest in digests.items() if not _intact(array(group, name), int(first), digest)]
        if wrong:
            found[int(first)] = wrong
        tell()
    return found


def _intact(values: ClipArray, first: int, digest: str) -> bool:
    try:
        return digest_of(values[first : first + values.shards]) == digest
    except StageError:
        return False


def damage_report(path: Path) -> list[str]:
    """What is wrong with a store, a sentence for every damaged shard; empty for a good one.

    Raises:
        FileNotFoundError: There is no such store.
    """
    group = open_store(path)
    size = array(group, "done").shards
    total = len(array(group, "done"))
    return [
        f"{path}: clips {first} to {min(first + size, total) - 1} are damaged ({', '.join(names)}); "
        f"`dvc checkout --force {path}` brings back the last version, or `dvc repro` of the stage makes these "
        "clips, and no others, again"
        for first, names in damaged(group).items()
    ]


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
