"""Disks that are full or read-only: told before the start where possible, and in one sentence when it happens."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import StageError

if TYPE_CHECKING:
    import numpy as np

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
FATAL = FULL | {errno.EROFS}
"""Errors of a job that would meet every other job as well: they stop the stage instead of costing a video."""
SPARE_BYTES = 16 << 20
"""Less than this beside one shard, and no work is begun."""


def size_text(count: float) -> str:
    """A number of bytes for people: `1.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def free_bytes(folder: Path) -> int:
    """Room on the disk that holds `folder` (or its nearest parent that exists)."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(folder: Path, *, least_bytes: int, about_bytes: int) -> str:
    """Look at the free space before work begins.

    Args:
        folder: Where the stage writes.
        least_bytes: Without this much, not one shard can be written.
        about_bytes: What the whole stage is likely to need.

    Returns:
        A warning, or nothing.

    Raises:
        StageError: Not one shard can be written.
    """
    free = free_bytes(folder)
    if free < least_bytes + SPARE_BYTES:
        raise StageError(_full_text(folder, about_bytes))
    if free < about_bytes:
        return (
            f"the disk of {folder} may become full: about {size_text(about_bytes)} are to be written, "
            f"{size_text(free)} are free. If it does, finished work is kept: make room and run the stage again"
        )
    return ""


def check_writable(folder: Path) -> None:
    """Create the folder if need be, and a file in it for a moment.

    Raises:
        StageError: It cannot be written to.
    """
    probe = folder / ".writable.partial"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(folder: Path, about_bytes: int = 0) -> Iterator[None]:
    """Inside, errors of a full or read-only disk become a StageError.

    Args:
        folder: Where is written.
        about_bytes: What the work in all is likely to write; 0: unknown.
    """
    try:
        yield
    except OSError as error:
        text = storage_text(error, folder, about_bytes)
        if not text:
            raise
        raise StageError(text) from error


def storage_text(error: OSError, folder: Path, about_bytes: int = 0) -> str:
    """What to tell about an error of the disk; empty for any other error."""
    if error.errno in FULL:
        return _full_text(folder, about_bytes, error.errno)
    if error.errno in READ_ONLY:
        place = error.filename or folder
        return (
            f"cannot write {place}: {os.strerror(error.errno).lower()}. The folder belongs to someone else or its disk "
            "is mounted read-only; nothing was lost: make it writable and run the stage again"
        )
    return ""


def _full_text(folder: Path, about_bytes: int, number: int = errno.ENOSPC) -> str:
    needs = f" and about {size_text(about_bytes)} are to be written in all" if about_bytes else ""
    cause = {errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "a file would exceed the size limit (ulimit -f)"}
    text = cause.get(number, "the disk is full")
    return (
        f"{text}: {size_text(free_bytes(folder))} are free at {folder}{needs}. Finished work is kept: make room and "
        "run the stage again; it goes on from here"
    )


@contextlib.contextmanager
def whole_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """Write a file that appears under its name only when it is complete; until then, the older one stays.

    An error inside leaves nothing else behind. What kill -9 leaves ends in `.partial`, which fingerprints pass over;
    where one process writes at a time, the next one writes over it.

    Args:
        path: The file; its folder is there.
        shared: Processes may write it at the same time (workers, two commands on one folder): each does so under a
            name of its own, and the last one to finish wins.

    Yields:
        Where to write, in the same folder.
    """
    own = f".{socket.gethostname()}-{os.getpid()}" if shared else ""
    partial = path.with_name(f".{path.name.removeprefix('.')}{own}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz that appears under its name only when it is complete, from any number of processes.

    Args:
        path: The file.
        arrays: Name -> array.
    """
    import numpy as np

    with whole_file(path, shared=True) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
