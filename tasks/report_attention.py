"""The report's section on stage 3 (Fig. 6): rows of a large and a small difference in pose, and attention over it."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from models.config import Params
from models.head3d import Head3D
from tasks.attention_maps import (
    COLUMNS,
    MAPS,
    Inside,
    colour_bar,
    flow_scale,
    flow_wheel,
    look_inside,
    row_tiles,
)
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.generated import read_pairs, records
from tasks.paths import Paths
from tasks.report_examples import Stores
from tasks.report_files import Shelf
from tasks.report_media import frame_indices
from tasks.report_subjects import clip_tensors, subject_of
from tasks.trained import load_model

PAIRS = 24
"""So many pairs of a setting are looked at, evenly spread over all."""
BINS_DEG = (0, 10, 20, 30, 180)
"""Attention is averaged over driving frames whose heads differ by so many degrees."""
SETTINGS = {"self": "self-reconstruction", "cross": "cross-identity"}
WHEEL_PX, BAR_PX = 72, (220, 14)


class Look(NamedTuple):
    """One driving frame of a pair.

    Attributes:
        pair: Its row in the table of pairs.
        frame: Frame of the driving clip.
        position: Which of the frames that were looked at.
        turn_deg: Difference in pose, degrees.
        yaw_deg: Difference in yaw, degrees.
        share: Mean attention inside the head, `(3,)`.
    """

    pair: dict[str, Any]
    frame: int
    position: int
    turn_deg: float
    yaw_deg: float
    share: np.ndarray


def attention_section(params: Params, paths: Paths, shelf: Shelf) -> dict[str, Any]:
    """What the template shows of the attention maps.

    Args:
        params: All settings; `generate`, `report` and `runtime` are used.
        paths: Where the data lies.
        shelf: Where the pictures go.

    Returns:
        Rows with their pictures, the table over the difference in pose, and the legend; `missing` says why there is
        nothing to show.
    """
    empty = {"missing": "", "rows": [], "bins": [], "note": "", "columns": COLUMNS, "maps": MAPS}
    try:
        model = load_model(paths.data / "checkpoints", choose_device(params.runtime.device))
    except StageError as error:
        return {**empty, "missing": str(error)}
    pairs, stores = read_pairs(paths), Stores(paths)
    looks = [
        look
        for setting in SETTINGS
        for pair in _some(pairs[(pairs["status"] == "ok") & (pairs["setting"] == setting)])
        for look in _looks(pair, model, stores, params)
    ]
    if not looks:
        return {**empty, "missing": "there is no finished pair"}
    shown = _extremes(looks)
    insides = [_inside(look.pair, model, stores, params) for _, look in shown]
    full_px = flow_scale(insides)
    rows = [
        {
            "title": f"{name}, {SETTINGS[str(look.pair['setting'])]}: {_who(look.pair)}, frame {look.frame}",
            "note": inside.describe(look.position),
            "url": shelf.image(np.concatenate(row_tiles(inside, look.position, full_px), axis=1)),
        }
        for (name, look), inside in zip(shown, insides, strict=True)
    ]
    return {
        **empty,
        "rows": rows,
        "bins": _bins(looks),
        "note": _correlation(looks),
        "full_px": f"{full_px:g}",
        "wheel": shelf.image(flow_wheel(WHEEL_PX)),
        "bar": shelf.image(colour_bar(*BAR_PX)),
    }


def _some(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = records(table)
    return [rows[index] for index in frame_indices(len(rows), PAIRS)] if rows else []


def _who(pair: dict[str, Any]) -> str:
    if pair["setting"] == "self":
        return str(pair["subject_identity"])
    return f"{pair['subject_identity']} driven by {pair['driving_identity']}"


def _inside(pair: dict[str, Any], model: Head3D, stores: Stores, params: Params) -> Inside:
    """The pair's subject as `generate` makes it, driven by some frames of the driving clip."""
    subject = subject_of(pair, model, stores, params)
    at = frame_indices(stores.frames.shape[1], params.report.frames_per_sheet)
    return look_inside(model, subject, *clip_tensors(stores, int(pair["driving_row"]), at, model.device))


def _looks(pair: dict[str, Any], model: Head3D, stores: Stores, params: Params) -> list[Look]:
    inside = _inside(pair, model, stores, params)
    at = frame_indices(stores.frames.shape[1], params.report.frames_per_sheet)
    return [
        Look(pair, frame, row, float(inside.turn_deg[row]), float(inside.yaw_deg[row]), inside.share[row])
        for row, frame in enumerate(at)
    ]


def _extremes(looks: list[Look]) -> list[tuple[str, Look]]:
    """The largest and the smallest difference in yaw of each setting, as in Fig. 6."""
    found = []
    for setting in SETTINGS:
        ranked = sorted((look for look in looks if look.pair["setting"] == setting), key=lambda look: abs(look.yaw_deg))
        if ranked:
            found += [("Large difference", ranked[-1]), ("Small difference", ranked[0])]
    return found


def _bins(looks: list[Look]) -> list[dict[str, Any]]:
    """Mean attention inside the head by difference in pose."""
    turns, shares = np.array([look.turn_deg for look in looks]), np.array([look.share for look in looks])
    rows = []
    for low, high in itertools.pairwise(BINS_DEG):
        part = shares[(turns >= low) & (turns < high)]
        if len(part):
            name = f"{low} to {high} degrees" if high < BINS_DEG[-1] else f"more than {low} degrees"
            rows.append({"name": name, "values": [f"{value:.2f}" for value in part.mean(axis=0)], "frames": len(part)})
    return rows


def _correlation(looks: list[Look]) -> str:
    """How a_head goes with the difference in pose, in a sentence."""
    turns, head = np.array([look.turn_deg for look in looks]), np.array([look.share[0] for look in looks])
    if len(looks) < 3 or turns.std() == 0 or head.std() == 0:
        return ""
    value = float(np.corrcoef(turns, head)[0, 1])
    return f"Correlation of a_head with the difference in pose: {value:+.2f} over {len(looks)} frames"
