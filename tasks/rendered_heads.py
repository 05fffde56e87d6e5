"""Rendered heads with known depth, pose and landmarks: what stage 1 can learn from and what it is judged on.

Every frame is drawn by itself, in a random pose with a random expression; the frames of a person lie together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tasks.demo_motion import Tracks
from tasks.demo_person import generator, make_person
from tasks.demo_render import DISTANCE_M, HeadRenderer
from tasks.errors import StageError
from tasks.progress import progress

if TYPE_CHECKING:
    from tasks.clip_data import ClipSet
    from tasks.workers import Outcome

MAX_YAW_DEG, MAX_PITCH_DEG, MAX_ROLL_DEG = 50.0, 25.0, 25.0
ZOOMS = (0.75, 1.1)
"""Size of a person's head relative to the demo's: crops show heads of different sizes."""
_PURPOSE = 7
"""Stream of random numbers of a person's poses; the demo draws its own from others."""
_DEADLINE_S = 1800.0
_NEAR_M = 0.03
"""The head moves so far towards the camera and away from it. The body, which keeps its distance, stands far enough back
that the neck does not hide the chin of a head that moved away."""


@dataclass(frozen=True)
class RenderedHeads:
    """Frames of rendered heads and their truth, in the convention of `models.geometry`; on the CPU.

    Attributes:
        images: `(n, 3, H, W)` uint8, with the background.
        masks: Head masks, `(n, 1, H, W)` uint8, 0/1.
        depth: `(n, H, W)` float16, metres; 0 outside the head.
        angles_deg: (yaw, pitch, roll), `(n, 3)` float32, degrees.
        translation_m: t_pred, `(n, 3)` float32, metres.
        landmarks: Eyes, nose tip and mouth corners, image-left first, `(n, 5, 2)` float32, pixels, also where hidden.
        person: Whose, `(n,)` int64; the frames of a person lie together.
    """

    images: Tensor
    masks: Tensor
    depth: Tensor
    angles_deg: Tensor
    translation_m: Tensor
    landmarks: Tensor
    person: Tensor

    def to(self, device: torch.device) -> RenderedHeads:
        """The same heads on another device."""
        return RenderedHeads(*(getattr(self, field.name).to(device) for field in fields(self)))

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.images)


@dataclass(frozen=True)
class PersonJob:
    """One person's frames (one job of a worker process)."""

    person: int
    frames: int
    size_px: int
    seed: int


def _poses(rng: np.random.Generator, frames: int) -> tuple[Tracks, float]:
    """Independent random poses and expressions of one person, and the zoom of that person's crop.

    The translations are those of the head as it is, before the zoom.
    """
    zoom = float(rng.uniform(*ZOOMS))
    # A crop's middle is not the head's: where the head is on average, and how it moves about there. The head stands a
    # little above the middle, so that the shoulders show.
    middle = rng.uniform((-0.008, -0.014, 0.0), (0.008, 0.002, 0.0))
    across = np.clip(rng.normal(0.0, 0.006, (frames, 2)), -0.015, 0.015)
    along = rng.uniform(-_NEAR_M, _NEAR_M, (frames, 1))
    tracks = Tracks(
        yaw_deg=rng.triangular(-MAX_YAW_DEG, 0.0, MAX_YAW_DEG, frames),
        pitch_deg=rng.triangular(-MAX_PITCH_DEG, 0.0, MAX_PITCH_DEG, frames),
        roll_deg=rng.triangular(-MAX_ROLL_DEG, 0.0, MAX_ROLL_DEG, frames),
        translation_m=middle + np.concatenate([across, along], axis=1),
        mouth=np.clip(rng.uniform(-0.4, 1.0, frames), 0.0, 1.0),
        smile=rng.uniform(-0.3, 1.0, frames),
        blink=np.where(rng.random(frames) < 0.15, rng.uniform(0.3, 1.0, frames), 0.0),
        brow=np.clip(rng.uniform(-0.4, 1.0, frames), 0.0, 1.0),
        gaze=rng.uniform(-1.0, 1.0, (frames, 2)) * np.array([0.35, 0.15]),
    )
    return tracks, zoom


