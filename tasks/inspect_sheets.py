"""Pictures for looking at masks: the sheet of one clip, and the contact sheet of the worst ones."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from PIL import Image

from models.config import Quality
from tasks import sheets
from tasks.clip_table import ok_clips, read_table
from tasks.errors import StageError
from tasks.inspect import Worst, mask_row, measures_of, worst_clips
from tasks.labels import NAMES
from tasks.paths import Paths
from tasks.report_media import frame_indices
from tasks.sheets_plot import line_plot
from tasks.stores import array, open_store

TILE_PX = 128
"""A frame is shown at least this large."""
SHEET_FRAMES = 8
"""Frames of a clip on the sheet of `head3d inspect`."""
WORST_FRAMES, WORST_TILE_PX, WORST_TEXT_PX = 6, 96, 300
PLOT_PX = 96


def inspect_clip(paths: Paths, clip: str, frames_per_sheet: int, quality: Quality) -> np.ndarray:
    """Sheet of one clip: frames, class colours, the head mask's outline, its area and its change over time, measures.

    Args:
        paths: The data folder.
        clip: Name as in the clip table; or its row, or the name of a video, which stands for its first clip.
        frames_per_sheet: How many frames, evenly spread over the clip.
        quality: The limits behind the flags.

    Returns:
        `(height, width, 3)` u1 RGB. A clip without masks shows its frames alone.

    Raises:
        StageError: There is no such clip, or it has no frames; the text names the nearest ones or the reason.
    """
    record = clip_record(paths, clip)
    clip, row = str(record["clip"]), int(record["row"])
    frames = np.asarray(array(_store(paths.clips, "crop"), "frames")[row])
    shown = frame_indices(len(frames), max(frames_per_sheet, 1))
    pictures = [[frames[t] for t in shown]]
    captions = ["frames " + ", ".join(str(t) for t in shown)]
    title = f"{clip}  {record['identity']}  {record['split']}  frames {record['start_frame']}-{record['end_frame']}"
    masks = _parsed(paths, row)
    if masks is None:
        captions[0] += _why_no_mask(paths, clip)
        return sheets.contact_sheet(_enlarged(pictures), captions, title)
    class_ids, head = (np.asarray(array(masks, name)[row]) for name in ("labels", "head"))
    pictures.append([sheets.colour_labels(class_ids[t]) for t in shown])
    pictures.append([sheets.draw_outline(frames[t], head[t]) for t in shown])
    captions += ["labels", f"head mask: {head.mean():.0%} of the frame"]
    sheet = sheets.contact_sheet(_enlarged(pictures), captions, title)
    width = sheet.shape[1]
    present = [int(label) for label in np.unique(class_ids[shown]) if 0 < label < len(NAMES)]
    parts = [sheet, sheets.legend(present, width)]
    parts.append(
        line_plot(head.mean(axis=(1, 2)), width, PLOT_PX, "head mask, share of the frame, by frame", marks=shown)
    )
    parts.append(line_plot(mask_change(head), width, PLOT_PX, "change of the mask, 1 - IoU with the frame before"))
    measures = measures_of(paths, clip, quality)
    parts += [sheets.text_line(line, width) for line in measures.lines()]
    return np.concatenate(parts)


def mask_change(head: np.ndarray) -> np.ndarray:
    """1 - intersection over union of each mask `(T, H, W)` with the one before; NaN for the first."""
    both = np.logical_and(head[1:], head[:-1]).sum(axis=(1, 2))
    either = np.logical_or(head[1:], head[:-1]).sum(axis=(1, 2))
    return np.concatenate([[np.nan], 1 - both / np.maximum(either, 1)])


def clip_series(paths: Paths, clip: str) -> dict[str, Any]:
    """Numbers of one clip over time, for machines.

    Returns:
        The clip table's `record`, `head_area` and `mask_change` per frame (None for a clip without masks).

    Raises:
        StageError: As `inspect_clip`.
    """
    record = clip_record(paths, clip)
    masks = _parsed(paths, int(record["row"]))
    if masks is None:
        return {"record": record, "head_area": None, "mask_change": None}
    head = np.asarray(array(masks, "head")[int(record["row"])])
    area = [round(float(value), 5) for value in head.mean(axis=(1, 2))]
    return {"record": record, "head_area": area, "mask_change": [round(float(v), 5) for v in mask_change(head)[1:]]}


def worst_sheet(paths: Paths, quality: Quality, count: int) -> np.ndarray:
    """Contact sheet of the worst clips: frames with the mask's outline, mask area over time, and what is wrong.

    Args:
        paths: The data folder.
        quality: The limits behind the flags.
        count: How many clips.

    Returns:
        `(height, width, 3)` u1 RGB.

    Raises:
        StageError: There are no masks yet, or no clips.
    """
    found = worst_clips(paths, quality, count)
    if not found:
        raise StageError("there is no clip to show; `head3d inspect --store` tells what there is")
    clips = _store(paths.clips, "crop")
    table = read_table(paths.clip_table)
    rows = dict(zip(table["clip"], table["row"].astype(int), strict=True))
    bands = [_worst_row(paths, clips, rows[item.clip], item) for item in found]
    width = max(band.shape[1] for band in bands)
    return np.concatenate([sheets.text_line(f"the {len(found)} worst of {len(ok_clips(table))} clips", width), *bands])


def _worst_row(paths: Paths, clips: zarr.Group, row: int, item: Worst) -> np.ndarray:
    frames = np.asarray(array(clips, "frames")[row])
    shown = frame_indices(len(frames), WORST_FRAMES)
    masks = _parsed(paths, row)
    head = None if masks is None else np.asarray(array(masks, "head")[row])
    pictures = [frames[t] if head is None else sheets.draw_outline(frames[t], head[t]) for t in shown]
    strip = sheets.contact_sheet([[_tile(picture) for picture in pictures]], [""])
    height = strip.shape[0]
    text = np.full((height, WORST_TEXT_PX, 3), sheets.PAPER_RGB, np.uint8)
    for line, words in enumerate([item.clip, *item.why][: height // sheets.TEXT_PX]):
        text[line * sheets.TEXT_PX : (line + 1) * sheets.TEXT_PX] = sheets.text_line(words, WORST_TEXT_PX)
    area = np.full(len(frames), np.nan) if head is None else head.mean(axis=(1, 2))
    plot = line_plot(area, 2 * height, height, "mask area over time")
    return np.concatenate([strip, plot, text], axis=1)


def write_picture(picture: np.ndarray, target: Path) -> None:
    """Save `(H, W, 3)` u1 RGB as a PNG; folders are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(target, "PNG")


