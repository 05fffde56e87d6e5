"""Does stage 1 see what is there? Its poses beside the landmarks', its warped heads beside a copied one."""

from __future__ import annotations

import numpy as np
import torch

from models.canonical import mean_canonical, render_head, warp_references
from models.config import Params
from models.geometry import intrinsics
from tasks.clip_data import ClipSet, load_clips, usable_clips
from tasks.frames import spread_frames
from tasks.paths import Paths


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def pose_agreement(clips: ClipSet, params: Params) -> dict[str, float]:
    """Predicted against landmark angles over all frames: correlation, and the spread of the predicted ones.

    Args:
        clips: Clips with geometry.
        params: For the camera.

    Returns:
        `corr_yaw`, `corr_pitch`, `corr_roll`, `std_yaw_ratio` (1 is right, towards 0 is collapse).
    """
    labels = clips.landmark_poses(params.geometry.camera)[0].cpu().flatten(0, 1).numpy()
    assert clips.angles_deg is not None
    found = clips.angles_deg.cpu().flatten(0, 1).numpy()
    known = np.isfinite(labels).all(1)
    labels, found = labels[known], found[known]
    result = {
        f"corr_{name}": _correlation(found[:, i], labels[:, i]) for i, name in enumerate(("yaw", "pitch", "roll"))
    }
    result["std_yaw_ratio"] = float(found[:, 0].std() / max(labels[:, 0].std(), 1e-6))
    return result


@torch.no_grad()
def head_error(clips: ClipSet, params: Params) -> dict[str, float]:
    """L1 of the mean canonical head turned to driving frames, and of a reference's head copied there instead
    (the mean over the references). References and driving frames alternate over a whole video.

    Args:
        clips: Clips with geometry.
        params: N and the camera.

    Returns:
        `head_l1`, `head_l1_copy` and their ratio.
    """
    count = params.geometry.train.references
    K = intrinsics(clips.size_px, clips.size_px, params.geometry.camera.fov_deg, device=clips.device)
    warped_error, copied_error = [], []
    for video in sorted({tuple(group.tolist()) for group in clips.siblings}):
        place = spread_frames(len(video) * clips.frames.shape[1], 4 * count + 1)
        clip, frame = torch.tensor(video)[place // clips.frames.shape[1]], place % clips.frames.shape[1]
        references, driving = (clip[::4][:count], frame[::4][:count]), (clip[2::4], frame[2::4])
        heads, masks = clips.heads(*references)
        warped, warp = warp_references(
            heads[None], masks[None], clips.depths(*references)[None], clips.poses(*references), K
        )
        mean = mean_canonical(warped, warp)
        target, _ = clips.heads(*driving)
        rendered, _ = render_head(mean.repeated(len(target)), clips.poses(*driving), K)
        warped_error.append(float((rendered - target).abs().mean()))
        copied_error.append(float((heads[:, None] - target[None]).abs().mean()))
    head, copy = float(np.mean(warped_error)), float(np.mean(copied_error))
    return {"head_l1": head, "head_l1_copy": copy, "head_l1_ratio": head / max(copy, 1e-9)}


def check_stage1(params: Params, paths: Paths, device: torch.device) -> dict[str, float]:
    """The figures of stage 1 on the test clips (on all clips if no person is kept for testing)."""
    split = "test" if (usable_clips(paths)["split"] == "test").any() else None
    clips = load_clips(paths, split, device, with_geometry=True, on_gpu=params.runtime.clips_on_gpu)
    return {**pose_agreement(clips, params), **head_error(clips, params)}
