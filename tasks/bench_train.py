"""What a training step of each stage costs, and what the paper's whole schedule would take.

The stages' own jobs run (losses, optimiser, recorded steps) on rendered heads in memory: no data folder is needed. Also
runs where there are only torch, numpy, pandas, scipy and pydantic:
`python -m tasks.bench_train --params flows/presets/paper.yaml --stage all`.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.config import ClipsOnGpu, Optim, Params, load_params
from tasks.canonical import build_networks as build_canonical
from tasks.canonical import canonical_job
from tasks.clip_data import ClipSet
from tasks.device import choose_device
from tasks.device_peak import kernels, measured_peak, wait
from tasks.devices import on_devices
from tasks.face_parts import PARTS
from tasks.fusion import build_networks as build_fusion
from tasks.fusion import fusion_job
from tasks.geometry import build_networks as build_geometry
from tasks.geometry import geometry_job
from tasks.ranks import Ranks
from tasks.rendered_heads import as_clips, render_heads
from tasks.room import Room
from tasks.stepper import Stepper, trained_values
from tasks.training import Training

STAGES = ("geometry", "canonical", "fusion")
PAPER_BATCH = 5
PAPER_STEPS = {"geometry": 15_000, "canonical": 30_000, "fusion": 75_000}
"""Sec. 4.2: 10, 20 and 50 epochs of 7,500 videos, five in a step."""
PEOPLE, CLIPS = 4, 32
"""So many people are drawn, and their clips repeated to so many: which pixels a step sees does not change its cost."""
SEED = 20_232
WARM_STEPS_CPU, WARM_STEPS_GPU = 1, Stepper.WARM_STEPS + 5


@dataclass(frozen=True)
class TrainBench:
    """What is measured.

    Attributes:
        stages: Of `STAGES`.
        size_px: Side of the frames.
        steps: Steps that are timed.
    """

    stages: tuple[str, ...]
    size_px: int
    steps: int


def with_batch(params: Params, batch: int | None, references: int | None) -> Params:
    """Settings for a bench: that batch and N in all stages (None: the settings'), few rendered people, no files."""

    def train(config: Optim) -> Optim:
        changes = {"batch_videos": batch or config.batch_videos, "references": references or config.references}
        return config.model_copy(update=changes)

    stages = {name: getattr(params, name) for name in STAGES}
    changed = {name: stage.model_copy(update={"train": train(stage.train)}) for name, stage in stages.items()}
    people = min(params.geometry.rendered_people, PEOPLE)
    changed["geometry"] = changed["geometry"].model_copy(update={"rendered_people": people})
    loss = params.fusion.perceptual
    if loss.backbone == "vgg19":  # other weights, the same work
        loss = loss.model_copy(update={"backbone": "vgg19_random"})
    changed["fusion"] = changed["fusion"].model_copy(update={"perceptual": loss})
    return params.model_copy(update=changed)


def bench_train(params: Params, bench: TrainBench) -> dict[str, Any]:
    """Measure the training steps.

    Args:
        params: From `with_batch`; `runtime` says on which devices and whether steps are recorded.
        bench: What to measure.

    Returns:
        Figures of every stage by its name, of the device, and, if all stages are measured,
        `paper_schedule_minutes`: the paper's 15k + 30k + 75k steps of five videos at the measured samples/s.
    """
    return on_devices(_measure_all, params.runtime, params, bench)


def _measure_all(params: Params, bench: TrainBench, device: torch.device) -> dict[str, Any]:
    """What each process of a bench runs."""
    ranks, peak = Ranks.here(), measured_peak(device)
    ranks.wait()
    made: dict[str, dict[str, Any]] = {}
    for stage in bench.stages:
        made[stage] = measure_stage(params, stage, bench, device, peak)
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "devices": ranks.count,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size_px": bench.size_px,
        "peak_tflops": peak / 1e12,
        "stages": made,
    }
    if set(bench.stages) == set(STAGES):
        minutes = {stage: PAPER_BATCH * PAPER_STEPS[stage] / made[stage]["samples_per_s"] / 60 for stage in STAGES}
        figures["paper_schedule_minutes"] = {**minutes, "all": sum(minutes.values())}
    return figures


