"""What a tally leaves: Table 2 as CSV, Markdown and picture, the raters, what was dropped, and everything as JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks.disk import whole_file
from tasks.methods import OURS, method_name
from tasks.paper_tables import TABLE2
from tasks.tally import Table2

ROW_COLUMNS = (
    "dataset", "method", "answers", "preferred", "percent", "low_percent", "high_percent", "wilson_low_percent",
    "wilson_high_percent", "p_pairs", "p_answers", "pairs", "pairs_won", "pairs_tied", "raters", "alpha", "kappa",
    "kappa_pairs", "percent_realism", "answers_realism", "percent_motion", "answers_motion", "percent_identity",
    "answers_identity",
)  # fmt: skip
RATER_COLUMNS = (
    "rater", "file", "answers", "percent_ours", "repeats", "repeats_agree", "percent_a", "median_seconds"
)  # fmt: skip
DROPPED_COLUMNS = ("file", "line", "reason")
ONE_SIDED_PERCENT = 85.0
"""A rater who chose one side more often than this is pointed out (nobody is left out for it)."""
CHANCE_SHARE = 0.5
"""A rater whose repeats agree no more often than those of a coin is pointed out."""
DEFINITIONS = (
    "Percent: answers for {ours}, of all first showings. 95% interval: over new pairs and new raters (cluster-robust "
    "in both, a t quantile, never narrower than Wilson's). Wilson: as if all answers were independent, which answers "
    "about one video or by one rater are not. p: exact two-sided sign test over pairs, each by its majority. alpha: "
    "Krippendorff's, kappa: Fleiss' over the pairs that every rater answered (1: full agreement, 0: chance)."
)


def write_tally(table: Table2, folder: Path) -> list[Path]:
    """Write all files of a tally, each in one step over an older one.

    Args:
        table: The outcome.
        folder: Where to; made if need be.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "table2.csv": _csv(ROW_COLUMNS, table.rows),
        "raters.csv": _csv(RATER_COLUMNS, table.raters),
        "dropped.csv": _csv(DROPPED_COLUMNS, table.dropped),
        "table2.md": markdown(table).encode(),
        "table2.json": (json.dumps(_plain(dataclasses.asdict(table)), indent=1) + "\n").encode(),
        "table2.png": plot(table, "png"),
        "table2.svg": plot(table, "svg"),
    }
    for name, content in contents.items():
        with whole_file(folder / name, shared=True) as partial:
            partial.write_bytes(content)
    return [folder / name for name in contents]


def markdown(table: Table2) -> str:
    """Table 2 with what belongs to it, for people.

    Args:
        table: The outcome.

    Returns:
        Markdown; texts from the sheets stand in code spans without line breaks.
    """
    ours = method_name(OURS)
    lines = [f"# Table 2: how often raters prefer {ours}", ""]
    rows = [
        [row["dataset"], method_name(row["method"]), f"**{row['percent']:.1f}%**", _range(row, ""),
         _range(row, "wilson_"), p_value(row["p_pairs"]), f"{row['preferred']} / {row['answers']}", row["pairs"],
         row["raters"], _number(row["alpha"]), _number(row["kappa"]), paper_percent(row["dataset"], row["method"])]
        for row in table.rows
    ]  # fmt: skip
    lines += _table(
        ["dataset", "compared with", "preferred", "95% interval", "Wilson 95%", "p (pairs)", "answers", "pairs",
         "raters", "alpha", "kappa", "paper"], rows,
    )  # fmt: skip
    lines += ["", DEFINITIONS.format(ours=ours), ""]
    aspects = [
        [
            row["dataset"],
            method_name(row["method"]),
            *(_aspect(row, name) for name in ("realism", "motion", "identity")),
        ]
        for row in table.rows
        if any(row[f"answers_{name}"] for name in ("realism", "motion", "identity"))
    ]
    if aspects:
        lines += [
            "## By aspect",
            "",
            *_table(["dataset", "compared with", "realism", "motion", "identity"], aspects),
            "",
        ]
    lines += ["## Raters", ""]
    lines += _table(
        ["rater", "answers", f"for {ours}", "repeats that agree", "side A", "median time", ""],
        [
            [f"`{_code(row['rater'])}`", row["answers"], _percent(row["percent_ours"]),
             f"{row['repeats_agree']} / {row['repeats']}", _percent(row["percent_a"]),
             "-" if row["median_seconds"] is None else f"{row['median_seconds']:.1f} s", remark(row)]
            for row in table.raters
        ],
    )  # fmt: skip
    lines += ["", *(f"- {text}" for text in facts(table)), ""]
    if table.dropped:
        lines += ["## Not counted", ""]
        shown = [[f"`{_code(row['file'])}`", row["line"] or "-", f"`{_code(row['reason'])}`"] for row in table.dropped]
        lines += [*_table(["file", "line", "reason"], shown), ""]
    return "\n".join(lines)


