"""Pairing sheets of the user study (Sec. 4.1): head3d against every other method in cross-identity, blinded."""

from __future__ import annotations

import csv
import json
import random
import shutil
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av

from models.config import Params, Study
from tasks.errors import StageError
from tasks.generated import read_pairs
from tasks.methods import METHODS, OURS
from tasks.paths import Paths

PAIR_COLUMNS = ("pair", "dataset", "setting", "video_a", "video_b")
ANSWER_COLUMNS = ("choice", "realism", "motion", "identity", "seconds", "comment")
KEY_COLUMNS = (*PAIR_COLUMNS, "method_a", "method_b", "source_pair", "repeat_of")


@dataclass(frozen=True)
class Comparison:
    """Two blinded videos that are shown side by side; `repeat_of` names the first showing of the same two."""

    pair: str
    dataset: str
    video_a: str
    video_b: str
    method_a: str
    method_b: str
    source_pair: str
    repeat_of: str = ""

    def flipped(self) -> Comparison:
        """The same two videos with their sides exchanged."""
        return replace(self, video_a=self.video_b, video_b=self.video_a, method_a=self.method_b, method_b=self.method_a)

    def shown(self) -> dict[str, str]:
        """What a rater may see."""
        return {"pair": self.pair, "dataset": self.dataset, "setting": "cross", "video_a": self.video_a,
                "video_b": self.video_b}  # fmt: skip


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """Write the study's folder: `pairs.csv`, `key.csv`, a sheet per rater, and the blinded videos.

    Where there is nothing to compare the sheets are empty and the summary's `note` says why: the report still comes.

    Args:
        params: All settings; `study` and `generate.methods` are used.
        paths: Where the data lies.
        fingerprint: Written last into `stage.json`: a finished study of the same inputs is left as it is.

    Returns:
        Counts: comparisons, repeats, raters, videos, and what is missing to `pairs_per_method`.

    Raises:
        StageError: The folder holds answers, or a generated video is missing.
    """
    stamp = paths.study / "stage.json"
    if stamp.is_file():
        stored = json.loads(stamp.read_text(encoding="utf-8"))
        if stored["fingerprint"] == fingerprint:
            return dict(stored["summary"])
    _refuse_to_lose_answers(paths.study)
    rivals = [method for method in params.generate.methods if METHODS[method].in_study]
    rng = random.Random(params.study.seed)
    candidates = _candidates(paths)
    note = ""
    if not candidates:
        note = "no cross-identity pair was generated: it takes two people and generate.cross_pairs above 0"
    elif OURS not in params.generate.methods or not rivals:
        known = ", ".join(method for method, row in METHODS.items() if row.in_study)
        note = f"the study compares {OURS} with at least one of {known}: add one to generate.methods"
    comparisons = [] if note else plan(candidates, rivals, params.study, rng)
    shutil.rmtree(paths.study, ignore_errors=True)
    paths.study.mkdir(parents=True)
    videos = _copy_videos(comparisons, paths)
    _write_tables(comparisons, params.study, paths.study, rng)
    originals = [item for item in comparisons if not item.repeat_of]
    fewest = min(_count_by(originals).values(), default=0)
    summary = {
        "comparisons": len(originals),
        "repeats": len(comparisons) - len(originals),
        "raters": params.study.raters,
        "methods_compared": len(rivals),
        "videos": videos,
        "pairs_missing_per_method": max(0, params.study.pairs_per_method - fewest),
        **({"note": note} if note else {}),
    }
    stamp.write_text(json.dumps({"fingerprint": fingerprint, "summary": summary}, indent=1) + "\n", encoding="utf-8")
    return summary


def plan(candidates: dict[str, list[str]], rivals: list[Any], study: Study, rng: random.Random) -> list[Comparison]:
    """Draw the comparisons: up to `pairs_per_method` of every dataset and rival, then the repeats.

    Every showing has file names of its own: the same head3d video seen against two rivals does not give itself away.

    Args:
        candidates: Dataset -> pairs of the cross-identity set.
        rivals: Methods that head3d is compared with.
        study: How many pairs and repeats.
        rng: Seeded source of chance.

    Returns:
        The comparisons, shuffled, in half of each group head3d as `video_a`; the repeats come last, sides exchanged.
    """
    drawn = []
    for dataset in sorted(candidates):
        for rival in rivals:
            sources = sorted(rng.sample(candidates[dataset], min(study.pairs_per_method, len(candidates[dataset]))))
            first = rng.random() < 0.5  # who gets the odd one
            sides = [(index % 2 == 0) == first for index in range(len(sources))]
            rng.shuffle(sides)
            drawn += [(dataset, rival, source, side) for source, side in zip(sources, sides, strict=True)]
    rng.shuffle(drawn)
    used: set[str] = set()
    comparisons = []
    for number, (dataset, rival, source, ours_first) in enumerate(drawn):
        item = Comparison(f"p{number + 1:04d}", dataset, _token(rng, used), _token(rng, used), OURS, rival, source)
        comparisons.append(item if ours_first else item.flipped())
    for original in rng.sample(comparisons, min(study.repeats, len(comparisons))):
        again = replace(original.flipped(), pair=f"p{len(comparisons) + 1:04d}", repeat_of=original.pair)
        comparisons.append(replace(again, video_a=_token(rng, used), video_b=_token(rng, used)))
    return comparisons


