"""What the stores hold, from the tables alone: counts by status, reason and flag, measures, and the worst clips."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.config import Quality
from tasks.clip_table import ok_clips, read_table
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.quality import FLAGS, MEANING, flags
from tasks.reasons import sentence
from tasks.stores import array, damage_report, open_store

WORST = 5
"""How many clips each list of the worst names."""
LISTED = 20
"""Videos and clips without a result that the text names; the JSON has all."""


@dataclass(frozen=True)
class StoreReport:
    """What the stores hold.

    Attributes:
        videos: Videos in the clip table.
        clips: Clips with frames.
        parsed: Clips with masks.
        frames: Shape of one clip's frames, `(T, H, W, 3)`; empty without a store.
        videos_by_status: ok, rejected, error -> count.
        reasons: Reason code -> count, of videos without a clip.
        failed_masks: Reason code -> count, of clips without a mask.
        flags: Flag -> count of clips (a clip may have several); `flags_train` the same of training clips.
        flags_train: See `flags`.
        clips_flagged: Clips with at least one flag.
        train_used: Training clips without a flag: what training uses.
        clips_by_split: train, test -> count.
        identities_by_split: train, test -> people.
        clips_by_dataset: Data set -> count.
        measures: Measure -> min, p5, median, p95, max over clips; empty before `parse`.
        most_flicker: (clip, flicker), the worst first.
        smallest: (clip, head area), the smallest first.
        largest: (clip, head area), the largest first.
        refused: (video, status, reason, detail) of videos without a clip.
        unparsed: (clip, reason, detail) of clips without a mask.
    """

    videos: int
    clips: int
    parsed: int
    frames: tuple[int, ...]
    videos_by_status: dict[str, int]
    reasons: dict[str, int]
    failed_masks: dict[str, int]
    flags: dict[str, int]
    flags_train: dict[str, int]
    clips_flagged: int
    train_used: int
    clips_by_split: dict[str, int]
    identities_by_split: dict[str, int]
    clips_by_dataset: dict[str, int]
    measures: dict[str, dict[str, float]]
    most_flicker: list[tuple[str, float]]
    smallest: list[tuple[str, float]]
    largest: list[tuple[str, float]]
    refused: list[tuple[str, str, str, str]]
    unparsed: list[tuple[str, str, str]]
    damaged: list[str]


MEASURES = ("head_area", "flicker", *(column for column, _ in FLAGS.values() if column != "head_area"))
"""Columns of the mask table that are shown."""
HINTS = {
    "head_area": "share of the frame",
    "flicker": "1 - mean IoU of successive masks",
    "border_share": "of the frame's edge that the head touches",
    "sharpness": "detail of the head relative to its contrast",
    "mask_jump": "largest 1 - IoU of successive masks",
    "least_yaw_deg": "least turn to one side",
}


@dataclass(frozen=True)
class Measures:
    """Measures of one clip, and its flags with the limits they broke."""

    values: dict[str, float]
    flags: list[str]

    def lines(self) -> list[str]:
        """Text for a sheet."""
        listed = ", ".join(f"{name} {value:.3g}" for name, value in self.values.items())
        return [listed or "no measures", *([f"{name}: {MEANING[name]}" for name in self.flags] or ["no flag"])]


@dataclass(frozen=True)
class Worst:
    """One of the worst clips: how bad (above 1: a limit is broken), and lines that say why."""

    clip: str
    badness: float
    flags: list[str]
    why: list[str]


def inspect_store(paths: Paths, quality: Quality) -> StoreReport:
    """Counts, measures and worst clips of the stores, from the tables; and damage, for which every shard is read.

    Args:
        paths: The data folder.
        quality: The limits behind the flags.

    Raises:
        StageError: There is no clip table yet.
    """
    table = read_table(paths.clip_table)
    videos, clips = table.drop_duplicates("video"), ok_clips(table)
    refused = videos[videos["status"] != "ok"]
    good, failed = _masks(paths)
    found = flags(good, quality) if len(good) else pd.Series(dtype=object)
    train = clips.loc[clips["split"] == "train", "clip"]
    in_train = good["clip"].isin(train) if len(good) else found
    return StoreReport(
        videos=len(videos),
        clips=len(clips),
        parsed=len(good),
        frames=_frame_shape(paths),
        videos_by_status=_counts(videos, "status"),
        reasons=_counts(refused, "reason"),
        failed_masks=_counts(failed, "reason"),
        flags=_flag_counts(found),
        flags_train=_flag_counts(found[in_train]) if len(good) else {},
        clips_flagged=int((found != "").sum()),
        train_used=int(((found == "") & in_train).sum()) if len(good) else 0,
        clips_by_split=_counts(clips, "split"),
        identities_by_split={str(k): int(n) for k, n in clips.groupby("split")["identity"].nunique().items()},
        clips_by_dataset=_counts(clips, "dataset"),
        measures={name: spread for name in MEASURES if (spread := _spread(good, name))},
        most_flicker=_first(good, "flicker", ascending=False),
        smallest=_first(good, "head_area", ascending=True),
        largest=_first(good, "head_area", ascending=False),
        refused=[_strings(item) for item in refused[["video", "status", "reason", "detail"]].to_numpy()],
        unparsed=[_strings(item) for item in failed[["clip", "reason", "detail"]].to_numpy()] if len(failed) else [],
        damaged=_damage(paths),
    )


def describe_stores(paths: Paths, quality: Quality) -> str:
    """`inspect_store` as text for people.

    Raises:
        StageError: As `inspect_store`.
    """
    report = inspect_store(paths, quality)
    damage = [f"DAMAGED       {text}" for text in report.damaged]
    kinds = f"{_listed(report.clips_by_split)}; {_listed(report.clips_by_dataset)}"
    size = " x ".join(str(number) for number in report.frames) or "no store yet"
    lines = [
        *damage,
        f"videos        {report.videos} ({_listed(report.videos_by_status)})",
        f"clips         {report.clips} ({kinds}), each {size}",
        f"identities    {_listed(report.identities_by_split)}",
        f"head masks    {report.parsed} of {report.clips} clips",
    ]
    if report.parsed:
        flagged = f"{report.clips_flagged} clips" + (f": {_listed(report.flags)}" if report.flags else "")
        lines.append(f"flags         {flagged}; training uses {report.train_used} clips")
        lines += [f"  {name}: {count}, {MEANING[name]}" for name, count in report.flags.items()]
        lines += [f"{name:<14}{_listed(values)} ({HINTS[name]})" for name, values in report.measures.items()]
        lines.append("most flicker  " + _ranked(report.most_flicker))
        lines.append("smallest      " + _ranked(report.smallest))
        lines.append("largest       " + _ranked(report.largest))
    if report.refused:
        lines.append("videos without a clip:")
        lines += [f"  {count} {code}: {sentence(code)}" for code, count in report.reasons.items()]
        lines += [
            f"  {video}: {status}, {reason}; {detail}" for video, status, reason, detail in report.refused[:LISTED]
        ]
        lines += _more(len(report.refused))
    if report.unparsed:
        lines.append("clips without a mask:")
        lines += [f"  {count} {code}: {sentence(code)}" for code, count in report.failed_masks.items()]
        lines += [f"  {clip}: {reason}; {detail}" for clip, reason, detail in report.unparsed[:LISTED]]
        lines += _more(len(report.unparsed))
    return "\n".join(lines)


def worst_clips(paths: Paths, quality: Quality, count: int) -> list[Worst]:
    """The clips that one should look at first.

    Clips without a mask come first, then those that break a limit, by how far; then the others by how high they rank in
    any measure. A limit that is switched off does not count.

    Args:
        paths: The data folder.
        quality: The limits.
        count: How many.

    Returns:
        The worst first.

    Raises:
        StageError: There are no masks yet.
    """
    if not paths.mask_table.is_file():
        raise StageError(f"{paths.mask_table} does not exist; `dvc repro parse` makes it")
    good, failed = _masks(paths)
    found = [
        Worst(str(row.clip), float("inf"), [], [f"no mask: {row.reason}", str(row.detail)])
        for row in failed.itertuples()
    ]
    if len(good):
        found += _ranked_clips(good.reset_index(drop=True), quality)
    return sorted(found, key=lambda item: (-item.badness, item.clip))[:count]


def _ranked_clips(good: pd.DataFrame, quality: Quality) -> list[Worst]:
    badness: list[dict[str, float]] = [{} for _ in range(len(good))]
    words: list[dict[str, str]] = [{} for _ in range(len(good))]
    marks = [str(text).split(",") if text else [] for text in flags(good, quality)]
    for name, (column, setting) in {**FLAGS, "flicker": ("flicker", "")}.items():
        if column not in good:
            continue
        low_is_bad = setting.startswith("min_")
        ranks = good[column].rank(pct=True, ascending=not low_is_bad, method="min").fillna(0)
        limit = float(getattr(quality, setting)) if setting else 0.0
        for at, (value, rank) in enumerate(zip(good[column].astype(float), ranks, strict=True)):
            words[at][name], badness[at][name] = f"{column} {value:.3g}", 0.9 * float(rank)
            if name in marks[at]:
                beyond = limit / max(value, 1e-6) if low_is_bad else value / max(limit, 1e-6)
                badness[at][name] = 1 + min(beyond, 1e6)
                words[at][name] = f"{name}: {column} {value:.3g} (limit {limit:g})"
    result = []
    for at, clip in enumerate(good["clip"]):
        names = marks[at] or sorted(badness[at], key=lambda name, at=at: -badness[at][name])[:2]  # type: ignore[misc]
        worst = max(badness[at].values(), default=0.0)
        result.append(Worst(str(clip), round(worst, 4), marks[at], [words[at][name] for name in names]))
    return result


def measures_of(paths: Paths, clip: str, quality: Quality) -> Measures:
    """Measures and flags of one clip; empty where it has no row in the mask table."""
    row = mask_row(paths, clip)
    if row is None:
        return Measures({}, [])
    values = {name: float(row[name]) for name in MEASURES if name in row and np.isfinite(row[name])}
    marks = str(flags(row.to_frame().T, quality).iloc[0])
    return Measures(values, marks.split(",") if marks else [])


def mask_row(paths: Paths, clip: str) -> pd.Series | None:
    """A clip's row of the mask table, if there is one."""
    if not paths.mask_table.is_file():
        return None
    table = pd.read_parquet(paths.mask_table)
    found = table[table["clip"] == clip]
    return None if found.empty else found.iloc[0]


