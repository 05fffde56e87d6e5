"""Stage 2 (Sec. 3.2): train E_H, Lambda and Omega_H by Eq. 6; stage 1 is frozen and read from geometry.zarr."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.canonical import RecurrentCanonical, mean_canonical, render_head, warp_references
from models.config import Canonical, Params
from models.depth_net import DepthNetwork
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


def load_depth_network(params: Params, paths: Paths, device: torch.device) -> DepthNetwork:
    """F_D as stage 1 left it: frozen, in eval mode."""
    network = placed(DepthNetwork(params.geometry.depth_net, params.geometry.camera), device)
    load_weights(paths.checkpoint("geometry"), {"depth": network})
    network.requires_grad_(False)
    return network.eval()


class WarpedBatch(NamedTuple):
    """A step's batch with its references in the canonical frame.

    Attributes:
        batch: N references and the driving frame.
        warped: x_i^c, `(B, N, 3, H, W)`.
        warp: How they were warped; B * N rows.
        driving: P_dri of the stored geometry.
    """

    batch: Batch
    warped: Tensor
    warp: Warp
    driving: Pose


def warped_batch(clips: ClipSet, drawn: Drawn, K: Tensor) -> WarpedBatch:
    """A step's batch with its references warped by the stored depth and pose (Eq. 1)."""
    batch = gather(clips, drawn)
    depth, (angles, translation) = batch_depth(clips, batch, drawn), batch_pose(clips, batch)
    references = HeadPose(angles[:, :-1].flatten(0, 1), translation[:, :-1].flatten(0, 1)).pose()
    driving = HeadPose(angles[:, -1], translation[:, -1]).pose()
    warped, warp = warp_references(batch.heads[:, :-1], batch.masks[:, :-1], depth[:, :-1], references, K)
    return WarpedBatch(batch, warped, warp, driving)


class CanonicalLoss:
    """Eq. 6 on a batch."""

    def __init__(self, config: Canonical, network: RecurrentCanonical, depth: DepthNetwork, clips: ClipSet) -> None:
        self.config, self.network, self.depth, self.clips = config, network, depth, clips
        self.K = intrinsics(clips.size_px, clips.size_px, depth.camera.fov_deg, device=clips.device)

    def phase(self, step: int) -> str:
        """All steps are alike."""
        del step
        return "eq6"

    def draw(self, step: int) -> Drawn:
        """A batch."""
        return draw(self.clips, self.config.train, step_generator(self.config.train, step))

    def heads(self, drawn: Drawn) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat_dri, x_bar_dri (the mean head at the same pose) and x_dri of a step's batch."""
        batch, warped, warp, driving = warped_batch(self.clips, drawn, self.K)
        heads = batch.heads
        with mixed(heads.device, self.config.train.precision):
            recurrent = self.network(heads[:, :-1], warped, warp)
            depth = self.depth(recurrent.image)
        rendered, _ = render_head(recurrent, depth, driving, self.K)
        with torch.no_grad():
            mean = mean_canonical(warped, warp.visibility)
            with mixed(heads.device, self.config.train.precision):
                depth = self.depth(mean.image)
            rendered_mean, _ = render_head(mean, depth, driving, self.K)
        return rendered, rendered_mean, heads[:, -1]

    def __call__(self, phase: str, drawn: Drawn) -> dict[str, Tensor]:
        """`head` is Eq. 6; `mean_head`, the same error of x_bar^c, is only watched."""
        del phase
        rendered, rendered_mean, target = self.heads(drawn)
        head = head_reconstruction(rendered, target).mean()
        return {"head": head, "mean_head": head_reconstruction(rendered_mean, target).mean(), "total": head}


@torch.no_grad()
def compare_heads(loss: CanonicalLoss, batches: int) -> dict[str, float]:
    """l_head of the recurrent and of the mean canonical head on clips that training has not seen.

    Args:
        loss: Over the test clips.
        batches: How many seeded batches to average.

    Returns:
        `head_l1`, `head_l1_mean_canonical` and the gain in percent.
    """
    ours, mean = 0.0, 0.0
    for step in range(batches):
        drawn = {name: value.to(loss.clips.device) for name, value in loss.draw(step).items()}
        rendered, rendered_mean, target = loss.heads(drawn)
        ours += float(head_reconstruction(rendered, target).mean()) / batches
        mean += float(head_reconstruction(rendered_mean, target).mean()) / batches
    return {"head_l1": ours, "head_l1_mean_canonical": mean, "gain_percent": 100 * (1 - ours / max(mean, 1e-9))}


def canonical_job(config: Canonical, network: RecurrentCanonical, depth: DepthNetwork, clips: ClipSet) -> Training:
    """Stage 2's training, ready to run.

    Args:
        config: The section `canonical`.
        network: E_H, Lambda and Omega_H.
        depth: F_D, frozen.
        clips: The training clips, with geometry.
    """
    losses = CanonicalLoss(config, network, depth, clips)
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
    depth = load_depth_network(params, paths, device)
    clips = load_clips(paths, "train", device, True, params.quality, params.runtime.clips_on_gpu)
    job = canonical_job(config, network, depth, clips)
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
    depth = load_depth_network(params, paths, device)
    summary: dict[str, Any] = {"device": str(device), **left_out(paths, params.quality)}
    if not is_finished(folder, fingerprint):
        summary.update(on_devices(train_canonical, params.runtime, params, paths, fingerprint))
    write_losses(folder, paths.metrics / "canonical_loss.csv")
    load_weights(folder, networks)
    network.eval()
    split = "test" if (usable_clips(paths)["split"] == "test").any() else None
    clips = load_clips(paths, split, device, with_geometry=True, on_gpu=params.runtime.clips_on_gpu)
    summary.update(compare_heads(CanonicalLoss(config, network, depth, clips), batches=8))
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in summary.items()}
