"""Where the face is in every frame: what was seen in some frames, linked into tracks, interpolated between them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

LINK_IOU = 0.2
"""Boxes of one face in neighbouring looks overlap at least this much; a head that turns fast still reaches 0.4."""
LINK_GAP_S = 1.0
"""A face unseen for longer (a hand before it, a profile) begins a new track."""
CUT_SUDDEN, CUT_TIMES, CUT_SURE = 20.0, 4.0, 60.0
"""Mean grey difference (of 255) between 16 x 16 thumbnails of neighbouring looks that means another shot: above the
first and so many times its neighbourhood's median, or above the last in any case. Heads that fill the frame and move
fast reach 28 among neighbours of 10 to 26 from look to look and 23 among 10 from frame to frame; a hand that is raised
reaches 16; cuts in the videos seen lie above 100."""
CUT_NEIGHBOURS = 5
SAME_FACE_OVERLAP = 0.5
"""A detection covered this much by the main face's box is a second look at the same face."""

SHOWN_SHARE = 0.2
"""A face that lies less than this in a square is not seen there."""


@dataclass(frozen=True)
class Faces:
    """The faces of one frame, in pixels of the source video.

    Attributes:
        boxes: `(n, 4)` x0, y0, x1, y1; MTCNN's box goes from the brows to the chin.
        landmarks: `(n, 5, 2)` x, y of the eyes, the nose and the mouth's corners, the image's left one first.
        probability: `(n,)`.
    """

    boxes: np.ndarray
    landmarks: np.ndarray
    probability: np.ndarray


@dataclass
class Looks:
    """All that was seen of a video: every n-th frame.

    Attributes:
        every: A look every so many frames; look k is frame `k * every`.
        frames: How many frames the video has (as far as it was read).
        faces: One entry per look.
        change: Mean grey difference of each look to the one before (0 for the first).
        breaks: Frames that begin another shot.
        exact: Every frame was looked at for cuts and `breaks` has all of them; else `change` tells between which looks
            one lies.
    """

    every: int
    frames: int = 0
    faces: list[Faces] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    breaks: set[int] = field(default_factory=set)
    exact: bool = False


@dataclass(eq=False)
class Track:
    """One face followed through one shot; `looks` says in which looks it was seen."""

    looks: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    landmarks: list[np.ndarray] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)

    @property
    def weight(self) -> float:
        """Size times duration: what makes a face the main one."""
        return float(np.sum(face_size(np.array(self.boxes))))


@dataclass(frozen=True)
class FrameTrack:
    """A track at every frame from `first` on.

    Attributes:
        first: Index of the first frame.
        boxes: `(T, 4)`.
        landmarks: `(T, 5, 2)`.
        probability: `(T,)`.
    """

    first: int
    boxes: np.ndarray
    landmarks: np.ndarray
    probability: np.ndarray

    @property
    def stop(self) -> int:
        """Index after the last frame."""
        return self.first + len(self.boxes)


def face_size(boxes: np.ndarray) -> np.ndarray:
    """Side of the square with a box's area, `(..., 4)` -> `(...)`."""
    return np.sqrt(np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1))


