"""`head3d preset` and `head3d doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.graph import project_root
from flows.preset_files import parse_assignment, preset_names, preset_text, preset_title, write_preset
from models.config import ConfigError


def preset(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="demo, local (or folder), paper, paper-256, paper-512, rendered, tiny."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Take the videos below this directory instead of the demo's.")
    ] = None,
    voxceleb_list: Annotated[
        str | None, typer.Option("--voxceleb-list", metavar="PATH|URL", help="VoxCeleb's metadata list (CSV).")
    ] = None,
    voxceleb_videos: Annotated[
        Path | None, typer.Option("--voxceleb-videos", help="VoxCeleb videos or crops you have: nothing is downloaded.")
    ] = None,
    faceforensics: Annotated[
        Path | None, typer.Option("--faceforensics", help="Folder of FaceForensics or FaceForensics++.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=0, help="At most so many videos of the folder (or of VoxCeleb); 0: all."),
    ] = None,
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

      head3d preset paper --voxceleb-list vox-metadata.csv --faceforensics ~/FaceForensics
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
    values = _source_settings(name, folder, voxceleb_list, voxceleb_videos, faceforensics)
    values |= dict(parse_assignment(text) for text in settings or [])
    if limit is not None:
        values[_limit_key(name, values)] = limit
    root = project_root()
    changed = write_preset(name, root / "params.yaml", values)
    for line in changed:
        console.print(f"  {escape(line)}", highlight=False)
    console.print(
        f"params.yaml: {len(changed)} changed" if changed else "params.yaml: nothing changed", highlight=False
    )


def _source_settings(
    name: str, folder: Path | None, vox_list: str | None, vox_videos: Path | None, faceforensics: Path | None
) -> dict[str, Any]:
    """Settings of the options that name sources.

    Raises:
        ConfigError: A path does not lead anywhere.
    """
    values: dict[str, Any] = {}
    folders = {
        "folder": ("--folder", "acquire.folder.path", folder),
        "voxceleb": ("--voxceleb-videos", "acquire.voxceleb.videos", vox_videos),
        "faceforensics": ("--faceforensics", "acquire.faceforensics.path", faceforensics),
    }
    for option, key, path in folders.values():
        if path is not None and not path.expanduser().is_dir():
            raise ConfigError(f"{option} {path} is not a directory")
        if path is not None:
            values[key] = _portable(path)
    if vox_list is not None:
        is_url = vox_list.startswith(("http://", "https://"))
        if not is_url and not Path(vox_list).expanduser().is_file():
            raise ConfigError(f"--voxceleb-list {vox_list} is not a file (or a URL)")
        values["acquire.voxceleb.metadata"] = vox_list if is_url else _portable(Path(vox_list))
    named = [source for source in folders if any(key.startswith(f"acquire.{source}.") for key in values)]
    own = yaml.safe_load(preset_text(name))["acquire"]["sources"]
    if named and (folder is not None or not set(named) <= set(own)):
        values["acquire.sources"] = named
    return values


def _limit_key(name: str, values: dict[str, Any]) -> str:
    """What `--limit` counts.

    Raises:
        ConfigError: Nothing that has a limit.
    """
    sources = values.get("acquire.sources") or yaml.safe_load(preset_text(name))["acquire"]["sources"]
    if values.get("acquire.folder.path"):
        return "acquire.folder.limit"
    if "voxceleb" in sources:
        return "acquire.voxceleb.limit"
    raise ConfigError("--limit counts the videos of a folder: give --folder too")


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
