"""What the pipeline would do with one video: the same reading, looking and planning as the stage crop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flows.doctor import Check
from models.config import Crop, load_params
from tasks.workers import Outcome, run_jobs

REASONS = {"failed": "unreadable", "deadline": "deadline", "crashed": "crashed"}


def look(job: tuple[str, Crop]) -> tuple[str, str]:
    """Worker: what would become of a video.

    Args:
        job: Its path and the settings.

    Returns:
        Reason code (empty: it gives clips) and a sentence.
    """
    from tasks.crop_plan import Refused, plan_clips
    from tasks.faces import look_at
    from tasks.video_read import VideoError, iterate_frames, probe

    path, crop = job
    try:
        info = probe(path)
        every = crop.detect_every_frames
        stop = round(crop.max_seconds * info.fps)
        batches = iterate_frames(path, stop=stop, long_side_px=crop.detect_long_side_px, every=every)
        looks = look_at(batches, info.width, every, crop.min_confidence)
        looks.frames = max(looks.frames, min(info.frames, stop))
        plan = plan_clips(looks, info.fps, info.width, info.height, crop)
    except (VideoError, Refused) as refused:
        return refused.reason, str(refused)
    size = f"{info.width} x {info.height}, {info.fps:g} fps, {looks.frames} frames, {info.codec}"
    spans = ", ".join(f"{start}-{start + crop.clip_frames - 1}" for start in plan.starts)
    square = plan.square
    return "", f"{size}; clips of frames {spans}; square of {square.side} px at ({square.x0}, {square.y0})"


def check_video(root: Path, video: Path) -> Iterable[Check]:
    """One line: the clips that the video would give, or the reason why there are none."""
    params = load_params(root / "params.yaml")
    results: list[Outcome] = []
    run_jobs(
        look,
        [(str(video.resolve()), params.crop)],
        workers=1,
        deadline_s=params.runtime.video_deadline_s,
        label="doctor",
        on_result=lambda _index, outcome: results.append(outcome),
    )
    outcome = results[0]
    if outcome.kind != "ok":
        return [Check("problem", f"video {video.name}", f"{REASONS[outcome.kind]}: {outcome.detail}")]
    reason, text = outcome.value
    return [Check("problem" if reason else "ok", f"video {video.name}", f"{reason}: {text}" if reason else text)]
