"""`head3d bench animate` and `head3d bench store`: what a frame and the clips' store cost."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands_bench import bench_settings, print_figures

_Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
_Preset = Annotated[str | None, typer.Option(help="Settings of a preset instead of params.yaml.")]


def animate(
    size: Annotated[
        int | None, typer.Option(min=16, metavar="PX", help="Side of the frames. None: as trained, or the settings'.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Frames at a time, beside one at a time.")] = 40,
    frames: Annotated[int, typer.Option(min=1, help="Frames that are timed.")] = 200,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    checkpoints: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A trained model. None: random weights.", exists=True, file_okay=False),
    ] = None,
    preset: _Preset = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also with torch.compile (a GPU; minutes).")] = False,
    with_parser: Annotated[bool, typer.Option("--with-parser", help="Also with the head parser in the path.")] = False,
    as_json: _Json = False,
) -> None:
    """What a frame of `head3d animate` costs, in every precision, and how far each is from float32.

    Measured: from the cropped driving frame and its head mask in the host's memory to the new frame there. Decoding,
    cropping, parsing and encoding are not in it. Random weights take as long as trained ones. Other work on the machine
    spoils the figures.

    Examples:

      head3d bench animate --preset paper --json

      head3d bench animate --checkpoints data/checkpoints --size 128 --batch 40
    """
    from tasks.bench_animate import Bench, bench_animate, load_or_make
    from tasks.device import choose_device

    folder = checkpoints.resolve() if checkpoints else None
    where = choose_device(device)
    if compiled and where.type == "cpu":
        raise typer.BadParameter("torch.compile is measured on a GPU only", param_hint="--compile")
    model = load_or_make(bench_settings(preset, None), folder, size, where)
    _show(bench_animate(model, Bench(where, model.size_px, batch, frames, compiled, with_parser)), as_json)


def store(
    clips: Annotated[int, typer.Option(min=1, help="Clips to write.")] = 256,
    reads: Annotated[int, typer.Option(min=1, help="Random reads.")] = 200,
    preset: _Preset = None,
    folder: Annotated[
        Path | None, typer.Option(help="Disk to measure. None: the system's temporary folder.", file_okay=False)
    ] = None,
    as_json: _Json = False,
) -> None:
    """What the clips' Zarr store costs: writing, reading in order and at random, a training set into memory.

    Clips are painted, with a camera's noise, at the settings' size. They are deleted again.

    Examples:

      head3d bench store --json

      head3d bench store --preset paper --clips 512 --folder /data
    """
    from tasks.bench_store import bench_store

    where = folder.resolve() if folder else None
    settings = bench_settings(preset, None)
    if where is not None:
        where.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="head3d-bench-", dir=where) as place:
        _show(bench_store(settings, Path(place), clips, reads), as_json)


def _show(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        print_figures(figures)
