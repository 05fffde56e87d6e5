"""Stage 1 (Sec. 3.1): train F_D and F_P by Eq. 4, then store depth and pose of every frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.canonical import mean_canonical, render_head, warp_references
from models.config import Geometry, Params
from models.depth_net import DepthNetwork
from models.geometry import Pose, intrinsics
from models.landmark_pose import InPlane, ellipsoid_depth, poses_from_landmarks
from models.losses import depth_smoothness, head_reconstruction, symmetry
from models.pose_net import HeadPose, PoseNetwork
from models.precision import mixed
from tasks.clip_data import Batch, ClipSet, Drawn, draw, gather, left_out, load_clips, step_generator, usable_clips
from tasks.device import choose_device
from tasks.geometry_check import check_stage1
from tasks.paths import Paths
from tasks.progress import progress
from tasks.stores import array, finish_store, geometry_arrays, open_or_create, open_store, read_fingerprint, write_rows
from tasks.training import Training, adam, is_finished, load_weights, train, write_losses


def build_networks(config: Geometry, device: torch.device) -> dict[str, torch.nn.Module]:
    """F_D and F_P, seeded.

    Args:
        config: The section `geometry`.
        device: Where they shall lie.

    Returns:
        `depth` and `pose`.
    """
    torch.manual_seed(config.train.seed)
    networks = {
        "depth": DepthNetwork(config.depth_net, config.camera),
        "pose": PoseNetwork(config.pose_net, config.camera),
    }
    return {name: network.to(device) for name, network in networks.items()}


class GeometryLoss:
    """Eq. 4 on a batch, with the landmark start and prior of design section 8."""

    def __init__(self, config: Geometry, networks: dict[str, torch.nn.Module], clips: ClipSet) -> None:
        self.config, self.networks, self.clips = config, networks, clips
        camera = config.camera
        self.K = intrinsics(clips.size_px, clips.size_px, camera.fov_deg, device=clips.frames.device)
        labels = [
            poses_from_landmarks(points.cpu(), self.K.cpu(), camera.max_angle_deg, camera.max_translation_m)
            for points in clips.landmarks
        ]
        self.angles = torch.stack([angles for angles, _ in labels]).to(clips.frames.device)
        self.translation = torch.stack([translation for _, translation in labels]).to(clips.frames.device)

    def phase(self, step: int) -> str:
        """The first `bootstrap_steps` are on the labels alone, the others on Eq. 4."""
        return "bootstrap" if step < self.config.bootstrap_steps else "eq4"

    def draw(self, step: int) -> Drawn:
        """A batch, and how its images are moved in their plane."""
        config = self.config.train
        generator = step_generator(config, step)
        drawn = draw(self.clips, config, generator)
        drawn["move"] = InPlane.draw(config.batch_videos * (config.references + 1), generator)
        return drawn

    def __call__(self, phase: str, drawn: Drawn) -> dict[str, Tensor]:
        """Losses of a training step."""
        batch = gather(self.clips, drawn)
        heads, masks = batch.heads.flatten(0, 1), batch.masks.flatten(0, 1)
        labels = batch.mirrored_pose(batch.of(self.angles), batch.of(self.translation))
        angles, translation = (label.flatten(0, 1) for label in labels)
        if phase == "bootstrap":
            # Moving the image in its plane changes roll and translation by a known amount: labels for nothing, and the
            # only way to see enough of them in a short run.
            move = InPlane.of(drawn["move"], self.clips.size_px)
            heads, masks = move.apply(heads), move.apply(masks)
            angles, translation = move.move(angles, translation, self.K)
        with self.mixed():
            depth, found = self.networks["depth"](heads), self.networks["pose"](heads)
        prior = {"pose": self._pose_prior(found, angles, translation), "depth": self._depth_prior(depth, masks)}
        if phase == "bootstrap":
            return {**prior, "total": prior["pose"] + prior["depth"]}
        losses = self._eq4(batch, depth.view(*batch.frame.shape, *depth.shape[1:]), found.pose())
        total = losses["head"] + self.config.lambda_sym * losses["symmetry"]
        total = total + self.config.lambda_depth * losses["smoothness"]
        total = total + self.config.lambda_pose_prior * prior["pose"]
        total = total + self.config.lambda_depth_prior * prior["depth"]
        return {**losses, **prior, "total": total}

    @staticmethod
    def _pose_prior(found: HeadPose, angles: Tensor, translation: Tensor) -> Tensor:
        """Distance to the landmark pose over the frames where it is known, in units of what a landmark fit can tell.

        These are 10 degrees, 5 mm across and 5 cm along the view: five points say little about the distance.
        """
        known = torch.isfinite(angles).all(-1, keepdim=True)
        error = (found.angles_deg - torch.nan_to_num(angles)).abs() / 10
        off = (found.translation_m - torch.nan_to_num(translation)).abs()
        error = error + torch.cat([off[:, :2] / 0.005, off[:, 2:] / 0.05], dim=-1)
        return (error * known).sum() / (3 * known.sum().clamp(min=1))

    def _depth_prior(self, depth: Tensor, masks: Tensor) -> Tensor:
        """Distance to the ellipsoid inside the head, in units of 2 cm."""
        mask = masks[:, 0]
        off = (depth - ellipsoid_depth(mask, self.K)).abs() / 0.02
        return (off * mask).sum() / mask.sum().clamp(min=1)

    def mixed(self) -> torch.autocast:
        """The networks' precision."""
        return mixed(self.clips.frames.device, self.config.train.precision)

    def _eq4(self, batch: Batch, depth: Tensor, pose: Pose) -> dict[str, Tensor]:
        """The three terms of Eq. 4: N references to the canonical frame, their mean to the driving pose."""
        count = depth.shape[1]
        rotation = pose.rotation.view(-1, count, 3, 3)
        translation = pose.translation.view(-1, count, 3)
        of_references = Pose(rotation[:, :-1].flatten(0, 1), translation[:, :-1].flatten(0, 1))
        heads, masks = batch.heads, batch.masks
        warped, warp = warp_references(heads[:, :-1], masks[:, :-1], depth[:, :-1], of_references, self.K)
        mean = mean_canonical(warped, warp.visibility)
        with self.mixed():
            mean_depth = self.networks["depth"](mean.image)
        rendered, _ = render_head(mean, mean_depth, Pose(rotation[:, -1], translation[:, -1]), self.K)
        return {
            "head": head_reconstruction(rendered, heads[:, -1]).mean(),
            "symmetry": symmetry(mean.image).mean(),
            "smoothness": depth_smoothness(mean_depth, mean.image).mean(),
        }


