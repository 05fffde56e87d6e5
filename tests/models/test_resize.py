"""Doubling: the library's values, and a gradient that is its transpose."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

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
