"""Which square of a picture the head parser sees: about the face, with room for hair, neck and shoulders.

In a video the square stands still while the head stays well inside it, so that successive frames can be compared pixel
by pixel; it moves in steps when the head does, and at cuts.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from tasks.crop_plan import HEAD_SHIFT, Square
from tasks.face_search import View, detect
from tasks.faces import LINK_GAP_S, Looks, cuts, face_size, interpolate, link

ROOM = 2.8
"""Side of the square in face boxes (brows to chin): the head takes about a quarter of it, as often in training."""
STRETCH = 1.3
"""A square that stands still may be this much larger than the head of the moment needs."""
RUNS_OUT = 0.03
"""A head that touches more of an edge of the square than this goes on beyond it."""
WIDER = 1.3
"""So many times larger the square becomes then."""
MAX_SIDE = 1.7
"""A square that was enlarged is parsed at up to so many times the usual side, so that the face keeps its pixels."""
SEARCH_PX = 1440
"""Longest side at which a picture is searched for faces..."""
SEARCH_TILES = (1, 2, 4)
"""...first as a whole, then, while none is found, in so many parts along its longer side (half of it overlaps)."""
TILE_PX = 480


@dataclass(frozen=True)
class Window:
    """The square for some successive frames.

    Attributes:
        start: First frame.
        stop: Frame after the last.
        square: What the parser sees; it may reach beyond the picture.
        face: Whether it lies about a face; False: the whole picture, because none was found.
    """

    start: int
    stop: int
    square: Square
    face: bool


def whole_picture(width: int, height: int) -> Square:
    """The square that holds all of a picture, in its middle."""
    side = max(width, height)
    return Square((width - side) // 2, (height - side) // 2, side)


def find_face(image: np.ndarray, min_confidence: float) -> np.ndarray | None:
    """The largest face of a picture, however small it is.

    Args:
        image: `(H, W, 3)` u1 RGB.
        min_confidence: Detections below are dropped.

    Returns:
        `(4,)` x0, y0, x1, y1 in pixels, or None.
    """
    long = max(image.shape[:2])
    scale = max(1.0, long / SEARCH_PX)
    small = _shrunk(image, scale)
    for parts in SEARCH_TILES:
        found = [
            box
            for view, tile in _tiles(small, parts)
            for box in view.faces(detect(tile[None], min_confidence)[0]).boxes
        ]
        if found:
            boxes = np.array(found)
            return (boxes[face_size(boxes).argmax()] + 0.5) * scale - 0.5
    return None


def _shrunk(image: np.ndarray, scale: float) -> np.ndarray:
    if scale <= 1:
        return image
    size = (max(1, round(image.shape[1] / scale)), max(1, round(image.shape[0] / scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _tiles(image: np.ndarray, parts: int) -> list[tuple[View, np.ndarray]]:
    """Overlapping parts of a picture, each shrunk to `TILE_PX`."""
    height, width = image.shape[:2]
    side = max(height, width) if parts == 1 else -(-2 * max(height, width) // (parts + 1))
    step = max(1, side // 2)
    tiles = []
    for y0 in range(0, max(1, height - side + step), step):
        for x0 in range(0, max(1, width - side + step), step):
            tile = image[y0 : y0 + side, x0 : x0 + side]
            scale = max(1.0, max(tile.shape[:2]) / TILE_PX)
            tiles.append((View(scale, x0, y0), np.ascontiguousarray(_shrunk(tile, scale))))
    return tiles


def face_window(boxes: np.ndarray) -> Square:
    """The square about one face, or about all places of a moving one: `boxes (T, 4)` in pixels."""
    low, high = _wanted(boxes)
    corner, end = low.min(axis=0), high.max(axis=0)
    side = float((end - corner).max())
    x0, y0 = np.round((corner + end - side) / 2).astype(int)
    return Square(int(x0), int(y0), max(2, round(side)))


def _wanted(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the square that each face needs."""
    size = boxes[:, 2:] - boxes[:, :2]
    half = ROOM / 2 * size.max(axis=1, keepdims=True)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    centre = centre - np.stack([np.zeros(len(boxes)), HEAD_SHIFT * size[:, 1]], axis=1)
    return centre - half, centre + half


