"""One video -> its clips: what a worker of the stage `crop` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from models.config import Crop
from tasks.clip_table import NOTHING
from tasks.crop_plan import Plan, Refused, plan_clips
from tasks.disk import save_arrays
from tasks.faces import face_size, sudden
from tasks.footage import Footage
from tasks.video import VideoError, VideoInfo, probe

WINDOW = 2.5
"""First, so many times the frames that the wanted clips need are read; as long as clips are missing, twice as many."""
STILL_GREY, REPEAT_GREY = 0.1, 0.05
"""Mean grey difference (of 255) of successive crops, shrunk to 32 x 32. A clip whose changes stay below the first (but
for one in four: encoders refresh a still now and then) stands still, and below the second a frame repeats the one
before. Quiet listeners reach 0.3."""
MANY_REPEATS = 0.25
FAST_FPS = 40.0
UNEVEN = 1.5
"""The longest time between two frames of a clip, over the usual one, from which its frame rate counts as variable."""


@dataclass(frozen=True)
class CropJob:
    """A video of the manifest.

    Attributes:
        index: Its place in the manifest.
        manifest: The columns that the clip table takes over, and `section` and `box` where the list has them.
        path: The file, absolute.
        crop: The settings.
        spool: File for the clips' arrays; made only if there are any.
    """

    index: int
    manifest: dict[str, str]
    path: Path
    crop: Crop
    spool: Path


@dataclass(frozen=True)
class Cut:
    """A plan and its clips `(T, S, S, 3)`."""

    plan: Plan
    frames: list[np.ndarray]


def crop_video(job: CropJob) -> list[dict[str, Any]]:
    """Find the face, cut the clips, leave their arrays in the spool.

    Args:
        job: The video.

    Returns:
        Rows of the clip table (without `row`): one per clip, or one that says why there is none.
    """
    try:
        info = probe(job.path)
    except VideoError as error:
        return [refusal(job, "error", error.reason, str(error))]
    source = {"fps": info.fps, "source_width": info.width, "source_height": info.height}
    section, box = job.manifest.get("section", ""), _box(job.manifest.get("box", ""), info)
    footage = Footage(job.path, info, job.crop, _section(section), box)
    try:
        cut = find_clips(job, info, footage, box)
    except VideoError as error:
        return [{**refusal(job, "error", error.reason, str(error)), **source}]
    except Refused as verdict:
        text = f"{verdict} (seconds {section})" if section else str(verdict)
        return [{**refusal(job, "rejected", verdict.reason, text), **source}]
    plan, length = cut.plan, job.crop.clip_frames
    pieces = [slice(start - plan.track.first, start - plan.track.first + length) for start in plan.starts]
    size_px = job.crop.size_px
    boxes = [plan.square.to_crop(plan.track.boxes[piece].reshape(-1, 2, 2), size_px).reshape(-1, 4) for piece in pieces]
    landmarks = [plan.square.to_crop(plan.track.landmarks[piece], size_px) for piece in pieces]
    save_arrays(job.spool, frames=np.stack(cut.frames), landmarks=np.stack(landmarks), face_box=np.stack(boxes))
    edges = dict(zip(("box_x0", "box_y0", "box_x1", "box_y1"), plan.square.box.tolist(), strict=True))
    return [
        {
            **refusal(job, "ok", "", _remark(job, info, footage, cut) if segment == 0 else ""),
            **source,
            **edges,
            "clip": f"{job.manifest['video']}_{segment}",
            "segment": segment,
            "start_frame": footage.first_frame + start,
            "end_frame": footage.first_frame + start + length,
            "face_px": round(float(np.median(face_size(plan.track.boxes[piece]))), 1),
        }
        for segment, (start, piece) in enumerate(zip(plan.starts, pieces, strict=True))
    ]


def refusal(job: CropJob, status: str, reason: str, detail: str) -> dict[str, Any]:
    """A row of the clip table for a video as a whole.

    Args:
        job: The video.
        status: `rejected` (not fit) or `error` (could not be worked on).
        reason: The code, one of `tasks.reasons.VIDEO`.
        detail: A sentence.

    Returns:
        The row.
    """
    return {
        **NOTHING,
        **{name: job.manifest[name] for name in ("video", "dataset", "identity", "split", "sha256")},
        "clip": job.manifest["video"],
        "source": job.manifest["path"],
        "status": status,
        "reason": reason,
        "detail": detail,
    }


def clips_wanted(crop: Crop, split: str) -> int:
    """How many clips a video of a split gives at most."""
    return min(crop.clips_per_video, crop.train_clips_per_video) if split == "train" else crop.clips_per_video


def find_clips(job: CropJob, info: VideoInfo, footage: Footage, box: np.ndarray | None) -> Cut:
    """Read as much of a video as is needed, and cut its clips.

    Args:
        job: The video.
        info: What `probe` says about it.
        footage: The same video, opened.
        box: The list's box in pixels, if it has one.

    Returns:
        The plan and the clips.

    Raises:
        Refused: It gives no clip.
        VideoError: It cannot be read.
    """
    crop, count = job.crop, clips_wanted(job.crop, job.manifest["split"])
    limit = max(crop.clip_frames, round(crop.max_seconds * info.fps))
    stop, frozen = min(limit, round(WINDOW * count * crop.clip_frames)), 0
    while True:
        footage.read(stop)
        last = footage.ended or stop >= limit
        if footage.ended and not footage.times:
            raise _nothing(job, info)
        try:
            plan = plan_clips(footage.looks, info.fps, info.width, info.height, crop, count, box)
            if len(plan.starts) >= count or last:
                cut = _cut(footage, plan, crop)
                cuts_inside, still = _check(cut)
                if not cuts_inside and not still:
                    return cut
                footage.part(cuts_inside | still)
                frozen += len(still)
                continue
        except Refused as verdict:
            if last and frozen >= crop.clip_frames:
                raise Refused(
                    "frozen", f"the picture stands still in {frozen} of {len(footage.times)} frames"
                ) from None
            if last:
                raise verdict from None
        stop = min(limit, 2 * stop)


def _nothing(job: CropJob, info: VideoInfo) -> Exception:
    section = job.manifest.get("section", "")
    if section:
        text = f"the section {section} s lies beyond the end of the video ({info.duration_s:.1f} s)"
        return Refused("too_short", text)
    return VideoError("unreadable", f"{job.path.name}: no frame of it can be decoded")


def _cut(footage: Footage, plan: Plan, crop: Crop) -> Cut:
    length, size_px = crop.clip_frames, crop.size_px
    clips = [np.empty((length, size_px, size_px, 3), np.uint8) for _ in plan.starts]
    filled = 0
    for start, clip in zip(plan.starts, clips, strict=True):
        for index, picture in footage.pictures(start, start + length):
            clip[index - start] = plan.square.cut(picture, size_px)
            filled += 1
    if filled != length * len(clips):
        raise VideoError("unreadable", "its frames cannot be read twice alike")
    return Cut(plan, clips)


def _changes(clip: np.ndarray) -> np.ndarray:
    """Mean grey difference of each frame of a clip to the one before; 0 for the first."""
    small = np.stack(
        [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA) for f in clip]
    ).astype(float)
    return np.concatenate([[0.0], np.abs(np.diff(small, axis=0)).mean(axis=(1, 2))])


def _check(cut: Cut) -> tuple[set[int], set[int]]:
    """Frames that begin another shot within a clip, and all frames of clips that stand still."""
    cuts_inside: set[int] = set()
    still: set[int] = set()
    for start, clip in zip(cut.plan.starts, cut.frames, strict=True):
        changes = _changes(clip)
        cuts_inside |= {start + index for index in sudden(changes.tolist())}
        if np.quantile(changes[1:], 0.75) < STILL_GREY:
            still |= set(range(start, start + len(clip) + 1))
    return cuts_inside, still


def _remark(job: CropJob, info: VideoInfo, footage: Footage, cut: Cut) -> str:
    """What a person should know of a video that gave clips."""
    remarks, plan, length = [], cut.plan, job.crop.clip_frames
    wanted = clips_wanted(job.crop, job.manifest["split"])
    if len(plan.starts) < wanted:
        remarks.append(f"room for {len(plan.starts)} of {wanted} clips")
    whole = info.indexed and footage.ended and not job.manifest.get("section", "")
    if whole and len(footage.times) < info.frames - 1:
        remarks.append(f"the file promises {info.frames} frames, {len(footage.times)} can be read")
    square = plan.square
    if square.x0 < 0 or square.y0 < 0 or square.x0 + square.side > info.width or square.y0 + square.side > info.height:
        remarks.append("the crop reaches beyond the frame; its edge is repeated there")
    if info.fps > FAST_FPS:
        remarks.append(f"{info.fps:.0f} fps: a clip lasts {length / info.fps:.2f} s")
    steps = np.concatenate([np.diff(footage.times[start : start + length]) for start in plan.starts])
    if steps.size and steps.max() > UNEVEN * np.median(steps):
        remarks.append(f"variable frame rate: frames are {1000 * steps.min():.0f} to {1000 * steps.max():.0f} ms apart")
    repeats = float(np.mean([np.mean(_changes(clip)[1:] < REPEAT_GREY) for clip in cut.frames]))
    if repeats > MANY_REPEATS:
        remarks.append(f"{repeats:.0%} of the frames repeat the one before")
    if footage.interlaced:
        remarks.append("interlaced: one field of each frame is used")
    return "; ".join(remarks)


def _section(text: str) -> tuple[float, float | None]:
    """Start and end in seconds of `START-END`; the whole video for an empty text."""
    if not text:
        return 0.0, None
    start, end = text.split("-")
    return float(start), float(end)


def _box(text: str, info: VideoInfo) -> np.ndarray | None:
    """Pixels `(4,)` of a box that the list gives as fractions of the frame; None for an empty text."""
    if not text:
        return None
    return np.array([float(value) for value in text.split()]) * np.array([info.width, info.height] * 2)
