"""The embedded parser's network: shapes, folding of the norms, its file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.parser import CLASSES, HeadParser, load_parser

SHIPPED = Path(__file__).parents[2] / "tasks" / "weights" / "head_parser.safetensors"


@pytest.fixture(scope="module")
def trained_looking() -> HeadParser:
    """Random weights whose norms have seen something, so that folding them in changes every layer."""
    torch.manual_seed(0)
    network = HeadParser()
    network.train()
    for _ in range(3):
        network(torch.rand(4, 3, 64, 64))
    return network.eval()


@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 96), (32, 32)])
def test_every_pixel_gets_scores(trained_looking: HeadParser, height: int, width: int) -> None:
    assert trained_looking(torch.rand(2, 3, height, width)).shape == (2, CLASSES, height, width)


def test_sides_that_do_not_fit_are_refused(trained_looking: HeadParser) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        trained_looking(torch.rand(1, 3, 100, 128))


@torch.no_grad()
def test_folding_the_norms_changes_nothing(trained_looking: HeadParser) -> None:
    fused = copy.deepcopy(trained_looking).fuse()
    picture = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(fused(picture), trained_looking(picture), atol=2e-4, rtol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())


@torch.no_grad()
def test_pictures_of_a_batch_do_not_see_each_other(trained_looking: HeadParser) -> None:
    pictures = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(trained_looking(pictures)[1:2], trained_looking(pictures[1:2]), atol=1e-4, rtol=1e-4)


def test_the_shipped_file_is_small_and_loads() -> None:
    assert SHIPPED.stat().st_size <= 4_000_000
    network = load_parser(SHIPPED)
    assert not network.training
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())


def test_a_missing_or_other_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train-parser"):
        load_parser(tmp_path / "none.safetensors")
    save_file({"something": torch.zeros(3)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="another network"):
        load_parser(tmp_path / "other.safetensors")
