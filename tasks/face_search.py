"""Finding faces with MTCNN: searched for in the whole picture now and then, and followed between.

A search costs some 30 ms a picture, most of it for places where no face is. Between two searches that found the same
faces, each face is near the straight line from one place to the other, and the cascade's last network alone says
whether it is there and where exactly, for 1 ms. Where that fails, and around cuts, the picture is searched.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN

from tasks.faces import CUT_SUDDEN, LINK_IOU, Faces, Looks, box_iou, face_size

SMALLEST_FACE = 1 / 8
"""MTCNN's search starts at this share of the picture's shorter side (design: H // 8); halving it doubles the time."""
MIN_MTCNN_PX = 12
SMALL_BESIDE = 0.4
"""Once faces are known, those below this share of the largest one's size are not searched for: they are neither the one
to follow nor a second face that counts (the crop takes 0.8 of `crop.second_face_ratio`)."""
SEARCH_EVERY = 5
"""Every so many looks the whole picture is searched; a second face that appears for less time may stay unseen."""
ONET_PX = 48
PASSES = 2
"""The second pass starts from what the first one found; from then on a box hardly moves."""
SAME_PLACE_IOU = 0.4
"""A result that overlaps less with the place looked at is another thing."""
THUMBNAIL_PX = 16


class View(NamedTuple):
    """Where a picture lies in its video.

    Attributes:
        scale: Pixels of the video per pixel of the picture.
        x0: Left edge of the picture in the video, pixels.
        y0: Top edge.
    """

    scale: float
    x0: float = 0.0
    y0: float = 0.0

    def faces(self, found: Faces) -> Faces:
        """Faces of the picture in pixels of the video; pixel centres are integers in both."""
        corner = np.array([self.x0, self.y0])
        boxes = (found.boxes.reshape(-1, 2, 2) + 0.5) * self.scale - 0.5 + corner
        landmarks = (found.landmarks + 0.5) * self.scale - 0.5 + corner
        return Faces(boxes.reshape(-1, 4), landmarks, found.probability)


def look_at(batches: Iterable[np.ndarray], source_width: int, every: int, min_confidence: float) -> Looks:
    """Find the faces in frames that were sampled from a video.

    Args:
        batches: `(n, H, W, 3)` uint8 RGB, every `every`-th frame in order, shrunk or not.
        source_width: Width in pixels of the video itself, which the results refer to.
        every: The sampling.
        min_confidence: Detections below are dropped.

    Returns:
        The looks; `frames` is what they show for sure, one more than the last look's index.
    """
    watch = Watch(every, min_confidence)
    for batch in batches:
        watch.add(batch, View(source_width / batch.shape[2]))
    looks = watch.looks
    looks.frames = max(0, (len(looks.faces) - 1) * every + 1)
    return looks


class Watch:
    """Looks at a video's frames as they come; what was seen stands in `looks`."""

    def __init__(self, every: int, min_confidence: float, beside: float = SMALL_BESIDE) -> None:
        self.looks = Looks(every)
        self._min_confidence, self._beside = min_confidence, beside
        self._last: np.ndarray | None = None
        self._before: Faces | None = None

    def add(self, frames: np.ndarray, view: View) -> None:
        """Look at the next sampled frames `(n, H, W, 3)` u1 RGB; `view` says where they lie in the video."""
        first = len(self.looks.change)
        for frame in frames:
            self.looks.change.append(self._change(frame))
        found = follow(frames, self.looks.change[first:], self._min_confidence, self._before, self._beside)
        self._before = found[-1] if found else self._before
        self.looks.faces += [view.faces(faces) for faces in found]

    def _change(self, frame: np.ndarray) -> float:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        thumbnail = cv2.resize(grey, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA).astype(float)
        change = 0.0 if self._last is None else float(np.abs(thumbnail - self._last).mean())
        self._last = thumbnail
        return change


def follow(
    frames: np.ndarray,
    change: Sequence[float],
    min_confidence: float,
    before: Faces | None = None,
    beside: float = SMALL_BESIDE,
) -> list[Faces]:
    """Faces in successive pictures: some are searched, the others looked at where the faces should be.

    Args:
        frames: `(n, H, W, 3)` u1 RGB.
        change: Mean grey difference of each to the one before.
        min_confidence: Detections below are dropped.
        before: The faces of the picture before the first one, if there was one.
        beside: See `SMALL_BESIDE`.

    Returns:
        One `Faces` per picture, in its pixels.
    """
    last, found = len(frames) - 1, {} if before is None else {-1: before}
    if before is None:
        found[0] = detect(frames[:1], min_confidence)[0]
    start = min(found)
    keys = sorted({*range(start + SEARCH_EVERY, last, SEARCH_EVERY), last} - set(found))
    found |= _searched(frames, keys, min_confidence, beside * _largest(found[start]))
    places: list[_Place] = []
    for a, b in itertools.pairwise(sorted(found)):
        if max(change[a + 1 : b + 1]) > CUT_SUDDEN:
            continue
        if not len(found[a].boxes) and not len(found[b].boxes):
            found |= dict.fromkeys(range(a + 1, b), _no_faces())
        pairs = _pairs(found[a], found[b])
        places += [_Place(t, _between(pair, (t - a) / (b - a))) for t in range(a + 1, b) for pair in pairs]
    seen = _confirmed(frames, places, min_confidence)
    missing = [t for t in range(len(frames)) if t not in found and t not in seen]
    found |= _searched(frames, missing, min_confidence, beside * _largest(found[start]))
    return [found[t] if t in found else seen[t] for t in range(len(frames))]


def _largest(faces: Faces) -> float:
    return float(face_size(faces.boxes).max(initial=0.0))


def _searched(frames: np.ndarray, which: list[int], min_confidence: float, least: float) -> dict[int, Faces]:
    """Search some pictures; faces smaller than `least` pixels are not looked for where a larger one is found."""
    if not which:
        return {}
    found = dict(zip(which, detect(frames[which], min_confidence, least), strict=True))
    empty = [t for t in which if not len(found[t].boxes)]
    if empty and least > 0:
        found |= dict(zip(empty, detect(frames[empty], min_confidence), strict=True))
    return found


class _Place(NamedTuple):
    frame: int
    box: np.ndarray


def _pairs(a: Faces, b: Faces) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes of the faces that both show; empty where one shows a face that the other does not."""
    if len(a.boxes) != len(b.boxes):
        return []
    free, pairs = list(range(len(b.boxes))), []
    for box in a.boxes:
        overlaps = [box_iou(box, b.boxes[other]) for other in free]
        if not overlaps or max(overlaps) < LINK_IOU:
            return []
        pairs.append((box, b.boxes[free.pop(int(np.argmax(overlaps)))]))
    return pairs


def _between(pair: tuple[np.ndarray, np.ndarray], share: float) -> np.ndarray:
    return pair[0] * (1 - share) + pair[1] * share


def _confirmed(frames: np.ndarray, places: list[_Place], min_confidence: float) -> dict[int, Faces]:
    """Pictures in which every place that was looked at shows a face."""
    if not places:
        return {}
    boxes, landmarks, score, there = refine([frames[place.frame] for place in places], [p.box for p in places])
    there &= score >= min_confidence
    result = {}
    at = np.array([place.frame for place in places])
    for frame in np.unique(at):
        here = at == frame
        if there[here].all():
            result[int(frame)] = Faces(boxes[here], landmarks[here], score[here])
    return result


def refine(
    frames: Sequence[np.ndarray], boxes: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One face at about one place of each picture, by the output network of the cascade alone.

    Args:
        frames: n pictures `(H, W, 3)` u1 RGB.
        boxes: Where a face should be in each, pixels.

    Returns:
        Boxes `(n, 4)`, landmarks `(n, 5, 2)`, probabilities `(n,)`, and whether what was found is where it should be,
        `(n,)` bool.
    """
    model, wanted = _mtcnn(), np.array(boxes, dtype=np.float64).reshape(-1, 4)
    found, points, score = wanted, np.zeros((len(wanted), 5, 2)), np.zeros(len(wanted))
    for _ in range(PASSES):
        square = _squares(found)
        patches = np.stack([_patch(frame, box) for frame, box in zip(frames, square, strict=True)])
        with torch.no_grad():
            images = torch.from_numpy(patches).permute(0, 3, 1, 2).float()
            shift, landmarks, probability = (
                out.numpy().astype(np.float64) for out in model.onet((images - 127.5) / 128)
            )
        size = square[:, 2:] - square[:, :2] + 1
        found = square + shift * np.concatenate([size, size], axis=1)
        points = landmarks.reshape(-1, 2, 5).transpose(0, 2, 1) * size[:, None] + square[:, None, :2] - 1
        score = probability[:, 1]
    there = np.array([box_iou(a, b) >= SAME_PLACE_IOU for a, b in zip(found, wanted, strict=True)], dtype=bool)
    return found, points - 0.5, score, there


def _squares(boxes: np.ndarray) -> np.ndarray:
    """Squares about the boxes' centres with their longer sides, whole pixels, as the cascade makes them."""
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)
    corner = (boxes[:, :2] + boxes[:, 2:] - side) / 2
    return np.trunc(np.concatenate([corner, corner + side], axis=1))


