"""The benches of a frame and of the store measure what they say; times themselves are never judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks import bench_animate as animating
from tasks.bench_animate import Bench, bench_animate, drawn_frames, load_or_make, modes, random_model
from tasks.bench_store import bench_store, made_clips
from tasks.device_peak import measured_peak
from tasks.errors import StageError
from tests.tasks.test_training import settings
from tests.tasks.untrained import write_checkpoints

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(animating, "measured_peak", lambda _: 1e12)
    monkeypatch.setattr(animating, "WARM_CALLS", 1)


def test_painted_heads_move_and_lie_under_their_masks():
    frames, masks = drawn_frames(6, 40)
    assert frames.shape == (6, 40, 40, 3)
    assert masks.shape == (6, 40, 40)
    assert 0.1 < masks.float().mean() < 0.5
    assert (masks[0] != masks[4]).any()
    assert set(masks.unique().tolist()) == {0, 1}


def test_a_frame_is_measured_in_every_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    params = settings()
    model = random_model(params, 48, CPU)
    figures = bench_animate(model, Bench(CPU, 48, 3, 2, False, True))
    assert list(figures["modes"]) == ["plain_float32", "float32"]
    own = figures["modes"]["float32"]
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [one.pop("mode") for one in told] == ["plain_float32", "float32"]  # each as soon as it was measured
    assert told[1].items() >= {key: own[key] for key in ("stream_ms_median", "batch_fps", "kernels_per_frame")}.items()
    assert own["kernels_per_frame"] is None  # a CPU runs none
    assert own["mse_to_eager"] < 1e-8
    assert own["change_of_error"] < 1e-3
    assert own["largest_difference_levels"] <= 1
    for mode in figures["modes"].values():
        assert 0 < mode["stream_ms_median"] <= mode["stream_ms_p95"]
        assert mode["stream_fps"] == pytest.approx(1e3 / mode["stream_ms_median"])
        assert mode["share_of_peak"] == pytest.approx(mode["batch_fps"] * figures["gflop_per_frame"] * 1e9 / 1e12)
    assert figures["with_parser"]["mode"] == "float32"
    weights = sum(part.numel() for part in model.fusion.decoder.residual.parameters())
    assert figures["gflop_per_frame"] * 1e9 > 2 * weights * 12 * 12 * 0.9  # the residual blocks alone, at a quarter
    trained = load_or_make(params, write_checkpoints(tmp_path / "checkpoints", params), 32, CPU)
    assert trained.size_px == 32


def test_a_gpu_is_measured_in_every_precision():
    gpu = Bench(torch.device("cuda"), 48, 3, 2, True, False)
    assert [mode.name for mode in modes(gpu)] == [
        *("float32", "tf32", "float16", "bfloat16", "float16_unfused"),
        *("float16_compiled", "bfloat16_compiled"),
    ]


def test_it_runs_where_only_torch_numpy_and_pydantic_are(tmp_path: Path):
    (tmp_path / "params.yaml").write_text((ROOT / "flows" / "presets" / "tiny.yaml").read_text())
    missing = ("prefect", "zarr", "lpips", "decord", "facenet_pytorch", "typer", "pandas", "av", "cv2", "scipy", "tqdm")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); from tasks import bench_animate as b; b.main()"
    words = ["--params", str(tmp_path / "params.yaml"), "--size", "64", "--batch", "2", "--frames", "2"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["batch"] == 2


def test_the_peak_is_a_rate():
    assert 1e8 < measured_peak(CPU) < 1e14


def test_the_store_gives_back_what_was_written_and_is_rated(tmp_path: Path):
    params = settings()
    frames, masks = made_clips(params, 6)
    assert frames.shape == (6, 4, 48, 48, 3)
    assert (frames[0] != frames[1]).mean() > 0.3
    assert masks.max() == 1
    figures = bench_store(params, tmp_path, 6, 3)
    assert figures["megabytes"] == pytest.approx(6 * 4 * 48 * 48 * 3 / 1e6)
    assert 0.1 < figures["packed_to"] < 1  # noise as of a camera does not pack to nothing
    for group in ("write", "read_in_order", "load_training_set"):
        assert figures[group]["clips_per_s"] > 0
    whole = figures["megabytes"] * 4 / 3  # with the masks
    ratio = figures["load_training_set"]["mb_per_s"] / figures["load_training_set"]["clips_per_s"]
    assert ratio == pytest.approx(whole / 6)
    assert figures["paper_training_set"]["gigabytes"] == pytest.approx(7500 * whole / 6 / 1e3)
    with pytest.raises(StageError, match="measure nothing"):
        bench_store(params, tmp_path / "other", 0, 3)
