"""Animate one video's person by another video, with the trained model; nothing but the two files is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from models.config import Crop, Notices, Parse, Quality
from models.head3d import Head3D, Subject
from models.pose_net import HeadPose
from tasks.crop_plan import Refused, plan_clips, square_around
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.face_search import look_at
from tasks.faces import FrameTrack, Looks, overlap
from tasks.frames import to_uint8
from tasks.labels import head_mask
from tasks.notices import (
    Finding,
    loose_share,
    lost_finding,
    mask_findings,
    notices,
    pose_findings,
    side_finding,
    trained_range,
    unseen_share,
)
from tasks.progress import progress
from tasks.quality import measure
from tasks.references import choose_references
from tasks.segment import SegmentationError, segment
from tasks.trained import load_model, load_preparation
from tasks.video import VideoError, iterate_frames, probe, write_video

CHUNK = 64
"""Frames that are segmented and animated at a time."""


class Limits(NamedTuple):
    """Beyond which figures a notice is given.

    Attributes:
        quality: The section `quality` of params.yaml.
        notices: The section `notices`.
    """

    quality: Quality
    notices: Notices


class HeadVideo(NamedTuple):
    """A video prepared as the pipeline prepares it, whole.

    Attributes:
        frames: `(T, S, S, 3)` uint8, cropped.
        head: Head masks, `(T, S, S)` uint8, 0/1.
        fps: Frames per second.
        measures: Those of `tasks.quality.measure`, `loose_share`, and `lost_share`: of the frames looked at, those
            without the followed face.
    """

    frames: np.ndarray
    head: np.ndarray
    fps: float
    measures: dict[str, float]

    def tensors(self, index: torch.Tensor | slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Some frames as the networks take them.

        Args:
            index: Which ones.
            device: Where they shall lie.

        Returns:
            Frames `(n, 3, S, S)` in [0, 1] and their head masks `(n, 1, S, S)`.
        """
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
    class_ids, pictures = np.concatenate(parts), np.stack(frames)
    head = head_mask(class_ids, parse.head_labels)
    measures = {
        **measure(pictures, class_ids, landmarks),
        "loose_share": loose_share(head),
        "lost_share": lost_share(looks, track),
    }
    return HeadVideo(pictures, head, info.fps, measures)


def lost_share(looks: Looks, track: FrameTrack) -> float:
    """Share of the looks at a video in which the followed face was not found.

    Args:
        looks: What was seen of the video.
        track: The face that is followed.

    Returns:
        In [0, 1]; a look before or after the track counts as lost.
    """
    found = 0
    for number, faces in enumerate(looks.faces):
        frame = number * looks.every
        if track.first <= frame < track.stop:
            box = track.boxes[frame - track.first]
            found += any(overlap(other, box) > 0 for other in faces.boxes)
    return 1 - found / max(len(looks.faces), 1)


class ReadySubject(NamedTuple):
    """A subject and what it was made of.

    Attributes:
        state: For `Head3D.drive` and `Head3D.view`.
        frames: The reference frames, `(N,)`; the first is s_ref.
        angles_deg: Their (yaw, pitch, roll) by F_P, `(N, 3)`, degrees.
    """

    state: Subject
    frames: torch.Tensor
    angles_deg: torch.Tensor


def subject_state(model: Head3D, person: HeadVideo, references: int, pick: str) -> ReadySubject:
    """The canonical head of a prepared video.

    Args:
        model: The trained model.
        person: From `prepare`.
        references: N, how many frames make the canonical head; fewer if the video is shorter.
        pick: How they are chosen, see `choose_references`; the first chosen is s_ref.

    Returns:
        The subject with its reference frames and their poses.
    """

    def angles() -> torch.Tensor:
        parts = []
        for i in range(0, len(person.frames), CHUNK):
            images, masks = person.tensors(slice(i, i + CHUNK), model.device)
            parts.append(model.pose(images * masks).angles_deg.cpu())
        return torch.cat(parts)

    chosen = choose_references(len(person.frames), references, pick, angles)
    images, masks = person.tensors(chosen, model.device)
    return ReadySubject(model.subject(images, masks, reference=0), chosen, model.pose(images * masks).angles_deg.cpu())


