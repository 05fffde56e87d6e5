"""A small line plot as an image, for the sheets of `head3d inspect`: no plotting library, the same bytes everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from tasks.sheets import INK_RGB, PAPER_RGB, TEXT_PX, text_line

LINE_RGB, MARK_RGB, GRID_RGB = (30, 90, 190), (200, 60, 40), (214, 214, 214)
LABEL_PX = 40
"""Room for the axis labels at the left."""


def line_plot(
    values: Sequence[float] | np.ndarray,
    width: int,
    height: int,
    title: str,
    top: float | None = None,
    marks: Sequence[int] = (),
) -> np.ndarray:
    """One series over its frame numbers, from 0 upwards.

    Args:
        values: A number per frame; NaN leaves a gap.
        width: Pixels of the image.
        height: Pixels of the image, the title's line included; at least 60.
        title: Written above.
        top: Upper end of the axis; None: a little above the largest value.
        marks: Frames with a dot.

    Returns:
        `(height, width, 3)` u1 RGB.
    """
    data = np.asarray(values, dtype=np.float64)
    known = data[np.isfinite(data)]
    limit = top if top is not None else 1.15 * float(known.max(initial=0.0))
    limit = limit if limit > 0 else 1.0
    out = np.full((height, width, 3), PAPER_RGB, np.uint8)
    out[:TEXT_PX] = text_line(title, width)
    left, right, up, down = LABEL_PX, width - 6, TEXT_PX + 4, height - TEXT_PX
    for share in (0.0, 0.5, 1.0):
        level = round(down - share * (down - up))
        cv2.line(out, (left, level), (right, level), GRID_RGB, 1)
        _write(out, f"{share * limit:.2f}", (2, level + 4))
    for share in (0.0, 0.5, 1.0):
        frame = round(share * (len(data) - 1))
        _write(out, str(frame), (round(left + share * (right - left)) - 6, height - 4))
    x = left + np.arange(len(data)) / max(len(data) - 1, 1) * (right - left)
    y = down - np.clip(data / limit, 0, 1) * (down - up)
    points = np.stack([x, np.nan_to_num(y)], axis=1).round().astype(int)
    for t in range(1, len(data)):
        if np.isfinite(data[t - 1 : t + 1]).all():
            cv2.line(out, tuple(points[t - 1].tolist()), tuple(points[t].tolist()), LINE_RGB, 1, cv2.LINE_AA)
    for t in marks:
        cv2.circle(out, tuple(points[t].tolist()), 3, MARK_RGB, -1, cv2.LINE_AA)
    return out


def _write(image: np.ndarray, text: str, at: tuple[int, int]) -> None:
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.34, INK_RGB, 1, cv2.LINE_AA)
