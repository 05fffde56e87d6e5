"""Helpers of the study's tests: reading its tables and filling in its sheets."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def originals(folder: Path) -> list[str]:
    """Pairs that are no repeats, in the order of their names."""
    return sorted(row["pair"] for row in read_csv(folder / "key.csv") if not row["repeat_of"])


def answer(folder: Path, target: Path, wins: Callable[[dict[str, str]], bool]) -> Path:
    """Fill in a rater's sheet.

    Args:
        folder: The study.
        target: Where to; its name is the sheet's.
        wins: Whether ours wins, from the line of the key; a repeat is answered as its first showing.
    """
    key = {row["pair"]: row for row in read_csv(folder / "key.csv")}
    rows = read_csv(folder / target.name)
    for number, row in enumerate(rows):
        known = key[row["pair"]]
        methods = {known["video_a"]: known["method_a"], known["video_b"]: known["method_b"]}
        ours_on_a = methods[row["video_a"]] == "head3d"
        row["choice"] = "a" if wins(key[known["repeat_of"] or row["pair"]]) == ours_on_a else "b"
        row["seconds"] = f"{5 + number}.{sum(map(ord, target.name)) % 10}"
    return write_csv(target, rows)
