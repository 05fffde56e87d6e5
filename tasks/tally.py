"""Table 2 from the sheets that the raters sent back."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import StageError
from tasks.methods import OURS
from tasks.study import KEY_COLUMNS

NEEDED = ("pair", "video_a", "video_b", "choice")
Z_95 = 1.959963984540054


@dataclass
class Table2:
    """The study's outcome; `rows` is Table 2.

    `rows`: dataset, method, answers, preferred (answers for head3d), percent, low_percent, high_percent (Wilson 95%).
    `dropped`: file, line (0: the whole file) and reason of everything that was not counted.
    `repeats`, `repeats_agree`: answered repeats, and in how many of them the rater chose the same video again.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    raters: int = 0
    unanswered: int = 0
    repeats: int = 0
    repeats_agree: int = 0
    dropped: list[dict[str, Any]] = field(default_factory=list)


def wilson(hits: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Args:
        hits: Successes.
        total: Trials, at least 1.
        z: Quantile of the normal distribution; 1.96 gives 95%.

    Returns:
        Lower and upper bound, 0 to 1.
    """
    share = hits / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def tally(returned: list[Path], key: Path) -> Table2:
    """Count the returned sheets.

    A rater is a file's name. Repeats do not count for the preference, only for consistency. The interval treats
    answers as independent, which answers of one rater or about one video are not quite.

    Args:
        returned: The raters' CSV files; comma, semicolon or tab, UTF-8 or what a spreadsheet saves.
        key: The study's `key.csv`.

    Returns:
        Table 2 and what was left out, with reasons.

    Raises:
        StageError: The key cannot be used, or no answer can.
    """
    comparisons = _read_key(key)
    result = Table2()
    chosen: dict[tuple[str, str], str] = {}
    raters: set[str] = set()
    contents: dict[str, str] = {}
    for path in returned:
        try:
            rows = _read_sheet(path, raters, contents)
        except ValueError as error:
            result.dropped.append({"file": path.name, "line": 0, "reason": str(error)})
            continue
        raters.add(path.stem)
        for line, row in rows:
            reason = _count_row(row, path.stem, comparisons, chosen, result)
            if reason:
                result.dropped.append({"file": path.name, "line": line, "reason": reason})
    if not chosen:
        raise StageError(f"none of the {len(returned)} returned sheets has a usable answer" + _first(result.dropped))
    result.raters = len({rater for rater, _ in chosen})
    _sum_up(chosen, comparisons, result)
    return result


def _first(dropped: list[dict[str, Any]]) -> str:
    if not dropped:
        return "; fill in the column `choice` with a or b"
    return f" (first problem: {dropped[0]['file']}, line {dropped[0]['line']}: {dropped[0]['reason']})"


def _read_key(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        raise StageError(f"{path} does not exist; it is the key.csv that `dvc repro study` wrote with these sheets")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if not set(KEY_COLUMNS) <= set(reader.fieldnames or ()):
            raise StageError(f"{path} is not a study's key: it needs the columns {', '.join(KEY_COLUMNS)}")
        return {row["pair"]: row for row in reader}


def _read_sheet(path: Path, raters: set[str], contents: dict[str, str]) -> list[tuple[int, dict[str, str]]]:
    """Lines of a sheet with their numbers; ValueError says why the whole file is left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if path.stem in raters:
        raise ValueError(f"a second sheet of {path.stem}; only the first is counted")
    if b"\0" in data:
        raise ValueError("not a CSV file (a spreadsheet? save it as CSV)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")  # older spreadsheets; only comments hold such letters
    digest = hashlib.sha256(text.encode()).hexdigest()
    if text.strip() and digest in contents:
        raise ValueError(f"the same content as {contents[digest]}")
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        reader.fieldnames = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        missing = [name for name in NEEDED if name not in reader.fieldnames]
        if missing:
            raise ValueError(f"without the column(s) {', '.join(missing)}")
        rows = [(reader.line_num, {name: (row.get(name) or "").strip() for name in NEEDED}) for row in reader]
    except csv.Error as error:
        raise ValueError(f"not a CSV file: {error}") from None
    contents[digest] = path.name
    return rows


def _count_row(
    row: dict[str, str],
    rater: str,
    comparisons: dict[str, dict[str, str]],
    chosen: dict[tuple[str, str], str],
    result: Table2,
) -> str:
    """Put the method of a row's answer into `chosen`; a text says why it does not count."""
    known = comparisons.get(row["pair"])
    if known is None:
        return f"unknown pair {row['pair'][:40]!r}"
    methods = {known["video_a"]: known["method_a"], known["video_b"]: known["method_b"]}
    if row["video_a"] == row["video_b"] or not {row["video_a"], row["video_b"]} <= methods.keys():
        return f"{row['pair']}: video_a and video_b are not this pair's two videos"
    choice = row["choice"].lower()
    if not choice:
        result.unanswered += 1
        return ""
    if choice not in ("a", "b"):
        return f"{row['pair']}: choice {row['choice'][:40]!r} is neither a nor b"
    if (rater, row["pair"]) in chosen:
        return f"{row['pair']}: a second answer of the same rater; only the first is counted"
    chosen[rater, row["pair"]] = methods[row[f"video_{choice}"]]
    return ""


def _sum_up(chosen: dict[tuple[str, str], str], comparisons: dict[str, dict[str, str]], result: Table2) -> None:
    counts: dict[tuple[str, str], list[int]] = {}
    for (rater, pair), method in chosen.items():
        known = comparisons[pair]
        if known["repeat_of"]:
            first = chosen.get((rater, known["repeat_of"]))
            if first is not None:
                result.repeats += 1
                result.repeats_agree += first == method
            continue
        rival = known["method_b"] if known["method_a"] == OURS else known["method_a"]
        count = counts.setdefault((known["dataset"], rival), [0, 0])
        count[0] += method == OURS
        count[1] += 1
    for (dataset, rival), (hits, total) in sorted(counts.items()):
        low, high = wilson(hits, total)
        result.rows.append(
            {"dataset": dataset, "method": rival, "answers": total, "preferred": hits, "percent": 100 * hits / total,
             "low_percent": 100 * low, "high_percent": 100 * high}
        )  # fmt: skip
