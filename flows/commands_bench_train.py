"""`head3d bench train`: what a training step of each stage costs."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands_bench import bench_settings, print_figures


class Clips(StrEnum):
    """Whether the training clips lie on the GPU."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Stage(StrEnum):
    """What is measured."""

    GEOMETRY = "geometry"
    CANONICAL = "canonical"
    FUSION = "fusion"
    ALL = "all"


def train(
    stage: Annotated[Stage, typer.Option(help="One stage, or all and the paper's schedule.")] = Stage.ALL,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Videos of a step, on all devices together. None: the settings'.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=48, metavar="PX", help="Side of the frames. None: the settings'.")
    ] = None,
    references: Annotated[int | None, typer.Option(min=1, metavar="N", help="N. None: the settings'.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N. None: the settings'.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="How many train together. None: the settings'.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 100,
    own_statistics: Annotated[
        bool, typer.Option("--own-statistics", help="Batch norms of each device by themselves.")
    ] = False,
    eager: Annotated[bool, typer.Option("--eager", help="Steps are not recorded as CUDA graphs.")] = False,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile (a GPU). None: the settings'.")
    ] = None,
    clips_on_gpu: Annotated[
        Clips | None, typer.Option(help="Whether the clips lie there or are prefetched. None: the settings'.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Settings of a preset instead of params.yaml.")] = None,
    params: Annotated[Path | None, typer.Option(help="Another file of settings.", exists=True, dir_okay=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """What a training step costs: time, samples/s, FLOPs, share of the device's measured peak, memory, data-wait.

    The stages' own jobs run (losses, optimiser, recorded steps) on rendered heads in memory; no data is needed. Random
    weights take as long as trained ones. Other work on the machine spoils the figures. The same without this command:
    `python -m tasks.bench_train --params flows/presets/paper.yaml`.

    Examples:

      head3d bench train --preset paper --json

      head3d bench train --stage fusion --batch 32 --size 128 --references 5

      head3d bench train --stage fusion --batch 128 --devices 4

      head3d bench train --preset paper --clips-on-gpu never
    """
    from tasks.bench_train import STAGES, TrainBench, bench_train, with_batch, with_runtime

    settings = with_batch(bench_settings(preset, params), batch, references)
    place = clips_on_gpu.value if clips_on_gpu else None
    settings = with_runtime(settings, device, devices, own_statistics, eager, compiled, place)
    stages = STAGES if stage is Stage.ALL else (stage.value,)
    figures = bench_train(settings, TrainBench(stages, size or settings.crop.size_px, steps))
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        _show(figures)


def _show(figures: dict[str, Any]) -> None:
    """One table of the machine, and one of each stage."""
    print_figures({name: value for name, value in figures.items() if name != "stages"})
    for stage, of_stage in figures["stages"].items():
        print_figures({stage: of_stage})