def render_person(job: PersonJob) -> dict[str, np.ndarray]:
    """Draw one person's frames.

    Source: our choice. A crop that shows the head larger by s is taken for a head that is larger by s at the nominal
    distance (nobody knows a person's true size). A head s times as large, shifted s times as far, at the nominal
    distance gives exactly the picture of the head as it is seen from 1/s of that distance, so it is drawn from there.

    Args:
        job: Whose, how many, how large.

    Returns:
        The fields of `RenderedHeads` as arrays.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the demo does: the last bit must not depend on the cores
    try:
        tracks, zoom = _poses(generator(job.seed, job.person, _PURPOSE), job.frames)
        away = np.array([0.0, 0.0, DISTANCE_M / zoom - DISTANCE_M])
        drawn_at = Tracks(**{**vars(tracks), "translation_m": tracks.translation_m + away})
        body_at = drawn_at.translation_m.mean(axis=0) + np.array([0.0, 0.0, _NEAR_M])
        renderer = HeadRenderer(make_person(job.seed, job.person), job.size_px, body_at)
        frames = [renderer.frame(drawn_at, index) for index in range(job.frames)]
    finally:
        torch.set_num_threads(threads)
    depth = np.stack([frame.depth for frame in frames]) * zoom
    angles = np.stack([tracks.yaw_deg, tracks.pitch_deg, tracks.roll_deg], axis=1)
    return {
        "images": np.stack([frame.image for frame in frames]).transpose(0, 3, 1, 2).copy(),
        "masks": (depth > 0).astype(np.uint8)[:, None],
        "depth": depth.astype(np.float16),
        "angles_deg": angles.astype(np.float32),
        "translation_m": (tracks.translation_m * zoom).astype(np.float32),
        "landmarks": np.stack([frame.landmarks for frame in frames]),
        "person": np.full(job.frames, job.person, np.int64),
    }


def render_heads(first_person: int, people: int, frames: int, size_px: int, seed: int, workers: int) -> RenderedHeads:
    """Draw heads in random poses: yaw within 50 degrees, pitch and roll within 25, the middle more often.

    The same arguments give the same pixels, with any number of workers; a person's frames depend on the person's
    number and the seed alone, so that people of different numbers are never the same. With the demo's seed they are the
    demo's people.

    Args:
        first_person: Number of the first person.
        people: How many.
        frames: Of each.
        size_px: Side of a frame.
        seed: Of people and poses.
        workers: Processes; 1: this one.

    Returns:
        `people * frames` frames.

    Raises:
        StageError: A worker failed.
    """
    jobs = [PersonJob(first_person + index, frames, size_px, seed) for index in range(people)]
    parts: dict[int, dict[str, np.ndarray]] = {}
    if workers == 1:
        with progress("rendered heads", people, "person") as bar:
            for index, job in enumerate(jobs):
                parts[index] = render_person(job)
                bar.update()
    else:
        _in_processes(jobs, workers, parts)
    fields = {name: np.concatenate([parts[index][name] for index in range(people)]) for name in parts[0]}
    return RenderedHeads(**{name: torch.from_numpy(values) for name, values in fields.items()})


def _in_processes(jobs: list[PersonJob], workers: int, parts: dict[int, dict[str, np.ndarray]]) -> None:
    """Fill `parts` in worker processes."""
    from tasks.workers import run_jobs

    def note(index: int, outcome: Outcome) -> None:
        if outcome.kind != "ok":
            raise StageError(f"person {jobs[index].person} could not be rendered: {outcome.detail}")
        parts[index] = outcome.value

    run_jobs(
        render_person,
        jobs,
        workers=workers,
        deadline_s=_DEADLINE_S,
        label="rendered heads",
        on_result=note,
        unit="person",
    )


def as_clips(heads: RenderedHeads, clip_frames: int, device: torch.device) -> ClipSet:
    """Rendered heads as clips with their true landmarks: stage 1 trains on them as on videos.

    Args:
        heads: From `render_heads`.
        clip_frames: T; divides the frames of a person. 1 where poses are smoothed over time (`ClipSet.landmark_poses`),
            since these frames do not follow each other; a sample's frames are then drawn with `span: video`.
        device: Where the clips shall lie.

    Returns:
        Clips without geometry; the truth stays in `heads`, in the same order.

    Raises:
        ValueError: A clip would hold two people.
    """
    import pandas as pd

    from tasks.clip_data import ClipSet

    def cut(values: Tensor) -> Tensor:
        return values.unflatten(0, (-1, clip_frames)).to(device)

    whose = heads.person.unflatten(0, (-1, clip_frames)) if len(heads) % clip_frames == 0 else heads.person[None]
    if len(heads) % clip_frames or bool((whose != whose[:, :1]).any()):
        raise ValueError(f"clips of {clip_frames} frames would mix people; it must divide the frames of each person")
    rows: list[dict[str, Any]] = []
    for index, person in enumerate(whose[:, 0].tolist()):
        name = f"rendered{person}"
        rows.append({"clip": f"{name}_{index}", "video": name, "row": index, "identity": name, "split": "train"})
    return ClipSet(pd.DataFrame(rows), cut(heads.images), cut(heads.masks), cut(heads.landmarks))
