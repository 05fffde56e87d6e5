"""Where eyes, brows, nose and lips are in every frame, from the parser's labels: what Phi's first regions are held to.

Source: our choice. MRAA's regions [38] are found by what the reconstruction loss alone rewards, and it rewards what is
large: after minutes of training none of them sits on an eye or on the mouth, and expressions do not follow. As stage 1
starts from landmarks, stage 3 starts from these.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from models.motion import heat_moments
from tasks.labels import LEFT_BROW, LEFT_EYE, LOWER_LIP, MIRRORED_IDS, MOUTH, NOSE, RIGHT_BROW, RIGHT_EYE, UPPER_LIP
from tasks.paths import Paths

PARTS = (
    (LEFT_EYE,),
    (RIGHT_EYE,),
    (LEFT_BROW,),
    (RIGHT_BROW,),
    (NOSE,),
    (MOUTH, UPPER_LIP, LOWER_LIP),
    (UPPER_LIP,),
    (LOWER_LIP,),
)
"""Classes of each part; region k of Phi is held to part k."""
MIN_SHARE = 4e-4
"""A part of less than this share of a frame counts as not seen."""
MIRRORED_PARTS = [PARTS.index(tuple(MIRRORED_IDS[label] for label in part)) for part in PARTS]
"""The part that takes the place of each in a mirrored picture."""


def part_moments(labels: Tensor) -> Tensor:
    """Centre and covariance of each part.

    Args:
        labels: Classes, `(T, H, W)` uint8.

    Returns:
        `(T, P, 5)` float32: x, y, and xx, xy, yy of the covariance, in normalised coordinates; NaN where not seen.
    """
    height, width = labels.shape[-2:]
    found = []
    for part in PARTS:
        inside = torch.stack([labels == label for label in part]).any(0).float()
        area = inside.sum((1, 2))
        area = torch.where(area >= MIN_SHARE * height * width, area, torch.nan)
        centre, covariance = heat_moments((inside / area[:, None, None])[:, None])
        found.append(torch.cat([centre, covariance[..., 0, :], covariance[..., 1, 1:]], -1))
    return torch.cat(found, 1)


def mirrored_parts(parts: Tensor, flip: Tensor) -> Tensor:
    """Parts as they are in mirrored pictures.

    Args:
        parts: `(B, ..., P, 5)`.
        flip: Which rows are mirrored, `(B,)` bool.
    """
    # Nothing is made of Python's numbers here: a CUDA graph could not record the copy.
    x, y, xx, xy, yy = torch.stack([parts[..., place, :] for place in MIRRORED_PARTS], -2).unbind(-1)
    swapped = torch.stack([-x, y, xx, -xy, yy], -1)
    return torch.where(flip.view(-1, *[1] * (parts.dim() - 1)), swapped, parts)


def read_parts(paths: Paths, rows: np.ndarray, device: torch.device) -> Tensor:
    """The parts of every frame of some clips.

    Args:
        paths: The data folder; its labels are read clip by clip.
        rows: Rows of the store.
        device: Where the result shall lie.

    Returns:
        `(n, T, P, 5)`, as `part_moments`.
    """
    from tasks.stores import array, open_store

    labels = array(open_store(paths.masks), "labels")
    return torch.stack([part_moments(torch.from_numpy(np.asarray(labels[int(row)])).to(device)) for row in rows])
