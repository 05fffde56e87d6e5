"""How the commands that use the trained model say what they made, and why it may not be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """Figures and the written file on stdout; `notices`, if there are any, on stderr.

    Args:
        summary: Name -> figure.
        out: What was written.
    """
    for key, value in summary.items():
        if key != "notices":
            typer.echo(f"{key}: {value}")
    for text in summary.get("notices", []):
        typer.echo(f"Notice: {text}", err=True)
    typer.echo(str(out))
