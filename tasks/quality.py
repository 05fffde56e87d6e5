"""How good a clip is to train on: five measures of its frames and masks, and the flags that follow from them.

The stage `parse` measures every clip once; the measures stand in `data/masks.parquet`. Flags are worked out when the
table is read, from the limits of the section `quality`, so that changing a limit parses nothing again. Flagged clips
are left out of training and kept for testing.
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import torch

from models.config import Quality
from models.landmark_pose import fit_landmarks
from tasks import labels

FACE = tuple(range(labels.SKIN, labels.LOWER_LIP + 1))
"""What must not run out of the frame at the bottom; hair, neck and cloth may."""
SHARPNESS_PX = 64
"""The head's longer side when its sharpness is measured: the same head gives the same value at 128 or 512 px."""
SHARPNESS_FRAMES = 8
"""So many frames, evenly spread, are enough for the median."""
MAX_YAW_DEG = 75.0
FLAGS = {
    "border": ("border_share", "max_border_share"),
    "tiny": ("head_area", "min_head_area"),
    "blurred": ("sharpness", "min_sharpness"),
    "jump": ("mask_jump", "max_mask_jump"),
    "single_sided": ("least_yaw_deg", "max_least_yaw_deg"),
}
"""Flag -> the measure (column of `data/masks.parquet`) and the limit (setting of `quality`) that decide it."""
MEANING = {
    "border": "the head runs out of the frame",
    "tiny": "the head is small in the frame",
    "blurred": "the head is out of focus, smeared by motion, or enlarged from few pixels",
    "jump": "the head mask changes at once: a cut, a hand before the face, or a mask that failed",
    "single_sided": "the face is turned to one side all the time: the other half of the head is never seen",
}
"""A sentence for each flag."""


def measure(frames: np.ndarray, class_ids: np.ndarray, landmarks: np.ndarray) -> dict[str, float]:
    """What a clip's pixels and masks say about its use for training.

    Args:
        frames: `(T, H, W, 3)` u1 RGB.
        class_ids: `(T, H, W)` u1, CelebAMask-HQ ids.
        landmarks: `(T, 5, 2)` pixels (x, y); NaN where unknown.

    Returns:
        `border_share`: of the frame's edge pixels, how many the head touches (`border_share`).
        `head_area`: share of the frame that the head takes, mean over frames.
        `sharpness`: see `sharpness`.
        `mask_jump`: largest 1 - intersection over union of successive head masks.
        `least_yaw_deg`: see `least_yaw`; NaN without landmarks.
    """
    head = labels.head_mask(class_ids, list(labels.HEAD_AND_HAT))
    return {
        "border_share": round(border_share(class_ids), 5),
        "head_area": round(float(head.mean()), 5),
        "sharpness": round(sharpness(frames, head), 5),
        "mask_jump": round(mask_jump(head), 5),
        "least_yaw_deg": round(least_yaw(landmarks), 3),
    }


def flags(table: pd.DataFrame, quality: Quality) -> pd.Series:
    """The flags of every clip.

    Args:
        table: As in `data/masks.parquet`; a measure that is missing or NaN flags nothing.
        quality: The limits.

    Returns:
        Comma-joined names of `FLAGS` in their order, empty for a clip without one; same index as `table`.
    """
    found = pd.Series("", index=table.index, dtype=object)
    for name, (column, limit) in FLAGS.items():
        if column not in table:
            continue
        values, bound = table[column].astype(float), float(getattr(quality, limit))
        beyond = values > bound if limit.startswith("max_") else values < bound
        found = found.where(~beyond, found.map(lambda text, name=name: f"{text},{name}" if text else name))
    return found


def border_share(class_ids: np.ndarray) -> float:
    """Share of the frame's edge pixels that the head touches, mean over frames.

    At the top, left and right all of the head counts; at the bottom only the face does (a chin cut off), because long
    hair may hang out there as neck and clothes do.

    Args:
        class_ids: `(T, H, W)` u1.
    """
    head, face = (labels.head_mask(class_ids, list(ids)) for ids in (labels.HEAD_AND_HAT, FACE))
    height, width = class_ids.shape[1:]
    touched = head[:, 0].sum() + head[:, 1:-1, 0].sum() + head[:, 1:-1, -1].sum() + face[:, -1].sum()
    return float(touched / (len(class_ids) * (2 * width + 2 * (height - 2))))


def mask_jump(head: np.ndarray) -> float:
    """Largest 1 - intersection over union of successive masks, `(T, H, W)` 0/1; 0 for a single frame."""
    if len(head) < 2:
        return 0.0
    both = np.logical_and(head[1:], head[:-1]).sum(axis=(1, 2))
    either = np.logical_or(head[1:], head[:-1]).sum(axis=(1, 2))
    return float(1 - (both / np.maximum(either, 1))[either > 0].min(initial=1.0))


def sharpness(frames: np.ndarray, head: np.ndarray) -> float:
    """Fine detail inside the head relative to its contrast, whatever the size of the frames.

    The head's box is resized until its longer side has `SHARPNESS_PX` pixels. There the variance of the Laplacian,
    inside the mask and off its outline, is divided by the variance of the grey values; the median over some frames.
    Halving the head's resolution (or a blur of that width) about halves the value or worse.

    Args:
        frames: `(T, H, W, 3)` u1 RGB.
        head: `(T, H, W)` 0/1.

    Returns:
        0 for a head of one colour; about 0.05 to 0.5 for real, sharp ones.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(SHARPNESS_FRAMES, len(frames))).round().astype(int))
    values = [_detail(frames[t], head[t]) for t in chosen if head[t].any()]
    return float(np.median(values)) if values else 0.0


def _detail(frame: np.ndarray, head: np.ndarray) -> float:
    ys, xs = np.flatnonzero(head.any(axis=1)), np.flatnonzero(head.any(axis=0))
    box = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    grey = cv2.cvtColor(np.ascontiguousarray(frame[box]), cv2.COLOR_RGB2GRAY).astype(np.float32)
    scale = SHARPNESS_PX / max(grey.shape)
    size = (max(2, round(grey.shape[1] * scale)), max(2, round(grey.shape[0] * scale)))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    inside = cv2.resize(head[box].astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.99
    kernel = np.ones((5, 5), np.uint8)
    inside = cv2.erode(inside.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if inside.sum() < 16:
        return 0.0
    contrast = float(grey[inside].var())
    return float(cv2.Laplacian(grey, cv2.CV_32F)[inside].var() / contrast) if contrast > 1 else 0.0


def least_yaw(landmarks: np.ndarray) -> float:
    """How far the face is turned to one side at the least, in degrees; 0 if it turns to both sides.

    Args:
        landmarks: `(T, 5, 2)` pixels, image-left first; frames with NaN are passed over.

    Returns:
        The smallest |yaw| of any frame where all frames are turned to the same side; NaN without landmarks.
    """
    known = landmarks[np.isfinite(landmarks).all(axis=(1, 2))]
    if not len(known):
        return float("nan")
    yaw = fit_landmarks(torch.from_numpy(known.astype(np.float64)), MAX_YAW_DEG)[0][:, 0].numpy()
    return float(max(yaw.min(), -yaw.max(), 0.0))