def video_findings(video: HeadVideo, crop: Crop, limits: Limits) -> list[Finding]:
    """What a prepared video's masks and face track say.

    Args:
        video: From `prepare`.
        crop: How it was cropped; its share of frames in which a clip must show the face holds here, too.
        limits: The limits.

    Returns:
        One finding for each figure, see `tasks.notices`.
    """
    lost = lost_finding(video.measures["lost_share"], crop.min_detected_fraction)
    return [*mask_findings(video.measures, limits.quality, limits.notices), lost]


def subject_notices(person: HeadVideo, ready: ReadySubject, crop: Crop, limits: Limits) -> list[str]:
    """Why the subject's canonical head is not to be trusted (Fig. 7).

    Args:
        person: The subject's video.
        ready: Its references and canonical head.
        crop: How it was cropped.
        limits: The limits.

    Returns:
        Sentences, the worst first; none if nothing is beyond its limit.
    """
    unseen = unseen_share(ready.state.head.mask[0, 0].cpu().numpy())
    side = side_finding(ready.angles_deg[:, 0].numpy(), unseen, limits.notices)
    return notices([*video_findings(person, crop, limits), side], "subject video")


def driving_notices(
    motion: HeadVideo, angles_deg: torch.Tensor, model: Head3D, crop: Crop, limits: Limits, checkpoints: Path
) -> list[str]:
    """Why the output is not to be trusted in some driving frames.

    Args:
        motion: The driving video.
        angles_deg: (yaw, pitch, roll) that the head shall have, `(T, 3)`, degrees.
        model: Its camera has the bound on the angles.
        crop: How the video was cropped.
        limits: The limits.
        checkpoints: The training's poses are looked for beside this folder.

    Returns:
        Sentences, the worst first.
    """
    trained = trained_range(checkpoints.parent)
    poses = pose_findings(angles_deg.cpu().numpy(), trained, model.camera.max_angle_deg, limits.notices)
    return notices([*video_findings(motion, crop, limits), *poses], "driving video")


def animate(
    subject: Path,
    driving: Path,
    out: Path,
    *,
    checkpoints: Path,
    device: str,
    mode: str,
    references: int,
    limits: Limits,
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
        limits: When a notice is given.
        pick: How these are chosen: even (in time) or spread (by pose).

    Returns:
        Frames, size, fps and device; `notices`, why the result is not to be trusted.

    Raises:
        StageError: The model is not trained, or one of the videos cannot be used.
    """
    where = choose_device(device)
    model = load_model(checkpoints, where)
    crop, parse = load_preparation(checkpoints)
    person, motion = (prepare(video, crop, parse, device) for video in (subject, driving))
    ready = subject_state(model, person, references, pick)
    first = None
    if mode == "relative":
        images, masks = motion.tensors(slice(0, 1), where)
        first = model.pose(images * masks)
    frames, angles = [], []
    with progress("animate", len(motion.frames), "frame") as bar:
        for i in range(0, len(motion.frames), CHUNK):
            images, masks = motion.tensors(slice(i, i + CHUNK), where)
            frames.append(to_uint8(model.drive(ready.state, images, masks, first).image))
            angles.append(wanted_angles(model, ready.state, model.pose(images * masks), first))
            bar.update(len(images))
    write_video(out, np.concatenate(frames), motion.fps)
    said = [
        *subject_notices(person, ready, crop, limits),
        *driving_notices(motion, torch.cat(angles), model, crop, limits, checkpoints),
    ]
    return {
        "frames": len(motion.frames),
        "size_px": crop.size_px,
        "fps": round(motion.fps, 3),
        "device": str(where),
        "notices": said,
    }


def wanted_angles(model: Head3D, state: Subject, driving: HeadPose, first: HeadPose | None) -> torch.Tensor:
    """The angles that `Head3D.drive` gives the head.

    Args:
        model: Its camera has the bound.
        state: The subject.
        driving: Poses of the driving frames.
        first: Pose of the first one in the relative mode; None in the absolute one.

    Returns:
        (yaw, pitch, roll), `(B, 3)`, degrees.
    """
    if first is None:
        return driving.angles_deg
    limit = model.camera.max_angle_deg
    return (state.reference_pose.angles_deg + driving.angles_deg - first.angles_deg).clamp(-limit, limit)
