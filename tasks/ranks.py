"""The processes that train together, one a device: each takes its share of every batch, gradients are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tasks.errors import StageError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        index: Its number; 0 alone writes files and shows progress.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """Of this process; alone unless `tasks.devices.on_devices` (or torchrun) has joined several."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether it is the one that writes."""
        return self.index == 0

    def share(self, drawn: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        """This process's samples of a batch that all have drawn alike.

        Args:
            drawn: Tensors whose rows belong to samples, in their order (several a sample, but equally many); a tensor
                without rows goes to everyone.
            name: Stage name, for the error.

        Returns:
            Every `count`-th part of the rows.

        Raises:
            StageError: A tensor's rows cannot be shared evenly.
        """
        if self.count == 1:
            return drawn
        for key, value in drawn.items():
            if value.dim() and len(value) % self.count:
                raise StageError(
                    f"{name}: {len(value)} rows of '{key}' cannot be shared evenly by {self.count} devices; change "
                    f"runtime.devices, or batch_videos (in stage 1 rendered_batch, too) to a multiple of {self.count}"
                )
        return {
            key: value.chunk(self.count)[self.index].contiguous() if value.dim() else value
            for key, value in drawn.items()
        }

    def average_(self, values: Iterable[Tensor]) -> None:
        """Replace tensors by their mean over all processes: one all-reduce a dtype, which a CUDA graph can record."""
        if self.count > 1:
            for part in _by_dtype(values):
                flat = torch.cat([value.reshape(-1) for value in part])
                dist.all_reduce(flat)
                _spread(flat.div_(self.count), part)

    def mean(self, total: Tensor, known: Tensor) -> Tensor:
        """A mean over what is known of the whole batch, of which each process has a share: the sum of all totals by
        that of all counts is the mean of what the processes get here, and so it is with gradients.

        Args:
            total: Sum over this process's share.
            known: How much of the share is known; not followed back.

        Returns:
            On one device `total / known`, `known` at least 1.
        """
        known = known.detach().float()
        if self.count > 1:
            known = known.clone()
            self.average_([known])
        return total / known.clamp(min=1 / self.count)

    def same_(self, values: Iterable[Tensor]) -> None:
        """Replace tensors by those of process 0."""
        if self.count > 1:
            for part in _by_dtype(values):
                flat = torch.cat([value.reshape(-1) for value in part])
                dist.broadcast(flat, 0)
                _spread(flat, part)

    def share_statistics(self, modules: Iterable[nn.Module]) -> None:
        """Make batch norms inside networks see the whole batch, as on one device; in place, the weights stay.

        torch has this for GPUs only: on the CPU every process keeps the statistics of its own share.
        """
        for module in modules:
            if self.count > 1 and next(module.parameters()).is_cuda:
                nn.SyncBatchNorm.convert_sync_batchnorm(module)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


def batch_mean() -> Callable[[Tensor, Tensor], Tensor]:
    """`Ranks.mean` of this process, for losses that may be compiled: what asks other processes is left out of that."""
    ranks = Ranks.here()
    return ranks.mean if ranks.count == 1 else torch.compiler.disable(ranks.mean)


def _by_dtype(values: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for value in values:
        if value.numel():
            groups.setdefault(value.dtype, []).append(value)
    return list(groups.values())


@torch.no_grad()
def _spread(flat: Tensor, targets: list[Tensor]) -> None:
    parts = flat.split([target.numel() for target in targets])
    torch._foreach_copy_(targets, [part.view(target.shape) for part, target in zip(parts, targets, strict=True)])
