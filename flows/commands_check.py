"""`head3d check-geometry`: the geometry's bars."""

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
