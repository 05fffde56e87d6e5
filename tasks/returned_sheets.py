"""The sheets that raters sent back: read whatever program saved them, believed in nothing.

A sheet can have been edited, mangled by a spreadsheet, half filled in, sent twice, or be no sheet at all. What does not
fit is left out with its reason; it never changes what counts and never stops the rest.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tasks.study_plan import ANSWER_COLUMNS

NEEDED = ("pair", "video_a", "video_b", "choice")
ASPECTS = ("realism", "motion", "identity")
LARGEST = 4 * 1024 * 1024
"""Bytes; an honest sheet of 1,000 rows with full comments has 0.6 MB, 1.2 MB in UTF-16."""
LONGEST_SECONDS = 86_400.0
SHOWN = 40
"""Letters of a foreign text that a reason repeats."""
_RATER = re.compile(r"(rater_\d+)(?:[ _.(-].*)?", re.IGNORECASE)


class SheetError(ValueError):
    """A whole file cannot be used; the text says why."""


class Answer(NamedTuple):
    """One row that counts.

    Attributes:
        video: The video that was preferred.
        side: `a` or `b`, where it was shown.
        aspects: realism, motion, identity -> the video preferred in this respect; those not answered are not there.
        seconds: How long it took; None where the sheet does not say.
    """

    video: str
    side: str
    aspects: dict[str, str]
    seconds: float | None


@dataclass
class Sheet:
    """One file: whose it is, what counts in it, and what does not (line, reason)."""

    file: str
    rater: str
    answers: dict[str, Answer] = field(default_factory=dict)
    unanswered: int = 0
    dropped: list[tuple[int, str]] = field(default_factory=list)

    @property
    def digest(self) -> str | None:
        """Hash of all answers with their times; None where hardly two people could differ."""
        timed = [answer.seconds is not None for answer in self.answers.values()]
        if not all(timed) or len(timed) < 2:
            return None
        content = repr(sorted((pair, answer.video, answer.seconds) for pair, answer in self.answers.items()))
        return hashlib.sha256(content.encode()).hexdigest()


def rater_of(path: Path) -> str:
    """Whose sheet a file is, by its name: `rater_01.csv`, `Rater_01 (2).csv` and `rater_01_2.csv` are rater_01's."""
    found = _RATER.fullmatch(path.stem)
    return found[1].lower() if found else path.stem


def read_sheet(path: Path, key: Mapping[str, Mapping[str, str]]) -> Sheet:
    """Read a returned sheet against the key.

    Args:
        path: Comma, semicolon or tab; UTF-8, UTF-16 with its mark, or a spreadsheet's old encoding.
        key: Pair -> line of key.csv.

    Returns:
        What counts and what does not.

    Raises:
        SheetError: Nothing in the file can be used.
    """
    sheet = Sheet(path.name, rater_of(path))
    rows: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for line, row in _rows(_text(path)):
        known = key.get(row["pair"])
        if known is None:
            sheet.dropped.append((line, f"unknown pair {_quoted(row['pair'])}"))
        elif {row["video_a"], row["video_b"]} != {known["video_a"], known["video_b"]}:
            sheet.dropped.append((line, f"{row['pair']}: video_a and video_b are not this pair's two videos"))
        elif not row["choice"]:
            sheet.unanswered += 1
        elif row["choice"].lower() not in ("a", "b"):
            sheet.dropped.append((line, f"{row['pair']}: choice {_quoted(row['choice'])} is neither a nor b"))
        else:
            rows.setdefault(row["pair"], []).append((line, row))
    for pair, found in rows.items():
        _count(sheet, pair, found)
    sheet.dropped.sort()
    return sheet


def _count(sheet: Sheet, pair: str, found: list[tuple[int, dict[str, str]]]) -> None:
    """Put the answer to one pair into the sheet; answers that contradict each other are none."""
    if len({row[f"video_{row['choice'].lower()}"] for _, row in found}) > 1:
        sheet.dropped += [(line, f"{pair}: answered twice, differently; neither counts") for line, _ in found]
        return
    sheet.dropped += [(line, f"{pair}: a second answer, the same; counted once") for line, _ in found[1:]]
    line, row = found[0]
    aspects = {}
    for name in ASPECTS:
        value = row[name].lower()
        if value in ("a", "b"):
            aspects[name] = row[f"video_{value}"]
        elif value:
            sheet.dropped.append((line, f"{pair}: {name} {_quoted(value)} is neither a nor b (the choice counts)"))
    side = row["choice"].lower()
    seconds = _seconds(row["seconds"])
    if row["seconds"] and seconds is None:
        sheet.dropped.append((line, f"{pair}: seconds {_quoted(row['seconds'])} is no time (the choice counts)"))
    sheet.answers[pair] = Answer(row[f"video_{side}"], side, aspects, seconds)


def _seconds(text: str) -> float | None:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= LONGEST_SECONDS else None


def _quoted(text: str) -> str:
    return repr(text[:SHOWN] + ("..." if len(text) > SHOWN else ""))


def _text(path: Path) -> str:
    """Content of a file as text."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise SheetError(f"{size / 2**20:.1f} MiB: no sheet of this study is so large")
        data = path.read_bytes()
    except OSError as error:
        raise SheetError(f"cannot be read: {error.strerror}") from None
    if not data.strip():
        raise SheetError("the file is empty")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise SheetError("not a CSV file: damaged UTF-16") from None
    if b"\0" in data:
        raise SheetError("not a CSV file (a spreadsheet? save it as CSV)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")  # older spreadsheets; only comments hold such letters


def _rows(text: str) -> list[tuple[int, dict[str, str]]]:
    """Line number and fields of every row that is not blank."""
    if "\0" in text:
        raise SheetError("not a CSV file: it holds NUL characters")
    first, _, rest = text.partition("\n")
    skipped = 0
    if re.fullmatch(r"sep=.\r?", first, re.IGNORECASE):  # Excel's hint to itself
        text, first, skipped = rest, rest.partition("\n")[0], 1
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in NEEDED if name not in names]
        if missing:
            raise SheetError(f"without the column(s) {', '.join(missing)}")
        twice = [name for name, count in Counter(names).items() if count > 1 and name in (*NEEDED, *ANSWER_COLUMNS)]
        if twice:
            raise SheetError(f"two columns {', '.join(twice)}")
        wanted = dict.fromkeys((*NEEDED, *ASPECTS, "seconds"), "")
        rows = []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                given = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if name in wanted}
                rows.append((reader.line_num + skipped, {**wanted, **given}))
    except csv.Error as error:
        raise SheetError(f"not a CSV file: {error}") from None
    return rows
