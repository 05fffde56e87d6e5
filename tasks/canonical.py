"""Stage 2 (Sec. 3.2): train E_H, Lambda and Omega_H by Eq. 6; stage 1 is frozen and read from geometry.zarr."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.canonical import (
    CanonicalHead,
    RecurrentCanonical,
    mean_canonical,
    render_head,
    render_layer,
    warp_references,
)
from models.config import Camera, Canonical, Params
from models.geometry import Pose, intrinsics
from models.losses import head_reconstruction
from models.pose_net import HeadPose
from models.precision import mixed
from models.warp import Warp
from tasks.canonical_look import look_at_canonical
from tasks.checkpoint_folder import is_finished, load_weights, write_losses
from tasks.clip_data import (
    Batch,
    ClipSet,
    Drawn,
    batch_depth,
    batch_pose,
    draw,
    gather,
    left_out,
    load_clips,
    step_generator,
    usable_clips,
)
from tasks.device import choose_device, placed
from tasks.devices import on_devices
from tasks.optimiser import adam
from tasks.paths import Paths
from tasks.training import Training, train


def build_networks(config: Canonical, device: torch.device) -> dict[str, torch.nn.Module]:
    """E_H, Lambda and Omega_H, seeded, under the name `canonical`."""
    torch.manual_seed(config.train.seed)
    return {"canonical": placed(RecurrentCanonical(config.net), device)}


class WarpedBatch(NamedTuple):
    """A step's batch with its references in the canonical frame.

    Attributes:
        batch: N references and the driving frame.
        mean: Their x_bar^c.
        warp: How they were warped; B * N rows.
        driving: P_dri of the stored geometry.
    """

    batch: Batch
    mean: CanonicalHead
    warp: Warp
    driving: Pose


def warped_batch(clips: ClipSet, drawn: Drawn, K: Tensor) -> WarpedBatch:
    """A step's batch with its references warped by the stored depth and pose (Eq. 1)."""
    batch = gather(clips, drawn)
    depth, (angles, translation) = batch_depth(clips, batch, drawn), batch_pose(clips, batch)
    references = HeadPose(angles[:, :-1].flatten(0, 1), translation[:, :-1].flatten(0, 1)).pose()
    driving = HeadPose(angles[:, -1], translation[:, -1]).pose()
    warped, warp = warp_references(batch.heads[:, :-1], batch.masks[:, :-1], depth[:, :-1], references, K)
    return WarpedBatch(batch, mean_canonical(warped, warp), warp, driving)


BLACK_SHARE = 0.3
"""Of the samples that Eq. 6 sees on black; the others on a colour of their own."""


