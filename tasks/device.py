"""Which device to compute on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from tasks.errors import StageError

Network = TypeVar("Network", bound=nn.Module)
P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")


def choose_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one; a GPU with a number becomes the current one.

    Raises:
        StageError: The device asked for is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StageError(f"there is no device '{name}'; set runtime.device to auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StageError(f"runtime.device is {name}, but torch sees no GPU; set it to auto or cpu")
    if device.type == "cuda" and device.index is not None:
        count = torch.cuda.device_count()
        if device.index >= count:
            raise StageError(f"runtime.device is {name}, but torch numbers its GPUs up to cuda:{count - 1}; set one")
        torch.cuda.set_device(device)  # graphs, events and streams that name no GPU belong to the current one
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


@functools.lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def beside(device: torch.device, first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
    """Two computations that do not need each other, on a GPU at the same time; their gradients, too.

    Small kernels leave most of a GPU idle. Where `compiled` is at work, this is to be left out of it
    (`torch.compiler.disable(beside, recursive=False)`): each of the two is then compiled for itself.

    Args:
        device: Where they run.
        first: Returns tensors, in tuples or not.
        second: The same.
    """
    if device.type != "cuda":
        return first(), second()
    here, there = torch.cuda.current_stream(device), _side_stream(device)
    there.wait_stream(here)
    with torch.cuda.stream(there):
        one = first()
    two = second()
    here.wait_stream(there)
    for leaf in tree_leaves(one):
        if isinstance(leaf, torch.Tensor):
            leaf.record_stream(here)  # or its memory might be given away before `here` has read it
    return one, two


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose small kernels torch.compile fuses; what cannot be compiled runs as it is, with a warning.

    The whole of a stage's losses is compiled, not its networks one by one: a third of the kernels lies between them.

    Args:
        function: Of tensors on a GPU.
    """
    fused = torch.compile(function, dynamic=False)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # The phases of a stage and whatever else is compiled beside it: each shape is a version of its own.
        with torch._dynamo.config.patch(suppress_errors=True, recompile_limit=64):
            return fused(*args, **kwargs)

    return call