def _masks(paths: Paths) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the mask table: parsed, failed."""
    if not paths.mask_table.is_file():
        return pd.DataFrame(), pd.DataFrame()
    masks = pd.read_parquet(paths.mask_table)
    return masks[masks["status"] == "ok"], masks[masks["status"] != "ok"]


def _flag_counts(found: pd.Series) -> dict[str, int]:
    counts = Counter(name for text in found for name in str(text).split(",") if name)
    return {name: counts[name] for name in FLAGS if counts[name]}


def _more(count: int) -> list[str]:
    return [f"  ... and {count - LISTED} more (`--json` lists all)"] if count > LISTED else []


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _ranked(items: list[tuple[str, float]]) -> str:
    return ", ".join(f"{clip} {value:.3f}" for clip, value in items)


def _damage(paths: Paths) -> list[str]:
    """A sentence for every shard of the stores that is lost or damaged."""
    found: list[str] = []
    for path in (paths.clips, paths.masks, paths.geometry):
        with contextlib.suppress(FileNotFoundError):  # not made yet
            found += damage_report(path)
    return found


def _frame_shape(paths: Paths) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in array(open_store(paths.clips), "frames").shape[1:])
    except FileNotFoundError:
        return ()


def _counts(table: pd.DataFrame, column: str) -> dict[str, int]:
    return {str(key): int(count) for key, count in table[column].value_counts().items()} if len(table) else {}


def _spread(table: pd.DataFrame, column: str) -> dict[str, float]:
    if table.empty or column not in table or not table[column].notna().any():
        return {}
    points = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
    return {name: round(float(np.nanpercentile(table[column], point)), 4) for name, point in points.items()}


def _first(table: pd.DataFrame, column: str, *, ascending: bool) -> list[tuple[str, float]]:
    if table.empty:
        return []
    chosen = table.sort_values(column, ascending=ascending, kind="stable").head(WORST)
    return [(str(clip), round(float(value), 4)) for clip, value in zip(chosen["clip"], chosen[column], strict=True)]


def _strings(values: Any) -> Any:
    return tuple(str(value) for value in values)
