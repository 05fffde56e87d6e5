"""Where large tensors lie: on the device if they fit, else in the host's memory, else in a file that is mapped.

Those that do not lie on the device are streamed: `tasks.batches` brings what a step needs of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.config import ClipsOnGpu
from tasks.errors import StageError
from tasks.ranks import Ranks

GPU_SHARE, HOST_SHARE = 0.5, 0.7
"""Tensors fit if they take at most this share of the memory that is free: the rest is for networks and programs."""
DISK_LEFT = 2**30
"""Bytes that a file must leave free on its disk, for checkpoints and what else is written meanwhile."""
ON_DEVICE, IN_MEMORY, IN_FILE = range(3)

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Rows(NamedTuple):
    """Rows of a streamed tensor.

    Attributes:
        source: `(rows, ...)`, on the CPU.
        which: Numbers of rows, in any shape, on the CPU.
    """

    source: Tensor
    which: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all these rows together: that of `which`, then that of a row."""
        return (*self.which.shape, *self.source.shape[1:])

    def into(self, out: Tensor) -> None:
        """Copy them into a tensor of `shape`, in this thread alone: torch would wake threads that keep cores from the
        step beside it (measured on two cores: steps took half as long again)."""
        # any mode but the default writes into `out` at once; the rows are checked by hand then
        if self.which.numel() and not 0 <= int(self.which.min()) <= int(self.which.max()) < len(self.source):
            raise IndexError(f"rows {int(self.which.min())} to {int(self.which.max())} of {len(self.source)}")
        np.take(self.source.numpy(), self.which.numpy(), axis=0, out=out.numpy(), mode="clip")


@dataclass(frozen=True)
class Space:
    """Large tensors, to be filled.

    Attributes:
        tensors: By name.
        streamed: They do not lie where steps are computed (or shall be treated so).
        shared: All processes that train together see the same memory.
    """

    tensors: dict[str, Tensor]
    streamed: bool = False
    shared: bool = False

    def mine(self, count: int) -> range:
        """Of `count` rows, those that this process has to fill."""
        ranks = Ranks.here()
        return range(ranks.index, count, ranks.count) if self.shared else range(count)

    def filled(self) -> None:
        """Wait until the others have filled their rows, too."""
        if self.shared:
            Ranks.here().wait()


@dataclass(frozen=True)
class Room:
    """What there is for large tensors.

    Attributes:
        device: Where steps are computed.
        on_gpu: `runtime.clips_on_gpu`.
        folder: For files that are larger than the memory; they have no name and vanish with the process.
    """

    device: torch.device
    on_gpu: ClipsOnGpu
    folder: Path

    @classmethod
    def on(cls, device: torch.device) -> Room:
        """Everything goes on the device."""
        return cls(device, "always", Path())

    def space(self, shapes: Shapes) -> Space:
        """Make tensors, all in the same place; every process that trains together must call it.

        Args:
            shapes: Name -> shape and type.

        Raises:
            StageError: There is no place for them.
        """
        size = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes.values())
        place = self._place(size)
        if place != IN_FILE:
            where = self.device if place == ON_DEVICE else torch.device("cpu")
            made = {name: torch.empty(shape, dtype=dtype, device=where) for name, (shape, dtype) in shapes.items()}
            return Space(made, streamed=place != ON_DEVICE)
        self._check_disk(size)
        made = {name: self._in_file(name, shape, dtype) for name, (shape, dtype) in shapes.items()}
        return Space(made, streamed=True, shared=Ranks.here().count > 1)

    def _place(self, size: int) -> int:
        """The first process looks how much is free, before any process takes of it."""
        ranks = Ranks.here()
        place = torch.tensor(self._fitting(size, ranks.count), device=self.device)
        ranks.same_([place])
        return int(place)

    def _fitting(self, size: int, processes: int) -> int:
        host = free_host_memory() // processes  # unless they lie in a file, every process has its own
        free = free_gpu_memory(self.device) if self.device.type == "cuda" else host
        if self.on_gpu == "always" and size > free:
            raise StageError(
                f"runtime.clips_on_gpu is always, but the clips take {_gb(size)} and {_gb(free)} are free on "
                f"{self.device}; set it to auto"
            )
        share = GPU_SHARE if self.device.type == "cuda" else HOST_SHARE
        if self.on_gpu == "always" or (self.on_gpu == "auto" and size <= share * free):
            return ON_DEVICE
        return IN_MEMORY if size <= HOST_SHARE * host else IN_FILE

    def _check_disk(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if Ranks.here().first and size > free - DISK_LEFT:
            raise StageError(
                f"the clips take {_gb(size)}: there is too little memory for them ({_gb(free_host_memory())} are free) "
                f"and too little disk for a file of them ({_gb(free)} are free in {self.folder}). Free disk space, "
                "or prepare fewer clips (crop.train_clips_per_video, limits in acquire) or smaller ones (crop.size_px)"
            )

    def _in_file(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor in a mapped file without a name, which all processes share.

        The disk's blocks are taken at once: a disk that is full later would kill the process that writes.
        """
        ranks, file, count = Ranks.here(), self.folder / f".large-{name}", torch.Size(shape).numel()
        if ranks.first:
            file.unlink(missing_ok=True)  # of a run that was killed just here
            with file.open("xb") as stream:
                _reserve(stream.fileno(), count * dtype.itemsize)
        ranks.wait()
        values = torch.from_file(str(file), shared=True, size=count, dtype=dtype)
        ranks.wait()
        if ranks.first:
            file.unlink()
        return values.view(shape)


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:  # macOS
        os.truncate(file, size)


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def free_gpu_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, what torch keeps for itself given back before."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def free_host_memory() -> int:
    """Bytes that programs on this machine (or in this container) can still take without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        import psutil

        return int(psutil.virtual_memory().available)
    groups = Path("/sys/fs/cgroup")
    pairs = [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]
    return min([free, *(_left(groups / limit, groups / used) for limit, used in pairs)])


def _left(limit: Path, used: Path) -> int:
    """What a control group leaves; the cache of files counts as used there, but gives way."""
    try:
        stat = (limit.parent / "memory.stat").read_text(encoding="utf-8").splitlines()
        cache = sum(int(line.split()[1]) for line in stat if line.split()[0] in ("inactive_file", "active_file"))
        return max(int(limit.read_text(encoding="utf-8")) - int(used.read_text(encoding="utf-8")) + cache, 0)
    except (OSError, ValueError):  # no such group, or "max": no limit
        return 2**62