def sheet(comparisons: list[Comparison], rater: int, seed: int) -> list[Comparison]:
    """What one rater sees, in their own order.

    Neighbouring raters see each pair from opposite sides, so that the sides are balanced in each sheet and over raters;
    a repeat never follows its first showing at once where that can be avoided.

    Args:
        comparisons: All of the study.
        rater: Number of the rater, from 1.
        seed: Of the study.

    Returns:
        The comparisons, shuffled, with exchanged sides for raters of an even number.
    """
    rng = random.Random(f"{seed}/{rater}")
    rows = [item.flipped() if rater % 2 == 0 else item for item in comparisons]
    for _ in range(100):
        rng.shuffle(rows)
        names = [{item.pair, item.repeat_of} - {""} for item in rows]
        if not any(one & other for one, other in pairwise(names)):
            break
    return rows


def _token(rng: random.Random, used: set[str]) -> str:
    """A new blinded file name."""
    while True:
        token = f"{rng.getrandbits(40):010x}.mp4"
        if token not in used:
            used.add(token)
            return token


def _refuse_to_lose_answers(folder: Path) -> None:
    for path in sorted(folder.glob("rater_*.csv")):
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                answered = any((row.get("choice") or "").strip() for row in csv.DictReader(stream))
        except (UnicodeDecodeError, csv.Error):
            answered = True  # a spreadsheet program has saved it
        if answered:
            raise StageError(
                f"{path} has answers and the study would be made anew; move the answered sheets elsewhere first"
            )


def _candidates(paths: Paths) -> dict[str, list[str]]:
    """Dataset -> names of the finished cross-identity pairs."""
    pairs = read_pairs(paths)
    good = pairs[(pairs["status"] == "ok") & (pairs["setting"] == "cross")]
    return {str(dataset): rows["pair"].tolist() for dataset, rows in good.groupby("dataset")}


def _count_by(comparisons: list[Comparison]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for item in comparisons:
        group = (item.dataset, item.method_b if item.method_a == OURS else item.method_a)
        counts[group] = counts.get(group, 0) + 1
    return counts


def _copy_videos(comparisons: list[Comparison], paths: Paths) -> int:
    """Copy every video under its blinded name, in the names' order, so that dates of files say nothing."""
    sources = {}
    for item in comparisons:
        for name, method in ((item.video_a, item.method_a), (item.video_b, item.method_b)):
            sources[name] = paths.generated / "videos" / method / "cross" / f"{item.source_pair}.mp4"
    (paths.study / "videos").mkdir()
    for name in sorted(sources):
        if not sources[name].is_file():
            raise StageError(f"{sources[name]} does not exist; run `dvc repro --force generate`")
        _remux(sources[name], paths.study / "videos" / name)
    return len(sources)


def _remux(source: Path, target: Path) -> None:
    """Copy the first video stream into a fresh container: same pictures, none of the old container's metadata."""
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(source)) as inside, av.open(str(target), "w", format="mp4", options=options) as outside:
        stream = inside.streams.video[0]
        copy = outside.add_stream_from_template(stream)
        for packet in inside.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                outside.mux(packet)


def _write_tables(comparisons: list[Comparison], study: Study, folder: Path, rng: random.Random) -> None:
    listed = sorted(comparisons, key=lambda item: item.pair)
    _write_csv(folder / "pairs.csv", PAIR_COLUMNS, [item.shown() for item in listed])
    key = [
        {**item.shown(), "method_a": item.method_a, "method_b": item.method_b, "source_pair": item.source_pair,
         "repeat_of": item.repeat_of}
        for item in listed
    ]  # fmt: skip
    _write_csv(folder / "key.csv", KEY_COLUMNS, key)
    width = max(2, len(str(study.raters)))
    for rater in range(1, study.raters + 1):
        rows = [item.shown() for item in sheet(comparisons, rater, study.seed)]
        _write_csv(folder / f"rater_{rater:0{width}d}.csv", (*PAIR_COLUMNS, *ANSWER_COLUMNS), rows)


def _write_csv(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
