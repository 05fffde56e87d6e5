"""A file in HopeNet's public format with made-up weights, and the pictures it is tried on."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor

BLOCKS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width and number of the bottlenecks of ResNet-50's four layers."""


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Values of mean 0 and variance 1 by integer arithmetic, so that every version of torch makes the same."""
    state = (torch.arange(math.prod(shape)) * 2654435761 + seed * 40503 + 12345) % 4294967296
    for factor in (1103515245, 69069):
        state = ((state ^ (state >> 15)) * factor) % 4294967296
    return ((state.double() / 4294967296 - 0.5) * math.sqrt(12)).reshape(shape).float()


def _shapes() -> dict[str, tuple[int, ...]]:
    """The public checkpoint's keys; saved by torch 0.3, which did not count batches in BatchNorm."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})

    norm("bn1", 64)
    last = 64
    for layer, (width, count, _stride) in enumerate(BLOCKS, start=1):
        for index in range(count):
            name = f"layer{layer}.{index}"
            convs = ((width, last, 1), (width, width, 3), (4 * width, width, 1))
            for part, (out, into, side) in enumerate(convs, start=1):
                shapes[f"{name}.conv{part}.weight"] = (out, into, side, side)
                norm(f"{name}.bn{part}", out)
            if index == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, last, 1, 1)
                norm(f"{name}.downsample.1", 4 * width)
            last = 4 * width
    for head in ("fc_yaw", "fc_pitch", "fc_roll"):
        shapes.update({f"{head}.weight": (66, 2048), f"{head}.bias": (66,)})
    return {**shapes, "fc_finetune.weight": (3, 2051), "fc_finetune.bias": (3,)}


def public_state() -> OrderedDict[str, Tensor]:
    """Key -> made-up weights that keep the signal's size through the network."""
    state = OrderedDict()
    for seed, (key, shape) in enumerate(_shapes().items()):
        value = _noise(shape, seed)
        if len(shape) == 4:
            value = value * math.sqrt(2 / math.prod(shape[1:]))
        elif len(shape) == 2:
            value = value * 0.004
        elif key.endswith("running_var"):
            value = 1 + 0.2 * value
        elif key.endswith("weight"):
            # The last norm of a block is small, or sixteen blocks would add up to huge features.
            value = (0.4 if key.endswith("bn3.weight") else 1.0) * (1 + 0.1 * value)
        else:
            value = 0.1 * value
        state[key] = value
    return state


def picture() -> Tensor:
    """Two pictures of 224 px, `(2, 3, 224, 224)`, in [0, 1]: smooth waves, and noise."""
    x = torch.linspace(0, 1, 224).view(1, 1, -1)
    y = torch.linspace(0, 1, 224).view(1, -1, 1)
    phase = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1)
    waves = 0.5 + 0.4 * torch.sin(9 * x + 5 * y * y + phase)
    noise = (0.5 + 0.25 * _noise((3, 224, 224), 999)).clamp(0, 1)
    return torch.stack([waves, noise])
