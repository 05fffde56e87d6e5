"""A batch shared by two processes, in one: what each makes of its part, with the other's counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tasks.ranks import Ranks

COUNT = 2


def mean_of_shares(loss: Any, phase: str, drawn: dict[str, torch.Tensor]) -> dict[str, float]:
    """Mean of the losses that two processes compute; the first round is for what they tell each other."""
    told: list[list[torch.Tensor]] = []
    found: list[dict[str, torch.Tensor]] = []

    def listen(_: Ranks, values: list[torch.Tensor]) -> None:
        told[-1].append(torch.cat([value.flatten() for value in values]).clone())

    def answer(_: Ranks, values: list[torch.Tensor]) -> None:
        others = torch.stack([process.pop(0) for process in told_to])
        for value, mean in zip(values, others.mean(0), strict=True):
            value.copy_(mean)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for act in (listen, answer):
            patch.setattr(Ranks, "average_", act)
            found.clear()
            for index in range(COUNT):
                ranks = Ranks(index, COUNT)
                told_to = [list(process) for process in told[:COUNT]]
                told.append([])
                patch.setattr(loss, "mean", ranks.mean)
                found.append(loss(phase, ranks.share(drawn, "shares")))
    return {name: float(sum(share[name] for share in found)) / COUNT for name in found[0]}


def on_one(loss: Any, phase: str, drawn: dict[str, torch.Tensor]) -> dict[str, float]:
    """The losses of the whole batch."""
    with torch.no_grad():
        return {name: float(value) for name, value in loss(phase, drawn).items()}
