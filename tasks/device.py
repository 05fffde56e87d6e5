"""Which device to compute on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn

from tasks.errors import StageError

Network = TypeVar("Network", bound=nn.Module)


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one.

    Raises:
        StageError: The device asked for is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StageError(f"runtime.device is {name}, but torch sees no GPU; set it to auto or cpu")
    return device


def placed(network: Network, device: torch.device) -> Network:
    """The network on a device; on a GPU with its weights in channels-last order, which the convolutions there need
    (otherwise every one of them copies its input: a tenth of a step, measured on an H200).

    Args:
        network: Changed in place.
        device: Where it shall lie.
    """
    if device.type != "cuda":
        return network.to(device)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_networks(networks: Iterable[nn.Module]) -> None:
    """Let torch.compile fuse the small kernels of networks on a GPU; on a CPU nothing happens. What cannot be compiled
    runs as it is, with a warning.

    Args:
        networks: Changed in place; their weights keep their names.
    """
    torch._dynamo.config.suppress_errors = True
    for network in networks:
        if any(value.is_cuda for value in network.parameters()):
            network.compile(dynamic=False)