def measure_stage(
    params: Params, stage: str, bench: TrainBench, device: torch.device, peak: float = 0.0
) -> dict[str, Any]:
    """Figures of one stage; of stage 1 those of Eq. 4, with the samples/s of its bootstrap beside them.

    Args:
        params: From `with_batch`.
        stage: Of `STAGES`.
        bench: What to measure.
        device: Where.
        peak: FLOP/s of the device; 0: the share of it is left out.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    config: Optim = getattr(params, stage).train
    clips = synthetic_clips(params, config, bench.size_px, device)
    begin = time.perf_counter()
    job = make_job(params, stage, clips)
    averaged = {name: value.clone() for name, value in trained_values(job).items()} if job.average else {}
    if params.runtime.sync_batch_norm:
        Ranks.here().share_statistics(job.modules.values())
    runtime = params.runtime
    stepper = Stepper(job, runtime.cuda_graphs, averaged, fuse=runtime.compile)
    start = params.geometry.bootstrap_steps if stage == "geometry" else 0
    figures = _timed(stepper, start, bench.steps, begin)
    # What follows may take minutes more (the bootstrap is compiled, too): the first figure need not wait for it.
    sys.stderr.write(f"{stage}: {figures['ms_per_step']:.2f} ms a step\n")
    memory = _memory_gib(device)
    counted = kernels(partial(stepper.take, start + bench.steps), device)
    bootstrap: dict[str, Any] = {}
    if start:
        # `start` may be a few steps only, and all of them are alike
        again = Stepper(_always_first(job), runtime.cuda_graphs, averaged, fuse=runtime.compile)
        bootstrap = {"bootstrap_ms_per_step": _timed(again, 0, bench.steps, begin)["ms_per_step"]}
        again.close()
    stepper.close()
    flops = _flops(job, start)
    if peak:
        figures["share_of_peak"] = flops / (figures["ms_per_step"] / 1e3) / peak
    return {
        "batch": config.batch_videos,
        "references": config.references,
        "precision": config.precision,
        "recorded": stepper.record,
        "compiled": runtime.compile and device.type == "cuda",
        "prefetched": job.rows is not None,
        "steps": bench.steps,
        **figures,
        **bootstrap,
        "gflop_per_sample": flops * Ranks.here().count / config.batch_videos / 1e9,
        "memory_gib": memory,
        "kernels_per_step": counted,
    }


def make_job(params: Params, stage: str, clips: ClipSet) -> Training:
    """A stage's job on some clips, as the stage itself makes it; random weights take as long as trained ones."""
    device = clips.device
    if stage == "geometry":
        geometry = params.geometry
        return geometry_job(geometry, build_geometry(geometry, device), clips, params.runtime.workers, {})
    camera = params.geometry.camera
    canonical = build_canonical(params.canonical, device)
    if stage == "canonical":
        return canonical_job(params.canonical, canonical["canonical"], camera, clips)  # type: ignore[arg-type]
    canonical["canonical"].requires_grad_(False).eval()
    return fusion_job(params.fusion, build_fusion(params.fusion, device), canonical, camera, clips, {})


def synthetic_clips(params: Params, config: Optim, size_px: int, device: torch.device) -> ClipSet:
    """Rendered heads as training clips, with their true depth and pose in the place of stage 1's.

    They lie where `runtime.clips_on_gpu` says; as few as they are, `never` reads them from the host's memory.
    """
    import pandas as pd

    frames = config.references + 3
    heads = render_heads(0, PEOPLE, frames, size_px, SEED, 1)
    one = as_clips(heads, frames, torch.device("cpu"))
    camera, times = params.geometry.camera, CLIPS // PEOPLE

    def repeated(values: torch.Tensor) -> torch.Tensor:
        return values.repeat(times, *[1] * (values.dim() - 1)).contiguous()

    def cut(values: torch.Tensor) -> torch.Tensor:
        return repeated(values.unflatten(0, (-1, frames)))

    table = pd.concat([one.table] * times, ignore_index=True)
    depth = torch.where(heads.depth > 0, heads.depth, torch.full_like(heads.depth, camera.border_depth_m))
    large = {"frames": repeated(one.frames), "head": repeated(one.head), "depth": cut(depth)}
    room = Room(device, params.runtime.clips_on_gpu, Path(tempfile.gettempdir()))
    space = room.space({name: (tuple(values.shape), values.dtype) for name, values in large.items()})
    for name, values in large.items():
        space.tensors[name].copy_(values)
    space.filled()
    return ClipSet(
        table,
        space.tensors["frames"],
        space.tensors["head"],
        repeated(one.landmarks).to(device),
        space.tensors["depth"],
        cut(heads.angles_deg).to(device),
        cut(heads.translation_m).to(device),
        parts=torch.tensor([0.0, 0.0, 0.01, 0.0, 0.01], device=device).expand(CLIPS, frames, len(PARTS), 5),
        streamed=space.streamed,
        room=room,
    )


