"""`head3d parse`: label maps of pictures and videos of one's own, inside a project or anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from flows.graph import project_root
from flows.preset_files import preset_text
from models.config import ConfigError, Params, Parse, build, load_params

PRESET = "local"
"""Whose settings count outside a project."""
BISENET_PX = 512
"""The side that BiSeNet's public weights were trained at; used when --parser asks for it and --work-px says nothing."""


def parse(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A picture, a video, or a folder of both.", exists=True)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="A picture's PNG, or a folder (video: one PNG per frame).")],
    parser: Annotated[
        str | None, typer.Option("--parser", help="embedded or bisenet. None: parse.parser of params.yaml.")
    ] = None,
    work_px: Annotated[
        int | None, typer.Option("--work-px", min=32, help="Side at which the parser sees the head. None: params.yaml.")
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Another weights file of that parser.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N. None: params.yaml.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write pictures to look at.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Parse again what is there already.")] = False,
) -> None:
    """Write label maps (PNG, values 0-18 as in CelebAMask-HQ) of the main head in pictures and videos.

    The maps have the picture's own size. A square about the largest face is parsed, what lies beyond it is 0; without a
    face the whole picture is. Settings come from params.yaml inside a project, else from the preset local.

    Examples:

      head3d parse portrait.jpg -o labels.png

      head3d parse interview.mp4 -o labels/ --overlay

      head3d parse ~/photos -o ~/photo_labels
    """
    from tasks.parse_media import MediaParser
    from tasks.parse_tree import parse_path

    params, where = _settings()
    section = _chosen(params.parse, where, parser, work_px)
    loaded = MediaParser(
        params.crop, section, device or params.runtime.device, weights=weights, overlay=overlay, force=force
    )
    report = parse_path(loaded, source, out)
    for sentence in report.refused:
        typer.echo(f"refused: {sentence}", err=True)
    parts = [f"{report.pictures} pictures", f"{report.videos} videos", f"{report.frames} label maps"]
    parts += [f"{report.frames_kept} of them were there already"] if report.frames_kept else []
    parts += [f"{report.without_face} frames without a face: parsed whole"] if report.without_face else []
    parts += [f"{len(report.refused)} files refused"] if report.refused else []
    typer.echo(f"{out}: {', '.join(parts)}")


def _settings() -> tuple[Params, str]:
    """The project's settings, or the preset's where there is no project; and what to call them."""
    try:
        root = project_root()
    except FileNotFoundError:
        return build(Params, yaml.safe_load(preset_text(PRESET)), f"preset {PRESET}"), f"preset {PRESET}"
    return load_params(root / "params.yaml"), "params.yaml"


def _chosen(section: Parse, where: str, parser: str | None, work_px: int | None) -> Parse:
    """The section `parse` with what the command line says."""
    values = section.model_dump()
    if parser is not None and parser != section.parser:
        values["parser"] = parser
        if parser == "bisenet":
            values["work_px"] = BISENET_PX
    if work_px is not None:
        values["work_px"] = work_px
    chosen = build(Parse, values, "head3d parse")
    if chosen.parser == "grabcut":
        said = "--parser" if parser else f"parse.parser ({where})"
        raise ConfigError(f"{said} is grabcut, which learns its colours from a whole clip; add --parser embedded")
    return chosen
