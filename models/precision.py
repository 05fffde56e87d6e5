"""Which part of a step may run in bfloat16: the networks; never the geometry, whose pixels need more than 8 bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def mixed(device: torch.device, precision: str) -> torch.autocast:
    """Context in which convolutions and matrix products run in `precision`; the weights stay float32.

    Args:
        device: Where the networks lie.
        precision: `float32` or `bfloat16`.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def as_read(x: Tensor) -> Tensor:
    """`x` as the convolution that follows will round it inside `mixed`; elsewhere as it is.

    Rounded first, what is padded or enlarged on the way there is half as long in memory, and not copied once more.
    """
    kind = x.device.type
    if kind not in ("cuda", "cpu") or not torch.is_autocast_enabled(kind):  # others (meta) are not asked
        return x
    return x.to(torch.get_autocast_dtype(kind))


def store_short(network: nn.Module, precision: str) -> None:
    """Keep the weights of a frozen network's convolutions as `mixed` would round them, in every step anew.

    Args:
        network: Frozen; changed in place. It then runs inside `mixed` only.
        precision: `float32` (nothing changes) or `bfloat16`.
    """
    if precision == "bfloat16":
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(torch.bfloat16)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a function that keeps the types of its tensors inside `mixed`, where einsum would round float32 and
    an enlargement would give it."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return wrapped
