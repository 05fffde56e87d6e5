"""Head segmentation on rendered heads whose masks are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from models.config import Parse
from tasks import labels
from tasks.grabcut import complete_landmarks
from tasks.head_prior import BACKGROUND, HAIR, NECK, SKIN, face_frame, log_prior, part_probabilities
from tasks.segment import METHODS, SegmentationError, segment
from tests.tasks.factory import make_params
from tests.tasks.rendered import RenderedClip, rendered_clip

SETTINGS = make_params(parse={"parser": "grabcut"}).parse
PEOPLE = (1, 2, 3, 4, 7)


def with_settings(**changes: int) -> Parse:
    return SETTINGS.model_copy(update=changes)


def head_of(class_ids: np.ndarray) -> np.ndarray:
    return np.isin(class_ids, SETTINGS.head_labels)


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    both, either = (mask & truth).sum(axis=(1, 2)), (mask | truth).sum(axis=(1, 2))
    return float((both / either).mean())


def plain_ellipse(clip: RenderedClip) -> np.ndarray:
    """The trivial answer: an ellipse about the face, tilted as the face is."""
    frame, out = face_frame(clip.landmarks), np.zeros(clip.head.shape, np.uint8)
    for t, image in enumerate(out):
        centre = frame.origin[t]
        axes = (round(1.3 * frame.unit_px[t]), round(1.75 * frame.unit_px[t]))
        tilt = float(np.degrees(np.arctan2(frame.right[t, 1], frame.right[t, 0])))
        cv2.ellipse(image, (round(centre[0]), round(centre[1])), axes, tilt, 0, 360, 1, -1)
    return out == 1


@pytest.fixture(scope="module")
def clips() -> list[RenderedClip]:
    return [rendered_clip(person, 6, 96) for person in PEOPLE]


def test_rendered_heads_are_found_and_better_than_by_an_ellipse(clips: list[RenderedClip]) -> None:
    found = [
        iou(head_of(segment(clip.frames, clip.landmarks, clip.face_box, SETTINGS, "cpu")), clip.head) for clip in clips
    ]
    trivial = [iou(plain_ellipse(clip), clip.head) for clip in clips]
    assert np.mean(found) > 0.9
    assert min(found) > 0.8
    assert np.mean(found) > np.mean(trivial) + 0.1


def test_labels_lie_where_the_face_has_them(clips: list[RenderedClip]) -> None:
    clip = clips[1]
    class_ids = segment(clip.frames, clip.landmarks, clip.face_box, SETTINGS, "cpu")
    assert class_ids.dtype == np.uint8
    assert class_ids.shape == clip.head.shape
    for t, image in enumerate(class_ids):
        (left_x, left_y), (right_x, right_y), (nose_x, nose_y) = clip.landmarks[t, :3].round().astype(int)
        assert image[left_y, left_x] == labels.RIGHT_EYE  # at the left of the picture: the person's right
        assert image[right_y, right_x] == labels.LEFT_EYE
        assert image[nose_y, nose_x] == labels.NOSE
        mouth_y = round(clip.landmarks[t, 3:, 1].mean())
        hair, neck = np.argwhere(image == labels.HAIR), np.argwhere(image == labels.NECK)
        assert hair[:, 0].min() < left_y < mouth_y < np.median(neck[:, 0])
        assert image[-1].max() == labels.CLOTH
        assert image[0, 0] == labels.BACKGROUND


def test_one_head_without_holes(clips: list[RenderedClip]) -> None:
    for clip in clips[:3]:
        for mask in head_of(segment(clip.frames, clip.landmarks, clip.face_box, SETTINGS, "cpu")).astype(np.uint8):
            heads, _ = cv2.connectedComponents(mask)
            outside, _ = cv2.connectedComponents(np.pad(1 - mask, 1, constant_values=1), connectivity=4)
            assert (heads, outside) == (2, 2)  # OpenCV counts the background as one


def test_the_same_clip_gives_the_same_labels(clips: list[RenderedClip]) -> None:
    clip = clips[0]
    first, second = (segment(clip.frames, clip.landmarks, clip.face_box, SETTINGS, "cpu") for _ in range(2))
    assert np.array_equal(first, second)


def test_a_large_frame_is_segmented_at_work_px(clips: list[RenderedClip]) -> None:
    clip = clips[0]
    coarse = segment(clip.frames, clip.landmarks, clip.face_box, with_settings(work_px=48), "cpu")
    assert coarse.shape == clip.head.shape
    assert iou(head_of(coarse), clip.head) > 0.85
    full = segment(clip.frames, clip.landmarks, clip.face_box, SETTINGS, "cpu")
    assert not np.array_equal(coarse, full)


def test_majority_vote_steadies_a_noisy_clip(clips: list[RenderedClip]) -> None:
    still = clips[2]
    noise = np.random.default_rng(0).normal(0, 25, (8, *still.frames.shape[1:]))
    frames = np.clip(still.frames[:1] + noise, 0, 255).astype(np.uint8)
    points, box = np.repeat(still.landmarks[:1], 8, axis=0), np.repeat(still.face_box[:1], 8, axis=0)

    def changes(window: int) -> float:
        head = head_of(segment(frames, points, box, with_settings(smooth_frames=window), "cpu"))
        return float((head[1:] != head[:-1]).mean())

    assert changes(5) < changes(1)


def test_missing_landmarks_are_interpolated_or_taken_from_the_box() -> None:
    points = np.full((3, 5, 2), np.nan)
    points[0], points[2] = 10.0, 20.0
    box = np.tile(np.array([0.0, 0.0, 100.0, 100.0]), (3, 1))
    assert np.allclose(complete_landmarks(points, box)[1], 15.0)
    from_box = complete_landmarks(np.full((3, 5, 2), np.nan), box)
    assert np.allclose(from_box[:, 2], (50.0, 60.0))
    with pytest.raises(SegmentationError) as caught:
        complete_landmarks(np.full((3, 5, 2), np.nan), np.full((3, 4), np.nan))
    assert caught.value.code == "no_face"


def test_prior_knows_up_from_down_and_follows_the_tilt() -> None:
    u, v = np.zeros(4), np.array([0.5, -1.4, 2.0, -3.0])
    assert part_probabilities(u, v, 0.0).argmax(axis=0).tolist() == [SKIN, HAIR, NECK, BACKGROUND]
    upright = np.array([(20, 24), (36, 24), (28, 32), (22, 40), (34, 40)], dtype=float)
    on_its_side = np.stack([63 - upright[:, 1], upright[:, 0]], axis=1)  # a quarter turn clockwise
    prior = log_prior(face_frame(np.stack([upright, on_its_side])), 64, 64)
    turned = np.rot90(prior[:, 0], k=-1, axes=(1, 2))
    assert np.abs(np.exp(turned) - np.exp(prior[:, 1])).max() < 0.02


def test_every_method_of_the_settings_exists() -> None:
    assert set(METHODS) == set(Parse.model_fields["parser"].annotation.__args__)  # type: ignore[union-attr]
