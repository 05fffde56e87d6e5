"""A training on points that do not lie on the device, and checks of it that need a GPU and nothing but torch beside it:
`python -m tests.tasks.point_training`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.batches import Batches, PrefetchedBatches
from tasks.optimiser import adam
from tasks.ranks import Ranks
from tasks.room import Rows
from tasks.stepper import Stepper
from tasks.training import Training

CPU = torch.device("cpu")
POINTS = torch.rand(500, 6, generator=torch.Generator().manual_seed(1))


class PointLoss:
    """A network's answers to some of many points, which do not lie on the device, shall be 1."""

    def __init__(self, network: torch.nn.Module, at: dict[int, Any] | None = None) -> None:
        self.network, self.at, self.device = network, at or {}, next(network.parameters()).device

    def phase(self, step: int) -> str:
        return "start" if step < 5 else "rest"

    def draw(self, step: int) -> dict[str, Tensor]:
        if step in self.at:
            self.at[step]()
        generator = torch.Generator().manual_seed(step)
        which = torch.randint(len(POINTS), (8, 3), generator=generator)
        return {"which": which, "noise": torch.randn(8, 1, 1, generator=generator), "step": torch.tensor(step)}

    def rows(self, drawn: dict[str, Tensor]) -> dict[str, Rows]:
        return {"points": Rows(POINTS, drawn["which"])}

    def __call__(self, phase: str, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        del phase
        error = (self.network(drawn["points"]) + 0.1 * drawn["noise"] - 1).square().mean()
        return {"error": error, "total": error}


def point_job(steps: int = 12, device: torch.device = CPU, at: dict[int, Any] | None = None) -> Training:
    torch.manual_seed(0)
    network = torch.nn.Linear(6, 2).to(device)
    loss = PointLoss(network, at)
    optimiser = adam([{"params": list(network.parameters())}], 1e-2)
    return Training("points", {"net": network}, optimiser, steps, loss, lambda _: [1e-2], {}, 4, rows=loss.rows)


class ResidentLoss(PointLoss):
    """The same on points that lie on the device."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__(network)
        self.points = POINTS.to(self.device)

    def __call__(self, phase: str, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().__call__(phase, {**drawn, "points": self.points[drawn["which"]]})


def batches_on_a_slow_gpu(steps: int = 60) -> bool:
    """The host is far ahead of a GPU that takes its time; what it then reads is still each step's own batch."""
    job, found = point_job(device=torch.device("cuda", 0)), []
    plain = Batches(point_job(), Ranks())
    with PrefetchedBatches(job, Ranks()) as batches:
        for step in range(steps):
            values = batches.get(step)
            torch.cuda._sleep(5_000_000)
            found.append(values["points"].clone())
    wanted = [POINTS[plain.get(step)["which"]] for step in range(steps)]
    return all(torch.equal(points.cpu(), other) for points, other in zip(found, wanted, strict=True))


def recorded_losses(steps: int = 30) -> tuple[Tensor, Tensor]:
    """Losses of recorded steps, on prefetched points and on points that lie on the GPU."""
    made = []
    for kind in (PointLoss, ResidentLoss):
        job = point_job(steps, torch.device("cuda", 0))
        job.losses = kind(job.modules["net"])
        if kind is ResidentLoss:
            job.rows = None
        stepper = Stepper(job, True, {})
        made.append(torch.cat([stepper.take(step) for step in range(steps)]).cpu())
        assert stepper._graph is not None
        stepper.close()
    return made[0], made[1]


if __name__ == "__main__":
    first, second = recorded_losses()
    slow = batches_on_a_slow_gpu()
    print(f"own batches on a slow GPU: {slow}; losses apart: {float((first - second).abs().max())}")  # noqa: T201
