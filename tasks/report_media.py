"""Pictures and videos of the report as arrays: outlines, error maps, panels of several videos in one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from tasks.sheets import draw_outline

TILE_PX = 160
"""A frame of a strip is at most this large."""

PANEL_PX, LARGEST_PANEL_PX = 192, 256
"""A panel of a video is at least about the first (64 px would be too small to watch) and at most the second."""
MOST_COLUMNS = 4
"""Panels of a video stand in rows of at most so many: side by side, nine would be wider than some decoders take."""

ERROR_FULL_SCALE = 0.3
"""Error maps are white-hot from this mean absolute difference (of [0, 1] RGB) on."""


def frame_indices(frames: int, count: int) -> list[int]:
    """`count` frame numbers spread evenly over a clip, first and last included."""
    return sorted({round(float(t)) for t in np.linspace(0, frames - 1, min(count, frames))})


def shrink(image: np.ndarray) -> np.ndarray:
    """`image` `(H, W, 3)` uint8, made smaller where it is larger than a tile."""
    longest = max(image.shape[:2])
    if longest <= TILE_PX:
        return image
    size = (round(image.shape[1] * TILE_PX / longest), round(image.shape[0] * TILE_PX / longest))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def outlined(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames, twice as large, with the head mask's edge drawn in and everything else dimmed.

    Args:
        frames: `(T, H, W, 3)` uint8 RGB.
        masks: `(T, H, W)` 0/1.

    Returns:
        `(T, 2H, 2W, 3)` uint8.
    """
    large = frames.repeat(2, axis=1).repeat(2, axis=2)
    inside = masks.repeat(2, axis=1).repeat(2, axis=2)
    shown = np.where(inside[..., None] > 0, large, large // 2)
    return np.stack([draw_outline(frame, mask) for frame, mask in zip(shown, inside, strict=True)])


def error_map(output: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean absolute difference over RGB in black-red-yellow-white.

    Args:
        output: `(T, H, W, 3)` uint8.
        truth: The same shape.

    Returns:
        `(T, H, W, 3)` uint8.
    """
    error = np.abs(output.astype(np.int16) - truth).mean(axis=-1) / (255 * ERROR_FULL_SCALE)
    heat = np.clip(error[..., None] * 3 - np.array([0, 1, 2]), 0, 1)
    return (255 * heat).astype(np.uint8)


class Mosaic(NamedTuple):
    """Several videos as one.

    Attributes:
        frames: `(T, rows * height, columns * width, 3)` uint8; places without a panel are black.
        columns: Panels of a row.
        rows: Rows.
        width: Of one panel, pixels; even, as yuv420p needs it at every seam.
        height: The same.
    """

    frames: np.ndarray
    columns: int
    rows: int
    width: int
    height: int


def panel_px(size_px: int) -> int:
    """The side at which a panel of `size_px` is shown: enlarged by a whole number, or made smaller; even."""
    if size_px > LARGEST_PANEL_PX:
        return LARGEST_PANEL_PX
    return size_px * max(1, round(PANEL_PX / size_px)) // 2 * 2


def mosaic(panels: list[np.ndarray]) -> Mosaic:
    """Put videos into a grid, row by row.

    Args:
        panels: `(T, H, W, 3)` uint8 each, of one size, H = W; the shortest decides the length.

    Returns:
        The grid's video.
    """
    frames = min(len(panel) for panel in panels)
    side = panel_px(max(panels[0].shape[1:3]))
    rows = -(-len(panels) // MOST_COLUMNS)
    columns = -(-len(panels) // rows)
    grid = np.zeros((frames, rows * side, columns * side, 3), np.uint8)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        place = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
        for t in range(frames):
            image = Image.fromarray(panel[t]).resize((side, side), Image.Resampling.BICUBIC)
            grid[t][place] = np.asarray(image)
    return Mosaic(grid, columns, rows, side, side)
