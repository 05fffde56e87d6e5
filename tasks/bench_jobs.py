"""What the workers of `head3d bench prepare` do: parts of the preparation alone, each on the same videos."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from tasks.crop_plan import Refused
from tasks.crop_video import CropJob, find_clips
from tasks.footage import Footage
from tasks.parse_clip import ParseJob
from tasks.segment import segment
from tasks.stores import array, open_store
from tasks.video import probe
from tasks.video_stream import stream_frames


@dataclass(frozen=True)
class Reading:
    """A video, and how much of it the pipeline reads."""

    job: CropJob
    frames: int


def frames_read(job: CropJob) -> int:
    """How many frames of a video the pipeline decodes before it has its clips (or gives up)."""
    info = probe(job.path)
    footage = Footage(job.path, info, job.crop)
    with contextlib.suppress(Refused):
        find_clips(job, info, footage, None)
    return len(footage.times)


def decode(reading: Reading) -> int:
    """Decode the frames that the pipeline reads, and nothing else."""
    info = probe(reading.job.path)
    count = 0
    for _ in stream_frames(reading.job.path, info):
        count += 1
        if count >= reading.frames:
            break
    return count


def decode_and_look(reading: Reading) -> int:
    """Decode these frames and find the faces in them."""
    footage = Footage(reading.job.path, probe(reading.job.path), reading.job.crop)
    footage.read(reading.frames)
    return len(footage.looks.faces)


def parse_alone(job: ParseJob) -> int:
    """Label a clip that lies in the store; nothing is written."""
    group = open_store(job.clips)
    frames, landmarks, box = (np.asarray(array(group, name)[job.row]) for name in ("frames", "landmarks", "face_box"))
    return len(segment(frames, landmarks, box, job.settings, job.device))
