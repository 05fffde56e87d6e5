"""Pictures for looking at clips: class colours, the mask's outline on a frame, and sheets of captioned images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from tasks.labels import COLOURS, NAMES, colour_table

OUTLINE_RGB = (0, 255, 120)
PAPER_RGB = (250, 250, 250)
INK_RGB = (30, 30, 30)
GAP_PX = 4
TEXT_PX = 18
"""Height of a line of text."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE = 0.42


def colour_labels(class_ids: np.ndarray) -> np.ndarray:
    """Class ids in their colours.

    Args:
        class_ids: `(..., H, W)` u1; 255 (not parsed) becomes magenta.

    Returns:
        `(..., H, W, 3)` u1 RGB.
    """
    return colour_table()[class_ids]


def draw_outline(frame: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = OUTLINE_RGB) -> np.ndarray:
    """A copy of a frame with the mask's outline, holes included, one pixel wide and inside the mask.

    Args:
        frame: `(H, W, 3)` u1 RGB.
        mask: `(H, W)` 0/1.
        colour: RGB.

    Returns:
        `(H, W, 3)` u1 RGB.
    """
    inside = (mask > 0).astype(np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    edge = inside - cv2.erode(inside, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    out = frame.copy()
    out[edge == 1] = colour
    return out


def enlarge(image: np.ndarray, least_px: int) -> np.ndarray:
    """`image` with every pixel repeated, so that its shorter side has at least `least_px` pixels."""
    times = max(1, -(-least_px // min(image.shape[:2])))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def text_line(text: str, width: int) -> np.ndarray:
    """One line of text.

    Args:
        text: What to write; characters outside ASCII become `?`, and what does not fit ends in `..`.
        width: Pixels.

    Returns:
        `(TEXT_PX, width, 3)` u1 RGB.
    """
    line = np.full((TEXT_PX, width, 3), PAPER_RGB, np.uint8)
    text = text.encode("ascii", "replace").decode()
    shown = text
    while shown and cv2.getTextSize(shown, _FONT, _FONT_SCALE, 1)[0][0] > width - 4:
        text = text[:-1]
        shown = text + ".." if text else ""
    cv2.putText(line, shown, (2, TEXT_PX - 6), _FONT, _FONT_SCALE, INK_RGB, 1, cv2.LINE_AA)
    return line


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str], title: str = "") -> np.ndarray:
    """Rows of images, each under its caption.

    Args:
        rows: Images `(H, W, 3)` u1 RGB, all of one size; rows may differ in length.
        captions: One for each row; an empty one takes no room.
        title: First line, if not empty.

    Returns:
        `(height, width, 3)` u1 RGB.

    Raises:
        ValueError: No image, images of several sizes, or not one caption for each row.
    """
    shapes = {image.shape for row in rows for image in row}
    if len(shapes) != 1 or len(rows) != len(captions):
        raise ValueError(f"a sheet needs images of one size and a caption for each row; got {shapes}, {len(captions)}")
    height, width = shapes.pop()[:2]
    columns = max(len(row) for row in rows)
    total = GAP_PX + columns * (width + GAP_PX)
    parts = [_paper(GAP_PX, total)]
    if title:
        parts.append(text_line(title, total))
    for row, caption in zip(rows, captions, strict=True):
        if caption:
            parts.append(text_line(caption, total))
        band = _paper(height + GAP_PX, total)
        for column, image in enumerate(row):
            left = GAP_PX + column * (width + GAP_PX)
            band[:height, left : left + width] = image
        parts.append(band)
    return np.concatenate(parts)


def legend(class_ids: Sequence[int], width: int) -> np.ndarray:
    """Colour and name of some classes, in as many lines as they need.

    Args:
        class_ids: Which ones.
        width: Pixels; at least 160.

    Returns:
        `(height, width, 3)` u1 RGB.
    """
    cell = 116
    columns = max(1, width // cell)
    lines = -(-len(class_ids) // columns)
    out = _paper(max(lines, 1) * TEXT_PX, width)
    for position, label in enumerate(class_ids):
        top, left = position // columns * TEXT_PX, position % columns * cell
        out[top + 3 : top + TEXT_PX - 3, left + 4 : left + 16] = COLOURS[label]
        out[top : top + TEXT_PX, left + 18 : left + cell] = text_line(NAMES[label], cell - 18)
    return out


def _paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER_RGB, np.uint8)
