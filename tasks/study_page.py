"""The page on which a rater of the user study answers: one HTML file that needs neither server nor network."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.study_plan import SHEET_COLUMNS, Comparison

TEMPLATES = Path(__file__).parent / "templates"
ASPECTS = {
    "realism": "Which looks more real?",
    "motion": "Which follows the motion better?",
    "identity": "Which looks more like the person?",
}


EMBED_BYTES = 12 * 2**20
"""Up to so much the videos stand in the page itself: then it can be sent alone and opens on a phone, too."""


def embedded(folder: Path) -> dict[str, str] | None:
    """The videos of a folder as base64 by name; None where they are too large for a page."""
    files = sorted(folder.glob("*.mp4"))
    if sum(path.stat().st_size for path in files) > EMBED_BYTES:
        return None
    return {path.name: base64.b64encode(path.read_bytes()).decode() for path in files}


def rating_page(rater: str, study: str, rows: list[Comparison], videos: dict[str, str] | None) -> str:
    """Fill the template.

    Args:
        rater: Name of the sheet without its ending, for example `rater_01`.
        study: Short hash of the whole study. Answers are stored in the browser under it and the rater's name, because
            all pages that are opened from disk may share one store.
        rows: What the rater sees, in their order.
        videos: Of `embedded`; None: the page plays the files of the folder `videos` beside it.

    Returns:
        The HTML; its content security policy lets it load its own videos only and run its own script only.
    """
    script = (TEMPLATES / "study.js").read_text(encoding="utf-8")
    shown = [
        {**row.shown(), "subject": row.subject, "driving": row.driving} for row in rows
    ]  # by name: nothing else of a comparison may reach the page
    content = {"study": study, "rater": rater, "columns": SHEET_COLUMNS, "rows": shown}
    template = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    ).get_template("study.html.j2")
    return template.render(
        videos=json.dumps(videos or {}, separators=(",", ":")),
        data=json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=(TEMPLATES / "study.css").read_text(encoding="utf-8"),
        aspects=ASPECTS,
        count=len(rows),
    )