def train_geometry(params: Params, paths: Paths, fingerprint: str, device: torch.device) -> dict[str, float]:
    """Train F_D and F_P; see `tasks.training.train` for resume and results."""
    config = params.geometry
    clips = load_clips(paths, "train", device, with_geometry=False, quality=params.quality)
    networks = build_networks(config, device)
    groups = [{"params": list(networks[name].parameters())} for name in ("depth", "pose")]
    optimiser = adam(groups, config.lr_bootstrap)

    def rates(step: int) -> list[float]:
        if step < config.bootstrap_steps:
            return [config.lr_bootstrap, config.lr_bootstrap]
        drop = 0.1 if step - config.bootstrap_steps >= config.train.lr_drop_step else 1.0
        return [config.lr_depth * drop, config.lr_pose * drop]

    job = Training(
        "geometry",
        networks,
        optimiser,
        config.bootstrap_steps + config.train.steps,
        GeometryLoss(config, networks, clips),
        rates,
        {"geometry": config.model_dump(), "size_px": clips.size_px},
        config.train.log_every_steps,
    )
    return train(job, paths.checkpoint("geometry"), fingerprint, params.runtime)


@torch.no_grad()
def predict_geometry(
    networks: dict[str, torch.nn.Module], heads: Tensor, chunk: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Depth and pose of head images.

    Args:
        networks: From `build_networks`, trained, in eval mode.
        heads: Head on black, `(T, 3, H, W)`, in [0, 1].
        chunk: Images at a time.

    Returns:
        Depth `(T, H, W)` in metres, angles `(T, 3)` in degrees, translation `(T, 3)` in metres.
    """
    parts = []
    for part in heads.split(chunk):
        pose = networks["pose"](part)
        parts.append((networks["depth"](part), pose.angles_deg, pose.translation_m))
    depth, angles, translation = (torch.cat(values) for values in zip(*parts, strict=True))
    return depth, angles, translation


def store_geometry(params: Params, paths: Paths, fingerprint: str, device: torch.device) -> int:
    """Write geometry.zarr for every usable clip; returns how many there are."""
    networks = build_networks(params.geometry, device)
    load_weights(paths.checkpoint("geometry"), networks)
    for network in networks.values():
        network.eval()
    table = usable_clips(paths)
    frames, head = array(open_store(paths.clips), "frames"), array(open_store(paths.masks), "head")
    rows, length, size = frames.shape[0], frames.shape[1], frames.shape[2]
    shard = params.crop.shard_clips
    specs = geometry_arrays(length, size)
    group = open_or_create(paths.geometry, specs, rows, shard, fingerprint, params.runtime.stores)
    done = np.asarray(array(group, "done")[:])
    wanted = set(table["row"].tolist())
    with progress("geometry.zarr", len(wanted), "clip", initial=int(done.sum())) as bar:
        for first in range(0, rows, shard):
            here = [row for row in range(first, min(first + shard, rows)) if row in wanted]
            if all(done[row] for row in here):
                continue
            count = min(shard, rows - first)
            values = {name: np.full((count, *spec.shape), spec.fill, spec.dtype) for name, spec in specs.items()}
            marks = np.zeros(count, np.uint8)
            for row in here:
                images = torch.from_numpy(np.asarray(frames[row])).to(device).permute(0, 3, 1, 2).float() / 255
                masks = torch.from_numpy(np.asarray(head[row])).to(device)[:, None].float()
                found = predict_geometry(networks, images * masks)
                for name, value in zip(("depth", "angles_deg", "translation_m"), found, strict=True):
                    values[name][row - first] = value.float().cpu().numpy()
                marks[row - first] = 1
                bar.update()
            write_rows(group, first, values, marks)
    finish_store(paths.geometry, group)
    return len(wanted)


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """The stage `geometry`.

    Args:
        params: All settings; `geometry` and `runtime` are used, and `crop.shard_clips`.
        paths: The data folder.
        fingerprint: Hash of what this stage depends on.

    Returns:
        Losses, and how predicted pose compares with the landmarks' on the test clips.

    Raises:
        StageError: No usable clip, or training failed.
    """
    device = choose_device(params.runtime.device)
    folder = paths.checkpoint("geometry")
    summary: dict[str, Any] = {"device": str(device), **left_out(paths, params.quality)}
    if not is_finished(folder, fingerprint):
        summary.update(train_geometry(params, paths, fingerprint, device))
    write_losses(folder, paths.metrics / "geometry_loss.csv")
    summary["clips"] = store_geometry(params, paths, fingerprint, device)
    assert read_fingerprint(paths.geometry) == fingerprint
    summary.update(check_stage1(params, paths, device))
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in summary.items()}
