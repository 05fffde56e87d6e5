"""The report's tables of figures: Table 1, Table 3 beside the paper's, and how the outputs move."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from tasks.ablation import DIFFERENCE, Interval
from tasks.errors import StageError
from tasks.evaluate import MOTION_DEFINITIONS
from tasks.generated import records
from tasks.methods import BASELINE, METHODS, OURS, method_name
from tasks.paper_tables import DATASETS, TABLE1, TABLE2, TABLE3, TABLE3_REFERENCES
from tasks.paths import Paths
from tasks.report_examples import small

FIGURE_NAMES = {
    "l2": "L2",
    "psnr_db": "PSNR (dB)",
    "lpips": "LPIPS",
    "lpips_random_backbone": "lpips_random_backbone",
    "motion_correlation": "Motion correlation",
    "motion_ratio": "Motion ratio",
    "static": "Static outputs",
    "seconds_per_frame": "Time per frame",
    "paired_difference": "Paired difference",
}
HIGHER_IS_BETTER = {"psnr_db"}
PERCEPTUAL = ("lpips", "lpips_random_backbone")
TALLY, TALLY_TABLE = "tally", "table2.csv"
"""Below study/: what `head3d study tally` writes."""
TALLY_COLUMNS = ("dataset", "method", "percent", "low_percent", "high_percent", "answers", "raters")
NOTHING = {"text": "", "sure": False}


def results(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Table 1, one block per dataset.

    Args:
        table: table1.csv.

    Returns:
        Every cell with its text, the length of its bar and whether it is the best.
    """
    columns = [name for name in FIGURE_NAMES if name in table.columns]
    blocks = []
    for dataset, rows in table.groupby("dataset", sort=False):
        cells = {name: _cells(rows[name], name) for name in columns}
        lines = [
            {
                "method": method_name(str(row["method"])),
                "ours": row["method"] == OURS,
                "trivial": row["method"] == BASELINE,
                "videos": int(row["videos"]),
                "cells": [cells[name][number] for name in columns],
            }
            for number, row in enumerate(records(rows))
        ]
        blocks.append({"dataset": dataset, "columns": [_column(name) for name in columns], "rows": lines})
    return blocks


def paper_tables() -> dict[str, Any]:
    """The paper's own Tables 1 and 2 as rows of text; Table 3 stands beside our rows, see `ablations`.

    Returns:
        `datasets`; `table1`: method and its L2 and LPIPS of each dataset; `table2`: rival and its percents.
    """
    methods = next(iter(TABLE1.values()))
    rivals = next(iter(TABLE2.values()))
    return {
        "datasets": [DATASETS[name] for name in TABLE1],
        "table1": [(name, [f"{value:.4f}" for rows in TABLE1.values() for value in rows[name]]) for name in methods],
        "table2": [(name, [f"{rows[name]} / {100 - rows[name]}" for rows in TABLE2.values()]) for name in rivals],
    }


def preferences(paths: Paths) -> list[dict[str, Any]]:
    """Table 2, where raters have sent their sheets back and `head3d study tally` has counted them.

    Args:
        paths: Where the data lies.

    Returns:
        Rows of the tally's table as text; none without one.

    Raises:
        StageError: The table is not what the tally writes.
    """
    path = paths.study / TALLY / TALLY_TABLE
    if not path.is_file():
        return []
    table = pd.read_csv(path)
    if missing := [name for name in TALLY_COLUMNS if name not in table]:
        raise StageError(f"{path} has no column {', '.join(missing)}; `head3d study tally` writes it anew")
    return [
        {
            "rival": method_name(str(row["method"])),
            "dataset": str(row["dataset"]),
            "percent": f"{row['percent']:.0f} / {100 - row['percent']:.0f}",
            "interval": " to ".join(_whole(row[end]) for end in ("low_percent", "high_percent")),
            "answers": int(row["answers"]),
            "raters": int(row["raters"]),
        }
        for row in records(table)
    ]


