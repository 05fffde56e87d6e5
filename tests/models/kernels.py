"""Counts what a GPU is given to do for a frame, on a machine without one: `python -m tests.models.kernels`.

A frame's path is run on tensors without values (`meta`), and every operation that is no view is counted under the
function that asked for it. That is what a recorded CUDA graph replays, but for what a library starts inside an
operation: of those, the bias of a convolution, which cuDNN's own leaves out, and the copy of an operation that only
works in place are counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.config import load_params
from models.frozen import FusedConv
from models.head3d import Head3D
from models.per_frame import PerFrame, SubjectState
from tasks.bench_animate import random_model

ROOT = Path(__file__).parents[2]
META = torch.device("meta")
NOTHING = ("aten.empty", "aten.detach", "aten._unsafe_view", "aten.new_empty", "aten.lift_fresh", "aten.alias")
"""Operations that start no kernel, though their schemas do not say so."""
TWICE = ("aten.index_add.", "aten.scatter_reduce.", "aten.scatter_add.", "aten.eye.")
"""A copy or a filling, and then the work."""


PARTS = {
    "PoseNetwork": "F_P",
    "HeadPose.pose": "x_hat_dri",
    "render_layer": "x_hat_dri",
    "RegionPredictor": "Phi's regions",
    "FlowPredictor": "Phi",
    "ImageEncoder": "E_F",
    "compose.mix": "Eq. 7",
    "ImageDecoder": "Omega_F",
    "compose": "Eq. 7",
}
"""Part of a function's name -> part of the method; the innermost function of these counts."""


class KernelCount(TorchDispatchMode):
    """Counts kernels while it is on.

    Attributes:
        by_place: Innermost function of `models/` -> kernels.
        by_part: Part of the method (`PARTS`) -> kernels.
        by_name: Operation -> kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_place: Counter[str] = Counter()
        self.by_part: Counter[str] = Counter()
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All of them."""
        return self.by_place.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and args[1].is_contiguous(memory_format=torch.channels_last):
            made = made.contiguous(memory_format=torch.channels_last)  # as a GPU gives it
        count = _kernels(func, args, made)
        if count:
            place, part = _place()
            self.by_place[place] += count
            self.by_part[part] += count
            self.by_name[str(func)] += count
        return made


def _kernels(func: Any, args: tuple[Any, ...], made: Any) -> int:
    """Kernels of one operation."""
    name = str(func)
    view = any(part.alias_info is not None and not part.alias_info.is_write for part in func._schema.returns)
    if view or name.startswith(NOTHING):
        return 0
    if isinstance(made, Tensor) and made is args[0] and name.startswith("aten._to_copy"):
        return 0
    biased = name.startswith("aten.convolution.") and args[2] is not None
    return 2 if biased or name.startswith(TWICE) else 1


def _place() -> tuple[str, str]:
    """The innermost function of `models/` that is being run with the one of there that called it, and its part."""
    names: list[str] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.parent == ROOT / "models" and not frame.f_code.co_name.startswith(("<", "wrapped")):
            names.append(f"{file.stem}.{frame.f_code.co_qualname.replace('.<locals>', '')}")
        frame = frame.f_back
    known = (part for name in names for key, part in PARTS.items() if key in name)
    return " < ".join(names[:2]) or "elsewhere", next(known, "the rest")


def paper_path(preset: str = "paper", fused: bool = True) -> tuple[PerFrame, SubjectState]:
    """The per-frame path of a preset and a subject's state, without values.

    Args:
        preset: Name of a preset.
        fused: As on a GPU: cuDNN's fused operations.
    """
    params = load_params(ROOT / "flows" / "presets" / f"{preset}.yaml", complete=False)
    size = params.crop.size_px
    with META:
        model: Head3D = random_model(params, size, META)
        path = PerFrame(model, size, size)
        subject = model.subject(torch.rand(2, 3, size, size), torch.ones(2, 1, size, size), 0)
        state = path.state(subject, None)
    for part in path.modules():
        if isinstance(part, FusedConv):
            part.fast = fused
        if isinstance(part, nn.Conv2d):  # as the engine stores them
            part.weight.data = part.weight.contiguous(memory_format=torch.channels_last)
    return path, state


def fused_relu(x: Tensor, weight: Tensor, bias: Tensor, *how: Any) -> Tensor:
    """Counts as one kernel; stands in for cuDNN's, which no other device has."""
    del bias
    return torch.conv2d(x, weight, None, *how)


def fused_add_relu(x: Tensor, weight: Tensor, added: Tensor, alpha: float, bias: Tensor, *how: Any) -> Tensor:
    """The same for the operation with a sum."""
    del added, alpha, bias
    return torch.conv2d(x, weight, None, *how)


def count(path: PerFrame, state: SubjectState, batch: int = 1) -> KernelCount:
    """Kernels of one call.

    Args:
        path: The path.
        state: Of a subject.
        batch: Frames.
    """
    size = state.reference.shape[-2:]
    driving, mask = torch.rand(batch, 3, *size, device=META), torch.ones(batch, 1, *size, device=META)
    with (
        torch.no_grad(),
        mock.patch("torch.cudnn_convolution_relu", fused_relu),
        mock.patch("torch.cudnn_convolution_add_relu", fused_add_relu),
    ):
        path(driving, mask, state)  # what is kept is made
        with KernelCount() as seen:
            path(driving, mask, state)
    return seen


def main() -> None:
    """Print a table."""
    for fused in (False, True):
        seen = count(*paper_path(fused=fused))
        sys.stdout.write(f"{seen.total} kernels a frame, {'fused' if fused else 'not fused'} by cuDNN\n")
        for counted in (seen.by_part, seen.by_place, seen.by_name):
            for name, kernels in counted.most_common():
                sys.stdout.write(f"{kernels:5d}  {name}\n")
            sys.stdout.write("\n")


if __name__ == "__main__":
    main()
