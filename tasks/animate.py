"""Animate one video's person by another video, with the trained model; nothing but the two files is needed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from models.config import Crop, Notices, Quality
from models.engine import PRECISIONS, Engine, Precision, choose_precision, rounding
from models.head3d import Head3D, Subject
from tasks.animate_files import DRIVING_OUT, SIDE_BY_SIDE, AnimatedFiles, check_files
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.notices import (
    Finding,
    lost_finding,
    mask_findings,
    notices,
    pose_findings,
    side_finding,
    trained_range,
    unseen_share,
)
from tasks.prepared import PIECE, HeadVideo, Measured, find_face, pieces, prepare
from tasks.progress import progress
from tasks.references import choose_references
from tasks.trained import load_model, load_preparation

BATCH_GPU, BATCH_CPU = 16, 8
"""Frames that the engine takes at a time."""


class Limits(NamedTuple):
    """Beyond which figures a notice is given.

    Attributes:
        quality: The section `quality` of params.yaml.
        notices: The section `notices`.
    """

    quality: Quality
    notices: Notices


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
        for i in range(0, len(person.frames), PIECE):
            images, masks = person.tensors(slice(i, i + PIECE), model.device)
            parts.append(model.pose(images * masks).angles_deg.cpu())
        return torch.cat(parts)

    areas = torch.from_numpy(person.head).flatten(1).sum(1)
    chosen = choose_references(areas, references, pick, angles)
    images, masks = person.tensors(chosen, model.device)
    return ReadySubject(model.subject(images, masks, reference=0), chosen, model.pose(images * masks).angles_deg.cpu())


def video_findings(measures: Mapping[str, float], crop: Crop, limits: Limits) -> list[Finding]:
    """What a prepared video's masks and face track say.

    Args:
        measures: Of `HeadVideo` or `Measured`.
        crop: How it was cropped; its share of frames in which a clip must show the face holds here, too.
        limits: The limits.

    Returns:
        One finding for each figure, see `tasks.notices`.
    """
    lost = lost_finding(measures["lost_share"], crop.min_detected_fraction)
    return [*mask_findings(measures, limits.quality, limits.notices), lost]


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
    return notices([*video_findings(person.measures, crop, limits), side], "subject video")


def driving_notices(
    measures: Mapping[str, float],
    angles_deg: torch.Tensor,
    model: Head3D,
    crop: Crop,
    limits: Limits,
    checkpoints: Path,
) -> list[str]:
    """Why the output is not to be trusted in some driving frames.

    Args:
        measures: Of the driving video.
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
    return notices([*video_findings(measures, crop, limits), *poses], "driving video")


class Wanted(NamedTuple):
    """How `animate` shall work.

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        mode: absolute (the driving head's pose) or relative (its change, from the reference's pose).
        references: N, how many frames of the subject make the canonical head.
        pick: How these are chosen: even (in time) or spread (by pose).
        precision: One of `models.engine.PRECISIONS`, or auto: the fastest that leaves the quality as it is.
        compiled: Let torch.compile work on the path; a GPU only, and worth its minute for long videos only.
        sound: Keep the driving video's sound.
        side_by_side: Also write s_ref, the driving video's crop and the output beside each other to this mp4.
        driving_out: Also write the driving video's crops to this mp4, for `head3d metrics`.
    """

    device: str
    mode: str
    references: int
    pick: str = "even"
    precision: str = "auto"
    compiled: bool = False
    sound: bool = True
    side_by_side: Path | None = None
    driving_out: Path | None = None

    def more_files(self) -> dict[str, Path]:
        """What is written beside the output: option -> file."""
        named = {SIDE_BY_SIDE: self.side_by_side, DRIVING_OUT: self.driving_out}
        return {option: file for option, file in named.items() if file is not None}


def check_wanted(wanted: Wanted, device: torch.device) -> None:
    """Refuse choices that do not go together, before a video is read.

    Args:
        wanted: The choices.
        device: Where the model will run.

    Raises:
        StageError: The precision is not known, or the device compiles nothing.
    """
    if wanted.precision not in ("auto", *PRECISIONS):
        raise StageError(f"precision {wanted.precision} is not known; take auto, {', '.join(PRECISIONS)}")
    if wanted.compiled and device.type == "cpu":
        raise StageError("torch.compile is for GPUs here; leave --compile out, or name a GPU with --device cuda")


