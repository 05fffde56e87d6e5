"""What the three stages' networks make of a few training samples: sample sheets, and figures for `tasks.collapse`.

The samples are those of the first step, always the same ones, so that the pictures of a training can be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.canonical import mean_canonical, render_head, warp_references
from models.geometry import Pose
from models.precision import mixed
from tasks.clip_data import gather
from tasks.collapse import attention_figures, relief_mm, yaw_spread_deg

if TYPE_CHECKING:
    from tasks.canonical import CanonicalLoss
    from tasks.fusion import FusionLoss
    from tasks.geometry_loss import GeometryLoss

SHOWN = 6
"""So many samples stand side by side on a sheet."""


class Look(NamedTuple):
    """What networks make of B samples.

    Attributes:
        images: Caption -> `(B, 3, H, W)`, in [0, 1].
        figures: Figures of all samples together.
    """

    images: dict[str, Tensor]
    figures: dict[str, float]

    def sheet(self) -> np.ndarray:
        """The first samples side by side, `(height, width, 3)` uint8."""
        from tasks.sheets import contact_sheet

        rows = [list(_pictures(values[:SHOWN])) for values in self.images.values()]
        return contact_sheet(rows, list(self.images))


def _pictures(images: Tensor) -> np.ndarray:
    pixels = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.cpu().numpy())


def _depth_picture(depth: Tensor, near_m: float, far_m: float) -> Tensor:
    """Depth `(B, H, W)` as grey, near is bright."""
    return ((far_m - depth) / (far_m - near_m))[:, None].expand(-1, 3, -1, -1)


def look_at_geometry(loss: GeometryLoss) -> Look:
    """Stage 1: frames, heads, the mean canonical head and its depth, and that head in the driving pose."""
    drawn = {name: value.to(loss.clips.frames.device) for name, value in loss.draw(0).items()}
    batch = gather(loss.clips, drawn)
    heads, masks, count = batch.heads, batch.masks, batch.frame.shape[1]
    with loss.mixed():
        depth, (found, _) = loss.depth(heads.flatten(0, 1)), loss.pose.predict(heads.flatten(0, 1))

    def grouped(values: Tensor) -> Tensor:
        return values.float().unflatten(0, (-1, count))

    rotation, translation = map(grouped, found.pose())
    references = Pose(rotation[:, :-1].flatten(0, 1), translation[:, :-1].flatten(0, 1))
    warped, warp = warp_references(heads[:, :-1], masks[:, :-1], grouped(depth)[:, :-1], references, loss.K)
    mean = mean_canonical(warped, warp.visibility)
    with loss.mixed():
        mean_depth = loss.depth(mean.image)
    rendered, _ = render_head(mean, mean_depth, Pose(rotation[:, -1], translation[:, -1]), loss.K)
    labels, _ = batch.mirrored_pose(batch.of(loss.angles), batch.of(loss.translation))
    spread, true_spread = yaw_spread_deg(grouped(found.angles_deg)[..., 0], labels[..., 0])
    camera = loss.config.camera
    images = {
        "reference": batch.images[:, 0],
        "its head": heads[:, 0],
        "mean canonical head": mean.image,
        "its depth (near is bright)": _depth_picture(mean_depth, camera.depth_min_m, camera.depth_max_m),
        "in the driving pose": rendered,
        "driving head": heads[:, -1],
    }
    figures = {"yaw_std_deg": spread, "yaw_std_landmarks_deg": true_spread}
    return Look(images, {"relief_mm": relief_mm(depth.float(), masks.flatten(0, 1)), **figures})


def look_at_canonical(loss: CanonicalLoss) -> Look:
    """Stage 2: reference, mean and recurrent canonical head, the latter in the driving pose."""
    from tasks.canonical import warped_batch

    drawn = {name: value.to(loss.clips.frames.device) for name, value in loss.draw(0).items()}
    batch, warped, warp, driving = warped_batch(loss.clips, drawn, loss.K)
    with mixed(batch.images.device, loss.config.train.precision):
        head = loss.network(batch.heads[:, :-1], warped, warp)
        depth = loss.depth(head.image)
    rendered, _ = render_head(head, depth, driving, loss.K)
    images = {
        "reference": batch.images[:, 0],
        "mean canonical head": mean_canonical(warped, warp.visibility).image,
        "canonical head": head.image,
        "in the driving pose": rendered,
        "driving head": batch.heads[:, -1],
    }
    return Look(images, {"head_share": float((head.mask > 0.5).float().mean())})


def look_at_fusion(loss: FusionLoss) -> Look:
    """Stage 3: reference, head, driving frame, output, and the attention as colours (red head, green s_ref, blue
    decoder)."""
    drawn = {name: value.to(loss.clips.frames.device) for name, value in loss.draw(0).items()}
    head, reference, driving = loss.inputs(drawn)
    with mixed(driving.device, loss.config.train.precision):
        fused = loss.fusion(head, reference, driving)
    attention = fused.maps.attention.float()
    images = {
        "reference": reference,
        "head in the driving pose": head.image,
        "driving": driving,
        "output": fused.image,
        "attention (red head, green reference, blue decoder)": torch.nn.functional.interpolate(
            attention, driving.shape[-2:], mode="nearest"
        ),
    }
    return Look(images, attention_figures(attention))
