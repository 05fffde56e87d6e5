"""Doubling of features, in the form that a GPU differentiates fast."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import as_read, full_precision


def bilinear_x2(x: Tensor) -> Tensor:
    """Bilinear enlargement by two, as `F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)`.

    It is the library's, which is one kernel; its gradient is our own.

    Args:
        x: `(B, C, H, W)`.

    Returns:
        `(B, C, 2 H, 2 W)`.
    """
    return _Doubled.apply(x) if torch.is_grad_enabled() and x.requires_grad else _doubled(x)


@full_precision
def _doubled(x: Tensor) -> Tensor:
    """In the type of `x`: inside `mixed` the library's would give float32, twice as long and to be rounded again."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class _Doubled(torch.autograd.Function):
    """`_doubled`, whose gradient is gathered from shifted copies.

    The library's adds atomically, which makes it the slowest kernel of a training step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """`(B, C, H, W)` doubled."""
        del ctx
        return _doubled(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """A value gives 3/4 to each of the two nearest of its four new ones along an axis, 1/4 to the two beside them;
        at the edge it stands for what would lie beyond."""
        del ctx
        padded = F.pad(gradients[0], (1, 1, 1, 1), mode="replicate")
        return _gathered(_gathered(padded, 3), 2)


class NearestX2(nn.Module):
    """Nearest enlargement by two, in the type that the convolution after it reads."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C, 2 H, 2 W)`."""
        return _repeated(as_read(x))


@full_precision
def _repeated(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _gathered(padded: Tensor, dim: int) -> Tensor:
    """1/4, 3/4, 3/4, 1/4 of four values along an axis, at every second place; `2 n + 2` become `n`."""
    first, second = padded.unflatten(dim, (-1, 2)).unbind(dim + 1)
    count = first.shape[dim] - 1
    outer = first.narrow(dim, 0, count) + second.narrow(dim, 1, count)
    inner = second.narrow(dim, 0, count) + first.narrow(dim, 1, count)
    return torch.lerp(outer, inner, 0.75)
