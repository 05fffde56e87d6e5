"""When a result is not to be trusted, and why (Sec. 5, Fig. 7): what was measured, the limit, and what to do.

Nothing is refused here. A finding holds one figure of a subject or a driving video beside its limit; those beyond it
are the notices that `head3d animate`, `attention`, `canonical` and `view` print, and that the report shows. The limits
stand in the sections `quality` (the same as for training clips), `notices` and `crop` of params.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from models.config import Notices, Quality
from tasks.clip_table import ok_clips, read_table
from tasks.paths import Paths
from tasks.quality import FLAGS
from tasks.stores import array, open_store

AXES = ("yaw", "pitch", "roll")
TRAINED_SHARE = 0.998
"""The trained range of an angle holds this share of the training frames, the same number left out at either end."""
AT_BOUND = 0.98
"""An angle of more than this share of the bound is at the bound: F_P cannot predict more."""
TURNED = 0.5
"""The unseen share counts where all references are turned by this share of `max_reference_yaw_deg` to one side: hair on
one side, or a head that the frame cuts, is lopsided too."""
INSIDE = 0.5
"""Where the canonical head's mask counts as seen."""

MASK_ADVICE = {
    "border": (
        "the head touches {value:.0%} of the frame's edge (limit {limit:.0%})",
        "give a video with more room around the head",
    ),
    "tiny": (
        "the head takes {value:.1%} of the frame (limit {limit:.0%})",
        "give a closer view, or look at the masks with `head3d parse VIDEO -o FOLDER --overlay`",
    ),
    "blurred": (
        "the head is blurred, sharpness {value:.3f} (limit {limit:g})",
        "give a sharper or larger video",
    ),
    "jump": (
        "the head mask changes by {value:.0%} from one frame to the next (limit {limit:.0%})",
        "cut out what comes before the face, or look at the masks with `head3d parse VIDEO -o FOLDER --overlay`",
    ),
    "loose": (
        "in the worst frame {value:.0%} of the head mask hangs together with nothing else (limit {limit:.0%})",
        "look at the masks with `head3d parse VIDEO -o FOLDER --overlay`; a plain background helps",
    ),
}
"""Kind of a bad mask -> what was measured, and what to do."""


class Finding(NamedTuple):
    """One figure beside its limit.

    Attributes:
        kind: A name for it: those of `MASK_ADVICE`, `one_side`, `untrained`, `bound` or `lost`.
        severity: Above 1 the limit is passed; 2 is twice as bad.
        measured: The figure and its limit, in words.
        advice: What to do.
    """

    kind: str
    severity: float
    measured: str
    advice: str


class AngleRange(NamedTuple):
    """What the training frames showed.

    Attributes:
        low: (yaw, pitch, roll), `(3,)`, degrees.
        high: The same.
    """

    low: np.ndarray
    high: np.ndarray


def notices(findings: list[Finding], what: str) -> list[str]:
    """The findings beyond their limit as sentences, the worst first.

    Args:
        findings: Of one video.
        what: What it is, for example "subject video".

    Returns:
        One sentence for each.
    """
    beyond = sorted((found for found in findings if found.severity > 1), key=lambda found: -found.severity)
    return [f"{what}: {found.measured}; {found.advice}" for found in beyond]


def mask_findings(measures: Mapping[str, float], quality: Quality, limits: Notices) -> list[Finding]:
    """Whether the head masks of a video can be right (Fig. 7, first row).

    Args:
        measures: Those of `tasks.quality.measure`, and `loose_share`; what is missing or NaN is passed over.
        quality: The limits of training clips.
        limits: The section `notices`.

    Returns:
        A finding for each measure.
    """
    found = []
    for kind, (measured, advice) in MASK_ADVICE.items():
        column, name = FLAGS.get(kind, ("loose_share", "max_loose_share"))
        limit = float(getattr(quality if kind in FLAGS else limits, name))
        value = float(measures.get(column, np.nan))
        if np.isfinite(value):
            severity = _ratio(value, limit) if name.startswith("max_") else _ratio(limit, value)
            found.append(Finding(kind, severity, measured.format(value=value, limit=limit), advice))
    return found


def side_finding(yaw_deg: np.ndarray, unseen: float, limits: Notices) -> Finding:
    """Whether the references show one side of the head only (Fig. 7, second row).

    Source: our choice, measured on the demo's people: where all references are turned further than 15 degrees to one
    side, or 10% of the mirrored head is unseen, the other side of the turned head is wrong by a third more (L1)
    than with references to both sides.

    Args:
        yaw_deg: Yaw of the references as F_P predicts it, `(N,)`, degrees.
        unseen: From `unseen_share`.
        limits: The section `notices`.

    Returns:
        The finding; of no severity where the references are turned to both sides.
    """
    low, high = float(yaw_deg.min()), float(yaw_deg.max())
    least = max(low, -high, 0.0)
    severity = _ratio(least, limits.max_reference_yaw_deg)
    if severity > TURNED:
        severity = max(severity, _ratio(unseen, limits.max_unseen_share))
    side = "right" if low > 0 else "left"
    first, last, count = round(low), round(high), len(yaw_deg)
    span = f"spans {first} to {last}" if first != last else f"is {first}"
    measured = (
        f"only one side of the head is shown: the yaw of the {count} references {span} degrees (limit: one within "
        f"{limits.max_reference_yaw_deg:g} of 0), and none shows {unseen:.0%} of the mirrored head (limit "
        f"{limits.max_unseen_share:.0%})"
    )
    advice = (
        f"give a subject video that also shows the face turned to the {side} of the picture, or take --pick spread "
        "with more --references"
    )
    return Finding("one_side", severity, measured, advice)


