"""The report's examples: which pairs are shown, and their sheets and videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from PIL import Image

from models.config import Params
from tasks.generated import missing_videos, records
from tasks.methods import BASELINE, OURS, method_name
from tasks.paths import Paths
from tasks.report_files import Clip, Shelf
from tasks.report_media import error_map, frame_indices, outlined, shrink
from tasks.stores import array, open_store


def small(value: float) -> str:
    """An error as the paper prints it: four decimals, more only where they would all be 0."""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.6f}"


@dataclass(frozen=True)
class Picture:
    """An image with its caption; `alt` is for those who cannot see it, `url` is relative to the page."""

    caption: str
    alt: str
    url: str


@dataclass(frozen=True)
class Example:
    """One pair: its video (with its panels' names), single pictures, strips of frames, and figures."""

    title: str
    note: str
    figures: list[tuple[str, str]]
    clip: Clip
    fps: float
    frames: int
    panels: list[str]
    singles: list[Picture]
    strips: list[Picture]


class Stores:
    """The arrays that examples are cut from."""

    def __init__(self, paths: Paths) -> None:
        """Open the clips, the masks and the generated frames.

        Raises:
            FileNotFoundError: One is missing; the text says which command makes it.
        """
        self.paths = paths
        self.frames = array(open_store(paths.clips), "frames")
        self.head = array(open_store(paths.masks), "head")
        self.generated: zarr.Group = open_store(paths.generated / "frames.zarr")
        self.missing = missing_videos(paths)

    def output(self, method: str, pair: dict[str, Any]) -> np.ndarray | None:
        """Frames that a method made for a pair, `(T, H, W, 3)` uint8; None where it made none."""
        name = f"{method}/{pair['setting']}"
        if (method, pair["pair"]) in self.missing:
            return None
        return np.asarray(array(self.generated, name)[int(pair["index"])]) if name in self.generated else None


def choose(pairs: pd.DataFrame, per_video: pd.DataFrame, setting: str, count: int) -> list[dict[str, Any]]:
    """Pairs to show: from Head3D's best to its worst in even steps, so that the report does not flatter.

    Args:
        pairs: The generated pairs.
        per_video: Figures of `evaluate`.
        setting: `self` (ordered by L2) or `cross` (by how the motion follows).
        count: How many.

    Returns:
        Rows of `pairs` as dicts, the best first, with `rank` ("1 of 12").
    """
    good = pairs[(pairs["status"] == "ok") & (pairs["setting"] == setting)]
    figures = per_video[(per_video["method"] == OURS) & (per_video["setting"] == setting)]
    column, ascending = ("l2", True) if setting == "self" else ("motion_correlation", False)
    ranked = good.merge(figures[["pair", column]], on="pair", how="left")
    ranked = ranked.sort_values(column, ascending=ascending, kind="stable", na_position="last").reset_index(drop=True)
    rows = records(ranked)
    return (
        [{**rows[index], "rank": f"{index + 1} of {len(rows)}"} for index in frame_indices(len(rows), count)]
        if rows
        else []
    )


def make_example(
    pair: dict[str, Any], stores: Stores, params: Params, fps: float, figures: pd.DataFrame, shelf: Shelf
) -> Example:
    """Sheet and video of one pair, every method that made it side by side.

    Args:
        pair: A row of `choose`.
        stores: Where the frames lie.
        params: All settings; `report` and `generate` are used.
        fps: Of the driving clip.
        figures: Rows of per_video.csv of this pair.
        shelf: Where the pictures and the video go.

    Returns:
        Everything the template shows.
    """
    subject = np.asarray(stores.frames[int(pair["subject_row"])])
    driving = np.asarray(stores.frames[int(pair["driving_row"])])
    masks = np.asarray(stores.head[int(pair["driving_row"])])
    outputs = {str(method): stores.output(method, pair) for method in params.generate.methods}
    made = {method: frames for method, frames in outputs.items() if frames is not None}
    at = frame_indices(len(driving), params.report.frames_per_sheet)
    strips = [
        Picture("Subject", "frames of the subject video", shelf.strip(subject, frame_indices(len(subject), len(at)))),
        Picture("Driving", "frames of the driving video", shelf.strip(driving, at)),
        Picture("Driving head mask", "driving frames, the head outlined", shelf.strip(outlined(driving, masks), at)),
    ]
    for method, frames in made.items():
        if method != BASELINE:
            name = method_name(method)
            strips.append(Picture(name, f"output of {name}", shelf.strip(frames, at)))
        if method == OURS and pair["setting"] == "self":
            caption = f"{method_name(OURS)}: error"
            strips.append(Picture(caption, "error of the output", shelf.strip(error_map(frames, driving), at)))
    panels = [subject, driving, *made.values()]
    return Example(
        title=_title(pair),
        note=_note(pair),
        figures=_figures(figures[figures["method"].isin(list(made))]),
        clip=shelf.video(panels, fps),
        fps=round(fps, 3),
        frames=min(len(panel) for panel in panels),
        panels=["Subject", "Driving", *(method_name(method) for method in made)],
        singles=_singles(pair, stores.paths, subject, list(made), shelf),
        strips=strips,
    )


def _title(pair: dict[str, Any]) -> str:
    if pair["setting"] == "self":
        return f"{pair['subject_identity']}, driven by another clip of the same video"
    return f"{pair['subject_identity']}, driven by {pair['driving_identity']}"


def _note(pair: dict[str, Any]) -> str:
    by = "L2" if pair["setting"] == "self" else "motion correlation"
    seen = "; people seen in training" if int(pair["seen_in_training"]) else ""
    return f"Pair {pair['pair']}, rank {pair['rank']} by {by}{seen}"


def _figures(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """L2 of each method where there is a truth, and how the outputs move."""
    found = []
    for row in records(rows):
        if row["method"] == BASELINE and pd.isna(row["l2"]):
            continue
        parts = [] if pd.isna(row["l2"]) else [f"L2 {small(row['l2'])}"]
        if row["method"] != BASELINE and not pd.isna(row["motion_correlation"]):
            parts.append(f"motion correlation {row['motion_correlation']:.2f}")
        found.append((method_name(str(row["method"])), ", ".join(parts) or "no figure"))
    return found


def on_grey(path: Path) -> np.ndarray:
    """A canonical head, `(H, W, 3)` uint8; where its mask is empty, neutral grey."""
    with Image.open(path) as image:
        ground = Image.new("RGBA", image.size, (128, 128, 128, 255))
        return np.asarray(Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB"))


def _singles(
    pair: dict[str, Any], paths: Paths, subject: np.ndarray, methods: list[str], shelf: Shelf
) -> list[Picture]:
    """The reference frame, and the canonical head of every method that has one."""
    reference = shrink(subject[int(pair["reference_frame"])])
    pictures = [Picture("Reference frame", "the subject frame that is warped", shelf.image(reference))]
    for method in methods:
        path = paths.generated / "canonical" / method / pair["setting"] / f"{pair['pair']}.png"
        if path.is_file():
            name = method_name(method)
            caption = "Canonical head" if method == OURS else name
            pictures.append(Picture(caption, f"canonical head of {name}", shelf.image(shrink(on_grey(path)))))
    return pictures
