"""Head segmentation without a trained network: from the frames of a clip and its detected face to class ids.

The method follows GrabCut (Rother et al. 2004): colour models and segmentation take turns. What differs is our choice
and measured better on heads than OpenCV's two-region cut: five parts (background, skin, hair, neck, cloth) with a soft
prior from the landmarks in place of a hard box; one set of colour models for the whole clip, learnt by expectation
maximisation; and edge-aware smoothing over space and time (mean field) in place of a graph cut per frame.
"""

from __future__ import annotations

import cv2
import numpy as np

from models.config import Parse
from tasks import labels
from tasks.errors import SegmentationError
from tasks.head_prior import (
    BACKGROUND,
    CLOTH,
    HAIR,
    NECK,
    PARTS,
    SKIN,
    FaceFrame,
    draw_features,
    face_frame,
    landmarks_from_box,
    log_prior,
)

_LEARN_PIXELS = 24_000  # of a clip are enough for its colour models
_COMPONENTS = 4  # Gaussians per part
_FLOOR_VARIANCE = 40.0  # of CIELAB: no Gaussian is narrower than compression noise
_UNSEEN = 1e-7  # density of a colour that no part has shown
_FIELD_STEPS = 4
_EDGE_WEIGHT = 1.5
_TIME_WEIGHT = 0.5

_CLASS_OF_PART = np.empty(PARTS, np.uint8)
_CLASS_OF_PART[[BACKGROUND, SKIN, HAIR, NECK, CLOTH]] = (
    labels.BACKGROUND,
    labels.SKIN,
    labels.HAIR,
    labels.NECK,
    labels.CLOTH,
)


def segment_grabcut(frames: np.ndarray, landmarks: np.ndarray, face_box: np.ndarray, settings: Parse) -> np.ndarray:
    """Class ids by colour models and a spatial prior; see the module's text.

    Skin, hair, neck, cloth and background are found; brows, eyes, nose, mouth and lips are ellipses at the landmarks.

    Args:
        frames: `(T, H, W, 3)` u1 RGB.
        landmarks: `(T, 5, 2)` pixels (x, y); NaN where the face was not found.
        face_box: `(T, 4)` x0, y0, x1, y1 in pixels; NaN likewise.
        settings: The section `parse`.

    Returns:
        `(T, H, W)` u1, ids of CelebAMask-HQ.

    Raises:
        SegmentationError: The clip has no face to start from.
    """
    height, width = frames.shape[1:3]
    points = complete_landmarks(landmarks, face_box)
    scale = min(1.0, settings.work_px / max(height, width))
    size = (max(round(width * scale), 8), max(round(height * scale), 8))
    ratio = np.array([size[0] / width, size[1] / height])
    small = frames
    if scale < 1.0:
        small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    frame = face_frame((points + 0.5) * ratio - 0.5)  # pixel centres are integers
    prior = log_prior(frame, size[1], size[0])
    field = _smooth(small, _colour_evidence(small, prior, settings.grabcut_iterations))
    parts = _vote(field.argmax(axis=0).astype(np.uint8), settings.smooth_frames)
    for t in range(len(parts)):
        _clean(parts[t], field[:, t], prior[:, t])
    if scale < 1.0:
        parts = np.stack([_enlarge(image, (width, height)) for image in parts])
    return _with_features(_CLASS_OF_PART[parts], points, face_frame(points))


def complete_landmarks(landmarks: np.ndarray, face_box: np.ndarray) -> np.ndarray:
    """Landmarks for every frame: interpolated over time where they are missing, from the face boxes if none is there.

    Raises:
        SegmentationError: Neither landmarks nor boxes.
    """
    for points in (np.asarray(landmarks, np.float64), landmarks_from_box(np.asarray(face_box, np.float64))):
        flat = points.reshape(len(points), -1)
        known = np.flatnonzero(np.isfinite(flat).all(axis=1))
        if len(known):
            time = np.arange(len(flat))
            columns = [np.interp(time, known, flat[known, column]) for column in range(flat.shape[1])]
            return np.stack(columns, axis=1).reshape(points.shape)
    raise SegmentationError("no_face", "neither landmarks nor face boxes are known in any frame")


