"""Doubling: the library's values, and a gradient that is its transpose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.coder import ConvLSTM, ImageDecoder
from models.config import CoderNet
from models.depth_net import UpBlock
from models.resize import bilinear_x2


@pytest.mark.parametrize("size", [(5, 6), (1, 1), (2, 7)])
def test_it_is_the_librarys_with_its_gradient(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    own, librarys = bilinear_x2(x), F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(own, librarys)
    way = torch.rand_like(own)
    torch.testing.assert_close(torch.autograd.grad(own, x, way), torch.autograd.grad(librarys, x, way))
    with torch.no_grad():
        assert torch.equal(bilinear_x2(x), librarys)


def test_torch_compile_follows_it() -> None:
    x = torch.rand(1, 2, 3, 4, requires_grad=True)
    torch.compile(bilinear_x2, backend="aot_eager", fullgraph=True)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 4.0))


class Enlarged(TorchDispatchMode):
    """Notes the types of what is enlarged or joined; borders a CPU mirrors in float32 in any case, unlike a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(name in str(func) for name in ("upsample", "aten.cat")):
            self.types.add(made.dtype)
        return made


def test_in_a_short_precision_nothing_is_enlarged_at_full_length() -> None:
    torch.manual_seed(0)
    up, decoder = UpBlock(8, 3, 4), ImageDecoder(CoderNet(width=4, residual_blocks=1))
    x, picture, feature = torch.rand(1, 8, 4, 4).bfloat16(), torch.rand(1, 3, 8, 8), torch.rand(1, 16, 4, 4)
    gathering = ConvLSTM(16)
    for run in (lambda: up(x, picture), lambda: decoder(feature), lambda: gathering(feature[None])):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.compile(run, backend="eager", fullgraph=True)()  # it can be followed
        seen = Enlarged()
        with torch.autocast("cpu", dtype=torch.bfloat16), seen:
            run().float().sum().backward()
        assert seen.types == {torch.bfloat16}


def test_an_enlargement_in_a_short_precision_is_the_rounded_one() -> None:
    x = torch.rand(2, 3, 5, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bilinear_x2(x)
    assert torch.equal(found, F.interpolate(x.float(), scale_factor=2, mode="bilinear").bfloat16())