def clip_record(paths: Paths, clip: str) -> dict[str, Any]:
    """The clip table's row of a clip.

    Raises:
        StageError: As `inspect_clip`.
    """
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


def _enlarged(pictures: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    return [[sheets.enlarge(image, TILE_PX) for image in images] for images in pictures]


def _tile(image: np.ndarray) -> np.ndarray:
    """An image at exactly `WORST_TILE_PX`."""
    picture = Image.fromarray(image)
    if picture.width != WORST_TILE_PX:
        picture = picture.resize((WORST_TILE_PX, WORST_TILE_PX), Image.Resampling.BOX)
    return np.asarray(picture)


def _store(path: Path, stage: str) -> zarr.Group:
    try:
        return open_store(path)
    except FileNotFoundError:
        raise StageError(f"{path} does not exist; `dvc repro {stage}` makes it") from None


def _parsed(paths: Paths, row: int) -> zarr.Group | None:
    """The store of masks, if it has this row."""
    try:
        masks = open_store(paths.masks)
    except FileNotFoundError:
        return None
    done = array(masks, "done")  # shorter than the clips, where some came after the masks
    return masks if row < len(done) and done[row] else None


def _why_no_mask(paths: Paths, clip: str) -> str:
    record: pd.Series | None = mask_row(paths, clip)
    return " (no mask: not parsed yet)" if record is None else f" (no mask: {record['reason']}; {record['detail']})"
