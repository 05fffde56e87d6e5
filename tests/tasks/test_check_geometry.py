"""`head3d check-geometry`: the bars hold, and wrong poses, depths and figures are noticed."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from flows.cli import app
from models.geometry import Pose
from tasks import check_geometry as checking
from tasks.check_geometry import Bar, RenderedHead, rendered_heads, round_trip


@pytest.fixture(scope="module")
def heads() -> list[RenderedHead]:
    return rendered_heads(people=2, rays=1)


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(args=["check-geometry", *words])
    code = ended.value.code
    return code if isinstance(code, int) else 0


def test_equations_warps_and_gradients_meet_their_bars() -> None:
    assert max(checking.identity_error(size) for size in (64, 128)) <= 1e-5
    assert checking.eq3_after_eq1_error() <= 1e-9
    assert checking.nose_moves_px(10) == pytest.approx(-6.6, abs=0.05)
    assert checking.nose_moves_px(30) == pytest.approx(-19.0, abs=0.05)
    assert max(checking.gradient_tolerances(4).values()) <= 1e-5


def test_a_wrong_gradient_is_noticed() -> None:
    value = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert checking._tightest(lambda x: (x**2,), (value,)) <= 1e-6
    assert checking._tightest(lambda x: (x * x.detach(),), (value,)) == math.inf


def test_rendered_heads_come_back(heads: list[RenderedHead]) -> None:
    assert sorted({head.yaw_deg for head in heads}) == [-20, -10, 0, 10, 20]
    trips = [round_trip(head) for head in heads]
    assert sum(trip.psnr for trip in trips) / len(trips) > 30
    for head, trip in zip(heads, trips, strict=True):
        assert trip.seen.sum() > 0.8 * head.mask.sum()
        assert trip.psnr_once > trip.psnr
        assert trip.psnr > trip.psnr_true - 1  # of camera's pixels and on average 0.5 is asked for
        assert trip.psnr > trip.psnr_linear + 1
        assert trip.off_px < 0.25
        assert trip.depth_off_mm < checking._DEPTH_OFF_MM


def test_a_camera_s_pixels_are_less_sharp_and_lie_in_the_same_place(heads: list[RenderedHead]) -> None:
    camera = rendered_heads(people=1)
    for soft, sharp in zip(camera, heads[: len(camera)], strict=True):
        both = (soft.mask * sharp.mask)[:, 0] > 0
        assert both.sum() > 0.98 * sharp.mask.sum()
        assert (soft.depth - sharp.depth).abs()[both].median() < 1e-4
    edges = [float(part[0].image.diff(dim=-1).abs().mean()) for part in (camera, heads)]
    assert edges[0] < edges[1]


def test_a_wrong_pose_comes_back_but_misses_the_canonical_depth(heads: list[RenderedHead]) -> None:
    head = heads[0]
    mirrored = Pose(head.pose.rotation.transpose(1, 2), head.pose.translation * torch.tensor([-1.0, 1.0, 1.0]))
    assert round_trip(dataclasses.replace(head, pose=mirrored)).depth_off_mm > 1
    assert round_trip(dataclasses.replace(head, depth=head.depth + 0.01)).depth_off_mm > 1


def test_a_camera_half_a_pixel_off_is_noticed(heads: list[RenderedHead], monkeypatch: pytest.MonkeyPatch) -> None:
    right = checking.intrinsics

    def shifted(height: int, width: int, fov_deg: float) -> torch.Tensor:
        return right(height, width, fov_deg) + torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])

    monkeypatch.setattr(checking, "intrinsics", shifted)
    assert max(round_trip(head).depth_off_mm for head in heads) > checking._DEPTH_OFF_MM


def test_bars_know_their_sense() -> None:
    assert Bar("a", 0.5, "", 0.5).passed
    assert not Bar("a", 0.6, "", 0.5).passed
    assert Bar("a", 31.0, "dB", 30, "at least").passed
    assert not Bar("a", 29.9, "dB", 30, "at least").passed
    assert Bar("a", -7.0, "").passed
    assert not Bar("a", math.nan, "").passed


def test_the_command_prints_figures_and_fails_on_a_missed_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--help") == 0
    assert "head3d check-geometry --" in capsys.readouterr().out
    bars = [Bar("identity", 1e-6, "", 1e-5), Bar("worst", 28.8, "dB"), Bar("mean", 31.0, "dB", 30, "at least")]
    monkeypatch.setattr(checking, "check_geometry", lambda _people, _size: bars)
    assert call() == 0
    text = capsys.readouterr().out
    assert "at most 1e-05" in text
    assert "28.8 dB" in text
    assert "FAIL" not in text
    bars[2] = Bar("mean", 29.0, "dB", 30, "at least")
    assert call() == 1
    text = capsys.readouterr().out
    assert "FAIL" in text
    assert "1 of 3 bars are missed" in text
    assert call("--json") == 1
    assert [entry["passed"] for entry in json.loads(capsys.readouterr().out)] == [True, True, False]


def test_the_whole_list_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "gradient_tolerances", lambda: {"splat": 1e-7})
    bars = checking.check_geometry(people=1, size_px=64)
    assert len({bar.name for bar in bars}) == len(bars) == 17
    assert all(math.isfinite(bar.figure) for bar in bars)
