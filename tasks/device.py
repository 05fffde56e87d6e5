"""Which device to compute on."""

from __future__ import annotations

import torch

from tasks.errors import StageError


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