def _whole(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "–"


def _column(name: str) -> dict[str, str]:
    return {"name": FIGURE_NAMES[name], "arrow": "↑" if name in HIGHER_IS_BETTER else "↓"}


def _cells(values: pd.Series[float], name: str) -> list[dict[str, Any]]:
    numbers = [float(value) for value in values]
    finite = [value for value in numbers if math.isfinite(value)]
    best = (max if name in HIGHER_IS_BETTER else min)(finite, default=math.nan)
    largest = max(finite, default=0.0) or 1.0
    return [
        {
            "text": f"{value:.2f}" if name == "psnr_db" else small(value),
            "bar": round(100 * max(value, 0) / largest, 1),
            "best": value == best,
        }
        if math.isfinite(value)
        else {"text": "not measured", "bar": 0, "best": False}
        for value in numbers
    ]


def ablations(table: pd.DataFrame, references: int) -> list[dict[str, Any]]:
    """Table 3, one block per dataset that has an ablation; the paper's figures in columns of their own.

    Args:
        table: table3.csv.
        references: `generate.references`, the N of Head3D.

    Returns:
        Per dataset: columns, rows, and a plain sentence on what the differences are worth.
    """
    figures = [name for name in ("l2", *PERCEPTUAL) if name in table.columns]
    blocks = []
    for dataset, part in table.groupby("dataset", sort=False):
        rows = records(part)
        if {row["method"] for row in rows} <= {OURS}:
            continue
        lines = [_ablation_row(row, figures, references) for row in rows]
        columns = [_column(name) for name in figures]
        blocks.append({"dataset": dataset, "columns": columns, "rows": lines, "verdict": _verdict(rows, figures)})
    return blocks


def _ablation_row(row: dict[str, Any], figures: list[str], references: int) -> dict[str, Any]:
    method = row["method"]
    ours = method == OURS
    paper = TABLE3.get(method) if not ours or references == TABLE3_REFERENCES else None
    seconds = float(row["seconds_per_frame"])
    return {
        "method": f"{method_name(OURS)}, N = {references}" if ours else method_name(method),
        "ours": ours,
        "values": ["not measured" if math.isnan(row[name]) else small(row[name]) for name in figures],
        "differences": [_difference(_interval(row, name)) if not ours else NOTHING for name in figures],
        "seconds": "not measured" if math.isnan(seconds) else _milliseconds(seconds),
        "videos": int(row["videos"]),
        "paper": [f"{value:.4f}" for value in paper] if paper else ["–", "–"],
    }


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def _interval(row: dict[str, Any], name: str) -> Interval:
    return Interval(*(float(row[f"{name}{DIFFERENCE}{end}"]) for end in ("", "_low", "_high")))


def _difference(interval: Interval) -> dict[str, Any]:
    """In thousandths, and whether it is more than noise."""
    mean, low, high = (f"{1000 * value:+.3f}" for value in interval)
    text = f"{mean} [{low}, {high}]"
    if math.isnan(interval.low):
        text = "not measured" if math.isnan(interval.mean) else f"{mean} (no interval)"
    return {"text": text, "sure": interval.tells_apart}


def _verdict(rows: list[dict[str, Any]], figures: list[str]) -> str:
    """Which differences are more than noise, in words."""
    sentences = []
    for name in figures:
        found: dict[str, list[str]] = {"worse": [], "better": [], "open": []}
        for row in rows:
            interval = _interval(row, name)
            if row["method"] == OURS or math.isnan(interval.mean):
                continue
            kind = ("worse" if interval.mean > 0 else "better") if interval.tells_apart else "open"
            found[kind].append(METHODS[row["method"]].label)
        parts = []
        for kind in ("worse", "better"):
            if found[kind]:
                parts.append(f"{kind} than {method_name(OURS)}: {'; '.join(found[kind])}")
        if found["open"]:
            parts.append(f"not told apart from {method_name(OURS)} by these videos: {'; '.join(found['open'])}")
        if parts:
            sentences.append(f"By {FIGURE_NAMES[name]}, " + "; and ".join(parts) + ".")
    return " ".join(sentences)


def motion(per_video: pd.DataFrame) -> list[dict[str, Any]]:
    """How the outputs move, by setting and method."""
    rows = []
    for (setting, method), part in per_video.groupby(["setting", "method"], sort=False):
        values = part[list(MOTION_DEFINITIONS)].mean()
        texts = [f"{values['motion_correlation']:.2f}", f"{values['motion_ratio']:.2f}", f"{values['static']:.0%}"]
        rows.append({"setting": str(setting), "method": method_name(str(method)), "values": texts, "videos": len(part)})
    return rows
