"""Takes training steps, recorded as CUDA graphs where that is possible."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.batches import batches_of
from tasks.device import compiled
from tasks.ranks import Ranks

if TYPE_CHECKING:
    from tasks.training import Training

Weights = dict[str, Tensor]


def trained_values(job: Training) -> Weights:
    """All floating-point values of the networks: weights and the statistics of batch norms."""
    return {
        f"{name}.{key}": value
        for name, module in job.modules.items()
        for key, value in module.state_dict().items()
        if value.is_floating_point()
    }


class Stepper:
    """Takes training steps; on a GPU it records one step of each phase as a CUDA graph and replays it.

    A step here is a thousand and more small kernels, and starting them from Python takes several times as long as
    running them. A recorded step is started at once.

    Attributes:
        names: Of the losses that `take` returns.
        batches: Where the steps' batches come from; to be closed.
        waited_s: Seconds in which the device had nothing to do because a step's data was drawn, read or copied.
    """

    WARM_STEPS = 3
    """Steps taken one by one before the recording: they let cuDNN choose, Adam allocate and NCCL connect."""

    def __init__(
        self, job: Training, record: bool, averaged: Weights, ranks: Ranks | None = None, fuse: bool = False
    ) -> None:
        """Prepare.

        Args:
            job: What is trained.
            record: Whether to record steps where that is possible.
            averaged: The running average, changed in place; empty: there is none.
            ranks: The processes that train together.
            fuse: Whether to compile the losses, on a GPU.
        """
        self._losses = compiled(job.losses.__call__) if fuse and job.device.type == "cuda" else job.losses.__call__
        self.job, self.names, self.waited_s = job, [""], 0.0
        self.ranks = ranks or Ranks.here()
        self.batches = batches_of(job, self.ranks)
        self._average = [(averaged[name], value) for name, value in trained_values(job).items() if name in averaged]
        self.record = record and job.device.type == "cuda"
        self._searched = torch.backends.cudnn.benchmark
        if self.record:  # a step's shapes do not change: it pays to try which of cuDNN's algorithms is fastest
            torch.backends.cudnn.benchmark = True
        self._phase, self._taken = "", 0
        self._drawn: dict[str, Tensor] = {}
        self._values = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._computed = torch.cuda.Event() if job.device.type == "cuda" else None

    def take(self, step: int) -> Tensor:
        """Take a step; returns its losses, the mean over all devices, in the order of `names`."""
        job = self.job
        phase = job.losses.phase(step)
        if phase != self._phase:
            self._phase, self._taken, self._graph = phase, 0, None
        for group, rate in zip(job.optimiser.param_groups, job.rates(step), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._draw(step)
        if self.record and self._taken == self.WARM_STEPS:
            self._record()
        if self._graph is None:
            values = self._compute()
        else:
            self._graph.replay()
            values = self._values.clone()
        if self._computed is not None:
            self._computed.record()
        self._taken += 1
        return values

    def close(self) -> None:
        """Let go of the recorded step, as must be before the processes part, and of the batches."""
        self._graph = None
        torch.backends.cudnn.benchmark = self._searched
        self.batches.close()

    def _draw(self, step: int) -> None:
        """This process's share of a step's batch, on the device."""
        begin = time.perf_counter()
        self._drawn = self.batches.get(step)
        # The device waits only if it was done with the step before: usually the host is ahead of it.
        if self._computed is None or self._computed.query():
            self.waited_s += time.perf_counter() - begin

    def _compute(self) -> Tensor:
        self.job.optimiser.zero_grad(set_to_none=True)
        losses = self._losses(self._phase, self._drawn)
        losses["total"].backward()
        values = torch.stack([value.detach().float() for value in losses.values()])
        if self.ranks.count > 1:
            groups = self.job.optimiser.param_groups
            slopes = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            self.ranks.average_([values, *slopes])
        self.job.optimiser.step()
        if self._average:
            kept, new = ([pair[i] for pair in self._average] for i in (0, 1))
            torch._foreach_lerp_(kept, new, 1 - self.job.average)
        self.names = list(losses)
        return values

    def _record(self) -> None:
        torch.cuda.synchronize()
        self.job.optimiser.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        # NCCL has threads of its own, as prefetched batches do; their calls must not spoil the recording.
        mode = "global" if self.ranks.count == 1 and self.job.rows is None else "thread_local"
        with torch.cuda.graph(graph, capture_error_mode=mode):
            self._values = self._compute()
        self._graph = graph
