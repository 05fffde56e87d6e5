"""Frozen networks with joined convolutions give the numbers of the plain ones, fused or not; few kernels a frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from models.coder import ImageDecoder, ImageEncoder, mirrored
from models.config import CoderNet
from models.frozen import FusedConv, FusedResidual, fuse_convolutions
from models.per_frame import fold_batch_norms
from tests.models.kernels import count, paper_path

NET = CoderNet(width=8, residual_blocks=2)


def as_cudnn(x: Tensor, weight: Tensor, bias: Tensor, *how: Any) -> Tensor:
    """What cuDNN's operation gives, on any device; it wants the channels last."""
    assert x.is_contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, *how).relu()


def as_cudnn_add(x: Tensor, weight: Tensor, added: Tensor, alpha: float, bias: Tensor, *how: Any) -> Tensor:
    assert added.is_contiguous(memory_format=torch.channels_last)
    return (F.conv2d(x, weight, bias, *how) + alpha * added).relu()


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cudnn_convolution_relu", as_cudnn)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", as_cudnn_add)


def frozen(network: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that do something."""
    generator = torch.Generator().manual_seed(3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features, generator=generator) * 0.1
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.5
        if isinstance(part, ImageDecoder):
            nn.init.normal_(part.out.weight, std=0.05, generator=generator)
    return network.eval().requires_grad_(False)


def fast(network: nn.Module) -> list[FusedConv]:
    found = [part for part in network.modules() if isinstance(part, FusedConv)]
    for part in found:
        part.fast = True
    return found


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("make", [resnet18, resnet50])
@torch.no_grad()
def test_a_resnet_with_joined_convolutions_is_the_same(make: Any):
    torch.manual_seed(0)
    network, image = frozen(make(weights=None)), torch.rand(2, 3, 48, 48)
    expected = network(image)
    joined = fuse_convolutions(fold_batch_norms(network))
    least = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(joined(image), expected, atol=least, rtol=0)
    convs = fast(joined)
    torch.testing.assert_close(joined(image), expected, atol=least, rtol=0)
    blocks = [part for part in joined.modules() if isinstance(part, FusedResidual)]
    assert len(blocks) == (8 if make is resnet18 else 16)
    assert len(convs) == (16 if make is resnet18 else 48)  # without the stem, which is no sequence here


@pytest.mark.usefixtures("cudnn")
@torch.no_grad()
def test_coders_with_joined_convolutions_are_the_same_and_keep_the_channels_last():
    torch.manual_seed(0)
    encoder, decoder = ImageEncoder(NET), ImageDecoder(NET)
    network = frozen(nn.ModuleList([encoder, decoder]))
    image = torch.rand(2, 3, 32, 32)
    levels: list[int] = []

    def merge(x: Tensor, level: int) -> Tensor:
        levels.append(level)
        return 1.5 * x

    def run() -> Tensor:
        made: Tensor = decoder(encoder(image)[-1], merge)
        return made

    expected = run()
    fuse_convolutions(fold_batch_norms(network))
    torch.testing.assert_close(run(), expected, atol=1e-5, rtol=1e-5)
    fast(network)
    made = run()
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert levels == [2, 1, 0] * 3
    assert float(expected.std()) > 0.01


@torch.no_grad()
def test_where_cudnn_fuses_nothing_the_parts_run_one_by_one_and_it_is_noted_once(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("FIND was unable to find an engine\nmore")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", fail)
    network, image = fold_batch_norms(frozen(ImageEncoder(NET))), torch.rand(1, 3, 16, 16)
    expected = network(image)
    notes: list[str] = []
    convs = fast(fuse_convolutions(network))
    for conv in convs:
        conv.notes = notes
    for made, wanted in zip(network(image), expected, strict=True):
        torch.testing.assert_close(made, wanted, atol=1e-6, rtol=1e-6)
    assert notes == [
        "cuDNN does not fuse every convolution (FIND was unable to find an engine); the others run in parts"
    ]
    assert not any(conv.fast for conv in convs)


@pytest.mark.parametrize("width", [0, 1, 3])
@pytest.mark.parametrize("enlarge", [1, 2])
def test_a_mirrored_border_is_read_with_the_enlargement_before_it(width: int, enlarge: int):
    x = torch.rand(2, 8, 5, 7).contiguous(memory_format=torch.channels_last)
    expected = F.pad(F.interpolate(x, scale_factor=enlarge, mode="nearest"), [width] * 4, mode="reflect")
    made = mirrored(x, width, enlarge)
    assert torch.equal(made, expected)
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("fused", "most"), [(True, 395), (False, 567)])
def test_a_frame_of_the_papers_networks_takes_few_kernels(fused: bool, most: int):
    assert count(*paper_path(fused=fused)).total <= most
