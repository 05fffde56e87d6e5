"""The plan of a crop: which frames, which square, and why not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from models.config import Crop
from tasks.crop_plan import Refused, Square, plan_clips, spread, square_around
from tasks.faces import Looks
from tests.tasks.factory import make_params
from tests.tasks.test_faces import box, looks_of

W, H = 320, 240


def settings(**changes: float) -> Crop:
    values = {"clip_frames": 20, "clips_per_video": 2, "detect_every_frames": 4, "min_face_px": 30, **changes}
    return make_params(crop=values).crop


def verdict(looks: Looks, **changes: float) -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        plan_clips(looks, 25.0, W, H, settings(**changes))
    return caught.value.reason, str(caught.value)


MAIN = box(100, 60, 60)
OTHER = box(200, 60, 50)


def test_a_clear_video_gives_its_clips() -> None:
    plan = plan_clips(looks_of(*[[MAIN]] * 20), 25.0, W, H, settings())
    first, second = plan.starts
    assert 0 <= first <= first + 20 <= second <= second + 20 <= 77
    assert plan.square == square_around(np.array([MAIN]), W, H, settings().margin)


def test_every_reason_has_its_own_words() -> None:
    assert verdict(looks_of(*[[MAIN]] * 4)) == ("too_short", "the video has 13 frames, a clip needs 20")
    assert verdict(looks_of(*[[]] * 20))[0] == "no_face"
    assert verdict(looks_of(*[[box(100, 60, 25)]] * 20)) == ("too_small", "the face measures 25 px, the least is 30 px")
    assert verdict(looks_of(*[[MAIN, OTHER]] * 20))[0] == "two_faces"
    reason, detail = verdict(looks_of(*([[MAIN]] * 3 + [[]] * 17)))
    assert reason == "no_face"
    assert "3 of the 20" in detail
    assert verdict(looks_of(*[[MAIN], [], []] * 7))[0] == "no_face"  # seen again and again, never for a whole clip


def test_a_flickering_second_face_is_no_reason() -> None:
    looks = looks_of(*[[MAIN, OTHER] if k in (3, 11) else [MAIN] for k in range(20)])
    assert len(plan_clips(looks, 25.0, W, H, settings()).starts) == 2


def test_clips_avoid_the_part_with_two_faces() -> None:
    looks = looks_of(*[[MAIN, OTHER] if k < 10 else [MAIN] for k in range(20)])
    starts = plan_clips(looks, 25.0, W, H, settings()).starts
    assert starts
    assert all(start > 32 for start in starts)  # the last look at both is frame 36: one of five is let pass


def test_clips_stay_within_a_shot() -> None:
    looks = looks_of(*[[MAIN]] * 20)
    looks.change[8] = 100.0
    starts = plan_clips(looks, 25.0, W, H, settings()).starts
    assert starts
    assert all(start >= 32 for start in starts)


@pytest.mark.parametrize(
    ("starts", "count", "expected"),
    [
        (range(49), 2, [2, 46]),  # 88 frames: nothing is wasted on one side
        (range(40), 2, [19]),  # 79 frames: one clip, in the middle
        (range(41), 2, [0, 40]),
        (range(1), 2, [0]),
        ([0, 1, 2, 90, 91, 92, 200], 3, [2, 92, 200]),
        (range(201), 1, [100]),
    ],
)
def test_spread(starts: list[int], count: int, expected: list[int]) -> None:
    assert spread(np.array(starts), 40, count) == expected


def test_spread_never_overlaps_and_finds_as_many_as_fit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        starts = np.flatnonzero(rng.random(120) < rng.choice([0.05, 0.3, 0.9]))
        if not len(starts):
            continue
        chosen = spread(starts, 20, 4)
        most, end = 0, -1
        for start in starts.tolist():
            if start >= end and most < 4:
                most, end = most + 1, start + 20
        assert len(chosen) == most
        assert set(chosen) <= set(starts.tolist())
        assert all(b - a >= 20 for a, b in itertools.pairwise(chosen))


def test_the_square_has_room_for_hair_and_is_moved_before_it_is_shrunk() -> None:
    free = square_around(np.array([box(130, 90, 50)]), W, H, 0.35)
    assert free == Square(112, 68, 85)  # side 1.7 x 50; more room above (22) than below (13)
    corner = square_around(np.array([box(0, 0, 50)]), W, H, 0.35)
    assert corner == Square(0, 0, 85)
    large = square_around(np.array([box(60, 10, 200)]), W, H, 0.35)
    assert (large.side, large.y0) == (H, 0)
    assert 0 <= large.x0 <= W - H


def test_a_face_that_wanders_farther_than_the_frame_is_high_goes_beyond_it() -> None:
    square = square_around(np.array([box(0, 60, 100), box(210, 60, 100)]), W, H, 0.35)
    assert square.side == 310
    assert square.y0 == -35
    frame = np.zeros((H, W, 3), np.uint8)
    frame[0], frame[-1] = 200, 100
    cut = square.cut(frame, 62)
    assert cut.shape == (62, 62, 3)
    assert (cut[:6] == 200).all()
    assert (cut[-6:] == 100).all()


@pytest.mark.parametrize(
    ("square", "size_px"), [(Square(40, 20, 150), 50), (Square(-30, 50, 200), 64), (Square(60, 60, 30), 64)]
)
def test_points_go_where_the_pixels_go(square: Square, size_px: int) -> None:
    """A blob of light in the source lands where `to_crop` says, shrunk, beyond the edge, or enlarged."""
    points = np.array([[70.0, 80.0], [81.5, 75.25]])
    y, x = np.mgrid[:H, :W]
    for point in points:
        blob = 255 * np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * 2.0**2))
        cut = square.cut(np.repeat(blob[..., None], 3, axis=2).astype(np.uint8), size_px)[..., 0].astype(float)
        rows, columns = np.mgrid[:size_px, :size_px]
        centre = np.array([(cut * columns).sum(), (cut * rows).sum()]) / cut.sum()
        assert centre == pytest.approx(square.to_crop(point, size_px), abs=0.15)
