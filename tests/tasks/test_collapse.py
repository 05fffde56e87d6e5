"""Networks forced into each known collapse are found out, healthy ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.config import Params
from models.pose_net import HeadPose
from tasks.bench_train import make_job, synthetic_clips, with_batch
from tasks.clip_data import ClipSet
from tasks.collapse import attention_figures, dangers, region_figures, relief_mm, yaw_spread_deg
from tasks.training import Training, train
from tasks.training_log import resting
from tasks.training_look import Look
from tests.tasks.small_training import small_job, small_runtime
from tests.tasks.test_training import settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def params() -> Params:
    return with_batch(settings(), batch=6, references=2)


@pytest.fixture(scope="module")
def clips(params: Params) -> ClipSet:
    return synthetic_clips(params, params.fusion.train, 48, CPU)


def look(job: Training) -> Look:
    assert job.look is not None
    with resting(job, {}):
        return job.look()


def found(job: Training) -> list[str]:
    return [danger.figure for danger in dangers(look(job).figures)]


def constant(layer: nn.Module, values: list[float] | None = None) -> None:
    """A layer that says the same of every picture."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(values) if values else torch.zeros_like(layer.bias))


@pytest.fixture
def stage1(params: Params, clips: ClipSet) -> Training:
    """F_D and F_P as they start: depth varies at random, but all poses are alike."""
    return make_job(params, "geometry", clips)


def turning(heads: Tensor) -> tuple[HeadPose, None]:
    """An F_P whose yaw varies."""
    angles = torch.zeros(len(heads), 3)
    angles[:, 0] = torch.linspace(-10, 10, len(heads))
    return HeadPose(angles, torch.zeros(len(heads), 3)), None


def test_depth_and_pose_of_a_healthy_stage_1(stage1: Training, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage1.modules["pose"], "predict", turning)
    figures = look(stage1).figures
    assert figures["yaw_std_landmarks_deg"] > 5
    assert figures["relief_mm"] > 3
    assert dangers(figures) == []


def test_flat_depth_is_named(stage1: Training, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage1.modules["pose"], "predict", turning)
    constant(stage1.modules["depth"].head)  # type: ignore[arg-type]
    assert found(stage1) == ["relief_mm"]
    assert "depth is flat" in dangers(look(stage1).figures)[0].text


def test_constant_pose_is_named(stage1: Training):
    constant(stage1.modules["pose"].fc_yaw)  # type: ignore[arg-type]
    assert found(stage1) == ["yaw_std_deg"]
    assert "pose is constant" in dangers(look(stage1).figures)[0].text


def test_heads_that_do_not_turn_say_nothing_about_the_pose():
    assert dangers({"yaw_std_deg": 0.0, "yaw_std_landmarks_deg": 1.0}) == []
    assert dangers({"yaw_std_deg": 0.0, "yaw_std_landmarks_deg": float("nan")}) == []


def test_an_empty_canonical_head_is_named(params: Params, clips: ClipSet):
    job = make_job(params, "canonical", clips)
    assert found(job) == []
    assert [danger.figure for danger in dangers({"head_share": 0.001})] == ["head_share"]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.0, 0.0, 0.0], []),
        ([0.0, 30.0, 0.0], ["saturated_share"]),
        ([0.0, 0.0, 30.0], ["saturated_share"]),
        ([0.0, 0.0, -30.0], ["decoder_share"]),
    ],
)
def test_saturated_attention_is_named(params: Params, clips: ClipSet, scores: list[float], expected: list[str]):
    job = make_job(params, "fusion", clips)
    assert found(job) == ["decoder_change"]  # it starts by changing nothing
    torch.nn.init.normal_(job.modules["fusion"].decoder.out.weight, std=1.0)  # type: ignore[union-attr, arg-type]
    constant(job.modules["fusion"].flow.attention, scores)  # type: ignore[union-attr, arg-type]
    assert found(job) == expected


def test_attention_weight_pulls_back_a_map_that_was_given_up(params: Params, clips: ClipSet):
    """One step by the gradient alone: with the weight, the decoder's logit rises; without, it hardly moves."""
    moved = {}
    for weight in (0.0, 0.01):
        fusion = params.fusion.model_copy(update={"attention_weight": weight})
        job = make_job(params.model_copy(update={"fusion": fusion}), "fusion", clips)
        layer = job.modules["fusion"].flow.attention  # type: ignore[union-attr]
        constant(layer, [0.0, 0.0, -15.0])  # type: ignore[arg-type]
        losses = job.losses("eq8", job.losses.draw(0))
        losses["total"].backward()
        moved[weight] = -float(layer.bias.grad[2])  # type: ignore[union-attr, index]
        if weight:
            assert losses["unevenness"].item() == pytest.approx((2 * 5.0**2 + 10.0**2) / 3)
    assert abs(moved[0.0]) < 1e-3
    assert moved[0.01] == pytest.approx(0.01 * 2 * 10 / 3, rel=0.05)


