"""Faces: found by MTCNN, followed from look to look, interpolated to every frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.config import Demo
from tasks import face_search
from tasks.demo import DemoJob, render
from tasks.face_search import View, Watch, detect, follow, look_at
from tasks.faces import Faces, Looks, box_iou, cuts, face_size, interpolate, link, second_faces
from tests.tasks.videos import face


def box(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y + side]


def looks_of(*boxes_per_look: list[list[float]], every: int = 4) -> Looks:
    """Looks with the given boxes; landmarks at their centres."""
    looks = Looks(every)
    for boxes in boxes_per_look:
        array = np.array(boxes, dtype=float).reshape(-1, 4)
        centres = (array[:, None, :2] + array[:, None, 2:]) / 2
        looks.faces.append(Faces(array, np.repeat(centres, 5, axis=1), np.full(len(array), 0.99)))
        looks.change.append(1.0)
    looks.frames = (len(looks.faces) - 1) * every + 1
    return looks


def test_a_rendered_face_is_found_where_it_is() -> None:
    demo = Demo(people=3, frames=8, size_px=128, fps=25, max_yaw_deg=20.0)
    truth = render(DemoJob(1, 0, demo, Path()))
    found = detect(truth.frames, 0.9)
    assert [len(faces.boxes) for faces in found] == [1] * 8
    error = np.array([faces.landmarks[0] for faces in found]) - truth.landmarks
    assert np.abs(error).max() < 0.08 * face_size(found[0].boxes[0])


def test_looks_are_in_pixels_of_the_video() -> None:
    frames = face(8)
    large, small = look_at([frames], 128, 1, 0.9), look_at([frames[:, ::2, ::2]], 128, 1, 0.9)
    assert small.faces[0].boxes[0] == pytest.approx(large.faces[0].boxes[0], abs=6)
    assert large.frames == 8
    assert look_at([frames[:5], frames[5:]], 128, 4, 0.9).frames == 29


def test_no_face_in_a_pattern() -> None:
    pattern = np.random.default_rng(0).integers(0, 255, (4, 96, 128, 3), dtype=np.uint8)
    assert [len(faces.boxes) for faces in detect(pattern, 0.9)] == [0] * 4
    assert link(look_at([pattern], 128, 1, 0.9), 3) == []


def test_two_rendered_faces() -> None:
    pair = np.concatenate([face(8), face(8, person=2)], axis=2)
    looks = look_at([pair], pair.shape[2], 1, 0.9)
    tracks = link(looks, 3)
    assert [len(track.looks) for track in tracks[:2]] == [8, 8]
    assert second_faces(tracks[0], looks, 0.5).all()


def test_linking_follows_and_interpolates() -> None:
    looks = looks_of(*([box(10 + 5 * k, 20, 40)] for k in range(5)))
    looks.frames = 19
    (track,) = link(looks, 3)
    whole = interpolate(track, looks)
    assert (whole.first, whole.stop) == (0, 19)
    assert whole.boxes[:, 0] == pytest.approx([10 + 1.25 * t for t in range(17)] + [30, 30])
    assert whole.landmarks[6, 3] == pytest.approx([10 + 7.5 + 20, 40])
    assert whole.landmarks.shape == (19, 5, 2)
    assert whole.probability == pytest.approx(0.99)


def test_a_short_gap_is_bridged_and_a_long_one_is_not() -> None:
    here: list[list[float]] = [box(10, 10, 40)]
    looks = looks_of(here, [], [], here, here)
    assert [track.looks for track in link(looks, 3)] == [[0, 3, 4]]
    assert [track.looks for track in link(looks, 2)] == [[3, 4], [0]]


def test_a_cut_ends_the_track_even_if_a_face_is_at_the_same_place() -> None:
    looks = looks_of(*([box(10, 10, 40)] for _ in range(6)))
    looks.change[3] = 80.0
    assert cuts(looks) == {3}
    assert sorted(track.looks for track in link(looks, 3)) == [[0, 1, 2], [3, 4, 5]]


def test_fast_motion_is_no_cut() -> None:
    looks = looks_of(*([box(10, 10, 40)] for _ in range(6)))
    looks.change[:] = [0.0, 12.0, 18.0, 28.0, 22.0, 14.0]
    assert cuts(looks) == set()


def test_the_main_face_is_large_and_lasts() -> None:
    looks = looks_of(*([box(10, 10, 30), box(100, 10, 60)] if k < 3 else [box(10, 10, 30)] for k in range(10)))
    assert link(looks, 3)[0].boxes[0][2] == 40  # 10 looks of 30 px before 3 of 60 px
    looks = looks_of(*([box(10, 10, 30), box(100, 10, 60)] for k in range(10)))
    assert link(looks, 3)[0].boxes[0][2] == 160


def test_second_faces_count_by_size_and_only_elsewhere() -> None:
    main = box(10, 10, 60)
    looks = looks_of([main, box(100, 10, 40)], [main, box(100, 10, 20)], [main, box(20, 20, 40)], [main])
    assert second_faces(link(looks, 3)[0], looks, 0.5).tolist() == [True, False, False, False]


def test_followed_faces_are_where_a_search_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, searched = face(22), []
    whole = detect(frames, 0.9)

    def counting(part: np.ndarray, *rest: float) -> list[Faces]:
        searched.append(len(part))
        return detect(part, *rest)

    monkeypatch.setattr(face_search, "detect", counting)
    found = follow(frames, [0.0] * 22, 0.9)
    assert sum(searched) == 6  # frames 0, 5, 10, 15, 20, 21
    for here, there in zip(found, whole, strict=True):
        assert len(here.boxes) == 1
        assert box_iou(here.boxes[0], there.boxes[0]) > 0.75
        assert np.abs(here.landmarks[0] - there.landmarks[0]).max() < 0.08 * face_size(there.boxes[0])
    searched.clear()
    watch = Watch(1, 0.9)
    for part in np.split(frames[:20], 4):
        watch.add(part, View(1.0))
    assert searched == [1, 1, 1, 1, 1]  # the first, and the last of each part: parts know what came before
    assert [len(faces.boxes) for faces in watch.looks.faces] == [1] * 20


def test_where_a_face_comes_or_the_picture_jumps_all_is_searched() -> None:
    alone, pair = face(6), face(6, person=2)
    room = np.full_like(alone, 128)
    frames = np.concatenate([np.concatenate([alone, room], axis=2)[:3], np.concatenate([alone, pair], axis=2)[3:]])
    assert [len(faces.boxes) for faces in follow(frames, [0.0] * 6, 0.9)] == [1, 1, 1, 2, 2, 2]
    cut = np.concatenate([alone[:3], np.full_like(alone[:3], 90)])
    assert [len(faces.boxes) for faces in follow(cut, [0.0, 1, 1, 60, 1, 1], 0.9)] == [1, 1, 1, 0, 0, 0]


def test_a_small_face_is_searched_for_once_the_large_one_is_gone() -> None:
    large = face(8, size_px=128)
    small = np.full_like(large, 128)
    small[:, 40:88, 40:88] = face(8, size_px=128)[:, 16:112:2, 16:112:2]
    found = follow(np.concatenate([large[:6], small[:6]]), [0.0] * 6 + [60.0] + [0.0] * 5, 0.9)
    sizes = [float(face_size(faces.boxes).max(initial=0)) for faces in found]
    assert min(sizes[:6]) > 40
    assert all(10 < size < 35 for size in sizes[6:])
