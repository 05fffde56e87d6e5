"""Tensors that depend on sizes alone, kept for a path that runs many times: a GPU need not make them in every frame."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Kept = dict[Hashable, Tensor]
_HERE = threading.local()


@contextmanager
def keeping(kept: Kept) -> Iterator[None]:
    """Context in which `constant` makes a tensor once.

    Args:
        kept: Filled by the first run, which is not to be recorded as a CUDA graph (`models/engine.py` runs a path a few
            times before it does that). It belongs to one camera.
    """
    before = getattr(_HERE, "kept", None)
    _HERE.kept = kept
    try:
        yield
    finally:
        _HERE.kept = before


def constant(name: str, sizes: tuple[float, ...], like: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives; outside of `keeping`, and for compilers and exporters, it is made in every call.

    Args:
        name: Of what is made.
        sizes: What it depends on.
        like: Its type and device.
        make: Makes it, without copies from the host, which a CUDA graph could not record.
    """
    # Asked first, so that torch.compile has nothing else of this function to trace.
    kept: Kept | None = None if torch.compiler.is_compiling() else getattr(_HERE, "kept", None)
    if kept is None:
        return make()
    key = (name, sizes, like.dtype, like.device)
    if key not in kept:
        kept[key] = make()
    return kept[key]
