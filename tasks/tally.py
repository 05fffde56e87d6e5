"""Table 2 from the sheets that the raters sent back (Sec. 4.1 and 4.3)."""

from __future__ import annotations

import csv
import hashlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.agreement import agreement, preference, sign_test
from tasks.errors import StageError
from tasks.methods import OURS
from tasks.returned_sheets import ASPECTS, Sheet, SheetError, rater_of, read_sheet
from tasks.study_plan import KEY_COLUMNS

Key = Mapping[str, Mapping[str, str]]
"""Pair -> its line of key.csv."""


@dataclass
class Table2:
    """The study's outcome; `rows` is Table 2.

    Attributes:
        rows: dataset, method, answers, preferred (answers for ours), percent; low_percent, high_percent (over new pairs
            and raters); wilson_low_percent, wilson_high_percent; p_pairs, p_answers; pairs, pairs_won, pairs_tied;
            raters; alpha, kappa, kappa_pairs; percent_realism, percent_motion, percent_identity and their answers.
        raters: A line per rater: answers, percent of ours, repeats, repeats_agree, percent_a, median_seconds.
        unanswered: Rows without a choice.
        repeats: Answered pairs of showings of the same two videos.
        repeats_agree: In how many of them the rater chose the same video.
        alpha: Krippendorff's alpha over everything.
        kappa: Fleiss' kappa over the pairs that every rater answered.
        kappa_pairs: How many those are.
        answers_a: How many answers were for the video on side A.
        answers: Of how many.
        p_side: Sign test of that.
        dropped: file, line (0: the whole file) and reason of everything that was not counted.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    raters: list[dict[str, Any]] = field(default_factory=list)
    unanswered: int = 0
    repeats: int = 0
    repeats_agree: int = 0
    alpha: float = float("nan")
    kappa: float = float("nan")
    kappa_pairs: int = 0
    answers_a: int = 0
    answers: int = 0
    p_side: float = 1.0
    dropped: list[dict[str, Any]] = field(default_factory=list)


def tally(returned: list[Path], key: Path) -> Table2:
    """Count the returned sheets.

    Whose a sheet is, its name says; of several of one rater the one with the most answers counts. Repeats do not count
    for the preference, only for consistency.

    Args:
        returned: The raters' CSV files.
        key: The study's `key.csv`.

    Returns:
        Table 2 and what was left out, with reasons.

    Raises:
        StageError: The key cannot be used, or no answer can.
    """
    known = read_key(key)
    result = Table2()
    sheets = _one_of_each(_read_all(returned, known, result), result)
    if not any(sheet.answers for sheet in sheets):
        raise StageError(f"none of the {len(returned)} returned sheets has a usable answer" + _first(result.dropped))
    for sheet in sheets:
        result.unanswered += sheet.unanswered
        result.dropped += [{"file": sheet.file, "line": line, "reason": reason} for line, reason in sheet.dropped]
        if sheet.answers:
            result.raters.append(_rater(sheet, known))
    result.repeats = sum(row["repeats"] for row in result.raters)
    result.repeats_agree = sum(row["repeats_agree"] for row in result.raters)
    sides = [answer.side for sheet in sheets for answer in sheet.answers.values()]
    result.answers, result.answers_a = len(sides), sides.count("a")
    result.p_side = sign_test(result.answers_a, result.answers - result.answers_a)
    _fill_rows(sheets, known, result)
    return result


def read_key(path: Path) -> dict[str, dict[str, str]]:
    """The study's key.

    Raises:
        StageError: It is missing, or another file.
    """
    if not path.is_file():
        raise StageError(f"{path} does not exist; it is the key.csv that `dvc repro study` wrote with these sheets")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if not set(KEY_COLUMNS) <= set(reader.fieldnames or ()):
            raise StageError(f"{path} is not a study's key: it needs the columns {', '.join(KEY_COLUMNS)}")
        return {row["pair"]: row for row in reader}


def _read_all(returned: list[Path], key: Key, result: Table2) -> list[Sheet]:
    """All files that can be read, each content once: of a sheet and its copy under another name, the sheet."""
    sheets: list[Sheet] = []
    contents: dict[str, str] = {}
    for path in sorted(set(returned), key=lambda path: (rater_of(path) != path.stem, *_natural(path))):
        try:
            sheet = read_sheet(path, key)
            marks = {hashlib.sha256(path.read_bytes()).hexdigest(), sheet.digest} - {None}
            same = next((contents[mark] for mark in sorted(map(str, marks)) if mark in contents), None)
            if same and sheet.answers:
                raise SheetError(f"the same content as {same}")
        except SheetError as error:
            result.dropped.append({"file": path.name, "line": 0, "reason": str(error)})
            continue
        contents |= {str(mark): path.name for mark in marks}
        sheets.append(sheet)
    return sheets


def _natural(path: Path) -> tuple[bool, str, str]:
    """Sheets named as ours were before others."""
    return not rater_of(path).startswith("rater_"), path.name, str(path)


def _one_of_each(sheets: list[Sheet], result: Table2) -> list[Sheet]:
    """The sheet with the most answers of every rater."""
    best: dict[str, Sheet] = {}
    for sheet in sheets:
        if sheet.rater not in best or len(sheet.answers) > len(best[sheet.rater].answers):
            best[sheet.rater] = sheet
    for sheet in sheets:
        chosen = best[sheet.rater]
        if sheet is not chosen:
            differ = sum(
                chosen.answers[pair].video != answer.video
                for pair, answer in sheet.answers.items()
                if pair in chosen.answers
            )
            reason = (
                f"a second sheet of {sheet.rater} with {len(sheet.answers)} answers; {chosen.file} counts, which has "
            )
            reason += f"{len(chosen.answers)}" + (f" ({differ} answers differ)" if differ else "")
            result.dropped.append({"file": sheet.file, "line": 0, "reason": reason})
    return list(best.values())


def _first(dropped: list[dict[str, Any]]) -> str:
    if not dropped:
        return "; fill in the column `choice` with a or b"
    return f" (first problem: {dropped[0]['file']}, line {dropped[0]['line']}: {dropped[0]['reason']})"


def _is_ours(known: Mapping[str, str], video: str) -> bool:
    return known["method_a" if known["video_a"] == video else "method_b"] == OURS


def _rival(known: Mapping[str, str]) -> str:
    return known["method_b"] if known["method_a"] == OURS else known["method_a"]


def _rater(sheet: Sheet, key: Key) -> dict[str, Any]:
    """How one rater answered; worth a look: one side nearly always, hardly any time, repeats that disagree."""
    ours = {pair: _is_ours(key[pair], answer.video) for pair, answer in sheet.answers.items()}
    counted = [value for pair, value in ours.items() if not key[pair]["repeat_of"]]
    twice = [(ours[pair], ours[first]) for pair in ours if (first := key[pair]["repeat_of"]) in ours]
    seconds = [answer.seconds for answer in sheet.answers.values() if answer.seconds is not None]
    return {
        "rater": sheet.rater,
        "file": sheet.file,
        "answers": len(counted),
        "percent_ours": 100 * sum(counted) / len(counted) if counted else None,
        "repeats": len(twice),
        "repeats_agree": sum(one == other for one, other in twice),
        "percent_a": 100 * sum(answer.side == "a" for answer in sheet.answers.values()) / len(sheet.answers),
        "median_seconds": statistics.median(seconds) if seconds else None,
    }


def _fill_rows(sheets: list[Sheet], key: Key, result: Table2) -> None:
    """Table 2 itself and the agreement over all of it."""
    groups: dict[tuple[str, str], dict[tuple[str, str], bool]] = {}
    aspects: dict[tuple[str, str], dict[str, list[bool]]] = {}
    everything: dict[tuple[str, str], bool] = {}
    for sheet in sheets:
        for pair, answer in sheet.answers.items():
            known = key[pair]
            if known["repeat_of"]:
                continue
            group = known["dataset"], _rival(known)
            ours = _is_ours(known, answer.video)
            groups.setdefault(group, {})[sheet.rater, pair] = everything[sheet.rater, pair] = ours
            lists = aspects.setdefault(group, {name: [] for name in ASPECTS})
            for name, video in answer.aspects.items():
                lists[name].append(_is_ours(known, video))
    for (dataset, rival), answers in sorted(groups.items()):
        found = preference(answers)
        alpha, kappa, kappa_pairs = agreement(answers)
        row = {
            "dataset": dataset,
            "method": rival,
            "answers": found.answers,
            "preferred": found.preferred,
            "percent": 100 * found.share,
            "low_percent": 100 * found.honest[0],
            "high_percent": 100 * found.honest[1],
            "wilson_low_percent": 100 * found.wilson[0],
            "wilson_high_percent": 100 * found.wilson[1],
            "p_pairs": found.p_pairs,
            "p_answers": found.p_answers,
            "pairs": found.pairs,
            "pairs_won": found.pairs_won,
            "pairs_tied": found.pairs_tied,
            "raters": len({rater for rater, _ in answers}),
            "alpha": alpha,
            "kappa": kappa,
            "kappa_pairs": kappa_pairs,
        }
        for name, values in aspects[dataset, rival].items():
            row[f"percent_{name}"] = 100 * sum(values) / len(values) if values else None
            row[f"answers_{name}"] = len(values)
        result.rows.append(row)
    result.alpha, result.kappa, result.kappa_pairs = agreement(everything)
