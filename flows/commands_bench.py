"""`head3d bench`: what the preparation costs on this machine, and what a large data set would need."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from flows.preset_files import preset_text
from flows.project import enter_project
from models.config import Params, build, load_params

bench = typer.Typer(
    help="Measure this machine.", no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)


@bench.callback()
def _bench() -> None:
    """Measure this machine."""


@bench.command()
def prepare(
    videos: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="VIDEOS", help="Raw videos or folders of them. None: 720p videos drawn here.", exists=True
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Videos that are drawn when none is named.")] = 12,
    frames: Annotated[int, typer.Option(min=40, help="Frames of each of these.")] = 200,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes. None: params.yaml.")] = None,
    plan: Annotated[
        int | None, typer.Option("--plan", metavar="CLIPS", min=1, help="Also work out what so many clips need.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Raw videos to cropped, labelled clips in Zarr, beside what decoding and parsing alone cost.

    Settings of crop, parse and runtime come from params.yaml. Other work on the machine spoils the figures.

    Examples:

      head3d bench prepare --json

      head3d bench prepare ~/videos --workers 8 --plan 22500
    """
    from tasks.bench_prepare import bench_prepare
    from tasks.bench_prepare import plan as work_out
    from tasks.bench_videos import bench_videos

    named = [path.resolve() for path in videos or []]
    params, _ = enter_project()
    if workers is not None:
        params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"workers": workers})})
    with tempfile.TemporaryDirectory(prefix="head3d-bench-") as folder:
        chosen = _files(named) if named else bench_videos(Path(folder) / "videos", count, frames)
        figures: dict[str, Any] = bench_prepare(params, chosen, Path(folder))
    if plan is not None:
        figures["plan"] = work_out(params, figures, plan)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        print_figures(figures)


@bench.command()
def geometry(
    people: Annotated[int, typer.Option(min=1, help="Rendered people to learn from.")] = 64,
    frames: Annotated[int, typer.Option(min=2, help="Frames of each.")] = 40,
    unseen: Annotated[int, typer.Option(min=1, help="Other people, who judge.")] = 16,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Training steps in all, shared out as the settings do. None: theirs.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Settings of a preset instead of params.yaml.")] = None,
    params: Annotated[Path | None, typer.Option(help="Another file of settings.", exists=True, dir_okay=False)] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Train nothing: judge this checkpoint.", exists=True, file_okay=False),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that draw. None: as the settings say.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N. None: as the settings say.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Train stage 1 on rendered people and judge it on others, whose pose and depth are known; exit code 1 on a miss.

    Bars: a mean error of at most 3 degrees for yaw, pitch and roll, after one constant offset each, and a correlation
    of at least 0.9 of predicted and true depth inside the head (the mean over the frames). It needs no data.

    Examples:

      head3d bench geometry --preset demo --json

      head3d bench geometry --weights data/checkpoints/geometry
    """
    from flows.commands_check import show_bars
    from tasks.bench_geometry import Rendered, bench_training, bench_weights, with_steps

    settings = bench_settings(preset, params)
    rendered = Rendered(people, unseen, frames, workers or settings.runtime.workers)
    where = device or settings.runtime.device
    if weights is not None:
        bars = bench_weights(weights, rendered, where)
    else:
        section = settings.geometry if steps is None else with_steps(settings.geometry, steps)
        if frames <= section.train.references:
            raise typer.BadParameter(
                f"must be more than the {section.train.references} references", param_hint="--frames"
            )
        bars = bench_training(rendered, settings.crop.size_px, section, settings.runtime, where)
    show_bars(bars, as_json)


def bench_settings(preset: str | None, file: Path | None) -> Params:
    """Of a preset, a file (a preset's too, whose videos are not named yet), or the project around this folder."""
    if preset is not None and file is not None:
        raise typer.BadParameter("name a preset or a file, not both", param_hint="--preset")
    if preset is not None:
        return build(Params, yaml.safe_load(preset_text(preset)), f"preset {preset}")
    return load_params(file, complete=False) if file is not None else enter_project()[0]


def _files(named: list[Path]) -> list[Path]:
    from tasks.source_files import find_videos

    return [file for path in named for file in (find_videos(path) if path.is_dir() else [path])]


def print_figures(figures: dict[str, Any]) -> None:
    """Print a table of figures; a group of them takes a row for each."""
    table = Table("figure", "value", box=None, header_style="bold")
    for key, value in figures.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                table.add_row(f"{key}.{name}", _shown(inner))
        else:
            table.add_row(key, _shown(value))
    Console().print(table)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}" if isinstance(value, float) else str(value)
