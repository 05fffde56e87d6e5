"""Pictures as trained networks expect them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalised(nn.Module):
    """(image - mean) / deviation, channel by channel; ImageNet's statistics unless others are given.

    They are no part of the state dict: public checkpoints do not hold them.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, deviation: Sequence[float] = IMAGENET_DEVIATION) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(list(values)).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] to the same shape."""
        return (image - self.mean) / self.deviation