def unseen_share(mask: np.ndarray) -> float:
    """How much of the canonical head no reference shows, its mirror image taken for the whole.

    Source: our choice: faces are nearly symmetric about the middle of the canonical frame.

    Args:
        mask: Mask of the canonical head, `(H, W)`, in [0, 1].

    Returns:
        1 - the share of the mirrored mask that the mask covers; 1 for an empty one.
    """
    seen = mask > INSIDE
    return float(1 - (seen & seen[:, ::-1]).sum() / seen.sum()) if seen.any() else 1.0


def loose_share(head: np.ndarray) -> float:
    """Share of the head mask outside its largest piece, in the worst frame.

    Args:
        head: `(T, H, W)` u1, 0/1.

    Returns:
        0 where every mask is one piece (or empty).
    """
    worst = 0.0
    for mask in head:
        areas = cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
        if len(areas):
            worst = max(worst, 1 - float(areas.max() / areas.sum()))
    return worst


def pose_findings(
    angles_deg: np.ndarray, trained: AngleRange | None, bound_deg: float, limits: Notices, unit: str = "driving frames"
) -> list[Finding]:
    """Whether heads shall be turned further than the training ever showed.

    Args:
        angles_deg: (yaw, pitch, roll) of each wanted frame, `(T, 3)`, degrees.
        trained: From `trained_range`; None: unknown, nothing is said.
        bound_deg: `geometry.camera.max_angle_deg`.
        limits: The section `notices`.
        unit: What the rows are, for the sentence.

    Returns:
        `untrained`, and `bound` where predicted angles reach the bound.
    """
    found = []
    if trained is not None:
        outside = (angles_deg < trained.low) | (angles_deg > trained.high)
        share = float(outside.any(axis=1).mean())
        worst = int(np.maximum(trained.low - angles_deg, angles_deg - trained.high).max(axis=0).argmax())
        column = angles_deg[:, worst]
        measured = (
            f"in {outside.any(axis=1).sum()} of {len(angles_deg)} {unit} (limit {limits.max_untrained_share:.0%}) the "
            f"head is turned further than in training, above all its {AXES[worst]}: {column.min():.0f} to "
            f"{column.max():.0f} degrees, in {TRAINED_SHARE:.1%} of the training frames {trained.low[worst]:.0f} to "
            f"{trained.high[worst]:.0f}"
        )
        advice = "do not trust these; take smaller turns, or train with people who turn so far"
        found.append(Finding("untrained", _ratio(share, limits.max_untrained_share), measured, advice))
    at_bound = (np.abs(angles_deg) > AT_BOUND * bound_deg).any(axis=1).sum()
    if at_bound and unit == "driving frames":
        measured = f"in {at_bound} of {len(angles_deg)} {unit} the head's pose is at the bound of {bound_deg:g} degrees"
        advice = "it may be turned further than the output shows: leave these frames out"
        found.append(Finding("bound", 1 + float(at_bound) / len(angles_deg), measured, advice))
    return found


def lost_finding(lost: float, least_found: float) -> Finding:
    """Whether the face was lost in a part of the video.

    Args:
        lost: Share of the frames looked at in which the followed face was not found.
        least_found: `crop.min_detected_fraction`, as for training clips.

    Returns:
        The finding.
    """
    measured = f"the face was not found in {lost:.0%} of the frames looked at (limit {1 - least_found:.0%})"
    advice = (
        "gaps are filled, what comes before and after is left out: give a part in which the face is never covered or "
        "turned away"
    )
    return Finding("lost", _ratio(lost, 1 - least_found), measured, advice)


def trained_range(data: Path) -> AngleRange | None:
    """Which angles the training frames showed, by the poses that stage 1 stored.

    Args:
        data: The data folder, beside `checkpoints/`.

    Returns:
        The middle `TRAINED_SHARE` of each angle; None where the poses or the clip table are not there.
    """
    paths = Paths(data)
    if not (paths.geometry.exists() and paths.clip_table.is_file()):
        return None
    store = open_store(paths.geometry)
    done = np.asarray(array(store, "done")[:])
    rows = ok_clips(read_table(paths.clip_table), "train")["row"].to_numpy()
    rows = rows[rows < len(done)]  # clips that came after stage 1
    rows = rows[done[rows] == 1]
    if not len(rows):
        return None
    angles = np.asarray(array(store, "angles_deg")[:])[rows].reshape(-1, 3)
    low, high = np.quantile(angles, [(1 - TRAINED_SHARE) / 2, (1 + TRAINED_SHARE) / 2], axis=0)
    return AngleRange(low, high)


def measures_of(table: pd.DataFrame, clip: str) -> dict[str, float]:
    """The quality measures of a stored clip.

    Args:
        table: `data/masks.parquet`.
        clip: Its name.

    Returns:
        Column -> value, those of `tasks.quality.FLAGS`; empty where the clip has no row.
    """
    rows = table[table["clip"] == clip]
    columns = [column for column, _ in FLAGS.values() if column in table]
    return {column: float(rows[column].iloc[0]) for column in columns} if len(rows) else {}


def _ratio(value: float, limit: float) -> float:
    """How far a value has come to its limit; a limit of 0 is passed by anything above it."""
    if limit > 0:
        return value / limit
    return float("inf") if value > 0 else 0.0
