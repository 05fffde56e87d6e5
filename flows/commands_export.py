"""`head3d export`: the trained model as files that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.printing import print_summary
from flows.project import enter_project


def export(
    subject: Annotated[
        Path | None,
        typer.Argument(
            metavar="SUBJECT", help="Video of a person, whose state is written, too.", exists=True, dir_okay=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.", file_okay=False)] = Path("exported"),
    form: Annotated[str, typer.Option("--format", help="torch (.pt2, torch.export) or onnx.")] = "torch",
    batch: Annotated[int, typer.Option(min=1, help="Driving frames at a time.")] = 1,
    references: Annotated[
        int | None, typer.Option(min=1, help="Frames of the subject to use. None: params.yaml.")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder with geometry/, canonical/ and fusion/. None: data/checkpoints.")
    ] = None,
) -> None:
    """Write the path of a frame and that of a subject, load both again, and compare them with the model.

    interface.json and USAGE.txt beside them say what goes in and comes out. Cropping and parsing are not in the files.

    Examples:

      head3d export -o exported

      head3d export me.mp4 -o exported --format onnx
    """
    from tasks.export_model import FORMATS, export_model, export_state

    if form not in FORMATS:
        raise typer.BadParameter(f"'{form}' is neither {' nor '.join(FORMATS)}", param_hint="--format")
    subject, out = subject.resolve() if subject else None, out.resolve()
    checkpoints = checkpoints.resolve() if checkpoints else None
    params, paths = enter_project()
    folder, count = checkpoints or paths.data / "checkpoints", references or params.generate.references
    if subject is not None:
        export_state(folder, subject, out, count)
    figures = export_model(folder, out, form, batch, count)
    lines = {
        name: f"{values['megabytes']} MB; largest difference to the model {values['largest']:.2g}, "
        f"mean {values['mean']:.2g}, {values['share_above_half_a_level']:.2%} of the values by over half a grey level"
        for name, values in figures.items()
    }
    print_summary(lines, out)
