"""`head3d check-geometry`, the geometry's bars, and `head3d check-expressions`, whether mouths and eyes follow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tasks.check_geometry import Bar


def check_geometry(
    people: Annotated[int, typer.Option(min=1, help="Rendered people; each is seen in five poses.")] = 20,
    size: Annotated[int, typer.Option(min=64, help="Side of their frames in pixels.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure the geometry of Sec. 3 against its bars; exit code 1 if one is missed.

    The warps at the identity, Eq. 3 after Eq. 1, a nose that turns, gradients, and rendered heads, whose depth and pose
    are known, warped to the canonical frame and back. It needs neither data nor weights, and about a minute.

    Examples:

      head3d check-geometry

      head3d check-geometry --people 5 --json > geometry.json
    """
    from tasks import check_geometry as checking

    show_bars(checking.check_geometry(people, size), as_json)


def check_expressions(
    method: Annotated[
        list[str] | None, typer.Option(help="A method that was generated; may be given again. None: all.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the parser runs: auto, cpu, cuda, cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure whether mouths, lips and eyes of the generated videos follow the driving ones.

    The embedded head parser reads every frame twice; over the frames of a video, area of the inner mouth, height
    of the lips and the area of the eyes are correlated with the driving video's. Videos whose driving frames do not
    move, or cannot be read alike twice, say nothing.

    Examples:

      head3d check-expressions

      head3d check-expressions --method head3d --method copy_reference --json
    """
    from flows.project import enter_project
    from tasks import expressions
    from tasks.generated import records
    from tasks.parser_network import load_network

    params, paths = enter_project()
    wanted = method or params.generate.methods
    unknown = [name for name in wanted if name not in params.generate.methods]
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(unknown)} not in generate.methods: {', '.join(params.generate.methods)}", param_hint="--method"
        )
    table = expressions.check_expressions(paths, wanted, load_network("embedded", device, False))
    if as_json:
        typer.echo(table.to_json(orient="records", indent=2))
        return
    shown = Table(
        "method", "setting", "measure", "videos", "correlation", "ratio of motion", box=None, header_style="bold"
    )
    for row in records(table):
        error = "" if row["videos"] < 2 else f" ± {row['standard_error']:.2f}"
        figures = (str(row["videos"]), f"{row['correlation']:.2f}{error}", f"{row['ratio']:.2f}")
        shown.add_row(row["method"], row["setting"], row["measure"], *figures)
    Console().print(shown)


def show_bars(bars: Sequence[Bar], as_json: bool) -> None:
    """Print figures beside their limits.

    Args:
        bars: The figures.
        as_json: Print them as JSON.

    Raises:
        typer.Exit: With code 1 if a limit is missed.
    """
    if as_json:
        typer.echo(json.dumps([{**dataclasses.asdict(bar), "passed": bar.passed} for bar in bars], indent=2))
    else:
        table = Table("figure", "value", "bar", "", box=None, header_style="bold")
        for bar in bars:
            limit = "" if bar.bar is None else f"{bar.sense} {bar.bar:g}"
            verdict = "pass" if bar.passed else "[bold red]FAIL[/]"
            shown = "-" if bar.bar is None and bar.passed else verdict
            table.add_row(bar.name, f"{bar.figure:.3g} {bar.unit}".strip(), limit, shown)
        Console().print(table)
    missed = [bar for bar in bars if not bar.passed]
    if missed:
        if not as_json:
            typer.echo(f"{len(missed)} of {len(bars)} bars are missed")
        raise typer.Exit(1)
