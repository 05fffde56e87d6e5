"""Where the parts of a head lie relative to five facial landmarks: the spatial prior of the classical segmentation.

Everything is said in the face frame: origin between the eyes, v from there to the middle of the mouth (down the face,
so the head's tilt is in it), u to the right of the picture. One unit is the distance between the eyes or the one from
eyes to mouth, whichever the head's turn shortens less. The shapes are ellipses and half planes with soft edges, our
choice; their few numbers are rounded from portraits and rendered heads. A turned head is shifted against the landmarks,
the face less than the hair; `yaw` is the nose's offset from the middle of the face in units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from tasks import labels

BACKGROUND, SKIN, HAIR, NECK, CLOTH = range(5)
PARTS = 5
"""The five parts that are told apart by colour and place; the rest is placed by the landmarks alone."""

_EXTENT = 3.2  # the tables reach so many units from the origin
_CELLS = 128
_YAW_MAX = 0.4
_YAW_STEPS = 16
_FLOOR = 2e-3  # no part is ever impossible


@dataclass(frozen=True)
class FaceFrame:
    """The face frame in every frame of a clip.

    Attributes:
        origin: `(T, 2)` pixels (x, y).
        right: `(T, 2)` unit vector u.
        down: `(T, 2)` unit vector v.
        unit_px: `(T,)` length of one unit.
        yaw: `(T,)` offset of the nose, in [-0.4, 0.4]; positive: turned to the right of the picture.
    """

    origin: np.ndarray
    right: np.ndarray
    down: np.ndarray
    unit_px: np.ndarray
    yaw: np.ndarray

    def affine(self, frame: int) -> np.ndarray:
        """`(2, 3)` matrix from pixels of `frame` to (u, v)."""
        axes = np.stack([self.right[frame], self.down[frame]]) / self.unit_px[frame]
        return np.hstack([axes, -(axes @ self.origin[frame])[:, None]])


def face_frame(landmarks: np.ndarray) -> FaceFrame:
    """The face frame from MTCNN's five points.

    Args:
        landmarks: `(T, 5, 2)` pixels: eye at the left of the picture, other eye, nose tip, mouth corners; finite.

    Returns:
        One frame per image.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    eyes, mouth = points[:, :2].mean(axis=1), points[:, 3:].mean(axis=1)
    length = np.maximum(np.linalg.norm(mouth - eyes, axis=1), 1e-3)
    down = (mouth - eyes) / length[:, None]
    right = np.stack([down[:, 1], -down[:, 0]], axis=1)
    unit = np.maximum(length, np.linalg.norm(points[:, 1] - points[:, 0], axis=1))
    offset = ((points[:, 2] - (eyes + mouth) / 2) * right).sum(axis=1) / unit
    return FaceFrame(eyes, right, down, unit, np.clip(offset, -_YAW_MAX, _YAW_MAX))


def landmarks_from_box(face_box: np.ndarray) -> np.ndarray:
    """Five points of an upright, frontal face in a box, for frames without landmarks.

    Args:
        face_box: `(T, 4)` x0, y0, x1, y1 in pixels.

    Returns:
        `(T, 5, 2)` pixels.
    """
    places = np.array([(0.31, 0.40), (0.69, 0.40), (0.5, 0.60), (0.35, 0.78), (0.65, 0.78)])
    return face_box[:, None, :2] + places * (face_box[:, None, 2:] - face_box[:, None, :2])


def _soft(distance: np.ndarray) -> np.ndarray:
    """1 well inside (negative distance), 0 well outside."""
    return 1 / (1 + np.exp(np.clip(distance, -30, 30)))


def _ellipse(
    u: np.ndarray, v: np.ndarray, centre: tuple[float, float], half: tuple[float, float], power: float = 2.0
) -> np.ndarray:
    """About the signed distance to a (super-)ellipse, in units."""
    q = np.abs((u - centre[0]) / half[0]) ** power + np.abs((v - centre[1]) / half[1]) ** power
    return (q ** (1 / power) - 1) * min(half)


