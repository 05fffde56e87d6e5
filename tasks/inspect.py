"""Looking into the stores: a sheet of one clip, and the counts, masks and worst clips of all of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from PIL import Image

from tasks import sheets
from tasks.clip_table import ok_clips, read_table
from tasks.errors import StageError
from tasks.labels import NAMES
from tasks.paths import Paths
from tasks.report_media import frame_indices
from tasks.stores import array, open_store

TILE_PX = 128
"""A frame is shown at least this large."""
SHEET_FRAMES = 8
"""Frames of a clip on the sheet of `head3d inspect`."""
WORST = 5
"""How many clips each list of the worst names."""


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
        clips_by_split: train, test -> count.
        identities_by_split: train, test -> people.
        clips_by_dataset: Data set -> count.
        head_area: Share of the frame that the head takes: min, p5, median, p95, max over clips; empty before `parse`.
        flicker: The same of 1 - mean IoU of successive masks.
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
    clips_by_split: dict[str, int]
    identities_by_split: dict[str, int]
    clips_by_dataset: dict[str, int]
    head_area: dict[str, float]
    flicker: dict[str, float]
    most_flicker: list[tuple[str, float]]
    smallest: list[tuple[str, float]]
    largest: list[tuple[str, float]]
    refused: list[tuple[str, str, str, str]]
    unparsed: list[tuple[str, str, str]]


def inspect_clip(paths: Paths, clip: str, frames_per_sheet: int) -> np.ndarray:
    """Sheet of one clip: frames, class colours and the head mask's outline, one column a frame.

    Args:
        paths: The data folder.
        clip: Name as in the clip table; or its row, or the name of a video, which stands for its first clip.
        frames_per_sheet: How many frames, evenly spread over the clip.

    Returns:
        `(height, width, 3)` u1 RGB. A clip without masks shows its frames alone.

    Raises:
        StageError: There is no such clip, or it has no frames; the text names the nearest ones or the reason.
    """
    record = _clip_record(paths, clip)
    clip, row = str(record["clip"]), int(record["row"])
    frames = np.asarray(array(_store(paths.clips, "crop"), "frames")[row])
    shown = frame_indices(len(frames), max(frames_per_sheet, 1))
    pictures = [[frames[t] for t in shown]]
    captions = ["frames " + ", ".join(str(t) for t in shown)]
    present: list[int] = []
    masks = _masks(paths)
    if masks is not None and array(masks, "done")[row]:
        class_ids, head = (np.asarray(array(masks, name)[row]) for name in ("labels", "head"))
        pictures.append([sheets.colour_labels(class_ids[t]) for t in shown])
        pictures.append([sheets.draw_outline(frames[t], head[t]) for t in shown])
        captions += ["labels", f"head mask: {head.mean():.0%} of the frame"]
        present = [int(label) for label in np.unique(class_ids[shown]) if 0 < label < len(NAMES)]
    else:
        captions[0] += _why_no_mask(paths, clip)
    large = [[sheets.enlarge(image, TILE_PX) for image in images] for images in pictures]
    title = f"{clip}  {record['identity']}  {record['split']}  frames {record['start_frame']}-{record['end_frame']}"
    sheet = sheets.contact_sheet(large, captions, title)
    return np.concatenate([sheet, sheets.legend(present, sheet.shape[1])]) if present else sheet


def write_sheet(paths: Paths, clip: str, target: Path) -> None:
    """`inspect_clip` as a PNG.

    Raises:
        StageError: As `inspect_clip`.
    """
    sheet = inspect_clip(paths, clip, SHEET_FRAMES)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(target, "PNG")


def describe_stores(paths: Paths) -> str:
    """`inspect_store` as text for people.

    Raises:
        StageError: As `inspect_store`.
    """
    report = inspect_store(paths)
    kinds = f"{_listed(report.clips_by_split)}; {_listed(report.clips_by_dataset)}"
    size = " x ".join(str(number) for number in report.frames) or "no store yet"
    lines = [
        f"videos       {report.videos} ({_listed(report.videos_by_status)})",
        f"clips        {report.clips} ({kinds}), each {size}",
        f"identities   {_listed(report.identities_by_split)}",
        f"head masks   {report.parsed} of {report.clips} clips",
    ]
    if report.head_area:
        lines.append(f"head area    {_listed(report.head_area)} (share of the frame)")
        lines.append(f"flicker      {_listed(report.flicker)} (1 - mean IoU of successive masks)")
        lines.append("most flicker " + _ranked(report.most_flicker))
        lines.append("smallest     " + _ranked(report.smallest))
        lines.append("largest      " + _ranked(report.largest))
    if report.refused:
        lines.append(f"videos without a clip ({_listed(report.reasons)}):")
        lines += [f"  {video}: {status}, {reason}; {detail}" for video, status, reason, detail in report.refused]
    if report.unparsed:
        lines.append(f"clips without a mask ({_listed(report.failed_masks)}):")
        lines += [f"  {clip}: {reason}; {detail}" for clip, reason, detail in report.unparsed]
    return "\n".join(lines)


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _ranked(items: list[tuple[str, float]]) -> str:
    return ", ".join(f"{clip} {value:.3f}" for clip, value in items)


def inspect_store(paths: Paths) -> StoreReport:
    """Counts, masks and worst clips of the stores, from the tables alone.

    Raises:
        StageError: There is no clip table yet.
    """
    table = read_table(paths.clip_table)
    videos, clips = table.drop_duplicates("video"), ok_clips(table)
    refused = videos[videos["status"] != "ok"]
    masks = pd.read_parquet(paths.mask_table) if paths.mask_table.is_file() else None
    good, failed = (pd.DataFrame(), pd.DataFrame())
    if masks is not None:
        good, failed = masks[masks["status"] == "ok"], masks[masks["status"] != "ok"]
    return StoreReport(
        videos=len(videos),
        clips=len(clips),
        parsed=len(good),
        frames=_frame_shape(paths),
        videos_by_status=_counts(videos, "status"),
        reasons=_counts(refused, "reason"),
        failed_masks=_counts(failed, "reason"),
        clips_by_split=_counts(clips, "split"),
        identities_by_split={str(k): int(n) for k, n in clips.groupby("split")["identity"].nunique().items()},
        clips_by_dataset=_counts(clips, "dataset"),
        head_area=_spread(good, "head_area"),
        flicker=_spread(good, "flicker"),
        most_flicker=_first(good, "flicker", ascending=False),
        smallest=_first(good, "head_area", ascending=True),
        largest=_first(good, "head_area", ascending=False),
        refused=[_strings(item) for item in refused[["video", "status", "reason", "detail"]].to_numpy()],
        unparsed=[_strings(item) for item in failed[["clip", "reason", "detail"]].to_numpy()] if len(failed) else [],
    )


def _clip_record(paths: Paths, clip: str) -> dict[str, Any]:
    table = read_table(paths.clip_table)
    found = table[table["clip"] == clip]
    if found.empty and clip.isdecimal():
        found = table[table["row"] == int(clip)]
    if found.empty:
        found = table[table["video"] == clip].sort_values("row", kind="stable")
    if found.empty:
        names = ok_clips(table)["clip"].astype(str).tolist()
        near = difflib.get_close_matches(clip, names, n=3, cutoff=0.3) or names[:3]
        hint = f"; the nearest: {', '.join(near)}" if near else ""
        raise StageError(f"there is no clip '{clip}'{hint}. `head3d inspect --store` lists what there is")
    record = {str(key): value for key, value in found.iloc[0].to_dict().items()}
    if record["status"] != "ok":
        raise StageError(f"'{clip}' has no frames: {record['status']}, {record['reason']} ({record['detail']})")
    return record


def _store(path: Path, stage: str) -> zarr.Group:
    try:
        return open_store(path)
    except FileNotFoundError:
        raise StageError(f"{path} does not exist; `dvc repro {stage}` makes it") from None


def _masks(paths: Paths) -> zarr.Group | None:
    try:
        return open_store(paths.masks)
    except FileNotFoundError:
        return None


def _why_no_mask(paths: Paths, clip: str) -> str:
    if paths.mask_table.is_file():
        table = pd.read_parquet(paths.mask_table)
        for record in table[table["clip"] == clip].itertuples():
            return f" (no mask: {record.reason}; {record.detail})"
    return " (no mask: not parsed yet)"


def _frame_shape(paths: Paths) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in array(open_store(paths.clips), "frames").shape[1:])
    except FileNotFoundError:
        return ()


def _counts(table: pd.DataFrame, column: str) -> dict[str, int]:
    return {str(key): int(count) for key, count in table[column].value_counts().items()} if len(table) else {}


def _spread(table: pd.DataFrame, column: str) -> dict[str, float]:
    if table.empty:
        return {}
    points = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}
    return {name: round(float(np.percentile(table[column], point)), 4) for name, point in points.items()}


def _first(table: pd.DataFrame, column: str, *, ascending: bool) -> list[tuple[str, float]]:
    if table.empty:
        return []
    chosen = table.sort_values(column, ascending=ascending, kind="stable").head(WORST)
    return [(str(clip), round(float(value), 4)) for clip, value in zip(chosen["clip"], chosen[column], strict=True)]


def _strings(values: Any) -> Any:
    return tuple(str(value) for value in values)
