"""What a device can compute at best: a large matrix product, timed. The share of it is how the benches rate a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

SIDE_GPU, SIDE_CPU = 8192, 1024
"""Side of the square matrices: large enough for the product itself to be all of the time."""
ROUNDS, REPEATS_GPU, REPEATS_CPU = 5, 10, 2


@torch.no_grad()
def measured_peak(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Operations a second of a large matrix product, the best of a few rounds.

    Args:
        device: Where to compute. On a CPU the product is in float32, whatever `dtype` says: few processors have
            arithmetic of their own for the short types.
        dtype: Type of the matrices on a GPU; float32 there uses TF32 if torch is told to.

    Returns:
        FLOP/s, a multiplication and an addition counted as two.
    """
    on_gpu = device.type == "cuda"
    side, repeats = (SIDE_GPU, REPEATS_GPU) if on_gpu else (SIDE_CPU, REPEATS_CPU)
    kind = dtype if on_gpu else torch.float32
    generator = torch.Generator().manual_seed(0)
    # random numbers: a product of zeros takes less power, and so runs at a higher clock
    a = torch.randn(side, side, generator=generator).to(device, kind)
    b = torch.randn(side, side, generator=generator).to(device, kind)
    out = torch.mm(a, b)
    best = float("inf")
    for _ in range(ROUNDS):
        wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        wait(device)
        best = min(best, (time.perf_counter() - started) / repeats)
    return 2 * side**3 / best


def wait(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernels(call: Callable[[], Any], device: torch.device) -> int | None:
    """Kernels and copies that the GPU runs in a call; None on the CPU, or where they cannot be counted."""
    from torch.profiler import DeviceType, ProfilerActivity, profile

    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        wait(device)
    return sum(event.device_type == DeviceType.CUDA for event in seen.events()) or None
