"""Animate one video's person by another video, with the trained model; nothing but the two files is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from models.config import Crop, Parse
from models.head3d import Head3D, Subject
from tasks.crop_plan import Refused, plan_clips, square_around
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.face_search import look_at
from tasks.frames import to_uint8
from tasks.labels import head_mask
from tasks.progress import progress
from tasks.references import choose_references
from tasks.segment import SegmentationError, segment
from tasks.trained import load_model, load_preparation
from tasks.video import VideoError, iterate_frames, probe, write_video

CHUNK = 64
"""Frames that are segmented and animated at a time."""


class HeadVideo(NamedTuple):
    """A video prepared as the pipeline prepares it, whole.

    Attributes:
        frames: `(T, S, S, 3)` uint8, cropped.
        head: Head masks, `(T, S, S)` uint8, 0/1.
        fps: Frames per second.
    """

    frames: np.ndarray
    head: np.ndarray
    fps: float

    def tensors(self, index: torch.Tensor | slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Some frames `(n, 3, S, S)` in [0, 1] and their masks `(n, 1, S, S)`."""
        where = index.numpy() if isinstance(index, torch.Tensor) else index
        images = torch.from_numpy(self.frames[where]).to(device).permute(0, 3, 1, 2).float() / 255
        return images, torch.from_numpy(self.head[where]).to(device)[:, None].float()


def prepare(path: Path, crop: Crop, parse: Parse, device: str) -> HeadVideo:
    """Crop and parse a whole video: every frame in which the main face is tracked.

    Args:
        path: The video.
        crop: How the model's training videos were cropped.
        parse: How they were parsed.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        Cropped frames and head masks.

    Raises:
        StageError: The video cannot be read, or shows no face to work with.
    """
    try:
        info = probe(path)
        stop = round(crop.max_seconds * info.fps)
        every = crop.detect_every_frames
        looks = look_at(
            iterate_frames(path, 0, stop, crop.detect_long_side_px, every), info.width, every, crop.min_confidence
        )
        looks.frames = min(max(looks.frames, info.frames), len(looks.faces) * every, stop)
        one = crop.model_copy(update={"clip_frames": 1, "clips_per_video": 1})
        track = plan_clips(looks, info.fps, info.width, info.height, one).track
        square = square_around(track.boxes, info.width, info.height, crop.margin)
        frames = [
            square.cut(frame, crop.size_px)
            for batch in iterate_frames(path, track.first, track.stop)
            for frame in batch
        ]
        count = len(frames)
        landmarks = square.to_crop(track.landmarks[:count], crop.size_px)
        boxes = square.to_crop(track.boxes[:count].reshape(-1, 2, 2), crop.size_px).reshape(-1, 4)
        parts = [
            segment(np.stack(frames[i : i + CHUNK]), landmarks[i : i + CHUNK], boxes[i : i + CHUNK], parse, device)
            for i in range(0, count, CHUNK)
        ]
    except (VideoError, Refused, SegmentationError) as error:
        raise StageError(f"{path.name}: {error}") from None
    return HeadVideo(np.stack(frames), head_mask(np.concatenate(parts), parse.head_labels), info.fps)


def subject_state(model: Head3D, person: HeadVideo, references: int, pick: str) -> Subject:
    """The canonical head of a prepared video.

    Args:
        model: The trained model.
        person: From `prepare`.
        references: N, how many frames make the canonical head; fewer if the video is shorter.
        pick: How they are chosen, see `choose_references`; the first chosen is s_ref.

    Returns:
        The subject, for `drive` and `view`.
    """

    def angles() -> torch.Tensor:
        parts = []
        for i in range(0, len(person.frames), CHUNK):
            images, masks = person.tensors(slice(i, i + CHUNK), model.device)
            parts.append(model.pose(images * masks).angles_deg.cpu())
        return torch.cat(parts)

    chosen = choose_references(len(person.frames), references, pick, angles)
    return model.subject(*person.tensors(chosen, model.device), reference=0)


def animate(
    subject: Path,
    driving: Path,
    out: Path,
    *,
    checkpoints: Path,
    device: str,
    mode: str,
    references: int,
    pick: str = "even",
) -> dict[str, Any]:
    """Write a video of the subject that moves as the driving video does (Sec. 3.4).

    Args:
        subject: Video of the person to show.
        driving: Video with the motion.
        out: The mp4 to write.
        checkpoints: Folder with geometry/, canonical/ and fusion/.
        device: auto, cpu, cuda or cuda:N.
        mode: absolute (the driving head's pose) or relative (its change, from the reference's pose).
        references: N, how many frames of the subject make the canonical head.
        pick: How these are chosen: even (in time) or spread (by pose).

    Returns:
        Frames, size, fps and device.

    Raises:
        StageError: The model is not trained, or one of the videos cannot be used.
    """
    where = choose_device(device)
    model = load_model(checkpoints, where)
    crop, parse = load_preparation(checkpoints)
    person, motion = (prepare(video, crop, parse, device) for video in (subject, driving))
    state = subject_state(model, person, references, pick)
    first = None
    if mode == "relative":
        images, masks = motion.tensors(slice(0, 1), where)
        first = model.pose(images * masks)
    frames = []
    with progress("animate", len(motion.frames), "frame") as bar:
        for i in range(0, len(motion.frames), CHUNK):
            images, masks = motion.tensors(slice(i, i + CHUNK), where)
            frames.append(to_uint8(model.drive(state, images, masks, first).image))
            bar.update(len(images))
    write_video(out, np.concatenate(frames), motion.fps)
    return {"frames": len(motion.frames), "size_px": crop.size_px, "fps": round(motion.fps, 3), "device": str(where)}
