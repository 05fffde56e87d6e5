"""Whether expressions follow: mouth, lips and eyes of generated videos against the driving ones, by the head parser.

Source: our choice. It needs no truth, so it also judges cross-identity videos, and it sees what L2 hardly does: a mouth
is a percent of a frame. Rigid motion of the head leaves the figures nearly as they are: areas are shares of the head's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from tasks.errors import StageError
from tasks.labels import HEAD_AND_HAT, LEFT_EYE, LOWER_LIP, MIRRORED_IDS, MOUTH, RIGHT_EYE, UPPER_LIP
from tasks.parser_network import ParserNetwork
from tasks.paths import Paths
from tasks.progress import progress

MEASURES = ("mouth", "lips", "eyes")
"""Area of the inner mouth, height of lips and inner mouth (standard deviation of its rows), area of both eyes; the
areas as shares of the head's, the height as a share of its root."""
MOVES = {"mouth": 0.0015, "lips": 0.003, "eyes": 0.001}
"""A driving video whose standard deviation over time is less than this does not move, and says nothing."""
AGREE = 0.8
"""Nor does one that the parser cannot read: its two readings of the frames must correlate by this."""
WORK_PX = 192


class Follow(NamedTuple):
    """How one output follows one driving video in one measure.

    Attributes:
        correlation: Pearson, over time; 0 for an output that does not move.
        ratio: Standard deviation over time of the output's over the driving video's.
    """

    correlation: float
    ratio: float


def read_expressions(frames: np.ndarray, network: ParserNetwork) -> np.ndarray:
    """The measures of every frame, each read twice: as it is and mirrored.

    Args:
        frames: `(T, H, W, 3)` uint8.
        network: The embedded parser, without its own mirroring.

    Returns:
        `(2, T, 3)` float64, in the order of `MEASURES`.
    """
    from tasks.segment_network import resized

    side = network.side(WORK_PX)
    return read_pictures(np.stack([resized(frame, side) for frame in frames]), network)


def read_pictures(pictures: np.ndarray, network: ParserNetwork) -> np.ndarray:
    """`read_expressions` of squares that have the size at which the network sees them."""
    step = network.batch_frames(pictures.shape[1])
    found = []
    for mirrored in (False, True):
        views = np.ascontiguousarray(pictures[:, :, ::-1]) if mirrored else pictures
        parts = (network.probabilities(views[first : first + step]) for first in range(0, len(views), step))
        found.append(np.concatenate([_measures(part[..., MIRRORED_IDS] if mirrored else part) for part in parts]))
    return np.stack(found)


def _measures(shares: Tensor) -> np.ndarray:
    """Of class probabilities `(n, S, S, 19)`; `(n, 3)`."""
    rows = shares.double().sum(2).cpu().numpy()  # (n, S, 19): the measures need only how much of a class each row has
    area = rows.sum(1)
    head = np.maximum(area[:, list(HEAD_AND_HAT)].sum(1), 1.0)
    lips = rows[:, :, [MOUTH, UPPER_LIP, LOWER_LIP]].sum(2)
    weight = np.maximum(lips.sum(1), 1e-3)
    place = np.arange(rows.shape[1])
    centre = (lips * place).sum(1) / weight
    height = np.sqrt((lips * (place - centre[:, None]) ** 2).sum(1) / weight)
    return np.stack(
        [area[:, MOUTH] / head, height / np.sqrt(head), area[:, [LEFT_EYE, RIGHT_EYE]].sum(1) / head], axis=1
    )


def follow(driving: np.ndarray, output: np.ndarray) -> dict[str, Follow | None]:
    """How an output follows, by measure; None where the driving video says nothing.

    Args:
        driving: `(2, T, 3)`, from `read_expressions`.
        output: The same of the output.
    """
    found: dict[str, Follow | None] = {}
    for k, name in enumerate(MEASURES):
        wanted, made = driving[..., k].mean(0), output[..., k].mean(0)
        moves = len(wanted) > 2 and wanted.std() >= MOVES[name] and _correlation(*driving[..., k]) >= AGREE
        found[name] = Follow(_correlation(wanted, made), made.std() / wanted.std()) if moves else None
    return found


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def check_expressions(paths: Paths, methods: list[str], network: ParserNetwork) -> pd.DataFrame:
    """Every finished pair and method of the stage `generate`.

    Args:
        paths: The data folder.
        methods: Those to look at.
        network: The embedded parser, without its own mirroring.

    Returns:
        A row for each method, setting and measure: `videos` that say something, `correlation` (mean over them),
        `standard_error` of it, `ratio` (median).

    Raises:
        StageError: No pair is finished, or a method was not generated.
    """
    from tasks.generated import made_by, missing_videos, read_output, read_pairs, records
    from tasks.stores import array, open_store

    pairs = read_pairs(paths)
    good = records(pairs[pairs["status"] == "ok"])
    if not good:
        raise StageError("none of the generated pairs is finished; see the reasons in generated/pairs.csv")
    truth, generated = array(open_store(paths.clips), "frames"), open_store(paths.generated / "frames.zarr")
    missing = missing_videos(paths)
    wanted = [(pair, method) for pair in good for method in made_by(methods, pair, missing)]
    rows: list[dict[str, Any]] = []
    read: dict[int, np.ndarray] = {}
    with progress("expressions", len(wanted), "video") as bar:
        for pair, method in wanted:
            row = int(pair["driving_row"])
            if row not in read:
                read[row] = read_expressions(np.asarray(truth[row]), network)
            output = read_expressions(read_output(generated, method, pair), network)
            for name, found in follow(read[row], output).items():
                if found is not None:
                    rows.append({"method": method, "setting": pair["setting"], "measure": name, **found._asdict()})
            bar.update()
    return summarised(pd.DataFrame(rows, columns=["method", "setting", "measure", *Follow._fields]))


def summarised(rows: pd.DataFrame) -> pd.DataFrame:
    """Figures over videos.

    Args:
        rows: `method`, `setting`, `measure`, `correlation`, `ratio` of every video that says something.
    """
    made = []
    for (method, setting, measure), part in rows.groupby(["method", "setting", "measure"], sort=False):
        count = len(part)
        error = part["correlation"].std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
        figures = {"correlation": part["correlation"].mean(), "standard_error": error, "ratio": part["ratio"].median()}
        made.append({"method": method, "setting": setting, "measure": measure, "videos": count, **figures})
    return pd.DataFrame(
        made, columns=["method", "setting", "measure", "videos", "correlation", "standard_error", "ratio"]
    )
