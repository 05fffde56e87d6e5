"""One video -> its clips: what a worker of the stage `crop` does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.config import Crop
from tasks.clip_table import NOTHING
from tasks.crop_plan import Plan, Refused, plan_clips
from tasks.faces import Looks, face_size, look_at
from tasks.video import VideoError, VideoInfo, iterate_frames, probe


@dataclass(frozen=True)
class CropJob:
    """A video of the manifest.

    Attributes:
        index: Its place in the manifest.
        manifest: The columns that the clip table takes over.
        path: The file, absolute.
        crop: The settings.
        spool: File for the clips' arrays; made only if there are any.
    """

    index: int
    manifest: dict[str, str]
    path: Path
    crop: Crop
    spool: Path


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
    try:
        looks = _look(job, info)
        plan, frames = _cut(job, info, looks)
    except VideoError as error:
        return [{**refusal(job, "error", error.reason, str(error)), **source}]
    except Refused as verdict:
        return [{**refusal(job, "rejected", verdict.reason, str(verdict)), **source}]
    pieces = [slice(start - plan.track.first, start - plan.track.first + len(frames[0])) for start in plan.starts]
    size_px = job.crop.size_px
    boxes = [plan.square.to_crop(plan.track.boxes[piece].reshape(-1, 2, 2), size_px).reshape(-1, 4) for piece in pieces]
    landmarks = [plan.square.to_crop(plan.track.landmarks[piece], size_px) for piece in pieces]
    _save(job.spool, frames=np.stack(frames), landmarks=np.stack(landmarks), face_box=np.stack(boxes))
    return [
        {
            **refusal(job, "ok", "", _remark(job, info, looks, plan) if segment == 0 else ""),
            **source,
            "clip": f"{job.manifest['video']}_{segment}",
            "segment": segment,
            "start_frame": start,
            "end_frame": start + job.crop.clip_frames,
            "box_x0": float(plan.square.x0),
            "box_y0": float(plan.square.y0),
            "box_x1": float(plan.square.x0 + plan.square.side),
            "box_y1": float(plan.square.y0 + plan.square.side),
            "face_px": round(float(np.median(face_size(plan.track.boxes[piece]))), 1),
        }
        for segment, (start, piece) in enumerate(zip(plan.starts, pieces, strict=True))
    ]


def refusal(job: CropJob, status: str, reason: str, detail: str) -> dict[str, Any]:
    """A row of the clip table for a video as a whole.

    Args:
        job: The video.
        status: `rejected` (not fit) or `error` (could not be worked on).
        reason: The code.
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


def _look(job: CropJob, info: VideoInfo) -> Looks:
    crop = job.crop
    stop = max(crop.clip_frames, round(crop.max_seconds * info.fps))
    batches = iterate_frames(job.path, 0, stop, crop.detect_long_side_px, crop.detect_every_frames)
    looks = look_at(batches, info.width, crop.detect_every_frames, crop.min_confidence)
    # Frames after the last look are not counted there: the header's number stands, if it fits. `_cut` finds out.
    looks.frames = min(max(looks.frames, info.frames), len(looks.faces) * crop.detect_every_frames, stop)
    return looks


def _cut(job: CropJob, info: VideoInfo, looks: Looks) -> tuple[Plan, list[np.ndarray]]:
    """The plan and its clips `(T, S, S, 3)`; planned anew where the video ends before its header says."""
    length = job.crop.clip_frames
    while True:
        plan = plan_clips(looks, info.fps, info.width, info.height, job.crop)
        clips: list[list[np.ndarray]] = [[] for _ in plan.starts]
        index = plan.starts[0]
        for batch in iterate_frames(job.path, index, plan.starts[-1] + length):
            for frame in batch:
                for start, clip in zip(plan.starts, clips, strict=True):
                    if start <= index < start + length:
                        clip.append(plan.square.cut(frame, job.crop.size_px))
                index += 1
        if all(len(clip) == length for clip in clips):
            return plan, [np.stack(clip) for clip in clips]
        if index >= looks.frames:
            raise VideoError("unreadable", f"{job.path.name}: its frames cannot be read twice alike")
        looks.frames = index


def _remark(job: CropJob, info: VideoInfo, looks: Looks, plan: Plan) -> str:
    """What a person should know of a video that gave clips."""
    remarks = []
    if len(plan.starts) < job.crop.clips_per_video:
        remarks.append(f"room for {len(plan.starts)} of {job.crop.clips_per_video} clips")
    limit = round(job.crop.max_seconds * info.fps)
    if info.indexed and info.frames <= limit and looks.frames < info.frames - looks.every:
        remarks.append(f"the file promises {info.frames} frames, about {looks.frames} can be read")
    outside = plan.square.x0 < 0 or plan.square.y0 < 0
    if outside or plan.square.x0 + plan.square.side > info.width or plan.square.y0 + plan.square.side > info.height:
        remarks.append("the crop reaches beyond the frame; its edge is repeated there")
    return "; ".join(remarks)


def _save(path: Path, **arrays: np.ndarray) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)
