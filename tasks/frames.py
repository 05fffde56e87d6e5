"""Small things about frames that several stages share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def spread_frames(length: int, count: int) -> Tensor:
    """`count` frame indices spread evenly over a clip of `length` frames."""
    return torch.linspace(0, length - 1, count).round().long()


def to_uint8(images: Tensor) -> np.ndarray:
    """`(T, C, H, W)` in [0, 1] to stored frames `(T, H, W, C)` uint8."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