def _patch(frame: np.ndarray, square: np.ndarray) -> np.ndarray:
    """What the output network looks at, `(48, 48, 3)`; a square that reaches beyond the picture is cut off there."""
    height, width = frame.shape[:2]
    x0, y0 = (int(max(value - 1, 0)) for value in square[:2])
    x1, y1 = int(min(square[2], width)), int(min(square[3], height))
    if x1 - x0 < 2 or y1 - y0 < 2:
        return np.zeros((ONET_PX, ONET_PX, 3), np.uint8)
    return cv2.resize(frame[y0:y1, x0:x1], (ONET_PX, ONET_PX), interpolation=cv2.INTER_AREA)


def detect(frames: np.ndarray, min_confidence: float, least_px: float = 0.0) -> list[Faces]:
    """Search a batch of pictures of one size.

    Args:
        frames: `(n, H, W, 3)` uint8 RGB.
        min_confidence: Detections below are dropped.
        least_px: Smaller faces need not be found; `SMALLEST_FACE` of the picture's shorter side in any case.

    Returns:
        One `Faces` per picture, in its pixels.
    """
    model = _mtcnn()
    model.min_face_size = max(MIN_MTCNN_PX, int(min(frames.shape[1:3]) * SMALLEST_FACE), int(least_px))
    try:
        boxes, probabilities, landmarks = model.detect(frames, landmarks=True)
    except (RuntimeError, ValueError, IndexError):  # facenet-pytorch trips over degenerate proposals of single frames
        if len(frames) == 1:
            return [_no_faces()]
        return [detect(frame[None], min_confidence, least_px)[0] for frame in frames]
    return [_kept(*found, min_confidence) for found in zip(boxes, probabilities, landmarks, strict=True)]


@functools.cache
def _mtcnn() -> MTCNN:
    """Loaded once per process; its weights come with facenet-pytorch."""
    return MTCNN(keep_all=True, device=torch.device("cpu")).eval().to(memory_format=torch.channels_last)


def _no_faces() -> Faces:
    return Faces(np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))


def _kept(boxes: np.ndarray | None, probability: np.ndarray, landmarks: np.ndarray, least: float) -> Faces:
    if boxes is None:
        return _no_faces()
    probability = np.asarray(probability, dtype=np.float64)
    sure = probability >= least
    # Its landmarks count from the pixel's edge, ours from its centre (mirrored pictures show the difference).
    points = np.asarray(landmarks, dtype=np.float64)[sure] - 0.5
    return Faces(np.asarray(boxes, dtype=np.float64)[sure], points, probability[sure])
