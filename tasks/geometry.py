"""Stage 1 (Sec. 3.1): train F_D and F_P by Eq. 4 (`tasks.geometry_loss`), then store depth and pose of every frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.config import Geometry, Params
from models.depth_net import DepthNetwork
from models.initial import start_depth, start_pose
from models.pose_net import PoseNetwork
from tasks.checkpoint_folder import is_finished, load_weights, write_losses
from tasks.clip_data import ClipSet, left_out, load_clips, usable_clips
from tasks.device import choose_device, placed
from tasks.devices import on_devices
from tasks.geometry_look import look_at_geometry
from tasks.geometry_loss import GeometryLoss
from tasks.optimiser import adam
from tasks.paths import Paths
from tasks.progress import progress
from tasks.rendered_heads import RenderedHeads, render_heads
from tasks.training import Training, train

FIRST_PERSON, FRAMES = 5000, 40
"""The rendered people start here, far from those of the demo and of the benchmark; so many poses of each are drawn."""


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
    return {name: placed(network, device) for name, network in networks.items()}


def render_start(config: Geometry, size_px: int, workers: int) -> RenderedHeads | None:
    """The rendered heads that stage 1 starts from; None if it starts from landmarks alone."""
    if config.bootstrap == "landmarks":
        return None
    return render_heads(FIRST_PERSON, config.rendered_people, FRAMES, size_px, config.train.seed, workers)


def learning_rates(config: Geometry, step: int) -> list[float]:
    """Rates of F_D and F_P at a step: along a cosine to a tenth in the bootstrap, then those of Sec. 4.2."""
    if step < config.bootstrap_steps:
        rate = config.lr_bootstrap * (0.55 + 0.45 * math.cos(math.pi * step / config.bootstrap_steps))
        return [rate, rate]
    drop = 0.1 if step - config.bootstrap_steps >= config.train.lr_drop_step else 1.0
    return [config.lr_depth * drop, config.lr_pose * drop]


def geometry_job(
    config: Geometry,
    networks: dict[str, torch.nn.Module],
    clips: ClipSet,
    workers: int,
    settings: Mapping[str, Any],
) -> Training:
    """Stage 1's training, ready to run.

    Args:
        config: The section `geometry`.
        networks: From `build_networks`.
        clips: The training clips.
        workers: Processes that render heads to start from, if the settings want them.
        settings: What is stored beside the weights.
    """
    groups = [{"params": list(networks[name].parameters())} for name in ("depth", "pose")]
    losses = GeometryLoss(config, networks, clips, render_start(config, clips.size_px, workers))
    return Training(
        name="geometry",
        modules=networks,
        optimiser=adam(groups, config.lr_bootstrap, config.train.clip_norm),
        steps=config.bootstrap_steps + config.train.steps,
        losses=losses,
        rates=lambda step: learning_rates(config, step),
        settings=settings,
        log_every=config.train.log_every_steps,
        average=config.train.average,
        samples=config.train.batch_videos,
        look=partial(look_at_geometry, losses),
        sheet_every=config.train.sheet_every_steps,
        rows=(lambda drawn: clips.rows(drawn, "frames", "head")) if clips.streamed else None,
    )


def train_geometry(params: Params, paths: Paths, fingerprint: str, device: torch.device) -> dict[str, Any]:
    """Train F_D and F_P; see `tasks.training.train` for resume and results, beside what the networks start from."""
    config = params.geometry
    clips = load_clips(paths, "train", device, False, params.quality, params.runtime.clips_on_gpu)
    networks = build_networks(config, device)
    depth, pose = networks["depth"], networks["pose"]
    assert isinstance(depth, DepthNetwork)
    assert isinstance(pose, PoseNetwork)
    start = {
        "depth_starts_from": start_depth(depth, config.depth_net.initial),
        "pose_starts_from": start_pose(pose, config.pose_net.initial),
    }
    settings = {"geometry": config.model_dump(), "size_px": clips.size_px}
    job = geometry_job(config, networks, clips, params.runtime.workers, settings)
    return {**start, **train(job, paths.checkpoint("geometry"), fingerprint, params.runtime)}


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
    from tasks.stores import array, finish_store, geometry_arrays, open_or_create, open_store, write_rows

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
    from tasks.geometry_check import check_stage1
    from tasks.stores import read_fingerprint

    device = choose_device(params.runtime.device)
    folder = paths.checkpoint("geometry")
    summary: dict[str, Any] = {"device": str(device), **left_out(paths, params.quality)}
    if not is_finished(folder, fingerprint):
        summary.update(on_devices(train_geometry, params.runtime, params, paths, fingerprint))
    write_losses(folder, paths.metrics / "geometry_loss.csv")
    summary["clips"] = store_geometry(params, paths, fingerprint, device)
    assert read_fingerprint(paths.geometry) == fingerprint
    summary.update(check_stage1(params, paths, device))
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in summary.items()}
