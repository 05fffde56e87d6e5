"""A look at what networks make of a few training samples: a sample sheet, and figures for `tasks.collapse`.

The samples are those of the first step, always the same ones, so that the pictures of a training can be compared.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

SHOWN = 6
"""So many samples stand side by side on a sheet."""


class Look(NamedTuple):
    """What networks make of B samples.

    Attributes:
        images: Caption -> `(B, 3, H, W)`, in [0, 1].
        figures: Figures of all samples together.
    """

    images: dict[str, Tensor]
    figures: dict[str, float]

    def sheet(self) -> np.ndarray:
        """The first samples side by side, `(height, width, 3)` uint8."""
        from tasks.sheets import contact_sheet

        rows = [list(_pictures(values[:SHOWN])) for values in self.images.values()]
        return contact_sheet(rows, list(self.images))


def _pictures(images: Tensor) -> np.ndarray:
    pixels = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.cpu().numpy())
