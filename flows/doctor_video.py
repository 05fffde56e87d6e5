"""What the pipeline would do with one video: it is cropped as in the stage crop, and thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows.doctor import Check
from models.config import load_params
from tasks.crop import REASONS
from tasks.crop_video import CropJob, crop_video
from tasks.workers import Outcome, run_jobs


def check_video(root: Path, video: Path) -> Iterable[Check]:
    """One line: the clips that the video would give, or the reason why there are none."""
    params = load_params(root / "params.yaml")
    name = f"video {video.name}"
    manifest = dict.fromkeys(("video", "path", "dataset", "identity", "split", "sha256"), video.stem)
    results: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        job = CropJob(0, manifest, video.resolve(), params.crop, Path(folder) / "clips.npz")
        run_jobs(
            crop_video,
            [job],
            workers=1,
            deadline_s=params.runtime.video_deadline_s,
            label="doctor",
            on_result=lambda _index, outcome: results.append(outcome),
        )
    outcome = results[0]
    if outcome.kind != "ok":
        return [Check("problem", name, f"{REASONS[outcome.kind]}: {outcome.detail}")]
    rows = outcome.value
    if rows[0]["status"] != "ok":
        return [Check("problem", name, f"{rows[0]['status']}, {rows[0]['reason']}: {rows[0]['detail']}")]
    return [Check("ok", name, _clips(rows))]


def _clips(rows: list[dict[str, Any]]) -> str:
    """What a video gives: its clips' frames and the square they show."""
    first = rows[0]
    spans = ", ".join(f"{row['start_frame']}-{row['end_frame'] - 1}" for row in rows)
    side = first["box_x1"] - first["box_x0"]
    text = (
        f"{first['source_width']} x {first['source_height']} at {first['fps']:g} fps gives {len(rows)} clips "
        f"(frames {spans}) of a square of {side:.0f} px; the face measures {first['face_px']:.0f} px"
    )
    return f"{text}; {first['detail']}" if first["detail"] else text
