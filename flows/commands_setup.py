"""`head3d preset` and `head3d doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.graph import project_root
from flows.preset_files import parse_assignment, preset_names, preset_title, write_preset
from models.config import ConfigError


def preset(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="demo, local (or folder), paper, paper-256, paper-512, tiny.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Take the videos below this directory instead of the demo's.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=0, help="With a folder: at most so many; 0: all.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show the presets and stop.")] = False,
) -> None:
    """Write params.yaml from a preset and print what changed.

    Examples:

      head3d preset --list

      head3d preset demo

      head3d preset local --folder ~/videos --limit 24

      head3d preset local --folder ~/videos --set crop.size_px=64 --set fusion.train.steps=500
    """
    console = Console(soft_wrap=True)
    if listing or name is None:
        table = Table("preset", "what it is", box=None, header_style="bold")
        for each in preset_names():
            table.add_row(each, escape(preset_title(each)))
        console.print(table)
        if name is None and not listing:
            raise typer.Exit(2)
        return
    values: dict[str, Any] = {}
    if folder is not None:
        if not folder.expanduser().is_dir():
            raise ConfigError(f"--folder {folder} is not a directory")
        values |= {"acquire.sources": ["folder"], "acquire.folder.path": _portable(folder)}
    values |= dict(parse_assignment(text) for text in settings or [])
    if limit is not None:
        if folder is None and not values.get("acquire.folder.path"):
            raise ConfigError("--limit counts the videos of a folder: give --folder too")
        values["acquire.folder.limit"] = limit
    root = project_root()
    changed = write_preset(name, root / "params.yaml", values)
    for line in changed:
        console.print(f"  {escape(line)}", highlight=False)
    console.print(
        f"params.yaml: {len(changed)} changed" if changed else "params.yaml: nothing changed", highlight=False
    )


def _portable(folder: Path) -> str:
    """Relative to the project if the folder lies in it, else absolute."""
    full, root = folder.expanduser().resolve(), project_root()
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else str(full)


def doctor(
    video: Annotated[
        Path | None, typer.Option("--video", help="Also say what the pipeline would do with this video.")
    ] = None,
) -> None:
    """Check versions, GPU, weights, disk, settings, DVC, git and Prefect.

    The exit code is 1 if something is wrong that keeps the pipeline from running (or the video gives no clip).

    Examples:

      head3d doctor

      head3d doctor --video interview.mp4
    """
    from flows.doctor import Check, check_all
    from flows.doctor_video import check_video

    root = project_root()
    checks: list[Check] = check_all(root)
    if video is not None:
        checks += check_video(root, video)
    signs = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(signs[check.state], check.name, escape(check.text))
    Console().print(table)
    if any(check.state == "problem" for check in checks):
        raise typer.Exit(1)
