"""`head3d canonical`, `view` and `attention`: a head as a mesh, turned by hand, and what stage 3 does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.printing import print_summary
from flows.project import enter_project

_Subject = Annotated[
    Path, typer.Argument(metavar="SUBJECT", help="Video of the person to show.", exists=True, dir_okay=False)
]
_References = Annotated[
    int | None, typer.Option("--references", min=1, help="Frames of the subject to use. None: params.yaml.")
]
_Pick = Annotated[str, typer.Option("--pick", help="How they are chosen: even (in time) or spread (by pose).")]
_Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N. None: params.yaml.")]
_Checkpoints = Annotated[
    Path | None,
    typer.Option("--checkpoints", help="Folder with geometry/, canonical/ and fusion/. None: data/checkpoints."),
]


def canonical(
    subject: _Subject,
    out: Annotated[Path, typer.Option("-o", "--out", help="head.glb, head.ply (meshes) or head.png (with alpha).")],
    references: _References = None,
    pick: _Pick = "even",
    device: _Device = None,
    checkpoints: _Checkpoints = None,
) -> None:
    """Write a person's canonical head: a mesh in metres that any 3D viewer opens, or a picture.

    The mesh faces +z with y up, and its origin is the centre of the head. A glb carries the canonical picture as
    texture, a ply a colour at each vertex.

    Examples:

      head3d canonical me.mp4 -o head.glb

      head3d canonical me.mp4 -o head.png --references 10 --pick spread
    """
    from tasks.export_head import export_head

    subject, out = subject.resolve(), out.resolve()
    print_summary(export_head(subject, out, **_options(references, pick, device, checkpoints)), out)


def view(
    subject: _Subject,
    out: Annotated[Path, typer.Option("-o", "--out", help="turn.mp4, or turn.png for a strip of all views.")],
    yaw: Annotated[str | None, typer.Option("--yaw", help="Degrees: a number, or first:last:step.")] = None,
    pitch: Annotated[str | None, typer.Option("--pitch", help="Degrees, the same.")] = None,
    roll: Annotated[str | None, typer.Option("--roll", help="Degrees, the same.")] = None,
    tx: Annotated[str | None, typer.Option("--tx", help="Metres to the right, the same.")] = None,
    ty: Annotated[str | None, typer.Option("--ty", help="Metres down, the same.")] = None,
    tz: Annotated[str | None, typer.Option("--tz", help="Metres away, the same.")] = None,
    fps: Annotated[float, typer.Option("--fps", min=0.1, help="Views per second of the mp4.")] = 10.0,
    on_backdrop: Annotated[
        bool, typer.Option("--backdrop/--plain", help="Turn the head on its painted-out frame, or as in the paper.")
    ] = True,
    references: _References = None,
    pick: _Pick = "even",
    device: _Device = None,
    checkpoints: _Checkpoints = None,
) -> None:
    """Turn a person's head to poses given by hand; the background stays.

    Ranges go together step by step, a single number stays for all of them, and what is not named keeps the value of the
    reference frame. Positive yaw turns the nose towards the left of the picture, positive pitch lowers it, positive
    roll turns the head clockwise.

    Examples:

      head3d view me.mp4 --yaw -40:40:5 -o turn.mp4

      head3d view me.mp4 --yaw -30:30:10 --pitch 10 -o strip.png

      head3d view me.mp4 --yaw 0 --pitch 0 --tx -0.05:0.05:0.01 -o shift.mp4

    Phi is shown the turned head on the subject's frame with its own head painted out; with --plain on black, as in the
    paper (Sec. 3.4), which is less exact.
    """
    from tasks.novel_view import novel_views

    given = {"yaw": yaw, "pitch": pitch, "roll": roll, "tx": tx, "ty": ty, "tz": tz}
    ranges = {axis: text for axis, text in given.items() if text is not None}
    subject, out = subject.resolve(), out.resolve()
    options = _options(references, pick, device, checkpoints)
    print_summary(novel_views(subject, out, ranges, fps=fps, on_backdrop=on_backdrop, **options), out)


def attention(
    subject: _Subject,
    driving: Annotated[
        Path, typer.Argument(metavar="DRIVING", help="Video with the motion.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The sheet to write (PNG).")],
    frames: Annotated[int, typer.Option("--frames", min=1, help="Driving frames to show, evenly spread.")] = 6,
    references: _References = None,
    pick: _Pick = "even",
    device: _Device = None,
    checkpoints: _Checkpoints = None,
) -> None:
    """Draw how stage 3 makes a frame, as in the paper's Fig. 6: what it warps, the two flows, the three attention maps.

    One row for each driving frame, with the difference in pose to the subject's frame and the mean attention inside the
    driving head's mask. a_head: the turned canonical head; a_ref: the subject's frame; a_dec: the decoder's own.

    Examples:

      head3d attention me.mp4 speech.mp4 -o sheet.png

      head3d attention me.mp4 speech.mp4 -o sheet.png --frames 10 --pick spread
    """
    from tasks.attention_sheet import write_attention_sheet

    subject, driving, out = subject.resolve(), driving.resolve(), out.resolve()
    options = _options(references, pick, device, checkpoints)
    print_summary(write_attention_sheet(subject, driving, out, frames=frames, **options), out)


def _options(references: int | None, pick: str, device: str | None, checkpoints: Path | None) -> dict[str, Any]:
    """What the command line leaves open, from the project's settings; the project becomes the working directory."""
    from tasks.animate import Limits
    from tasks.references import PICKS

    if pick not in PICKS:
        raise typer.BadParameter(f"'{pick}' is neither {' nor '.join(PICKS)}", param_hint="--pick")
    checkpoints = checkpoints.resolve() if checkpoints else None
    params, paths = enter_project()
    return {
        "references": references or params.generate.references,
        "limits": Limits(params.quality, params.notices),
        "pick": pick,
        "device": device or params.runtime.device,
        "checkpoints": checkpoints or paths.data / "checkpoints",
    }
