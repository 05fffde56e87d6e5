"""`head3d inspect`, `head3d animate` and `head3d metrics`: a look at the data and the trained model at work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.printing import print_summary
from flows.project import enter_project
from flows.stage import plain
from models.config import Params
from tasks.errors import StageError
from tasks.output import check_output
from tasks.paths import Paths


def inspect(
    clip: Annotated[
        str | None, typer.Argument(metavar="CLIP", help="A clip's name, its row, or a video's name.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where the sheet goes (PNG). None: sheet.png or worst.png.")
    ] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Count what the stores hold: by status, reason and flag.")
    ] = False,
    worst: Annotated[
        int | None, typer.Option("--worst", min=1, help="Draw the N worst clips, with the reason beside each.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all of the stores and name the shards that are damaged.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; a sheet is drawn only with -o.")] = False,
) -> None:
    """Look at the clips and their masks: a sheet of one, the worst ones, or counts of all.

    Examples:

      head3d inspect --store

      head3d inspect person03_0 -o sheet.png

      head3d inspect --worst 12 -o worst.png

      head3d inspect --store --json > stores.json
    """
    if sum((clip is not None, store, worst is not None, verify)) != 1:
        raise typer.BadParameter("name a clip, or say --store, --worst N or --verify", param_hint="CLIP")
    here = Path.cwd()
    params, paths = enter_project()
    target = None if out is None else here / out
    if target is not None:
        check_output(target, "the sheet is", (".png",), "sheet.png")
    if verify:
        _verify_stores(paths, as_json)
    elif store:
        _inspect_store(params, paths, as_json)
    elif worst is not None:
        _inspect_worst(params, paths, worst, target or (None if as_json else here / "worst.png"), as_json)
    elif clip is not None:
        _inspect_clip(params, paths, clip, target or (None if as_json else here / "sheet.png"), as_json)


def _inspect_store(params: Params, paths: Paths, as_json: bool) -> None:
    from tasks import inspect as looking

    if as_json:
        _print_json(dataclasses.asdict(looking.inspect_store(paths, params.quality)))
    else:
        typer.echo(looking.describe_stores(paths, params.quality))


def _verify_stores(paths: Paths, as_json: bool) -> None:
    from tasks.stores import damage_report

    there = [path for path in (paths.clips, paths.masks) if path.exists()]
    if not there:
        raise StageError(f"{paths.clips} does not exist; `dvc repro crop` makes it (or `dvc pull`)")
    damage = [line for path in there for line in damage_report(path)]
    if as_json:
        _print_json({"stores": [str(path) for path in there], "damage": damage})
    else:
        listed = ", ".join(str(path) for path in there)
        typer.echo("\n".join(damage) or f"every shard of {listed} is as it was written")
    if damage:
        raise typer.Exit(1)


def _inspect_worst(params: Params, paths: Paths, count: int, target: Path | None, as_json: bool) -> None:
    from tasks import inspect as looking
    from tasks import inspect_sheets as drawing

    found = looking.worst_clips(paths, params.quality, count)
    if target is not None:
        drawing.write_picture(drawing.worst_sheet(paths, params.quality, count), target)
    if as_json:
        _print_json([dataclasses.asdict(item) for item in found])
        return
    for item in found:
        typer.echo(f"{item.clip}: {'; '.join(item.why)}")
    typer.echo(f"{target}")


def _inspect_clip(params: Params, paths: Paths, clip: str, target: Path | None, as_json: bool) -> None:
    from tasks import inspect as looking
    from tasks import inspect_sheets as drawing

    if target is not None:
        picture = drawing.inspect_clip(paths, clip, drawing.SHEET_FRAMES, params.quality)
        drawing.write_picture(picture, target)
    if not as_json:
        typer.echo(f"{target}")
        return
    series = drawing.clip_series(paths, clip)
    measures = looking.measures_of(paths, str(series["record"]["clip"]), params.quality)
    _print_json({**series, **dataclasses.asdict(measures)})


def _print_json(content: Any) -> None:
    """Print strict JSON: numpy's numbers as plain ones, NaN and infinities as null."""
    typer.echo(json.dumps(plain(content), indent=2))


