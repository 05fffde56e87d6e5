"""Known ways in which a stage learns nothing although its loss is a number: measured now and then, named, not an error.

What is measured comes from a few samples of the training set, beside the steps (`tasks.training_look`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

LOOKS = 10
"""So often in a training the networks are looked at."""
FROM_SHARE = 0.25
"""The first looks say nothing: every network starts flat, constant or blank."""

LEAST_RELIEF_MM, LEAST_YAW_SHARE, LEAST_TRUE_YAW_DEG = 3.0, 0.2, 2.0
"""Measured on rendered heads, depth varies by 15 to 20 mm inside a head; a trained F_P has 0.5 to 0.9 of the
landmarks' spread of yaw, a collapsed one 0.12 (design section 8). Videos that hardly turn tell nothing."""
LEAST_HEAD_SHARE = 0.02
SATURATED, SATURATED_SHARE = 0.99, 0.99
LEAST_DECODER_SHARE = 0.005
"""Of the attention on average: a decoder that is used has 0.05 to 0.1, one that was given up had 0.0002."""
LEAST_APART, STILL, LEAST_MOVING = 0.2, 0.003, 0.5
"""Free regions, in normalised coordinates: the mean distance of two (0.8 in a training where they are kept apart, 0.04
and 0.05 in two where all lay on one point); a region whose centre varies less from frame to frame is stuck on a pixel;
and how many of them must not be."""
LEAST_CHANGE = 0.001
"""A quarter of a grey level: what a decoder that has learned nothing changes."""


class Danger(NamedTuple):
    """A figure beyond its limit, and what to do."""

    figure: str
    text: str


def relief_mm(depth: Tensor, masks: Tensor) -> float:
    """How much depth varies inside the head: the mean over images of its standard deviation, millimetres.

    Args:
        depth: `(n, H, W)`, metres.
        masks: Head masks, `(n, 1, H, W)`, 0/1.
    """
    inside, area = masks[:, 0], masks.sum((1, 2, 3)).clamp(min=1)
    mean = (depth * inside).sum((1, 2)) / area
    variance = ((depth - mean[:, None, None]).square() * inside).sum((1, 2)) / area
    return float(variance.sqrt().mean() * 1000)


def yaw_spread_deg(yaw_deg: Tensor, labels_deg: Tensor) -> tuple[float, float]:
    """Standard deviation of predicted yaw and of the landmarks' on the same frames; NaN with fewer than two known.

    Args:
        yaw_deg: Predicted, any shape.
        labels_deg: By landmarks, the same; NaN where unknown.
    """
    known = torch.isfinite(labels_deg)
    return float(yaw_deg[known].std()), float(labels_deg[known].std())


def attention_figures(attention: Tensor) -> dict[str, float]:
    """How the three maps share the frames.

    Args:
        attention: a_head, a_ref, a_dec, `(B, 3, h, w)`; they sum to 1.

    Returns:
        `saturated_share`, of the pixels where one and the same map is nearly 1, for the map that has most of them;
        `decoder_share`, a_dec on average.
    """
    saturated = float((attention > SATURATED).float().mean((0, 2, 3)).max())
    return {"saturated_share": saturated, "decoder_share": float(attention[:, 2].mean())}


def region_figures(centre: Tensor) -> dict[str, float]:
    """Where Phi's free regions are.

    Args:
        centre: Of K regions in n frames, `(n, K, 2)`, normalised coordinates.

    Returns:
        `regions_apart`, the mean distance of two; `regions_moving`, the share of those whose centre is not the same in
        all frames. Nothing where there are not two to compare.
    """
    frames, count, _ = centre.shape
    if count < 2 or frames < 2:
        return {}
    apart = (centre[:, :, None] - centre[:, None]).norm(dim=-1).sum((1, 2)).mean() / (count * (count - 1))
    return {"regions_apart": float(apart), "regions_moving": float((centre.std(0).amax(-1) > STILL).float().mean())}


def dangers(health: Mapping[str, float]) -> list[Danger]:
    """What has collapsed.

    Args:
        health: Figures by the names that `tasks.training_look` gives them; others are left alone.

    Returns:
        One for every figure beyond its limit.
    """
    found = []

    def look(figure: str, below: float, text: str) -> None:
        if health.get(figure, float("inf")) < below:
            found.append(Danger(figure, text))

    look(
        "relief_mm",
        LEAST_RELIEF_MM,
        f"depth is flat: it varies by less than {LEAST_RELIEF_MM:g} mm inside the head; lower geometry.lr_depth or "
        "lambda_depth, or start from rendered heads (geometry.bootstrap: both) with more bootstrap_steps",
    )
    if health.get("yaw_std_landmarks_deg", 0.0) >= LEAST_TRUE_YAW_DEG:
        share = health.get("yaw_std_deg", float("inf")) / health["yaw_std_landmarks_deg"]
        if share < LEAST_YAW_SHARE:
            text = (
                f"pose is constant: predicted yaw varies by {share:.2f} of the landmarks' "
                f"{health['yaw_std_landmarks_deg']:.1f} degrees; raise geometry.bootstrap_steps or lambda_pose_prior"
            )
            found.append(Danger("yaw_std_deg", text))
    look(
        "head_share",
        LEAST_HEAD_SHARE,
        f"the canonical head is empty: it shows less than {LEAST_HEAD_SHARE:.0%} of the frame; lower canonical.lr, and "
        "look at stage 1 (`head3d canonical`)",
    )
    if health.get("saturated_share", 0.0) > SATURATED_SHARE:
        text = "attention is saturated: one of the three maps is 1 everywhere; lower fusion.lr or set fusion.train"
        found.append(Danger("saturated_share", f"{text}.clip_norm"))
    else:
        look(
            "decoder_share",
            LEAST_DECODER_SHARE,
            f"the decoder was given up: a_dec is below {LEAST_DECODER_SHARE:g} on average, so that nothing paints what "
            "the head uncovers; raise fusion.attention_weight",
        )
    look(
        "regions_apart",
        LEAST_APART,
        f"Phi's free regions lie on one another, less than {LEAST_APART:g} apart on average, so that nothing moves "
        "shoulders and hair; raise fusion.regions_weight",
    )
    look(
        "regions_moving",
        LEAST_MOVING,
        f"more than {1 - LEAST_MOVING:.0%} of Phi's free regions are stuck on the same pixel of every frame; raise "
        "fusion.regions_weight or lower fusion.lr",
    )
    look(
        "decoder_change",
        LEAST_CHANGE,
        f"the decoder is not used: it changes the frame by less than {LEAST_CHANGE:g} on average; lower fusion.lr, or "
        "raise fusion.perceptual.pixel_weight",
    )
    return found
