"""The embedded demo set: talking heads that were rendered, with depth, pose and head mask to judge the geometry by."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.config import Acquire, Demo, Runtime
from tasks.demo_motion import Tracks, make_tracks
from tasks.demo_person import generator, make_person
from tasks.demo_render import HeadRenderer
from tasks.disk import whole_file
from tasks.errors import StageError
from tasks.video import write_video
from tasks.workers import Outcome, run_jobs

_WIDE_EVERY = 3
"""Every third person turns all the way to `max_yaw_deg`."""


@dataclass(frozen=True)
class DemoJob:
    """One video to render."""

    index: int
    seed: int
    demo: Demo
    folder: Path

    @property
    def video(self) -> str:
        """Its id, and its person's."""
        return f"person{self.index:03d}"

    @property
    def path(self) -> Path:
        """The mp4; it appears last, when its truth is already there."""
        return self.folder / f"{self.video}.mp4"

    @property
    def truth_path(self) -> Path:
        """The ground truth beside it."""
        return self.folder / f"{self.video}.truth.npz"

    def finished(self) -> bool:
        """Both files are there; each appears only when it is complete."""
        return self.path.is_file() and self.truth_path.is_file()


@dataclass(frozen=True)
class Rendered:
    """A demo video in memory with its truth; see `write_truth` for the units."""

    frames: np.ndarray  # (T, H, W, 3) uint8
    depth: np.ndarray  # (T, H, W) float16
    landmarks: np.ndarray  # (T, 5, 2) float32
    tracks: Tracks


def demo_jobs(acquire: Acquire, folder: Path) -> list[DemoJob]:
    """The videos of the set, one a person.

    Args:
        acquire: The settings.
        folder: Where the files go.
    """
    return [DemoJob(index, acquire.seed, acquire.demo, folder) for index in range(acquire.demo.people)]


def render(job: DemoJob) -> Rendered:
    """Draw a video; the same job gives the same pixels on one machine.

    Args:
        job: Which.

    Returns:
        Frames and truth.
    """
    demo = job.demo
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and so the last bit, must not depend on the cores
    try:
        wide = job.index % _WIDE_EVERY == 0
        tracks = make_tracks(generator(job.seed, job.index, 1), demo.frames, demo.fps, demo.max_yaw_deg, wide)
        renderer = HeadRenderer(make_person(job.seed, job.index), demo.size_px, tracks.translation_m.mean(axis=0))
        frames = np.empty((demo.frames, demo.size_px, demo.size_px, 3), np.uint8)
        depth = np.empty((demo.frames, demo.size_px, demo.size_px), np.float16)
        landmarks = np.empty((demo.frames, 5, 2), np.float32)
        for index in range(demo.frames):
            frame = renderer.frame(tracks, index)
            frames[index], depth[index], landmarks[index] = frame.image, frame.depth, frame.landmarks
    finally:
        torch.set_num_threads(threads)
    return Rendered(frames, depth, landmarks, tracks)


def write_truth(path: Path, rendered: Rendered) -> None:
    """Write the ground truth of a video as a compressed npz; it appears only when it is complete.

    Args:
        path: The file. Arrays: depth `(T, H, W)` f2, metres, 0 where there is no head; head `(T, H, W)` u1, 1 on the
            head; yaw_deg, pitch_deg, roll_deg `(T,)` f4; translation_m `(T, 3)` f4; landmarks `(T, 5, 2)` f4, pixels
            (x, y) of the eye centres (left in the picture first), nose tip and mouth corners, also where hidden.
        rendered: The video.
    """
    tracks = rendered.tracks
    with whole_file(path, shared=True) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            depth=rendered.depth,
            head=(rendered.depth > 0).astype(np.uint8),
            yaw_deg=tracks.yaw_deg.astype(np.float32),
            pitch_deg=tracks.pitch_deg.astype(np.float32),
            roll_deg=tracks.roll_deg.astype(np.float32),
            translation_m=tracks.translation_m.astype(np.float32),
            landmarks=rendered.landmarks,
        )


def render_video(job: DemoJob) -> None:
    """Render a video into its two files (one job of a worker process)."""
    rendered = render(job)
    write_truth(job.truth_path, rendered)
    write_video(job.path, rendered.frames, job.demo.fps)


def render_set(jobs: Sequence[DemoJob], runtime: Runtime) -> float:
    """Render the videos that are not there yet, in worker processes.

    Args:
        jobs: The whole set; what a killed run has finished stays.
        runtime: Workers and deadline.

    Returns:
        Seconds it took.

    Raises:
        StageError: A video could not be rendered.
    """
    started = time.monotonic()
    missing = [job for job in jobs if not job.finished()]
    failures: list[str] = []

    def note(index: int, outcome: Outcome) -> None:
        if outcome.kind != "ok":
            failures.append(f"{missing[index].video}: {outcome.detail}")

    if missing:
        for folder in {job.folder for job in missing}:
            folder.mkdir(parents=True, exist_ok=True)
            for stray in folder.glob(".*.partial"):
                stray.unlink(missing_ok=True)
        run_jobs(
            render_video,
            missing,
            workers=runtime.workers,
            deadline_s=runtime.video_deadline_s,
            label="acquire",
            on_result=note,
            initial=len(jobs) - len(missing),
        )
    if failures:
        raise StageError(
            f"{len(failures)} of {len(jobs)} demo videos could not be rendered ({failures[0]}); run the stage again: "
            "it goes on with the missing ones"
        )
    return time.monotonic() - started
