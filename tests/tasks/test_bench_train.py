"""`head3d bench train` on the CPU, as small as it goes, and its figures against what can be known."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flows.cli import app
from models.config import Params
from tasks.bench_train import (
    PAPER_STEPS,
    TrainBench,
    _backward_flops,
    bench_train,
    make_job,
    measure_stage,
    synthetic_clips,
    with_batch,
    with_runtime,
)
from tests.tasks.test_training import settings

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ABSENT = (
    "prefect",
    "dvc",
    "dvclive",
    "zarr",
    "lpips",
    "decord",
    "av",
    "facenet_pytorch",
    "cv2",
    "typer",
    "lightning_fabric",
)
"""What the GPU machine may lack."""


@pytest.fixture(scope="module")
def params() -> Params:
    return with_batch(settings(), batch=2, references=2)


@pytest.fixture(scope="module")
def figures(params: Params) -> dict[str, Any]:
    return bench_train(params, TrainBench(("geometry", "canonical", "fusion"), 48, 2))


def test_every_stage_is_measured(figures: dict[str, Any]):
    assert figures["device"] == "cpu"
    for stage in ("geometry", "canonical", "fusion"):
        found = figures["stages"][stage]
        assert found["samples_per_s"] == pytest.approx(2 * 1000 / found["ms_per_step"])
        assert 0 <= found["data_wait_share"] < 1
        assert 0 < found["share_of_peak"] < 1.5
        assert found["kernels_per_step"] is None
        assert not found["recorded"]
        assert not found["prefetched"]
        flops_per_s = found["gflop_per_sample"] * 1e9 * found["samples_per_s"]
        assert found["share_of_peak"] == pytest.approx(flops_per_s / (figures["peak_tflops"] * 1e12))
    assert figures["stages"]["geometry"]["bootstrap_ms_per_step"] > 0


def test_the_papers_schedule_is_what_its_samples_take(figures: dict[str, Any]):
    minutes = figures["paper_schedule_minutes"]
    assert sum(PAPER_STEPS.values()) == 120_000
    fusion = 75_000 * 5 / figures["stages"]["fusion"]["samples_per_s"] / 60
    assert minutes["fusion"] == pytest.approx(fusion)
    assert minutes["all"] == pytest.approx(minutes["geometry"] + minutes["canonical"] + fusion)


def test_flops_are_those_of_a_step(params: Params, figures: dict[str, Any]):
    """Counted by hand: forward and backward of the stage's own loss, no optimiser."""
    job = make_job(params, "canonical", synthetic_clips(params, params.canonical.train, 48, CPU))
    with FlopCounterMode(display=False) as counter:
        job.losses("eq6", job.losses.draw(0))["total"].backward()
    assert figures["stages"]["canonical"]["gflop_per_sample"] == pytest.approx(counter.get_total_flops() / 2 / 1e9)


def test_batch_and_references_reach_the_stage(params: Params):
    more = with_batch(params, batch=3, references=1)
    found = measure_stage(more, "canonical", TrainBench(("canonical",), 48, 1), CPU)
    assert (found["batch"], found["references"], found["steps"]) == (3, 1, 1)
    assert "share_of_peak" not in found
    assert with_batch(params, None, None).fusion.train == params.fusion.train
    changed = with_runtime(params, "cpu", 2, own_statistics=True, eager=True, compiled=True).runtime
    assert (changed.devices, changed.sync_batch_norm, changed.cuda_graphs, changed.compile) == (2, False, False, True)


def test_clips_that_do_not_lie_on_the_device_are_prefetched(params: Params):
    never = with_runtime(params, "cpu", 1, clips_on_gpu="never")
    assert with_runtime(params, None, None).runtime == params.runtime
    for stage in ("geometry", "fusion"):
        found = measure_stage(never, stage, TrainBench((stage,), 48, 2), CPU)
        assert found["prefetched"]
        assert 0 <= found["data_wait_share"] < 1
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


def test_synthetic_clips_have_true_geometry(params: Params):
    clips = synthetic_clips(params, params.fusion.train, 48, CPU)
    assert len(clips) == 32
    assert clips.depth is not None
    assert clips.angles_deg is not None
    assert 0.9 < clips.depth.min() < clips.depth.max() < 1.1
    assert clips.angles_deg[:, :, 0].std() > 5
    assert torch.equal(clips.frames[0], clips.frames[4])  # the same person again


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]):
    words = (
        "bench train --preset tiny --stage canonical --batch 1 --size 48 --references 1 --steps 1 --device cpu --json "
        "--clips-on-gpu never"
    )
    with pytest.raises(SystemExit) as ended:
        app(args=words.split())
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["stages"]) == ["canonical"]
    assert found["stages"]["canonical"]["prefetched"]
    assert "paper_schedule_minutes" not in found


def test_it_starts_where_there_is_little_but_torch():
    absent = dict.fromkeys([*ABSENT, "lightning_fabric"])
    code = f"import sys; sys.modules.update({absent!r}); import tasks.bench_train as b; b.main(['-h'])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "--own-statistics" in shown.stdout


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_the_gradients_of_a_convolution_count_twice_what_it_counts(groups: int):
    convolution = torch.nn.Conv2d(16, 32, 3, padding=1, stride=2, groups=groups)
    image = torch.randn(2, 16, 8, 8, requires_grad=True)
    mapping = {torch.ops.aten.convolution_backward: _backward_flops}
    with FlopCounterMode(display=False) as forward:
        out = convolution(image)
    with FlopCounterMode(display=False, custom_mapping=mapping) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()
    with FlopCounterMode(display=False, custom_mapping=mapping) as weights_alone:
        convolution(image.detach()).sum().backward()
    assert weights_alone.get_total_flops() == 2 * forward.get_total_flops()  # forward once, gradient once