def cuts(looks: Looks) -> set[int]:
    """Looks that belong to another shot than the look before."""
    return (set() if looks.exact else sudden(looks.change)) | {-(-frame // looks.every) for frame in looks.breaks}


def sudden(changes: Sequence[float]) -> set[int]:
    """Where pictures change far more than around it.

    Args:
        changes: Mean grey difference (of 255) of each picture to the one before; the first says nothing.

    Returns:
        Positions in `changes`.
    """
    found = set()
    for index in range(1, len(changes)):
        around = [*changes[max(1, index - CUT_NEIGHBOURS) : index], *changes[index + 1 :][:CUT_NEIGHBOURS]]
        usual = float(np.median(around)) if around else 0.0
        change = changes[index]
        if change > CUT_SURE or (change > CUT_SUDDEN and change > CUT_TIMES * usual):
            found.add(index)
    return found


def link(looks: Looks, gap_looks: int) -> list[Track]:
    """Follow every face from look to look; a track ends at a cut or when its face is gone for long.

    Args:
        looks: What was seen.
        gap_looks: A face unseen for more looks than this begins a new track.

    Returns:
        All tracks, the main one (largest size times duration) first.
    """
    finished: list[Track] = []
    active: list[Track] = []
    new_shots = cuts(looks)
    for index, faces in enumerate(looks.faces):
        ended = [track for track in active if index in new_shots or index - track.looks[-1] > gap_looks]
        finished += ended
        active = [track for track in active if track not in ended]
        overlaps = np.array([[box_iou(track.boxes[-1], box) for box in faces.boxes] for track in active])
        free = set(range(len(faces.boxes)))
        while overlaps.size and overlaps.max() >= LINK_IOU:
            t, f = (int(i) for i in np.unravel_index(overlaps.argmax(), overlaps.shape))
            _append(active[t], index, faces, f)
            free.discard(f)
            overlaps[t, :] = overlaps[:, f] = 0
        for f in sorted(free):
            track = Track()
            _append(track, index, faces, f)
            active.append(track)
    return sorted(finished + active, key=lambda track: -track.weight)


def interpolate(track: Track, looks: Looks) -> FrameTrack:
    """The track at every frame: linear between looks, constant from the last one to the next that would have come.

    It ends before a frame that is known to begin another shot, and at its last look where the next one shows another
    shot: where between the two the cut lies is not known then.

    Args:
        track: One of `link`'s.
        looks: What it was made from.

    Returns:
        The track per frame.
    """
    at = np.array(track.looks) * looks.every
    last = min(at[-1] + looks.every - 1, looks.frames - 1)
    breaks = sorted(looks.breaks)
    position = bisect_right(breaks, at[-1])
    if position < len(breaks):
        last = min(last, breaks[position] - 1)
    elif track.looks[-1] + 1 in cuts(looks):
        last = at[-1]
    frames = np.arange(at[0], last + 1)

    def fill(values: list[np.ndarray] | list[float]) -> np.ndarray:
        flat = np.array(values, dtype=np.float64).reshape(len(at), -1)
        return np.stack([np.interp(frames, at, column) for column in flat.T], axis=-1)

    return FrameTrack(
        first=int(at[0]),
        boxes=fill(track.boxes),
        landmarks=fill(track.landmarks).reshape(len(frames), 5, 2),
        probability=fill(track.probability)[:, 0],
    )


def second_faces(track: Track, looks: Looks, ratio: float, around: np.ndarray | None = None) -> np.ndarray:
    """In which looks another face of at least `ratio` times the main face's size is there.

    Args:
        track: The main face.
        looks: What was seen.
        ratio: Of the sides (not the areas).
        around: `(4,)`: only faces that this box shows (`SHOWN_SHARE`) count; None: all.

    Returns:
        `(looks,)` bool; False where the main face itself is not seen.
    """
    crowded = np.zeros(len(looks.faces), dtype=bool)
    for index, main in zip(track.looks, track.boxes, strict=True):
        for box in looks.faces[index].boxes:
            area = max(float(face_size(box)) ** 2, 1e-9)
            other = overlap(main, box) / area < SAME_FACE_OVERLAP
            shown = around is None or overlap(box, around) > SHOWN_SHARE * face_size(box) ** 2
            crowded[index] |= bool(other and shown and face_size(box) >= ratio * face_size(main))
    return crowded


def _append(track: Track, index: int, faces: Faces, f: int) -> None:
    track.looks.append(index)
    track.boxes.append(faces.boxes[f])
    track.landmarks.append(faces.landmarks[f])
    track.probability.append(float(faces.probability[f]))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area that two boxes `(4,)` share."""
    return float(np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)))


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes `(4,)`."""
    common = overlap(a, b)
    return common / max(float(face_size(a)) ** 2 + float(face_size(b)) ** 2 - common, 1e-9)
