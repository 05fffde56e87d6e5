"""`head3d bench geometry`: its figures are right, it trains by the pipeline's code, and a missed bar is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flows.cli import app
from models.pose_net import HeadPose
from tasks import bench_geometry as bench
from tasks.bench_geometry import Rendered, compare_angles, depth_correlation, measure
from tasks.check_geometry import Bar
from tasks.errors import StageError
from tasks.geometry import build_networks
from tasks.rendered_heads import RenderedHeads, render_heads
from tests.tasks.factory import make_params

SIZE_PX = 48
PRESETS = Path(__file__).parents[2] / "flows" / "presets"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def heads() -> RenderedHeads:
    return render_heads(0, 2, 5, SIZE_PX, 1, workers=1)


class _Oracle(nn.Module):
    """Gives the true values, row after row, whatever the image."""

    def __init__(self, heads: RenderedHeads, wanted: str, bend: float = 1.0) -> None:
        super().__init__()
        self.heads, self.wanted, self.bend, self.row = heads, wanted, bend, 0

    def forward(self, image: Tensor) -> Any:
        rows = slice(self.row, self.row + len(image))
        self.row += len(image)
        if self.wanted == "depth":
            return self.heads.depth[rows].float() * self.bend
        return HeadPose(self.heads.angles_deg[rows] * self.bend + 4, self.heads.translation_m[rows])


def _oracles(heads: RenderedHeads, bend: float = 1.0) -> dict[str, nn.Module]:
    return {"depth": _Oracle(heads, "depth", bend), "pose": _Oracle(heads, "pose", bend)}


def test_angles_are_compared_after_one_offset() -> None:
    true = torch.tensor([[-20.0, -10.0, 0.0], [0.0, 0.0, 5.0], [20.0, 10.0, -5.0], [1.0, 1.0, 1.0]])
    found = true * torch.tensor([1.0, 0.5, -1.0]) + torch.tensor([7.0, 0.0, 0.0])
    found[3] = torch.nan
    figures = compare_angles(found, true)
    assert figures.error_deg == pytest.approx([0, 10 / 3, 20 / 3])
    assert figures.offset_deg == pytest.approx([7, 0, 0])
    assert figures.gain == pytest.approx([1, 0.5, -1])
    assert figures.correlation == pytest.approx([1, 1, -1])


def test_depth_is_correlated_inside_the_head_only(heads: RenderedHeads) -> None:
    true = heads.depth.float()
    relief = torch.where(true > 0, 1 + 0.5 * (true - 0.9), torch.rand(true.shape, generator=torch.manual_seed(0)))
    assert depth_correlation(relief, true).tolist() == pytest.approx([1.0] * len(heads), abs=1e-4)
    assert depth_correlation(2 - relief, true).tolist() == pytest.approx([-1.0] * len(heads), abs=1e-4)
    assert depth_correlation(torch.ones_like(true), true).tolist() == [0.0] * len(heads)


def test_the_truth_passes_and_half_of_it_does_not(heads: RenderedHeads) -> None:
    bars = {bar.name: bar for bar in measure(_oracles(heads), heads, CPU)}
    assert len(bars) == 25
    assert all(bar.passed for bar in bars.values())
    assert bars["yaw: mean error"].figure == pytest.approx(0, abs=1e-4)
    assert bars["yaw: offset taken away"].figure == pytest.approx(4, abs=1e-4)
    assert bars["depth: correlation inside the head"].figure == pytest.approx(1, abs=1e-4)
    assert 0.5 < bars["depth: correlation of an ellipsoid"].figure < 0.9
    assert bars["yaw: a constant pose"].figure > 3
    half = {bar.name: bar for bar in measure(_oracles(heads, 0.5), heads, CPU)}
    assert half["yaw: gain"].figure == pytest.approx(0.5, abs=1e-4)
    assert not half["yaw: mean error"].passed


def test_steps_are_shared_out_as_in_the_settings() -> None:
    config = make_params(geometry={"bootstrap_steps": 800, "train": {"steps": 450, "lr_drop_step": 400}}).geometry
    fewer = bench.with_steps(config, 125)
    assert (fewer.bootstrap_steps, fewer.train.steps, fewer.train.lr_drop_step) == (80, 45, 40)
    assert bench.with_steps(config, 2).train.steps == 1


def test_it_trains_on_rendered_people_and_judges_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    draw = bench.render_heads

    def noted(first_person: int, people: int, *rest: int) -> RenderedHeads:
        asked.append((first_person, people))
        return draw(first_person, people, *rest)

    monkeypatch.setattr(bench, "render_heads", noted)
    params = make_params(
        geometry={"bootstrap_steps": 2, "rendered_people": 2, "train": {"batch_videos": 1, "references": 2}}
    )
    config = bench.with_steps(params.geometry, 3)
    bars = bench.bench_training(Rendered(2, 1, 4, 1), SIZE_PX, config, params.runtime, "cpu")
    assert asked == [(0, 2), (bench.FIRST_UNSEEN, 1)]
    assert [bar.bar for bar in bars[:4]] == [3.0, 3.0, 3.0, 0.9]
    assert not all(bar.passed for bar in bars)


def test_a_checkpoint_is_judged_as_it_is(tmp_path: Path, heads: RenderedHeads) -> None:
    with pytest.raises(StageError, match="trained stage 1"):
        bench.load_stage1(tmp_path, CPU)
    config = make_params().geometry
    networks = build_networks(config, CPU)
    save_file(
        {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"geometry": config.model_dump(), "size_px": SIZE_PX}))
    loaded, size = bench.load_stage1(tmp_path, CPU)
    assert size == SIZE_PX
    assert measure(loaded, heads, CPU) == measure(networks, heads, CPU)
    (tmp_path / "config.json").write_text(json.dumps({"geometry": {}, "size_px": SIZE_PX}))
    with pytest.raises(StageError, match="another version"):
        bench.load_stage1(tmp_path, CPU)


def test_the_command_takes_settings_and_fails_on_a_missed_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    bars = [Bar("yaw: mean error", 2.0, "deg", 3.0)]

    def fake(*arguments: Any) -> list[Bar]:
        asked.append(arguments)
        return bars

    monkeypatch.setattr(bench, "bench_training", fake)

    def call(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            app(args=["bench", "geometry", *words])
        return int(ended.value.code or 0)

    assert call("--preset", "demo", "--people", "3", "--steps", "10", "--workers", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["passed"] is True
    rendered, size_px, config, _, _ = asked[0]
    assert rendered == Rendered(3, 16, 40, 1)
    assert (size_px, config.bootstrap_steps + config.train.steps) == (64, 10)
    bars[0] = Bar("yaw: mean error", 4.0, "deg", 3.0)
    assert call("--preset", "demo") == 1
    assert "1 of 1 bars are missed" in capsys.readouterr().out
    bars[0] = Bar("yaw: mean error", 2.0, "deg", 3.0)
    assert call("--params", str(PRESETS / "local.yaml")) == 0  # whose videos nobody has named yet
    assert asked[-1][1] == 128
    assert call("--preset", "demo", "--frames", "3") == 2
    assert call("--preset", "demo", "--params", "params.yaml") == 2