def parse_side(square: Square, boxes: np.ndarray, work_px: int) -> float:
    """Side at which a square is parsed: more than `work_px` where it is larger than the smallest face needs.

    Args:
        square: The square.
        boxes: `(T, 4)` faces in it; NaN: `work_px`.
        work_px: For a square that fits its face; at most `MAX_SIDE` times that comes out.
    """
    if np.isnan(boxes).any():
        return work_px
    least = ROOM * float((boxes[:, 2:] - boxes[:, :2]).max(axis=1).min())
    return work_px * min(max(square.side / least, 1.0), MAX_SIDE)


def runs_out(head: np.ndarray, square: Square, width: int, height: int) -> bool:
    """Whether a head leaves the square where the picture goes on.

    Args:
        head: `(S, S)` 0/1, as the parser sees the square.
        square: It.
        width: Of the picture, pixels.
        height: The same.
    """
    edges = (head[0], head[-1], head[:, 0], head[:, -1])
    end_x, end_y = square.x0 + square.side, square.y0 + square.side
    inside = (square.y0 > 0, end_y < height, square.x0 > 0, end_x < width)
    return any(within and edge.mean() > RUNS_OUT for within, edge in zip(inside, edges, strict=True))


def wider(square: Square) -> Square:
    """The square with more room, most of it below, where hair falls."""
    more = round(square.side * (WIDER - 1))
    return Square(square.x0 - more // 2, square.y0 - more // 4, square.side + more)


def face_boxes(looks: Looks, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """The main face of every frame.

    Each frame has the heaviest track (size times duration) that covers it. Where a face is lost inside a shot, its
    last (or next) place stands in.

    Args:
        looks: What was seen of a video; `frames` complete.
        fps: Its rate.

    Returns:
        Boxes `(frames, 4)`, NaN throughout a shot without a face; and the number of each frame's shot, `(frames,)`.
    """
    boxes = np.full((looks.frames, 4), np.nan)
    for track in link(looks, max(1, round(LINK_GAP_S * fps / looks.every))):
        found = interpolate(track, looks)
        covered = slice(found.first, min(found.stop, looks.frames))
        free = np.isnan(boxes[covered, 0])
        boxes[covered][free] = found.boxes[: len(free)][free]
    shots = np.zeros(looks.frames, int)
    shots[[look * looks.every for look in cuts(looks) if look * looks.every < looks.frames]] = 1
    shots = shots.cumsum()
    for shot in range(shots.max(initial=0) + 1):
        rows = np.flatnonzero(shots == shot)
        known = rows[np.isfinite(boxes[rows, 0])]
        if len(known):
            order = np.interp(rows.astype(float), known.astype(float), np.arange(float(len(known))))
            boxes[rows] = boxes[known[order.round().astype(int)]]
    return boxes, shots


def plan_windows(boxes: np.ndarray, shots: np.ndarray, width: int, height: int) -> list[Window]:
    """Squares that stand still for as long as they fit.

    Args:
        boxes: As `face_boxes` gives them.
        shots: The same.
        width: Of the video, pixels.
        height: The same.

    Returns:
        Windows that follow each other without a gap.
    """
    windows: list[Window] = []
    start = 0
    while start < len(boxes):
        same = np.flatnonzero(shots[start:] != shots[start])
        end = start + int(same[0]) if len(same) else len(boxes)
        if np.isnan(boxes[start, 0]):
            windows.append(Window(start, end, whole_picture(width, height), False))
        else:
            end = start + _still(boxes[start:end])
            windows.append(Window(start, end, face_window(boxes[start:end]), True))
        start = end
    return windows


def _still(boxes: np.ndarray) -> int:
    """How many of the first frames one square can serve; at least one."""
    low, high = _wanted(boxes)
    extent = np.maximum.accumulate(high, axis=0) - np.minimum.accumulate(low, axis=0)
    least = np.minimum.accumulate((high - low)[:, 0])
    too_large = np.flatnonzero(extent.max(axis=1) > STRETCH * least)
    return int(too_large[0]) if len(too_large) else len(boxes)