def part_probabilities(u: np.ndarray, v: np.ndarray, yaw: float) -> np.ndarray:
    """Prior probability of the five parts.

    Args:
        u: Any shape, units to the right of the picture.
        v: The same shape, units down the face.
        yaw: Offset of the nose.

    Returns:
        `(5, ...)`, sums to 1.
    """
    face = _soft(_ellipse(u, v, (-1.2 * yaw, 0.3), (1.02, 1.35)) / 0.09)
    # hair ends anywhere between a bald skull and a bush: the edge is soft, so that colour decides
    skull = _soft(_ellipse(u, v, (-1.75 * yaw, 0.0), (1.2, 1.6), 2.4) / 0.3)
    # hair that stands off the skull, and hair that falls beside the neck
    wide = 0.12 * _soft(_ellipse(u, v, (-1.75 * yaw, -0.1), (1.7, 2.1), 2.4) / 0.15) * _soft(v / 0.3)
    sides = _soft((np.abs(u + 1.5 * yaw) - 1.6) / 0.15)
    long = 0.35 * sides * _soft((0.2 - v) / 0.2) * _soft((v - 2.3) / 0.2)
    hair = np.maximum(skull, np.maximum(long, wide)) * _soft((-2.1 - v) / 0.06)  # nothing grows higher
    below = _soft((1.45 - v) / 0.12)
    neck = below * _soft((np.abs(u + 0.6 * yaw) - 0.85 - 0.3 * np.maximum(v - 1.6, 0)) / 0.12)
    cloth = _soft((2.0 - 0.25 * np.abs(u) - v) / 0.2)
    hair = hair * (1 - 0.65 * neck)
    rest = (1 - face) * (1 - hair)
    parts = np.empty((PARTS, *np.shape(u)))
    parts[SKIN] = 0.97 * face + 0.01 * hair
    parts[HAIR] = (1 - face) * hair + 0.03 * face
    parts[NECK] = rest * (0.75 * neck + 0.01)
    parts[CLOTH] = rest * (0.6 * cloth * (1 - 0.6 * neck) + 0.01)
    parts[BACKGROUND] = np.maximum(rest - parts[NECK] - parts[CLOTH], 0.003)
    parts += _FLOOR
    return parts / parts.sum(axis=0)


@lru_cache(maxsize=_YAW_STEPS + 1)
def _log_table(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Log priors over the face frame for one yaw: four parts and the fifth (OpenCV warps at most four channels)."""
    yaw = _YAW_MAX * (2 * step / _YAW_STEPS - 1)
    axis = np.linspace(-_EXTENT, _EXTENT, _CELLS)
    u, v = np.meshgrid(axis, axis)
    table = np.log(part_probabilities(u, v, yaw)).astype(np.float32)
    return np.ascontiguousarray(table[:4].transpose(1, 2, 0)), table[4]


def log_prior(frame: FaceFrame, height: int, width: int) -> np.ndarray:
    """Log prior of the five parts for every pixel of a clip.

    Args:
        frame: The face frame, in pixels of the images.
        height: H.
        width: W.

    Returns:
        `(5, T, H, W)` float32.
    """
    count = len(frame.yaw)
    out = np.empty((PARTS, count, height, width), np.float32)
    to_cells = (_CELLS - 1) / (2 * _EXTENT)
    steps = np.rint((frame.yaw / _YAW_MAX + 1) / 2 * _YAW_STEPS).astype(int)
    for t in range(count):
        matrix = frame.affine(t) * to_cells
        matrix[:, 2] += (_CELLS - 1) / 2
        first, last = _log_table(int(steps[t]))
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        warped = cv2.warpAffine(first, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        out[:4, t] = warped.transpose(2, 0, 1)
        out[4, t] = cv2.warpAffine(last, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return out


def draw_features(image: np.ndarray, landmarks: np.ndarray, frame: FaceFrame, t: int) -> None:
    """Draw brows, eyes, nose, lips and mouth into a label image, as ellipses placed by the landmarks (approximate).

    Args:
        image: `(H, W)` u1, changed in place.
        landmarks: `(5, 2)` pixels.
        frame: The face frame.
        t: Which of its frames.
    """
    unit, right, down = frame.unit_px[t], frame.right[t], frame.down[t]
    corners = landmarks[4] - landmarks[3]
    tilt = float(np.degrees(np.arctan2(right[1], right[0])))
    narrow = 1 - 0.8 * abs(float(frame.yaw[t]))  # a turned face is narrower in the picture

    def ellipse(centre: np.ndarray, half: tuple[float, float], label: int, arc: tuple[int, int] = (0, 360)) -> None:
        middle = tuple(round(16 * value) for value in centre)
        axes = tuple(max(round(16 * unit * value), 8) for value in half)
        cv2.ellipse(image, middle, axes, tilt, *arc, label, -1, cv2.LINE_8, 4)

    nose = landmarks[2]
    ellipse(nose - 0.28 * unit * down, (0.13 * narrow, 0.38), labels.NOSE)
    ellipse(nose + 0.02 * unit * down, (0.26 * narrow, 0.15), labels.NOSE)
    for eye, brow_label, eye_label in (
        (landmarks[0], labels.RIGHT_BROW, labels.RIGHT_EYE),
        (landmarks[1], labels.LEFT_BROW, labels.LEFT_EYE),
    ):
        ellipse(eye, (0.22 * narrow, 0.10), eye_label)
        ellipse(eye - 0.33 * unit * down, (0.34 * narrow, 0.075), brow_label)
    mouth = (landmarks[3] + landmarks[4]) / 2
    half = max(float(np.linalg.norm(corners)) / 2 / unit, 0.2) * 1.08
    ellipse(mouth, (half, 0.15), labels.UPPER_LIP, (180, 360))
    ellipse(mouth, (half, 0.20), labels.LOWER_LIP, (0, 180))
    ellipse(mouth, (0.75 * half, 0.035), labels.MOUTH)
