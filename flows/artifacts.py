"""What every stage leaves in Prefect's UI: its counts and figures as a table, its tables and files, and a picture.

Artifacts have the keys `head3d-STAGE`, `head3d-STAGE-figures` and `head3d-STAGE-picture`; the UI keeps their history.
A stage that was up to date leaves them, too: whoever opens a run sees all of it.
"""

from __future__ import annotations

import base64
import csv
import importlib
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from flows.graph import Stage
from tasks.paths import Paths

PREFIX = "head3d-"
TABLES = {"evaluate": ("table1.csv", "table3.csv")}
"""Tables below data/metrics that are shown whole."""
PAGES = {"report": "report/index.html", "study": "study"}
"""What to open, below data/."""
DEFINITION = "definition_"
PICTURES = "tasks.stage_pictures"


def leave_artifacts(stage: Stage, root: Path, outcome: str, log: Callable[[str], None]) -> None:
    """Leave a stage's artifacts in the run that this task belongs to.

    A stage is not worth less because a picture of it could not be drawn or sent: what goes wrong is logged.

    Args:
        stage: As dvc.yaml has it.
        root: Project folder.
        outcome: How the stage ended, for example "Cached".
        log: Where a problem is said.
    """
    paths, key = Paths(root / "data"), f"{PREFIX}{stage.name}"
    try:
        said = read_summary(paths.metrics / f"{stage.name}.json")
        create_markdown_artifact(markdown(stage, said, paths, outcome), key, stage.desc or None)
        if said:
            about = f"What {stage.name} counted and measured"
            create_table_artifact(figures(said), f"{key}-figures", about)
        address = picture_address(stage.name, paths)
        if address:
            create_image_artifact(address, f"{key}-picture", f"What {stage.name} left")
    except Exception as error:  # any: the stage itself has done its work
        log(f"artifacts of {stage.name} are incomplete: {type(error).__name__}: {error}")


def read_summary(path: Path) -> dict[str, Any]:
    """What a stage said about itself; empty where it said nothing."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def figures(said: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table: one for each figure, definitions left out."""
    return [
        {"figure": name, "value": "" if value is None else value}
        for name, value in said.items()
        if not name.startswith(DEFINITION)
    ]


def markdown(stage: Stage, said: dict[str, Any], paths: Paths, outcome: str) -> str:
    """A page about a stage.

    Args:
        stage: As dvc.yaml has it.
        said: From `read_summary`.
        paths: The data folder.
        outcome: How it ended.

    Returns:
        Markdown: outcome and time, tables, definitions of figures, outputs.
    """
    seconds = said.get("seconds")
    lines = [f"# {stage.name}", "", f"**{outcome}**" + (f", {seconds:g} s when it ran" if seconds is not None else "")]
    for name in TABLES.get(stage.name, ()):
        rows = _rows(paths.metrics / name)
        if rows:
            lines += ["", f"## {name}", "", *_markdown_table(rows)]
    definitions = {name.removeprefix(DEFINITION): text for name, text in said.items() if name.startswith(DEFINITION)}
    if definitions:
        lines += ["", "## Definitions", "", *(f"- `{name}`: {text}" for name, text in definitions.items())]
    if stage.name in PAGES:
        lines += ["", f"Open `{paths.data / PAGES[stage.name]}` on the machine that ran it."]
    return "\n".join([*lines, "", "## Outputs", "", *(f"- `{out}`" for out in stage.outs)])


def _rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def _markdown_table(rows: list[list[str]]) -> list[str]:
    """A CSV's rows as a Markdown table; a pipe inside a cell must not end it."""
    first, *rest = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {first} |", "|" + " --- |" * len(rows[0]), *(f"| {row} |" for row in rest)]


def picture_address(stage: str, paths: Paths) -> str:
    """The stage's picture as a data URI, which needs no server of pictures; empty without one."""
    if importlib.util.find_spec(PICTURES) is None:
        return ""
    picture = importlib.import_module(PICTURES).stage_picture(stage, paths)
    if picture is None:
        return ""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