def facts(table: Table2) -> list[str]:
    """Short sentences about the whole study."""
    repeats = "no pair was answered twice"
    if table.repeats:
        repeats = f"{table.repeats_agree} of {table.repeats} repeated pairs were answered alike"
    kappa = f"kappa {_number(table.kappa)} ({table.kappa_pairs} pairs)"
    return [
        f"Agreement of all raters: alpha {_number(table.alpha)}, {kappa}",
        f"Consistency: {repeats}",
        f"Side A was chosen in {table.answers_a} of {table.answers} answers (sign test p = {p_value(table.p_side)})",
        f"Rows without an answer: {table.unanswered}; rows and files not counted: {len(table.dropped)}",
    ]


def remark(rater: dict[str, Any]) -> str:
    """What to look at in a rater's answers."""
    found = []
    if rater["answers"] >= 8 and max(rater["percent_a"], 100 - rater["percent_a"]) > ONE_SIDED_PERCENT:
        found.append("nearly always one side")
    if rater["repeats"] >= 4 and rater["repeats_agree"] <= CHANCE_SHARE * rater["repeats"]:
        found.append("repeats agree no better than a coin's")
    return ", ".join(found)


def paper_percent(dataset: str, method: str) -> str:
    """What the paper's Table 2 says, where it has this comparison."""
    known = {name.lower(): percent for name, percent in TABLE2.get(dataset, {}).items()}
    return f"{known[method.lower()]}%" if method.lower() in known else "-"


def plot(table: Table2, kind: str) -> bytes:
    """Percent preferred with both intervals, one line per dataset and method.

    Args:
        table: The outcome.
        kind: `png` or `svg`.

    Returns:
        The file's bytes; the same for the same table.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(reversed(table.rows))
    style = {"svg.hashsalt": "table2", "font.family": "DejaVu Sans", "svg.fonttype": "path"}
    with mpl.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.2, 1.5 + 0.55 * max(len(rows), 1)), dpi=110, layout="constrained")
        for y, row in enumerate(rows):
            axes.plot([row["low_percent"], row["high_percent"]], [y, y], color="#0b57c2", linewidth=1.6)
            axes.plot([row["wilson_low_percent"], row["wilson_high_percent"]], [y, y], color="#0b57c2", linewidth=5)
            axes.plot(row["percent"], y, "o", color="white", markeredgecolor="#0b57c2", markersize=8, markeredgewidth=2)
            axes.annotate(
                f"{row['percent']:.0f}%", (row["percent"], y), (0, 9), textcoords="offset points", ha="center"
            )
            paper = paper_percent(row["dataset"], row["method"])
            if paper != "-":
                axes.plot(float(paper[:-1]), y, "D", color="#b24a00", markersize=6)
        axes.axvline(50, color="#55585e", linewidth=1, linestyle="--")
        labels = [f"{row['dataset']}: {method_name(row['method'])}\n{row['answers']} answers" for row in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(-0.6, len(rows) - 0.2)
        axes.set_xlim(0, 100)
        axes.set_xlabel(
            f"% of answers that prefer {method_name(OURS)}\n"
            "thick: Wilson 95%, thin: 95% over new pairs and raters, diamond: the paper's"
        )
        axes.spines[["top", "right"]].set_visible(False)
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
        plt.close(figure)
    return stream.getvalue()


def guarded(value: object) -> str:
    """A cell that no spreadsheet takes for a formula; floats with six digits, nothing for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "@", "-") and not isinstance(value, float | int) else text


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([guarded(row[name]) for name in columns] for row in rows)
    return stream.getvalue().encode()


def _plain(value: Any) -> Any:
    """Strict JSON: no NaN."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _table(columns: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def _code(text: str) -> str:
    """Foreign text that cannot leave its code span or its table cell."""
    return "".join(letter if letter.isprintable() else " " for letter in text).replace("`", "'").replace("|", "/")


def _range(row: dict[str, Any], kind: str) -> str:
    return f"{row[f'{kind}low_percent']:.1f} to {row[f'{kind}high_percent']:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}%"


def _aspect(row: dict[str, Any], name: str) -> str:
    value = row[f"percent_{name}"]
    return "-" if value is None else f"{value:.0f}% of {row[f'answers_{name}']}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def p_value(value: float) -> str:
    """A probability with two digits that mean something."""
    return "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.095 else f"{value:.2f}"
