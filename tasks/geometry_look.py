"""What F_D and F_P make of a few samples while stage 1 is trained."""

from __future__ import annotations

from torch import Tensor

from models.canonical import mean_canonical, render_head, warp_references
from models.geometry import Pose
from tasks.clip_data import gather
from tasks.collapse import relief_mm, yaw_spread_deg
from tasks.geometry_loss import GeometryLoss
from tasks.training_look import Look


def _depth_picture(depth: Tensor, near_m: float, far_m: float) -> Tensor:
    """Depth `(B, H, W)` as grey, near is bright."""
    return ((far_m - depth) / (far_m - near_m))[:, None].expand(-1, 3, -1, -1)


def look_at_geometry(loss: GeometryLoss) -> Look:
    """Stage 1: frames, heads, the mean canonical head and its depth, and that head in the driving pose."""
    drawn = {name: value.to(loss.clips.device) for name, value in loss.draw(0).items()}
    batch = gather(loss.clips, drawn)
    heads, masks, count = batch.heads, batch.masks, batch.frame.shape[1]
    depth, (found, _) = loss.depth_of(heads.flatten(0, 1)), loss.pose_of(heads.flatten(0, 1))

    def grouped(values: Tensor) -> Tensor:
        return values.float().unflatten(0, (-1, count))

    rotation, translation = map(grouped, found.pose())
    references = Pose(rotation[:, :-1].flatten(0, 1), translation[:, :-1].flatten(0, 1))
    warped, warp = warp_references(heads[:, :-1], masks[:, :-1], grouped(depth)[:, :-1], references, loss.K)
    mean = mean_canonical(warped, warp)
    rendered, _ = render_head(mean, Pose(rotation[:, -1], translation[:, -1]), loss.K)
    labels, _ = batch.mirrored_pose(batch.of(loss.angles), batch.of(loss.translation))
    spread, true_spread = yaw_spread_deg(grouped(found.angles_deg)[..., 0], labels[..., 0])
    camera = loss.config.camera
    images = {
        "reference": batch.images[:, 0],
        "its head": heads[:, 0],
        "mean canonical head": mean.image,
        "its depth (near is bright)": _depth_picture(mean.depth, camera.depth_min_m, camera.depth_max_m),
        "in the driving pose": rendered,
        "driving head": heads[:, -1],
    }
    figures = {"yaw_std_deg": spread, "yaw_std_landmarks_deg": true_spread}
    return Look(images, {"relief_mm": relief_mm(depth.float(), masks.flatten(0, 1)), **figures})