def animate(
    subject: Annotated[
        Path, typer.Argument(metavar="SUBJECT", help="Video of the person to show.", exists=True, dir_okay=False)
    ],
    driving: Annotated[
        Path, typer.Argument(metavar="DRIVING", help="Video with the motion.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The video to write (MP4).")],
    mode: Annotated[
        str | None,
        typer.Option(help="absolute: the driving head's pose; relative: its change. None: as in params.yaml."),
    ] = None,
    references: Annotated[
        int | None, typer.Option(min=1, help="Frames of the subject to use. None: params.yaml.")
    ] = None,
    pick: Annotated[str, typer.Option(help="How they are chosen: even (in time) or spread (by pose).")] = "even",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N. None: params.yaml.")] = None,
    precision: Annotated[
        str, typer.Option(help="auto (the fastest that leaves the quality as it is), float32, tf32, float16, bfloat16.")
    ] = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model first: a minute, for long videos on a GPU.")
    ] = False,
    sound: Annotated[bool, typer.Option(help="Keep the driving video's sound.")] = True,
    side_by_side: Annotated[
        Path | None, typer.Option(help="Also write reference, driving crop and output beside each other (MP4).")
    ] = None,
    driving_out: Annotated[
        Path | None, typer.Option(help="Also write the driving video's crops, for `head3d metrics` (MP4).")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder with geometry/, canonical/ and fusion/. None: data/checkpoints.")
    ] = None,
) -> None:
    """Move the head of one video as another moves, with the trained model.

    The driving video may be as long as you like; its sound is kept. Ctrl-C ends the file after the frames made so far,
    and it plays.

    Examples:

      head3d animate me.mp4 speech.mp4 -o out.mp4

      head3d animate me.mp4 speech.mp4 -o out.mp4 --mode relative --references 5

      head3d animate me.mp4 me.mp4 -o out.mp4 --driving-out crops.mp4 --side-by-side look.mp4
    """
    from tasks.animate import Limits, Wanted
    from tasks.animate import animate as animate_video
    from tasks.references import PICKS

    if pick not in PICKS:
        raise typer.BadParameter(f"'{pick}' is neither {' nor '.join(PICKS)}", param_hint="--pick")
    if mode not in (None, "absolute", "relative"):
        raise typer.BadParameter(f"'{mode}' is neither absolute nor relative", param_hint="--mode")
    subject, driving, out = subject.resolve(), driving.resolve(), out.resolve()
    checkpoints = checkpoints.resolve() if checkpoints else None
    params, paths = enter_project()
    wanted = Wanted(
        device or params.runtime.device,
        mode or params.generate.mode,
        references or params.generate.references,
        pick,
        precision,
        compiled,
        sound,
        side_by_side.resolve() if side_by_side else None,
        driving_out.resolve() if driving_out else None,
    )
    folder, limits = checkpoints or paths.data / "checkpoints", Limits(params.quality, params.notices)
    summary = animate_video(subject, driving, out, checkpoints=folder, wanted=wanted, limits=limits)
    print_summary(summary, out)
    if "stopped" in summary:
        raise typer.Exit(130)


def metrics(
    pred: Annotated[Path, typer.Argument(metavar="PRED", help="Video, or folder of videos.", exists=True)],
    truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="What it should look like; the same kind.", exists=True)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    frame_stride: Annotated[int, typer.Option(min=1, help="LPIPS looks at every n-th frame.")] = 1,
    backbone: Annotated[str, typer.Option(help="LPIPS backbone: alex, vgg or squeeze.")] = "alex",
    weights: Annotated[
        str, typer.Option(help="File with the backbone's ImageNet weights; empty: the registry's place.")
    ] = "",
    device: Annotated[str, typer.Option(help="Where LPIPS runs: auto, cpu, cuda, cuda:N.")] = "cpu",
) -> None:
    """Measure L2, PSNR and LPIPS between two videos, or two folders of videos with the same names.

    A figure from a backbone without its weights is called lpips_random_backbone: it compares with nothing published.

    Examples:

      head3d metrics out.mp4 truth.mp4

      head3d metrics results/ truth/ --json > figures.json
    """
    from models.config import Evaluate, build
    from tasks.metrics import compare

    section = build(
        Evaluate, {"lpips_backbone": backbone, "lpips_weights": weights, "frame_stride": frame_stride}, "metrics"
    )
    result = compare(pred, truth, section, device)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    _print_figures(result)


def _print_figures(result: dict[str, Any]) -> None:
    definitions = result.get("definitions", {})
    table = Table("figure", "value", "definition", box=None, header_style="bold")
    for key, value in result.items():
        if isinstance(value, int | float | None):
            shown = "-" if value is None else f"{value:.6g}"
            table.add_row(key, shown, escape(str(definitions.get(key, ""))))
    Console().print(table)
    for item in result.get("refused", []):
        typer.echo(f"refused: {item['name']}: {item['reason']}", err=True)