def _timed(stepper: Stepper, start: int, steps: int, begin: float) -> dict[str, Any]:
    """Time steps after a few untimed ones, which let the libraries choose and record the step."""
    job, device = stepper.job, stepper.job.device
    warm = WARM_STEPS_GPU if device.type == "cuda" else WARM_STEPS_CPU
    for step in range(start, start + warm):
        stepper.take(step)
    wait(device)
    stepper.ranks.wait()
    ready, waited = time.perf_counter(), stepper.waited_s
    for step in range(start + warm, start + warm + steps):
        stepper.take(step)
    wait(device)
    seconds = time.perf_counter() - ready
    return {
        "ms_per_step": 1e3 * seconds / steps,
        "samples_per_s": job.samples * steps / seconds,
        "data_wait_share": (stepper.waited_s - waited) / seconds,
        "setup_s": ready - begin,
    }


class _FirstPhase:
    """The losses of a job, every step in the phase of the first."""

    def __init__(self, job: Training) -> None:
        self._losses = job.losses

    def phase(self, step: int) -> str:
        del step
        return self._losses.phase(0)

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        return self._losses.draw(step)

    def __call__(self, phase: str, drawn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self._losses(phase, drawn)


def _always_first(job: Training) -> Training:
    return replace(job, losses=_FirstPhase(job), settings={}, log_every=1, look=None, sheet_every=0)


def _flops(job: Training, step: int) -> float:
    """FLOP of this process's share of a step, forward and backward, counted without recording or compiling it."""
    drawn = Ranks.here().share(job.losses.draw(step), job.name)
    moved = {name: value.to(job.device) for name, value in drawn.items()}
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward_flops})
    with torch.compiler.set_stance("force_eager"), counter:
        job.losses(job.losses.phase(step), moved)["total"].backward()
    job.optimiser.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def _backward_flops(
    slope: Sequence[int], image: Sequence[int], weight: Sequence[int], *more: Any, out_shape: Any = None, **rest: Any
) -> int:
    """FLOP of a convolution's gradients, each as many as the convolution itself. torch counts those of a depthwise one
    as if it were whole: a fifth too much for F_D.

    Args:
        slope: Shape of the gradient at its output.
        image: Of its input.
        weight: Of its weight.
        more: The operator's other arguments; last, which gradients are wanted.
        out_shape: Not needed.
        rest: Not needed.
    """
    del image, out_shape, rest
    return 2 * math.prod(slope[:1]) * math.prod(slope[2:]) * math.prod(weight) * sum(more[-1][:2])


def _memory_gib(device: torch.device) -> float:
    """The most that was reserved on the GPU; on the CPU the most that the process ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(words: list[str] | None = None) -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(prog="python -m tasks.bench_train", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings, or a preset's file")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--batch", type=int, help="videos of a step, on all devices together")
    parser.add_argument("--size", type=int, help="side of the frames, pixels")
    parser.add_argument("--references", type=int, help="N")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--devices", type=int, help="how many train together")
    parser.add_argument("--steps", type=int, default=100, help="steps that are timed")
    parser.add_argument("--own-statistics", action="store_true", help="batch norms of each device by themselves")
    parser.add_argument("--eager", action="store_true", help="steps are not recorded as CUDA graphs")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile, or not")
    parser.add_argument("--clips-on-gpu", choices=get_args(ClipsOnGpu), help="whether the clips lie on the GPU")
    given = parser.parse_args(words)
    params = with_batch(load_params(given.params, complete=False), given.batch, given.references)
    params = with_runtime(
        params, given.device, given.devices, given.own_statistics, given.eager, given.compile, given.clips_on_gpu
    )
    choose_device(params.runtime.device)
    stages = STAGES if given.stage == "all" else (given.stage,)
    figures = bench_train(params, TrainBench(stages, given.size or params.crop.size_px, given.steps))
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def with_runtime(
    params: Params,
    device: str | None,
    devices: int | None,
    own_statistics: bool = False,
    eager: bool = False,
    compiled: bool | None = None,
    clips_on_gpu: str | None = None,
) -> Params:
    """Settings with other devices, separate batch norms, steps that are not recorded, torch.compile or not, or clips
    elsewhere."""
    runtime = params.runtime
    changes = {
        "device": device or runtime.device,
        "devices": devices or runtime.devices,
        "sync_batch_norm": runtime.sync_batch_norm and not own_statistics,
        "cuda_graphs": runtime.cuda_graphs and not eager,
        "compile": runtime.compile if compiled is None else compiled,
        "clips_on_gpu": clips_on_gpu or runtime.clips_on_gpu,
    }
    return params.model_copy(update={"runtime": runtime.model_copy(update=changes)})


if __name__ == "__main__":
    main()
