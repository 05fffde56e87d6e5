"""Which frames of a video become clips, and which square of the picture they show."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from models.config import Crop
from tasks.faces import LINK_GAP_S, FrameTrack, Looks, Track, face_size, interpolate, link, overlap, second_faces

SECOND_FACE_SHARE = 0.2
"""A second face in more than this share of a clip's looks refuses the clip; hands and patterns flicker below it."""
HEAD_SHIFT = 0.1
"""The square's centre lies this share of the face's height above the box's: hair needs more room than the neck."""


IN_BOX_SHARE = 0.5
"""Of the smaller one of a face's box and the list's box must lie in the other for the face to be the list's."""


class Refused(Exception):  # noqa: N818 - not an error: a verdict on a video
    """A video gives no clip; `reason` is the code for the clip table."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Square:
    """A square of the source picture, whole pixels; it may reach beyond the frame."""

    x0: int
    y0: int
    side: int

    def to_crop(self, points: np.ndarray, size_px: int) -> np.ndarray:
        """Source pixels `(..., 2)` (x, y) in pixels of the crop of `size_px`; pixel centres are integers in both."""
        return (points - np.array([self.x0, self.y0]) + 0.5) * (size_px / self.side) - 0.5

    @property
    def box(self) -> np.ndarray:
        """Its edges x0, y0, x1, y1, `(4,)`."""
        return np.array([self.x0, self.y0, self.x0 + self.side, self.y0 + self.side], dtype=float)

    def cut(self, frame: np.ndarray, size_px: int) -> np.ndarray:
        """The square of a frame `(H, W, 3)`, area-filtered to `(size_px, size_px, 3)`; outside, the edge goes on."""
        height, width = frame.shape[:2]
        left, top = max(0, -self.x0), max(0, -self.y0)
        right, bottom = max(0, self.x0 + self.side - width), max(0, self.y0 + self.side - height)
        inside = frame[
            max(0, self.y0) : min(height, self.y0 + self.side), max(0, self.x0) : min(width, self.x0 + self.side)
        ]
        if left or top or right or bottom:
            inside = cv2.copyMakeBorder(inside, top, bottom, left, right, cv2.BORDER_REPLICATE)
        shrink = self.side >= size_px
        return cv2.resize(inside, (size_px, size_px), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


@dataclass(frozen=True)
class Plan:
    """What is cut out of a video.

    Attributes:
        starts: First frame of each clip, ascending; they do not overlap.
        square: The one crop all of them share.
        track: The face.
    """

    starts: list[int]
    square: Square
    track: FrameTrack


def plan_clips(
    looks: Looks,
    fps: float,
    width: int,
    height: int,
    crop: Crop,
    count: int | None = None,
    box: np.ndarray | None = None,
) -> Plan:
    """Choose the face, the clips and the square.

    Args:
        looks: What was seen of the video; `frames` complete.
        fps: Frames per second.
        width: Of the source, pixels.
        height: The same.
        crop: The settings.
        count: Clips at most; None: `crop.clips_per_video`.
        box: `(4,)` x0, y0, x1, y1 in source pixels, as a list names it: the face in it is followed, the square is made
            of it, and other faces only count where the square shows them. None: the largest, longest seen face.

    Returns:
        The plan, with at least one clip.

    Raises:
        Refused: No clip can be made of it.
    """
    length = crop.clip_frames
    if looks.frames < length:
        raise Refused("too_short", f"the video has {looks.frames} frames, a clip needs {length}")
    tracks = link(looks, max(1, round(LINK_GAP_S * fps / looks.every)))
    if not tracks:
        raise Refused(
            "no_face",
            f"no face in any of the {len(looks.faces)} frames looked at (MTCNN, probability at least "
            f"{crop.min_confidence:g}, at least 1/8 of the frame's shorter side)",
        )
    main = tracks[0] if box is None else _in_box(tracks, box)
    face_px = float(np.median(face_size(np.array(main.boxes))))
    if face_px < crop.min_face_px:
        raise Refused("too_small", f"the face measures {face_px:.0f} px, the least is {crop.min_face_px} px")
    track = interpolate(main, looks)
    if len(track.boxes) < length:
        raise _not_long_enough(track, len(main.looks), looks, crop)
    starts = np.arange(track.first, track.stop - length + 1)
    seen = np.isin(np.arange(len(looks.faces)), main.looks)
    clear = starts[_share(seen, starts, length, looks.every) >= crop.min_detected_fraction]
    if not len(clear):
        raise _hardly_seen(len(main.looks), looks, crop)
    around = None if box is None else square_of_box(box, track.boxes, width, height).box
    crowded = second_faces(main, looks, crop.second_face_ratio, around)
    alone = clear[_share(crowded, clear, length, looks.every) <= SECOND_FACE_SHARE]
    if not len(alone):
        raise Refused(
            "two_faces",
            f"another face of at least {crop.second_face_ratio:g} times the main one's size in "
            f"{crowded.sum()} of the {len(main.looks)} looks at it",
        )
    chosen = spread(alone, length, crop.clips_per_video if count is None else count)
    shown = track.boxes[np.concatenate([np.arange(start, start + length) for start in chosen]) - track.first]
    if box is None:
        return Plan(chosen, square_around(shown, width, height, crop.margin), track)
    return Plan(chosen, square_of_box(box, shown, width, height), track)


def spread(starts: np.ndarray, length: int, count: int) -> list[int]:
    """Up to `count` starts whose clips do not overlap, one near the middle of each equal part of the range.

    Args:
        starts: Allowed first frames, ascending.
        length: Frames of a clip.
        count: How many are wanted.

    Returns:
        The chosen ones, ascending; as many as fit, at least one.
    """
    latest: list[int] = []  # from the end: the last start that leaves room for the clips after it
    for start in starts[::-1]:
        if len(latest) < count and (not latest or start + length <= latest[0]):
            latest.insert(0, int(start))
    first, stop = int(starts[0]), int(starts[-1]) + length
    chosen: list[int] = []
    for part, limit in enumerate(latest):
        target = first + (part + 0.5) * (stop - first) / len(latest) - length / 2
        free = starts[(starts <= limit) & (starts >= (chosen[-1] + length if chosen else first))]
        chosen.append(int(free[np.abs(free - target).argmin()]))
    return chosen


def square_around(boxes: np.ndarray, width: int, height: int, margin: float) -> Square:
    """The square that shows a head in all its frames.

    The union of the face boxes grows by `margin` on every side and becomes a square about its centre, a little higher
    (`HEAD_SHIFT`). One that does not fit is moved, then shrunk to the frame's shorter side; only a union that is itself
    larger than that reaches beyond the frame. Nothing is ever squashed.

    Args:
        boxes: `(T, 4)` in source pixels.
        width: Of the source, pixels.
        height: The same.
        margin: Share of the union's longer side.

    Returns:
        The square, in whole pixels.
    """
    low, high = _union(boxes, width, height)
    union = float((high - low).max())
    centre = (low + high) / 2
    centre[1] -= HEAD_SHIFT * float(np.median(boxes[:, 3] - boxes[:, 1]))
    return _placed(centre, union * (1 + 2 * margin), union, width, height)


def square_of_box(box: np.ndarray, faces: np.ndarray, width: int, height: int) -> Square:
    """The square of a list's box: about its centre, with its longer side, and larger where a face would stick out.

    Moved, shrunk or reaching beyond the frame as in `square_around`.

    Args:
        box: `(4,)`, source pixels; need not be square, may reach outside.
        faces: Face boxes of the clips, `(T, 4)`.
        width: Of the source, pixels.
        height: The same.

    Returns:
        The square, in whole pixels.
    """
    low, high = _union(faces, width, height)
    centre = (box[:2] + box[2:]) / 2
    needed = 2 * float(np.maximum(high - centre, centre - low).max())
    return _placed(centre, max(float((box[2:] - box[:2]).max()), needed), float((high - low).max()), width, height)


def _union(boxes: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    limits = np.array([width, height])
    return np.clip(boxes[:, :2].min(axis=0), 0, limits), np.clip(boxes[:, 2:].max(axis=0), 0, limits)


def _placed(centre: np.ndarray, wanted: float, least: float, width: int, height: int) -> Square:
    """A square of the `wanted` side about `centre`, moved into the frame or shrunk to it, but not below `least`."""
    limits = np.array([width, height])
    side = max(2, round(wanted if wanted <= limits.min() else max(float(limits.min()), least)))
    corner = np.round(centre - side / 2).astype(int)
    room = limits - side
    x0, y0 = (int(np.clip(c, 0, r)) if r >= 0 else int(r // 2) for c, r in zip(corner, room, strict=True))
    return Square(x0, y0, side)


def _in_box(tracks: list[Track], box: np.ndarray) -> Track:
    """The longest and largest face of those that lie in the list's box for most of their time."""
    for track in tracks:
        area = float(np.prod(box[2:] - box[:2]))
        inside = [overlap(found, box) / max(min(float(face_size(found)) ** 2, area), 1e-9) for found in track.boxes]
        if np.median(inside) >= IN_BOX_SHARE:
            return track
    text = ", ".join(f"{value:.0f}" for value in box)
    raise Refused("not_in_box", f"{len(tracks)} faces were followed, none of them in the list's box ({text} px)")


def _share(marks: np.ndarray, starts: np.ndarray, length: int, every: int) -> np.ndarray:
    """For each start, the share of the clip's looks that are marked."""
    total = np.concatenate([[0], np.cumsum(marks)])
    low = np.minimum(-(-starts // every), len(marks))
    high = np.minimum(-(-(starts + length) // every), len(marks))
    high = np.maximum(high, np.minimum(low + 1, len(marks)))  # a clip shorter than the sampling: its next look
    low = np.minimum(low, high - 1)
    return (total[high] - total[low]) / (high - low)


def _not_long_enough(track: FrameTrack, seen: int, looks: Looks, crop: Crop) -> Refused:
    if seen < crop.min_detected_fraction * len(looks.faces):
        return _hardly_seen(seen, looks, crop)
    return Refused("too_short", f"the face stays for {len(track.boxes)} frames, a clip needs {crop.clip_frames}")


def _hardly_seen(seen: int, looks: Looks, crop: Crop) -> Refused:
    return Refused(
        "no_face",
        f"the main face is seen in {seen} of the {len(looks.faces)} frames looked at; nowhere in "
        f"{crop.min_detected_fraction:.0%} of {crop.clip_frames} consecutive frames",
    )
