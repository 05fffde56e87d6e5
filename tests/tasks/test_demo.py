"""The demo renderer against its own truth: geometry, motion, determinism, and what a face detector sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import Demo
from tasks.demo import DemoJob, Rendered, render, render_video, write_truth
from tasks.demo_motion import Tracks, make_tracks, rotation
from tasks.demo_person import HAIR_STYLES, generator, make_person
from tasks.demo_render import DISTANCE_M, HeadRenderer, focal_px, pose_points, project
from tasks.video import read_frames, write_video

SIZE = 96
FRAMES = 12


def still(yaw_deg: list[float], mouth: float = 0.0) -> Tracks:
    """Tracks with these yaws and nothing else."""
    count = len(yaw_deg)
    zeros = np.zeros(count)
    return Tracks(
        yaw_deg=np.array(yaw_deg),
        pitch_deg=zeros,
        roll_deg=zeros,
        translation_m=np.zeros((count, 3)),
        mouth=np.full(count, mouth),
        smile=zeros,
        blink=zeros,
        brow=zeros,
        gaze=np.zeros((count, 2)),
    )


def job(folder: Path, frames: int = FRAMES) -> DemoJob:
    """One small demo video."""
    demo = Demo(people=1, frames=frames, size_px=SIZE, fps=25, max_yaw_deg=30.0)
    return DemoJob(index=0, seed=0, demo=demo, folder=folder)


@pytest.fixture(scope="module")
def renderer() -> HeadRenderer:
    return HeadRenderer(make_person(0, 0), SIZE, np.zeros(3))


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return render(job(Path()))


def test_nose_moves_left_at_positive_yaw() -> None:
    nose = np.array([[0.0, 0.0, -0.05]])
    middle = (128 - 1) / 2
    for yaw_deg, moved_px in ((0.0, 0.0), (10.0, -6.6), (30.0, -19.0)):
        x, y = project(pose_points(nose, rotation(yaw_deg, 0, 0), np.zeros(3)), 128)[0]
        assert x - middle == pytest.approx(moved_px, abs=0.1)
        assert y == pytest.approx(middle)


def test_pitch_looks_down_and_roll_tilts_clockwise() -> None:
    assert (rotation(0, 10, 0) @ [0, 0, -1])[1] > 0  # the nose goes down the picture
    assert (rotation(0, 0, 10) @ [1, 0, 0])[1] > 0  # the ear at the right of the picture goes down
    turn = rotation(20, 10, 5)
    assert np.allclose(turn @ turn.T, np.eye(3))
    assert np.linalg.det(turn) == pytest.approx(1)


def test_depth_is_that_of_the_landmarks(renderer: HeadRenderer) -> None:
    """The truth depth at a landmark's pixel, taken back to the head's frame, is the same place in every view."""
    places = []
    for yaw_deg in (0.0, 12.0, -12.0):
        frame = renderer.frame(still([yaw_deg]), 0)
        x, y = frame.landmarks[2]  # the nose tip is seen from all three
        depth = frame.depth[round(float(y)), round(float(x))]
        camera = np.array([(x - (SIZE - 1) / 2) / focal_px(SIZE), (y - (SIZE - 1) / 2) / focal_px(SIZE), 1.0]) * depth
        places.append((camera - [0, 0, DISTANCE_M]) @ rotation(yaw_deg, 0, 0))
    assert places[0][2] == pytest.approx(-0.05, abs=0.003)
    for other in places[1:]:
        assert np.abs(other - places[0]).max() < 0.0015


def test_surface_of_one_view_predicts_another(renderer: HeadRenderer) -> None:
    """Eq. 3 carries every pixel of the frontal depth into a turned view; where it is visible, the depths agree."""
    tracks = still([0.0, 15.0])
    front, turned = renderer.frame(tracks, 0), renderer.frame(tracks, 1)
    rows, columns = np.nonzero(front.depth)
    rays = np.stack([columns - (SIZE - 1) / 2, rows - (SIZE - 1) / 2, np.full(len(rows), focal_px(SIZE))], axis=1)
    camera = rays / focal_px(SIZE) * front.depth[rows, columns][:, None]
    moved = pose_points(camera - [0, 0, DISTANCE_M], rotation(15, 0, 0), np.zeros(3))
    x, y = np.rint(project(moved, SIZE)).astype(int).T
    seen = turned.depth[y, x]
    gap = moved[:, 2] - seen
    visible = (seen > 0) & (gap < 0.006)  # what lies deeper is hidden by something nearer
    assert visible.mean() > 0.85
    assert np.median(np.abs(gap[visible])) < 0.0006
    assert (gap[seen > 0] < -0.006).mean() < 0.01  # nothing may lie in front of the surface that is seen


def test_depth_is_solid_and_in_range(renderer: HeadRenderer) -> None:
    for index in (1, 3, 6):  # long, curly, quiff with glasses
        person = make_person(0, index)
        frame = HeadRenderer(person, 64, np.zeros(3)).frame(still([40.0], mouth=1.0), 0)
        head = frame.depth > 0
        assert 0.9 < frame.depth[head].min() < 0.97
        assert frame.depth.max() < 1.1
        inner = np.zeros_like(head)
        inner[26:38, 26:38] = True
        assert head[inner].all(), f"holes in the head of style {person.look.hair_style}"
        tall = np.nonzero(head.any(axis=1))[0]
        assert 0.55 < (tall[-1] - tall[0] + 1) / 64 < 0.78


def test_mouth_moves_the_chin(renderer: HeadRenderer) -> None:
    shut, wide = renderer.frame(still([0.0], 0.0), 0), renderer.frame(still([0.0], 1.0), 0)
    lowest = [np.nonzero(frame.depth[:, SIZE // 2] > 0)[0].max() for frame in (shut, wide)]
    assert lowest[1] >= lowest[0] + 2
    again = renderer.frame(still([0.0], 0.0), 0)
    assert np.array_equal(again.image, shut.image), "an open mouth must leave no trace in the next frame"


def test_tracks_are_wide_bounded_and_smooth() -> None:
    for index in range(24):
        tracks = make_tracks(generator(3, index, 1), 88, 25.0, 45.0, index % 3 == 0)
        for half in (tracks.yaw_deg[:44], tracks.yaw_deg[44:]):
            assert half.max() >= 20
            assert half.min() <= -20
        assert np.abs(tracks.yaw_deg).max() <= 45
        assert np.abs(tracks.pitch_deg).max() <= 15
        assert np.abs(tracks.roll_deg).max() <= 10
        assert np.abs(tracks.translation_m).max() <= 0.025
        for angle in (tracks.yaw_deg, tracks.pitch_deg, tracks.roll_deg):
            assert np.abs(np.diff(angle)).max() < 10
            assert np.abs(np.diff(angle, 2)).max() < 3
        assert np.abs(np.diff(tracks.translation_m, axis=0)).max() < 0.002
        assert tracks.blink.max() == 1
        assert tracks.mouth.max() > 0.4
        assert tracks.mouth.min() < 0.1
    assert np.abs(make_tracks(generator(0, 0, 1), 88, 25.0, 10.0, True).yaw_deg).max() <= 10


def test_people_differ() -> None:
    people = [make_person(0, index) for index in range(12)]
    looks = {(p.look.hair_style, p.look.hair, p.look.skin) for p in people}
    assert len(looks) == 12
    assert {p.look.hair_style for p in people} == set(HAIR_STYLES)
    assert 0 < sum(bool(p.look.glasses) for p in people) < 12
    assert make_person(0, 3) == make_person(0, 3) != make_person(1, 3)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    files = []
    threads = torch.get_num_threads()
    for name, count in (("a", 1), ("b", 2)):
        one = job(tmp_path / name, frames=2)
        one.folder.mkdir()
        torch.set_num_threads(count)
        try:
            render_video(one)
        finally:
            torch.set_num_threads(threads)
        files.append((one.path.read_bytes(), one.truth_path.read_bytes()))
        assert one.finished()
        assert sorted(p.name for p in one.folder.iterdir()) == [one.path.name, one.truth_path.name]
    assert files[0] == files[1]


def test_files_hold_frames_and_truth(tmp_path: Path, rendered: Rendered) -> None:
    one = job(tmp_path)
    write_truth(one.truth_path, rendered)
    write_video(one.path, rendered.frames, 25)
    frames = read_frames(one.path)
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    assert np.abs(frames.astype(int) - rendered.frames).mean() < 6
    truth = np.load(one.truth_path)
    assert truth["depth"].dtype == np.float16
    assert truth["depth"].shape == (FRAMES, SIZE, SIZE)
    assert np.array_equal(truth["head"] > 0, truth["depth"] > 0)
    assert truth["landmarks"].shape == (FRAMES, 5, 2)
    assert truth["translation_m"].shape == (FRAMES, 3)
    assert np.allclose(truth["yaw_deg"], rendered.tracks.yaw_deg, atol=1e-4)


def test_mask_and_landmarks_belong_together(rendered: Rendered) -> None:
    for depth, points in zip(rendered.depth, rendered.landmarks, strict=True):
        x, y = np.rint(points[2]).astype(int)
        assert (depth[y - 1 : y + 2, x - 1 : x + 2] > 0).any(), "the nose tip lies on the head"
        assert points[0, 0] < points[1, 0]
        assert points[3, 0] < points[4, 0]
        assert points[:2, 1].max() < points[2, 1] < points[3:, 1].min()
    assert (rendered.depth[:, -6:] == 0).all(), "shoulders are no part of the head"


def test_detector_finds_the_faces() -> None:
    """MTCNN sees the rendered people as it sees filmed ones, and its landmarks lie where they are."""
    from facenet_pytorch import MTCNN

    images, points = [], []
    for index in (1, 6):
        head = HeadRenderer(make_person(0, index), 256, np.zeros(3))
        for yaw_deg in (-25.0, 0.0, 20.0):
            frame = head.frame(still([yaw_deg]), 0)
            images.append(frame.image)
            points.append(frame.landmarks)
    boxes, scores, found = MTCNN(keep_all=True, min_face_size=32).detect(np.stack(images), landmarks=True)
    for box, score, marks, true in zip(boxes, scores, found, points, strict=True):
        assert score[0] is not None
        assert score.max() >= 0.9
        best = int(np.argmax(score))
        assert np.linalg.norm(marks[best].astype(float) - true, axis=1).mean() < 0.04 * 256
        assert box[best][0] < true[2, 0] < box[best][2]
