"""720p videos for `head3d bench prepare` where the caller names none: the demo's people before a grainy room."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from models.config import Demo
from tasks.demo import DemoJob, render
from tasks.errors import StageError
from tasks.video import write_video
from tasks.workers import Outcome, run_jobs

WIDTH, HEIGHT, FPS = 1280, 720, 25
HEAD_PX, SIDE_PX = 256, 512
"""A person is rendered at the first size and shown at the second."""
GRAIN, CRF = 2, 23
"""Camera noise, and a quality at which a 720p video has about 2 to 5 Mbit/s, as downloaded ones have."""
DEADLINE_S = 600.0
DISTINCT = 2
"""So many videos are drawn; the others are copies of their files, which cost as much to decode."""


def bench_videos(folder: Path, count: int, frames: int) -> list[Path]:
    """Draw the videos.

    Args:
        folder: Where they go.
        count: How many.
        frames: Of each.

    Returns:
        Their paths.

    Raises:
        StageError: They cannot be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"bench{index:03d}.mp4" for index in range(count)]
    # In processes of their own: a hundred 720p frames would show in this one's peak memory.
    run_jobs(
        draw,
        [Scene(index, frames, path) for index, path in enumerate(paths[:DISTINCT])],
        workers=DISTINCT,
        deadline_s=DEADLINE_S,
        label="bench: draw",
        on_result=_must_work,
    )
    for index, path in enumerate(paths[DISTINCT:]):
        shutil.copyfile(paths[index % DISTINCT], path)
    return paths


@dataclass(frozen=True)
class Scene:
    """A video to draw."""

    person: int
    frames: int
    path: Path


def draw(scene: Scene) -> None:
    """Draw a video (one job of a worker)."""
    write_video(scene.path, _scene(scene.person, scene.frames), FPS, CRF)


def _must_work(_index: int, outcome: Outcome) -> None:
    if outcome.kind != "ok":
        raise StageError(f"the benchmark's videos cannot be drawn ({outcome.detail}); name some of your own")


def _scene(person: int, frames: int) -> np.ndarray:
    """`(frames, 720, 1280, 3)` u1: a head that turns, in a room with grain as cameras have it."""
    half = -(-frames // 2)
    demo = Demo(people=DISTINCT, frames=half, size_px=HEAD_PX, fps=FPS, max_yaw_deg=20.0)
    shown = render(DemoJob(person, 7, demo, Path())).frames
    both = np.concatenate([shown, shown[::-1]])[:frames]
    rng = np.random.default_rng(person)
    room = cv2.resize(rng.integers(40, 190, (9, 16, 3), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(-GRAIN, GRAIN + 1, (HEIGHT * 2, WIDTH * 2), dtype=np.int16)
    out = np.empty((frames, HEIGHT, WIDTH, 3), np.uint8)
    top, left = (HEIGHT - SIDE_PX) // 2, (WIDTH - SIDE_PX) // 2
    for index, head in enumerate(both):
        out[index] = room
        out[index, top : top + SIDE_PX, left : left + SIDE_PX] = cv2.resize(
            head, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC
        )
        y, x = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        noise = grain[y : y + HEIGHT, x : x + WIDTH, None]
        out[index] = np.clip(out[index].astype(np.int16) + noise, 0, 255).astype(np.uint8)
    return out
