"""How features lie in memory where torch.compile writes them: with the channels last, as convolutions on a GPU read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import as_read

WHOLE_CHANNELS = 8
"""A GPU's matrix units take so many channels at once; other numbers are filled up by a copy."""


def channels_last(x: Tensor) -> Tensor:
    """`x (B, C, H, W)`, compiled with the channels last, where writing it so costs nothing; otherwise as it is.

    What lies otherwise is copied by the gradient of every convolution that reads it: 52 copies in a step of stage 1.
    """
    return x.contiguous(memory_format=torch.channels_last) if torch.compiler.is_dynamo_compiling() else x


def joined(conv: nn.Conv2d, parts: Sequence[Tensor]) -> Tensor:
    """`conv` of images joined by their channels; compiled, filled up with zeros to a number that a GPU takes as it is.

    Args:
        conv: Without groups or bias.
        parts: `(B, C_i, H, W)`.

    Returns:
        As `conv(torch.cat(parts, 1))`.
    """
    parts = [as_read(part) for part in parts]  # or a picture of float32 would make all of it float32
    missing = -conv.in_channels % WHOLE_CHANNELS
    if not torch.compiler.is_dynamo_compiling() or not missing:
        return conv(channels_last(torch.cat(parts, 1)))
    first = parts[0]
    zeros = first.new_zeros(first.shape[0], missing, *first.shape[2:])
    x = channels_last(torch.cat([*parts, zeros], 1))
    return F.conv2d(x, F.pad(conv.weight, (0, 0, 0, 0, 0, missing)), None, conv.stride, conv.padding, conv.dilation)
