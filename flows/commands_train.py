"""`head3d train-parser` and `head3d bench parser`: the embedded head parser, trained and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands_bench import print_figures


def train_parser(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="With train/ and val/, each with images/ and masks/.", exists=True, file_okay=False
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The weights file to write (safetensors).")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 12_315,
    batch: Annotated[int, typer.Option(min=1, help="Views per step.")] = 64,
    lr: Annotated[float, typer.Option(min=0.0, help="Largest learning rate (AdamW).")] = 2e-3,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="Of matrices and kernels.")] = 0.05,
    sizes: Annotated[str, typer.Option(help="Sides of the views in turn, multiples of 32.")] = "256,192,128",
    zoomed_out: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of views with a small head.")] = 0.5,
    init: Annotated[Path | None, typer.Option(help="Weights to go on from.", exists=True, dir_okay=False)] = None,
    init_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of these weights in the result.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Of views and weights.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
) -> None:
    """Train the compact parser on labelled pictures (CelebAMask-HQ's classes as maps of ids 0-18).

    The model card (tasks/weights/README.md) has the two commands that made the shipped weights. Ctrl-C stops; the same
    command goes on. The figures are printed and lie beside the weights as JSON.

    Examples:

      head3d train-parser ~/parsing -o parser.safetensors

      head3d train-parser ~/parsing -o refined.safetensors --init parser.safetensors --lr 2e-4 --steps 10800
    """
    from tasks import train_parser as training
    from tasks.device import choose_device

    sides = _sides(sizes)
    settings = training.ParserTraining(
        steps=steps,
        batch=batch,
        lr=lr,
        weight_decay=weight_decay,
        sizes_px=sides,
        ema_steps=max(1, steps // 10),
        seed=seed,
        zoomed_out=zoomed_out,
        init=str(init or ""),
        init_share=init_share,
    )
    figures = training.train_parser(folder, out, settings, choose_device(device))
    print_figures(figures)
    typer.echo(str(out))


def parser(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Labelled pictures: images/ and masks/. None: speed only.", exists=True),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Another weights file.", exists=True, dir_okay=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. None: torch's choice.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """How good and how fast the embedded parser is, with and without the mirrored picture.

    Examples:

      head3d bench parser ~/parsing/val --json

      head3d bench parser --device cuda
    """
    from tasks.bench_parser import bench_parser

    figures = bench_parser(folder, weights, device, threads)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        print_figures(figures)


def _sides(text: str) -> tuple[int, ...]:
    try:
        sides = tuple(int(part) for part in text.split(","))
    except ValueError:
        sides = ()
    if not sides or any(side <= 0 or side % 32 for side in sides):
        raise typer.BadParameter(f"'{text}' is not a list of multiples of 32, as 256,192", param_hint="--sizes")
    return sides
