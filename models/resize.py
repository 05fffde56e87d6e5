"""Doubling of features, in the form that a GPU differentiates fast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear_x2(x: Tensor) -> Tensor:
    """Bilinear enlargement by two, as `F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)`.

    Every new value is 3/4 of the nearer and 1/4 of the farther neighbour. Written as shifted copies, its gradient needs
    none of the atomic additions that make the library's the slowest kernel of a training step. Without gradients it is
    the library's, which is one kernel.

    Args:
        x: `(B, C, H, W)`.

    Returns:
        `(B, C, 2 H, 2 W)`.
    """
    if not torch.is_grad_enabled():
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return _double(_double(x, 3), 2)


def _double(x: Tensor, dim: int) -> Tensor:
    length = x.shape[dim]
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, length - 1)], dim)
    after = torch.cat([x.narrow(dim, 1, length - 1), x.narrow(dim, length - 1, 1)], dim)
    pairs = torch.stack([torch.lerp(x, before, 0.25), torch.lerp(x, after, 0.25)], dim + 1)
    return pairs.flatten(dim, dim + 1)