# -- colour -----------------------------------------------------------------------------------------------------------


def _colour_evidence(frames: np.ndarray, prior: np.ndarray, iterations: int) -> np.ndarray:
    """Log posterior `(5, T, H, W)` of the parts from colour models that the clip itself teaches."""
    coarse = (frames >> 3).astype(np.int32)
    index = (coarse[..., 0] << 10) | (coarse[..., 1] << 5) | coarse[..., 2]
    used = np.flatnonzero(np.bincount(index.ravel(), minlength=1 << 15))
    position = np.zeros(1 << 15, np.int32)
    position[used] = np.arange(len(used))
    index = position[index]
    rgb = np.stack([used >> 10, (used >> 5) & 31, used & 31], axis=1).astype(np.uint8) * 8 + 4
    lab = cv2.cvtColor(rgb[:, None], cv2.COLOR_RGB2LAB)[:, 0].astype(np.float64)
    lab[:, 0] *= 0.6  # shading changes lightness more than colour
    step = max(1, index.size // _LEARN_PIXELS)
    some, some_prior = index.ravel()[::step], prior.reshape(PARTS, -1)[:, ::step]
    models = [_ColourModel(lab) for _ in range(PARTS)]
    posterior = np.exp(some_prior)
    density = np.zeros((PARTS, len(used)), np.float32)
    for _ in range(iterations):
        for part, model in enumerate(models):
            density[part] = model.fit(np.bincount(some, posterior[part], minlength=len(used)))
        posterior = _softmax(some_prior + density[:, some])
    evidence = density[:, index]
    evidence += prior
    return evidence


class _ColourModel:
    """A mixture of Gaussians over the colours that occur in a clip, refitted to soft counts."""

    def __init__(self, colours: np.ndarray) -> None:
        self._colours = colours  # (K, 3)
        self._centres: np.ndarray | None = None

    def fit(self, counts: np.ndarray) -> np.ndarray:
        """Log density `(K,)` of every colour after fitting to `counts (K,)`."""
        seen = np.flatnonzero(counts > 1e-3)
        if counts.sum() < 10 or len(seen) < 3:
            return np.full(len(counts), np.log(_UNSEEN), np.float32)
        colours, weights = self._colours[seen], counts[seen]
        if self._centres is None:
            self._centres = _spread_centres(colours, weights)
            for _ in range(5):
                self._assign(colours, weights)
        nearest = self._assign(colours, weights)
        density = np.zeros(len(counts))
        for centre in range(len(self._centres)):
            mine = nearest == centre
            if not mine.any():
                continue
            share = weights[mine].sum()
            away = colours[mine] - self._centres[centre]
            spread = (away * weights[mine, None]).T @ away / share + np.eye(3) * _FLOOR_VARIANCE
            offset = self._colours - self._centres[centre]
            distance = ((offset @ np.linalg.inv(spread)) * offset).sum(axis=1)
            density += share / weights.sum() * np.exp(-0.5 * distance) / np.sqrt(np.linalg.det(spread))
        return np.log(density + _UNSEEN).astype(np.float32)

    def _assign(self, colours: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """One step of k-means; returns the nearest centre of every colour."""
        assert self._centres is not None
        nearest = ((colours[:, None] - self._centres[None]) ** 2).sum(axis=2).argmin(axis=1)
        for centre in range(len(self._centres)):
            mine = nearest == centre
            if mine.any():
                self._centres[centre] = np.average(colours[mine], axis=0, weights=weights[mine])
        return nearest


def _spread_centres(colours: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Start of k-means: the heaviest colour, then always the one that is heavy and far from those taken."""
    centres = [colours[weights.argmax()]]
    for _ in range(min(_COMPONENTS, len(colours)) - 1):
        nearest = np.min([((colours - centre) ** 2).sum(axis=1) for centre in centres], axis=0)
        centres.append(colours[(weights * nearest).argmax()])
    return np.array(centres)


def _softmax(logits: np.ndarray) -> np.ndarray:
    out = logits - logits.max(axis=0)
    np.exp(out, out=out)
    out /= out.sum(axis=0)
    return out


# -- neighbours -------------------------------------------------------------------------------------------------------


def _smooth(frames: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Mean field over a grid in space and time whose spatial links are weak across edges (GrabCut's contrast term).

    Args:
        frames: `(T, H, W, 3)` u1.
        evidence: `(5, T, H, W)` log posterior of each pixel by itself.

    Returns:
        `(5, T, H, W)` smoothed probabilities.
    """
    image = frames.astype(np.float32)
    across = ((image[:, :, 1:] - image[:, :, :-1]) ** 2).sum(axis=3)
    along = ((image[:, 1:] - image[:, :-1]) ** 2).sum(axis=3)
    contrast = float(across.mean() + along.mean()) + 1e-3
    across, along = (_EDGE_WEIGHT * np.exp(-squared / contrast) for squared in (across, along))
    field = _softmax(evidence)
    for _ in range(_FIELD_STEPS):
        pull = evidence.copy()
        pull[..., 1:] += across * field[..., :-1]
        pull[..., :-1] += across * field[..., 1:]
        pull[:, :, 1:] += along * field[:, :, :-1]
        pull[:, :, :-1] += along * field[:, :, 1:]
        pull[:, 1:] += _TIME_WEIGHT * field[:, :-1]
        pull[:, :-1] += _TIME_WEIGHT * field[:, 1:]
        field = _softmax(pull)
    return field


def _vote(parts: np.ndarray, window: int) -> np.ndarray:
    """Majority over `window` (odd) successive frames; the frame itself decides a tie."""
    if window == 1 or len(parts) == 1:
        return parts
    reach = window // 2
    counts = np.zeros((PARTS, *parts.shape), np.uint16)
    for part in range(PARTS):
        is_part = (parts == part).astype(np.uint16)
        counts[part] = 3 * is_part  # a vote counts 2, the frame's own 3, so that it decides a tie
        for shift in range(1, min(reach + 1, len(parts))):
            counts[part, shift:] += 2 * is_part[:-shift]
            counts[part, :-shift] += 2 * is_part[shift:]
    return counts.argmax(axis=0).astype(np.uint8)


# -- shape ------------------------------------------------------------------------------------------------------------


def _clean(parts: np.ndarray, field: np.ndarray, prior: np.ndarray) -> None:
    """One head: without thin threads, holes and islands, with a smooth outline. Changes `parts (H, W)` in place."""
    head = ((parts == SKIN) | (parts == HAIR)).astype(np.uint8)
    size = 3 if max(head.shape) < 100 else 5
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    opened = cv2.morphologyEx(head, cv2.MORPH_OPEN, kernel)
    count, islands = cv2.connectedComponents(opened, connectivity=4)
    if count < 2:
        return
    inner_face = prior[SKIN] > np.log(0.5)
    overlap = np.bincount(islands[inner_face], minlength=count)
    overlap[0] = 0
    if not overlap.any():
        overlap[1:] = np.bincount(islands.ravel(), minlength=count)[1:]
    kept = (islands == overlap.argmax()).astype(np.uint8)
    outlines, _ = cv2.findContours(kept, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(kept, outlines, -1, 1, cv2.FILLED)
    kept = cv2.medianBlur(kept, 5)
    skin = cv2.medianBlur(((field[SKIN] > field[HAIR]) & (kept == 1)).astype(np.uint8), 5)
    rest = np.array([BACKGROUND, NECK, CLOTH], np.uint8)[field[[BACKGROUND, NECK, CLOTH]].argmax(axis=0)]
    parts[:] = np.where(kept == 1, np.where(skin == 1, SKIN, HAIR), rest)


def _enlarge(parts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Parts at full size with interpolated, not stepped, outlines."""
    shares = [cv2.resize((parts == part).astype(np.float32), size) for part in range(PARTS)]
    return np.argmax(shares, axis=0).astype(np.uint8)


def _with_features(classes: np.ndarray, points: np.ndarray, frame: FaceFrame) -> np.ndarray:
    """Brows, eyes, nose and mouth over the head's own pixels."""
    for t, image in enumerate(classes):
        features = np.zeros_like(image)
        draw_features(features, points[t], frame, t)
        on_head = (features > 0) & ((image == labels.SKIN) | (image == labels.HAIR))
        image[on_head] = features[on_head]
    return classes
