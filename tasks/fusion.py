"""Stage 3 (Sec. 3.3): train E_F, Phi and Omega_F by Eq. 8; stages 1 and 2 are frozen."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.canonical import HeadLayer, RecurrentCanonical, render_layer
from models.config import Camera, Fusion, Params
from models.fusion import FusionNetwork
from models.geometry import intrinsics
from models.losses import RandomTransform, crowding, equivariance, near_features, part_distance, part_shares, unevenness
from models.motion import Regions
from models.parser import load_parser
from models.perceptual import PerceptualLoss
from models.pose_net import HeadPose
from models.precision import mixed, store_short
from models.pretrained import load_registered
from tasks.canonical import build_networks as build_canonical
from tasks.canonical import warped_batch
from tasks.checkpoint_folder import is_finished, load_weights, write_losses
from tasks.clip_data import ClipSet, Drawn, batch_pose, draw, gather, left_out, load_clips, step_generator
from tasks.device import choose_device, placed
from tasks.devices import on_devices
from tasks.face_parts import mirrored_parts, read_parts
from tasks.fusion_look import look_at_fusion
from tasks.head_bank import HeadBank, make_heads
from tasks.optimiser import adam
from tasks.parser_network import EMBEDDED_FILE
from tasks.paths import WITHOUT_HEAD, Paths
from tasks.ranks import batch_mean
from tasks.room import Rows
from tasks.training import Training, train


def build_networks(config: Fusion, device: torch.device, with_head: bool = True) -> dict[str, torch.nn.Module]:
    """E_F, Phi and Omega_F, seeded, under the name `fusion`."""
    torch.manual_seed(config.train.seed)
    return {"fusion": placed(FusionNetwork(config.net, config.flow_net, with_head), device)}


def parameter_groups(network: FusionNetwork) -> list[dict[str, Any]]:
    """What `adam` takes.

    Source: our choice. With regions held to parts, both predictors' gradients are bounded each by itself and the rest's
    is not: bounded together, the regions' gradient, hundreds of times as long, decides how fast the rest learns.
    (Mouths then followed with 0.35 instead of 0.67; but the other run's predictor had twice the channels, too.)
    """
    if network.flow.parts is None:
        return [{"params": list(network.parameters())}]
    own = [list(part.parameters()) for part in (network.flow.regions, network.flow.parts)]
    known = {id(value) for group in own for value in group}
    rest = [value for value in network.parameters() if id(value) not in known]
    return [{"params": rest, "bounded": False}, *({"params": group} for group in own)]


class FusionLoss:
    """Eq. 8 on a batch: perceptual pyramid and equivariance, and what is said about eyes and mouth."""

    def __init__(self, config: Fusion, networks: dict[str, torch.nn.Module], camera: Camera, clips: ClipSet) -> None:
        fusion, canonical = networks["fusion"], networks["canonical"]
        assert isinstance(fusion, FusionNetwork)
        assert isinstance(canonical, RecurrentCanonical)
        self.config, self.fusion, self.canonical, self.clips = config, fusion, canonical, clips
        self.bank: HeadBank | None = None
        self.mean = batch_mean()
        device = clips.device
        self.K = intrinsics(clips.size_px, clips.size_px, camera.fov_deg, device=device)
        weights = load_registered("vgg19") if config.perceptual.backbone == "vgg19" else None
        parser = load_parser(EMBEDDED_FILE) if config.perceptual.backbone == "head_parser" else None
        self.perceptual = placed(PerceptualLoss(config.perceptual, weights, parser), device)
        store_short(self.perceptual, config.train.precision)
        if config.heads_per_clip and fusion.with_head:
            self.bank = make_heads(clips, config.train, config.heads_per_clip, canonical, self.K)

    def phase(self, step: int) -> str:
        """First what Phi's held regions are told by the labels alone, then Eq. 8."""
        return "parts" if step < self.config.parts_steps else "eq8"

    def draw(self, step: int) -> Drawn:
        """A batch, and the transforms of the equivariance loss."""
        config = self.config.train
        generator = step_generator(config, step)
        source = self.bank.draw if self.bank is not None else draw
        drawn = source(self.clips, config, generator)
        drawn["transform"] = RandomTransform.draw(config.batch_videos, generator)
        return drawn

    @property
    def streamed(self) -> bool:
        """Whether something of a step's batch must be brought to the device."""
        return self.clips.streamed or (self.bank is not None and self.bank.streamed)

    def rows(self, drawn: Drawn) -> dict[str, Rows]:
        """What must be brought there."""
        if self.bank is not None:
            return {**self.clips.rows(drawn, "frames", "head"), **self.bank.rows(drawn)}
        return self.clips.rows(drawn, "frames", "head", *(["depth"] if self.fusion.with_head else []))

    @torch.no_grad()
    def inputs(self, drawn: Drawn) -> tuple[HeadLayer, Tensor, Tensor]:
        """x_hat_dri (for the ablation without it: s_ref), s_ref (one of the references) and s_dri of a step's batch."""
        if not self.fusion.with_head:
            images = gather(self.clips, drawn).images
            return HeadLayer(images[:, 0], torch.ones_like(images[:, 0, :1])), images[:, 0], images[:, -1]
        if self.bank is not None:
            frames = gather(self.clips, drawn)
            known = self.bank.take(drawn, frames.recolour)
            angles, translation = batch_pose(self.clips, frames)
            pose = HeadPose(angles[:, -1], translation[:, -1]).pose()
            layer = render_layer(known, pose, self.K)
            return layer, frames.images[:, 0], frames.images[:, -1]
        batch, mean, warp, driving = warped_batch(self.clips, drawn, self.K)
        with mixed(self.clips.device, self.config.train.precision):
            head = self.canonical(batch.heads[:, :-1], mean, warp)
        return render_layer(head, driving, self.K), batch.images[:, 0], batch.images[:, -1]

    def __call__(self, phase: str, drawn: Drawn) -> dict[str, Tensor]:
        """`frame` is L_rec, `copy_l1` (s_ref in place of the output) and `l1` are only watched."""
        head, reference, driving = self.inputs(drawn)
        if phase == "parts":
            with mixed(driving.device, self.config.train.precision):
                # x_hat_dri is looked at for the batch norms' sake: they shall see what they see later
                _, of_reference, of_driving = self.fusion.flow.find_parts((head.image, reference, driving))
            parts = self._parts(of_reference, of_driving, self._known_parts(drawn))
            return {"parts": parts, "total": self.config.parts_weight * parts}
        transform = RandomTransform(drawn["transform"])
        with mixed(driving.device, self.config.train.precision):
            fused = self.fusion(head, reference, driving, transform.warp)
            frame = self.perceptual(fused.image, driving)
        assert fused.looked is not None
        assert fused.looked.moved is not None
        equal = equivariance(fused.regions.free(self.fusion.flow.held), fused.looked.moved, transform)
        with torch.no_grad():
            l1, copy = (fused.image - driving).abs().mean(), (reference - driving).abs().mean()
        # Without a weight it is only watched, and need not be followed back.
        seen = fused.image if self.config.face_weight else fused.image.detach()
        face = self._face(seen, driving, drawn)
        total = frame + self.config.equivariance_weight * equal + self.config.face_weight * face
        losses = {"frame": frame, "equivariance": equal, "face": face}
        if self.config.attention_weight:
            losses["unevenness"] = unevenness(fused.maps.logits)
            total = total + self.config.attention_weight * losses["unevenness"]
        if self.config.regions_weight:
            losses["crowding"] = crowding(fused.looked.free, fused.looked.logits)
            total = total + self.config.regions_weight * losses["crowding"]
        if self.config.parts_weight:
            known = self._known_parts(drawn)
            losses["parts"] = self._parts(fused.regions_reference, fused.regions, known)
            losses["shares"] = part_shares(fused.maps.shares, known[:, -1], self.mean)
            total = total + self.config.parts_weight * (losses["parts"] + losses["shares"])
        return {**losses, "l1": l1, "copy_l1": copy, "total": total}

    def _parts(self, reference: Regions, driving: Regions, parts: Tensor) -> Tensor:
        """Distance of the first regions of s_ref and s_dri from the parts of the face."""
        of_reference = part_distance(reference, parts[:, 0], self.mean)
        return (of_reference + part_distance(driving, parts[:, -1], self.mean)) / 2

    def _known_parts(self, drawn: Drawn) -> Tensor:
        """Where the parts of the face are in a step's frames, `(B, N + 1, P, 5)`."""
        assert self.clips.parts is not None
        return mirrored_parts(self.clips.parts[drawn["clip"], drawn["frame"]], drawn["flip"])

    def _face(self, image: Tensor, driving: Tensor, drawn: Drawn) -> Tensor:
        """L1 about eyes and mouth of s_dri."""
        landmarks = self.clips.landmarks[drawn["clip"][:, -1], drawn["frame"][:, -1]]
        across, down = landmarks.unbind(-1)
        across = torch.where(drawn["flip"][:, None], driving.shape[-1] - 1 - across, across)
        near = near_features(torch.stack([across, down], -1), *driving.shape[-2:])
        return self.mean((near * (image - driving).abs()).sum(), 3 * near.sum())


def fusion_job(
    config: Fusion,
    networks: dict[str, torch.nn.Module],
    canonical: dict[str, torch.nn.Module],
    camera: Camera,
    clips: ClipSet,
    settings: Mapping[str, Any],
) -> Training:
    """Stage 3's training, ready to run.

    Args:
        config: The section `fusion`.
        networks: From `build_networks`.
        canonical: Stage 2, frozen.
        camera: That of stage 1.
        clips: The training clips, with geometry.
        settings: What is stored beside the weights.
    """
    network = networks["fusion"]
    assert isinstance(network, FusionNetwork)
    steps = config.train.steps if network.with_head else config.without_head_steps
    drop = config.train.lr_drop_step * steps / config.train.steps  # at the same share of a longer or shorter training
    groups = parameter_groups(network)
    losses = FusionLoss(config, {**networks, **canonical}, camera, clips)
    return Training(
        "fusion" if network.with_head else "fusion without head",
        networks,
        adam(groups, config.lr, config.train.clip_norm),
        steps,
        losses,
        lambda step: [config.lr * (0.1 if step >= drop else 1.0)] * len(groups),
        settings,
        config.train.log_every_steps,
        config.train.average,
        config.train.batch_videos,
        partial(look_at_fusion, losses),
        config.train.sheet_every_steps,
        losses.rows if losses.streamed else None,
    )


def train_fusion(
    params: Params, paths: Paths, fingerprint: str, with_head: bool, device: torch.device
) -> dict[str, Any]:
    """Train the fusion network, or the one of Table 3 that is never shown x_hat_dri; the same batches in both.

    Returns:
        What `train` says.
    """
    config = params.fusion
    canonical = build_canonical(params.canonical, device)
    load_weights(paths.checkpoint("canonical"), canonical)
    canonical["canonical"].requires_grad_(False).eval()
    networks = build_networks(config, device, with_head)
    clips = load_clips(paths, "train", device, True, params.quality, params.runtime.clips_on_gpu)
    if config.parts_weight:
        clips.parts = read_parts(paths, clips.table["row"].to_numpy(), device)
    settings = {
        "fusion": config.model_dump(),
        "size_px": clips.size_px,
        "crop": params.crop.model_dump(),
        "parse": params.parse.model_dump(),
    }
    job = fusion_job(config, networks, canonical, params.geometry.camera, clips, settings)
    return train(job, _folder(paths, with_head), fingerprint, params.runtime)


def _folder(paths: Paths, with_head: bool) -> Path:
    folder = paths.checkpoint("fusion")
    return folder if with_head else folder / WITHOUT_HEAD


def _train(params: Params, paths: Paths, fingerprint: str, with_head: bool) -> dict[str, Any]:
    """`train_fusion` on the devices of the settings; nothing if it was finished before."""
    if is_finished(_folder(paths, with_head), fingerprint):
        return {}
    return on_devices(train_fusion, params.runtime, params, paths, fingerprint, with_head)


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """The stage `fusion`; where `fusion.without_head_steps` asks for it, with a second network for Table 3.

    Args:
        params: All settings; `fusion`, `canonical`, `geometry` and `runtime` are used, `crop` and `parse` are kept.
        paths: The data folder.
        fingerprint: Hash of what this stage depends on, without `fusion.without_head_steps`.

    Returns:
        First and last loss; those of the second network begin with `without_head_`.

    Raises:
        StageError: No usable clip, an earlier stage is missing, or training failed.
    """
    device = choose_device(params.runtime.device)
    folder, more = paths.checkpoint("fusion"), params.fusion.without_head_steps
    summary: dict[str, Any] = {"device": str(device), **left_out(paths, params.quality)}
    summary.update(_train(params, paths, fingerprint, with_head=True))
    if more:
        figures = _train(params, paths, f"{fingerprint}-{more}", with_head=False)
        summary.update({f"{WITHOUT_HEAD}_{name}": value for name, value in figures.items()})
    else:
        shutil.rmtree(folder / WITHOUT_HEAD, ignore_errors=True)
    write_losses(folder, paths.metrics / "fusion_loss.csv")
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in summary.items()}