def test_figures_by_hand():
    depth = torch.ones(1, 2, 4)
    depth[0, 0] = torch.tensor([0.9, 1.1, 5.0, 5.0])
    mask = torch.zeros(1, 1, 2, 4)
    mask[0, 0, 0, :2] = 1
    assert relief_mm(depth, mask) == pytest.approx(100.0)
    spread, known = yaw_spread_deg(torch.tensor([1.0, 3.0, 90.0]), torch.tensor([-2.0, 2.0, float("nan")]))
    assert [spread, known] == pytest.approx([2**0.5, 8**0.5])
    attention = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).T.reshape(1, 3, 1, 2)
    assert attention_figures(attention) == {"saturated_share": 0.5, "decoder_share": 0.0}


def test_where_free_regions_are():
    """Three regions in two frames: two lie on one another and move along, one is stuck."""
    centre = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [0.9, 0.9]], [[0.3, 0.0], [0.3, 0.0], [0.9, 0.9]]])
    apart = (1.62**0.5 + (0.36 + 0.81) ** 0.5) / 2 * 2 / 3
    assert region_figures(centre) == pytest.approx({"regions_apart": apart, "regions_moving": 2 / 3})
    assert region_figures(centre[:, :1]) == {}


def test_crowded_and_stuck_regions_are_named(params: Params, clips: ClipSet):
    job = make_job(params, "fusion", clips)
    flow = job.modules["fusion"].flow
    constant(flow.regions.head)  # type: ignore[union-attr, arg-type]
    figures = look(job).figures
    assert figures["regions_apart"] == pytest.approx(0.0, abs=1e-5)  # every heat map is even: all in the middle
    assert figures["regions_moving"] == 0.0
    assert {"regions_apart", "regions_moving"} <= set(found(job))
    torch.nn.init.normal_(flow.regions.head.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    assert not {"regions_apart", "regions_moving"} & set(found(job))


class Flat:
    """A look that sees flat depth from step 10 on."""

    def __init__(self, job: Training) -> None:
        self.job = job

    def __call__(self) -> Look:
        steps = self.job.losses.computed  # type: ignore[attr-defined]
        assert not self.job.modules["net"].training
        assert not torch.is_grad_enabled()
        picture = torch.full((2, 3, 16, 16), steps / 20)
        return Look({"grey": picture}, {"relief_mm": 20.0 if steps < 10 else 1.0})


def watched(more: dict[int, object] | None = None) -> Training:
    job = small_job(at=more)
    job.look, job.sheet_every = Flat(job), 8
    return job


def test_a_training_warns_once_and_ends_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    summary = train(watched(), tmp_path, "fp", small_runtime())
    said = capsys.readouterr().err
    assert said.count("Warning: small, step 10: depth is flat") == 1
    assert said.count("Warning") == 1
    assert summary["relief_mm"] == 1.0
    assert summary["collapsed"] == "relief_mm"


def test_looking_changes_nothing(tmp_path: Path):
    train(small_job(), tmp_path / "plain", "fp", small_runtime())
    train(watched(), tmp_path / "watched", "fp", small_runtime())
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "watched")]
    assert files[0] == files[1]


def test_the_look_sees_what_would_be_kept():
    job = small_job()
    own = {name: value.clone() for name, value in job.modules["net"].state_dict().items()}
    averaged = {f"net.{name}": torch.full_like(value, 7.0) for name, value in own.items()}
    with resting(job, averaged):
        values: list[Tensor] = list(job.modules["net"].state_dict().values())
        assert all((value == 7).all() for value in values)
    for name, value in job.modules["net"].state_dict().items():
        assert torch.equal(value, own[name])
    assert job.modules["net"].training


def test_a_sheet_shows_samples_side_by_side():
    images = {"one": torch.zeros(9, 3, 20, 20), "two": torch.ones(9, 3, 20, 20)}
    sheet = Look(images, {}).sheet()
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 4 + 6 * (20 + 4)