def make_engine(model: Head3D, person: HeadVideo, ready: ReadySubject, wanted: Wanted) -> Engine:
    """An engine in the precision that is wanted.

    Args:
        model: The trained model.
        person: The subject's video; its reference frames judge the precision.
        ready: The subject.
        wanted: The choices, see `check_wanted`.
    """
    precision = wanted.precision
    if precision == "auto":
        at = ready.frames.numpy()
        shown = torch.from_numpy(person.frames[at]), torch.from_numpy(person.head[at])
        precision = choose_precision(model, ready.state, *shown)
    return Engine(model, cast("Precision", precision), compiled=wanted.compiled)


def animate(
    subject: Path, driving: Path, out: Path, *, checkpoints: Path, wanted: Wanted, limits: Limits
) -> dict[str, Any]:
    """Write a video of the subject that moves as the driving video does (Sec. 3.4), with the driving video's sound.

    The driving video may be of any length: it is read, animated and written piece by piece. Ctrl-C ends the file after
    the frames made so far, playable and with their sound; before the first frame it leaves no file.

    Args:
        subject: Video of the person to show.
        driving: Video with the motion.
        out: The mp4 to write.
        checkpoints: Folder with geometry/, canonical/ and fusion/.
        wanted: How.
        limits: When a notice is given.

    Returns:
        Frames, size, fps, device, precision, sound and seconds; `left_out`: which parts of the driving video are
        missing, as its face could not be followed there; `beside`: the other files; `stopped`: by Ctrl-C; `notices`,
        why the result is not to be trusted.

    Raises:
        StageError: `out` cannot be written, the choices do not fit, the model is not trained, or one of the videos
            cannot be used.
    """
    check_files(out, wanted.more_files(), subject, driving)
    where = choose_device(wanted.device)
    check_wanted(wanted, where)
    model = load_model(checkpoints, where)
    crop, parse = load_preparation(checkpoints)
    person = prepare(subject, crop, parse, wanted.device)
    with rounding(wanted.precision):
        ready = subject_state(model, person, wanted.references, wanted.pick)
    engine = make_engine(model, person, ready, wanted)
    video = find_face(driving, crop, None)
    measured, angles = Measured(video, crop.size_px), list[torch.Tensor]()
    reference, more = person.frames[int(ready.frames[0])], wanted.more_files()
    stopped, started = False, time.monotonic()
    files = AnimatedFiles(out, more, video, reference, sound=wanted.sound)
    with files, progress("animate", video.frames, "frame") as bar:
        try:
            for piece in pieces(video, crop, parse, wanted.device):
                frames, heads = torch.from_numpy(piece.frames), torch.from_numpy(piece.head)
                if not measured.seen:
                    relative = wanted.mode == "relative"
                    engine.start(ready.state, engine.pose_of(frames[:1], heads[:1]) if relative else None)
                made = engine.frames(frames, heads, BATCH_CPU if model.device.type == "cpu" else BATCH_GPU)
                files.add(piece, made.frames.numpy())
                measured.add(piece)
                angles.append(made.angles_deg)
                bar.update(len(frames))
        except KeyboardInterrupt:
            if not measured.seen:
                raise
            stopped = True
        if not files.frames:
            raise StageError(f"{driving.name}: no frame of it can be read a second time; copy the file anew")
    said = [
        *subject_notices(person, ready, crop, limits),
        *driving_notices(measured.figures(), torch.cat(angles), model, crop, limits, checkpoints),
    ]
    return {
        "frames": files.frames,
        "size_px": crop.size_px,
        "fps": round(video.info.fps, 3),
        "device": str(model.device),
        "precision": engine.precision,
        "sound": files.sound,
        "seconds": round(time.monotonic() - started, 1),
        **({"left_out": video.left_out} if video.left_out else {}),
        **({"beside": ", ".join(str(file) for file in more.values())} if more else {}),
        **({"stopped": f"by Ctrl-C after {files.frames} of {video.frames} frames"} if stopped else {}),
        "notices": [*said, *engine.notes],
    }