class CanonicalLoss:
    """Eq. 6 on a batch.

    Our choice: most samples are compared on a random colour instead of black. On black, a head that is transparent at
    its rim and one that is painted black there are alike, and Omega_H painted: stage 3 laid dark rims over frames.
    """

    def __init__(self, config: Canonical, network: RecurrentCanonical, camera: Camera, clips: ClipSet) -> None:
        self.config, self.network, self.clips = config, network, clips
        self.K = intrinsics(clips.size_px, clips.size_px, camera.fov_deg, device=clips.device)

    def phase(self, step: int) -> str:
        """All steps are alike."""
        del step
        return "eq6"

    def draw(self, step: int) -> Drawn:
        """A batch, and the colours behind its heads."""
        generator = step_generator(self.config.train, step)
        drawn = draw(self.clips, self.config.train, generator)
        batch = self.config.train.batch_videos
        coloured = torch.rand(batch, 1, 1, 1, generator=generator) >= BLACK_SHARE
        drawn["ground"] = torch.rand(batch, 3, 1, 1, generator=generator) * coloured
        return drawn

    def canonical(self, drawn: Drawn) -> tuple[WarpedBatch, CanonicalHead]:
        """A step's batch, and its x_hat^c."""
        warped = warped_batch(self.clips, drawn, self.K)
        with mixed(self.clips.device, self.config.train.precision):
            return warped, self.network(warped.batch.heads[:, :-1], warped.mean, warped.warp)

    def heads(self, drawn: Drawn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_hat_dri, x_bar_dri (the mean head at the same pose) and x_dri of a step's batch, on black; its masks."""
        warped, recurrent = self.canonical(drawn)
        rendered, rendered_mean = (render_head(head, warped.driving, self.K)[0] for head in (recurrent, warped.mean))
        return rendered, rendered_mean, warped.batch.heads[:, -1], warped.batch.masks[:, -1]

    def __call__(self, phase: str, drawn: Drawn) -> dict[str, Tensor]:
        """`head` is Eq. 6; `mean_head`, the same error of x_bar^c, is only watched."""
        del phase
        warped, recurrent = self.canonical(drawn)
        ground = drawn["ground"]
        target = warped.batch.heads[:, -1] + (1 - warped.batch.masks[:, -1]) * ground

        def error(head: CanonicalHead) -> Tensor:
            layer = render_layer(head, warped.driving, self.K)
            return head_reconstruction(layer.image + (1 - layer.alpha) * ground, target).mean()

        head = error(recurrent)
        with torch.no_grad():
            of_mean = error(warped.mean)
        return {"head": head, "mean_head": of_mean, "total": head}


@torch.no_grad()
def compare_heads(loss: CanonicalLoss, batches: int) -> dict[str, float]:
    """How near the recurrent and the mean canonical head come to heads that training has not seen, and how sharp.

    Args:
        loss: Over the test clips.
        batches: How many seeded batches to average.

    Returns:
        l_head `head_l1` and `head_l1_mean_canonical`, the gain in percent; `sharpness` and `sharpness_mean_canonical`,
        their gradients well inside the driving head, relative to its own.
    """
    errors, edges = torch.zeros(2), torch.zeros(3)
    for step in range(batches):
        drawn = {name: value.to(loss.clips.device) for name, value in loss.draw(step).items()}
        *rendered, target, masks = loss.heads(drawn)
        errors += torch.stack([head_reconstruction(one, target).mean() for one in rendered]).cpu() / batches
        edges += torch.stack([gradients_inside(one, masks) for one in (*rendered, target)]).cpu()
    ours, mean = errors.tolist()
    sharpness, sharpness_mean = (edges[:2] / edges[2].clamp(min=1e-9)).tolist()
    return {
        "head_l1": ours,
        "head_l1_mean_canonical": mean,
        "gain_percent": 100 * (1 - ours / max(mean, 1e-9)),
        "sharpness": sharpness,
        "sharpness_mean_canonical": sharpness_mean,
    }


def gradients_inside(image: Tensor, masks: Tensor) -> Tensor:
    """Sum of the differences between neighbouring pixels inside heads, away from their edge by 1/32 of the width.

    Args:
        image: `(B, 3, H, W)`.
        masks: Head masks, `(B, 1, H, W)`.

    Returns:
        Scalar.
    """
    rim = max(1, image.shape[-1] // 32)
    inside = -F.max_pool2d(-masks, 2 * rim + 1, 1, rim)
    across, down = image.diff(dim=-1).abs() * inside[..., 1:], image.diff(dim=-2).abs() * inside[..., 1:, :]
    return across.sum() + down.sum()


def canonical_job(config: Canonical, network: RecurrentCanonical, camera: Camera, clips: ClipSet) -> Training:
    """Stage 2's training, ready to run.

    Args:
        config: The section `canonical`.
        network: E_H, Lambda and Omega_H.
        camera: That of stage 1.
        clips: The training clips, with geometry.
    """
    losses = CanonicalLoss(config, network, camera, clips)
    return Training(
        "canonical",
        {"canonical": network},
        adam([{"params": list(network.parameters())}], config.lr, config.train.clip_norm),
        config.train.steps,
        losses,
        lambda step: [config.lr * (0.1 if step >= config.train.lr_drop_step else 1.0)],
        {"canonical": config.model_dump(), "size_px": clips.size_px},
        config.train.log_every_steps,
        config.train.average,
        config.train.batch_videos,
        partial(look_at_canonical, losses),
        config.train.sheet_every_steps,
        (lambda drawn: clips.rows(drawn, "frames", "head", "depth")) if clips.streamed else None,
    )


def train_canonical(params: Params, paths: Paths, fingerprint: str, device: torch.device) -> dict[str, Any]:
    """Train stage 2; see `tasks.training.train` for resume and results."""
    config = params.canonical
    networks = build_networks(config, device)
    network = networks["canonical"]
    assert isinstance(network, RecurrentCanonical)
    clips = load_clips(paths, "train", device, True, params.quality, params.runtime.clips_on_gpu)
    job = canonical_job(config, network, params.geometry.camera, clips)
    return train(job, paths.checkpoint("canonical"), fingerprint, params.runtime)


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """The stage `canonical`.

    Args:
        params: All settings; `canonical`, `geometry` and `runtime` are used.
        paths: The data folder.
        fingerprint: Hash of what this stage depends on.

    Returns:
        Losses, and l_head on the test clips beside that of the mean canonical head.

    Raises:
        StageError: No usable clip, stage 1 is missing, or training failed.
    """
    device = choose_device(params.runtime.device)
    config, folder = params.canonical, paths.checkpoint("canonical")
    networks = build_networks(config, device)
    network = networks["canonical"]
    assert isinstance(network, RecurrentCanonical)
    summary: dict[str, Any] = {"device": str(device), **left_out(paths, params.quality)}
    if not is_finished(folder, fingerprint):
        summary.update(on_devices(train_canonical, params.runtime, params, paths, fingerprint))
    write_losses(folder, paths.metrics / "canonical_loss.csv")
    load_weights(folder, networks)
    network.eval()
    split = "test" if (usable_clips(paths)["split"] == "test").any() else None
    clips = load_clips(paths, split, device, with_geometry=True, on_gpu=params.runtime.clips_on_gpu)
    summary.update(compare_heads(CanonicalLoss(config, network, params.geometry.camera, clips), batches=8))
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in summary.items()}
