"""Adam as the training stages use it: the paper's betas, gradients of bounded length, recordable in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor


class BoundedAdam(torch.optim.Adam):
    """Adam that first shortens the gradient of each group to a given length.

    Source: our choice. One bad batch in thousands (a region that shrinks to a point, an attention of nearly 1) can have
    a gradient a thousand times the usual one; without the bound it threw stage 3 off its way after 2,000 steps.
    """

    def __init__(self, groups: list[dict[str, Any]], clip_norm: float, **options: Any) -> None:
        """As Adam.

        Args:
            groups: Parameter groups, each with a list `params`; one with `bounded` False is left alone.
            clip_norm: Length that the gradient of each group may have; 0: any.
            options: Adam's own.
        """
        super().__init__(groups, **options)
        self.clip_norm = clip_norm

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """A step; no value is read back from the GPU."""
        if self.clip_norm:
            for group in self.param_groups:
                if group.get("bounded", True):
                    trained: list[Tensor] = group["params"]
                    torch.nn.utils.clip_grad_norm_(trained, self.clip_norm)
        return super().step(closure) if closure is not None else super().step()


def adam(groups: list[dict[str, Any]], lr: float, clip_norm: float = 0.0) -> BoundedAdam:
    """Adam with the paper's betas (Sec. 4.2), in the form that the parameters' device runs best.

    Args:
        groups: Parameter groups, each with a list `params`.
        lr: Learning rate to start with.
        clip_norm: Length that the gradient of each group may have; 0: any.
    """
    on_gpu = groups[0]["params"][0].is_cuda
    if not on_gpu:
        return BoundedAdam(groups, clip_norm, lr=lr, betas=(0.5, 0.999))
    # A rate in a tensor and steps counted on the GPU: both can change between replays of a recorded step.
    rates = [torch.tensor(lr, device=groups[0]["params"][0].device) for _ in groups]
    groups = [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)]
    return BoundedAdam(groups, clip_norm, betas=(0.5, 0.999), fused=True, capturable=True)


def restore(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put an optimiser's state back, wherever it was saved: what depends on the device stays this optimiser's own.

    That is its form, its rates (a tensor must stay on its device) and the order of its moments in memory: a fused Adam
    on the CPU pairs them with the weights by that order.

    Args:
        optimiser: Over the same parameters, in the same groups.
        state: Its state_dict, on the CPU.
    """
    own = [
        {name: group[name] for name in ("lr", "fused", "capturable", "foreach") if name in group}
        for group in optimiser.param_groups
    ]
    groups = [{**saved, **kept} for saved, kept in zip(state["param_groups"], own, strict=True)]
    optimiser.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimiser.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and name != "step":
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
