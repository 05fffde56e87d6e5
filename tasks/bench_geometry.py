"""Stage 1 (F_D, F_P) on rendered people nobody has seen, whose pose and depth are known, against its bars."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module

from models.geometry import intrinsics
from models.landmark_pose import ellipsoid_depth, poses_from_landmarks
from tasks.check_geometry import Bar
from tasks.demo_render import FOV_DEG
from tasks.device import choose_device
from tasks.rendered_heads import RenderedHeads, as_clips, render_heads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.config import Geometry, Runtime

ANGLES = ("yaw", "pitch", "roll")
ANGLE_BAR_DEG = 3.0
DEPTH_BAR = 0.9
SEED = 20_231
"""Of the rendered people; the demo's people have another."""
FIRST_UNSEEN = 1_000_000
"""Number of the first person that is never trained on: the same people judge, however many there are to learn from."""


@dataclass(frozen=True)
class AngleFigures:
    """How three predicted angles follow the true ones; each `(3,)` for yaw, pitch, roll.

    Attributes:
        error_deg: Mean absolute error after the offset is taken away.
        offset_deg: Median of predicted minus true: where "straight ahead" lies is a convention.
        gain: Slope of predicted over true; below 1: the rotation has shrunk.
        correlation: Pearson.
    """

    error_deg: list[float]
    offset_deg: list[float]
    gain: list[float]
    correlation: list[float]


def compare_angles(found: Tensor, true: Tensor) -> AngleFigures:
    """Compare angles over a whole set of frames.

    Args:
        found: `(n, 3)`, degrees; rows that are not finite are left out.
        true: The same.

    Returns:
        The figures.
    """
    known = torch.isfinite(found).all(dim=1)
    found, true = found[known].double(), true[known].double()
    off = found - true
    offset = off.median(dim=0).values
    a, b = found - found.mean(dim=0), true - true.mean(dim=0)
    together = (a * b).mean(dim=0)
    spread = (a.square().mean(dim=0) * b.square().mean(dim=0)).sqrt()
    return AngleFigures(
        (off - offset).abs().mean(dim=0).tolist(),
        offset.tolist(),
        (together / b.square().mean(dim=0)).tolist(),
        (together / spread.clamp(min=1e-9)).tolist(),
    )


def depth_correlation(found: Tensor, true: Tensor) -> Tensor:
    """Pearson correlation of two depths inside each head.

    Args:
        found: `(n, H, W)`, metres.
        true: The same; 0 outside the head.

    Returns:
        `(n,)`; 0 where one of them is constant.
    """
    head = (true > 0).double()
    area = head.sum(dim=(1, 2)).clamp(min=1)

    def centred(depth: Tensor) -> Tensor:
        depth = depth.double()
        return (depth - ((depth * head).sum(dim=(1, 2)) / area)[:, None, None]) * head

    a, b = centred(found), centred(true)
    spread = (a.square().sum(dim=(1, 2)) * b.square().sum(dim=(1, 2))).sqrt()
    return (a * b).sum(dim=(1, 2)) / spread.clamp(min=1e-12)


@torch.no_grad()
def predict(
    networks: Mapping[str, Module], heads: RenderedHeads, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What F_D and F_P make of rendered heads.

    Args:
        networks: `depth` and `pose`, on the device; they are put into eval mode.
        heads: The heads.
        device: Where to compute.

    Returns:
        Depth `(n, H, W)` in metres, angles `(n, 3)` in degrees and translation `(n, 3)` in metres, on the CPU.
    """
    for network in networks.values():
        network.eval()
    parts = []
    for start in range(0, len(heads), 64):
        rows = slice(start, start + 64)
        image = (heads.images[rows].to(device).float() / 255) * heads.masks[rows].to(device)
        pose = networks["pose"](image)
        parts.append([values.float().cpu() for values in (networks["depth"](image), *pose)])
    depth, angles, translation = (torch.cat(values) for values in zip(*parts, strict=True))
    return depth, angles, translation


def landmark_angles(heads: RenderedHeads) -> Tensor:
    """Angles of the weak-perspective fit to the true landmarks (what the bootstrap learns from), `(n, 3)`, degrees."""
    size = heads.images.shape[-1]
    K = intrinsics(size, size, FOV_DEG)
    people = [heads.landmarks[heads.person == person] for person in heads.person.unique_consecutive()]
    return torch.cat([poses_from_landmarks(points, K, 60.0, 0.1)[0] for points in people])


def measure(networks: Mapping[str, Module], heads: RenderedHeads, device: torch.device) -> list[Bar]:
    """The bars of stage 1 beside what needs no network.

    Args:
        networks: `depth` and `pose`, on the device.
        heads: Rendered people that were not trained on.
        device: Where to compute.

    Returns:
        Errors of the angles after one constant offset each, and the correlation of depth inside the head, with bars;
        then gain, shifts and level of depth, and the baselines: a constant pose, the fit to the true landmarks, the
        ellipsoid.
    """
    depth, angles, translation = predict(networks, heads, device)
    size = depth.shape[-1]
    true_depth, true = heads.depth.float(), heads.angles_deg
    found, fitted = compare_angles(angles, true), compare_angles(landmark_angles(heads), true)
    still = compare_angles(torch.zeros_like(true), true)
    correlation = depth_correlation(depth, true_depth)
    ellipsoid = ellipsoid_depth(heads.masks[:, 0].float(), intrinsics(size, size, FOV_DEG))
    head = heads.masks[:, 0] > 0
    level = torch.stack([(depth[i] - true_depth[i])[head[i]].mean() for i in range(len(heads))])
    shift_mm = (translation - heads.translation_m).double() * 1000
    shift = (shift_mm - shift_mm.median(dim=0).values).abs().mean(dim=0).tolist()
    bars = [Bar(f"{name}: mean error", found.error_deg[i], "deg", ANGLE_BAR_DEG) for i, name in enumerate(ANGLES)]
    bars.append(Bar("depth: correlation inside the head", float(correlation.mean()), "", DEPTH_BAR, "at least"))
    bars.append(Bar("depth: correlation, worst tenth from", float(correlation.quantile(0.1)), ""))
    bars.append(Bar("depth: level off by (mean)", float(level.abs().mean()) * 1000, "mm"))
    for i, name in enumerate(ANGLES):
        bars.append(Bar(f"{name}: gain", found.gain[i], ""))
        bars.append(Bar(f"{name}: offset taken away", found.offset_deg[i], "deg"))
    bars += [Bar(f"shift {name}: mean error", shift[i], "mm") for i, name in enumerate("xyz")]
    for i, name in enumerate(ANGLES):
        bars.append(Bar(f"{name}: a constant pose", still.error_deg[i], "deg"))
        bars.append(Bar(f"{name}: fit to the true landmarks", fitted.error_deg[i], "deg"))
        bars.append(Bar(f"{name}: gain of that fit", fitted.gain[i], ""))
    bars.append(Bar("depth: correlation of an ellipsoid", float(depth_correlation(ellipsoid, true_depth).mean()), ""))
    return bars


def with_steps(config: Geometry, steps: int) -> Geometry:
    """The section with another number of steps in all, shared between start and Eq. 4 as before.

    Args:
        config: The section `geometry`.
        steps: Bootstrap and Eq. 4 together.
    """
    share = steps / (config.bootstrap_steps + config.train.steps)
    bootstrap = min(round(config.bootstrap_steps * share), steps - 1)
    drop = max(1, round(config.train.lr_drop_step * share))
    optim = config.train.model_copy(update={"steps": steps - bootstrap, "lr_drop_step": drop})
    return config.model_copy(update={"bootstrap_steps": bootstrap, "train": optim})


def train_on(heads: RenderedHeads, config: Geometry, runtime: Runtime, device: torch.device) -> dict[str, Module]:
    """Train stage 1 on rendered people by the losses and the loop of the pipeline.

    Their frames are stills: each is a clip of its own (nothing is smoothed over time), and each person a video. If the
    settings start from rendered heads, these are drawn besides, as in the pipeline.

    Args:
        heads: The people.
        config: The section `geometry`; the frames of a sample are always of a whole video here.
        runtime: For the training loop.
        device: Where to train.

    Returns:
        F_D and F_P.
    """
    from tasks.checkpoint_folder import load_weights
    from tasks.geometry import build_networks, geometry_job
    from tasks.training import train

    config = config.model_copy(update={"train": config.train.model_copy(update={"span": "video"})})
    networks = build_networks(config, device)
    job = geometry_job(config, networks, as_clips(heads, 1, device), runtime.workers, {})
    with tempfile.TemporaryDirectory(prefix="head3d-bench-") as name:
        folder = Path(name)
        train(job, folder, "bench", runtime)
        load_weights(folder, networks)
    return networks


def load_stage1(folder: Path, device: torch.device) -> tuple[dict[str, Module], int]:
    """F_D and F_P of a checkpoint and the side of the frames they were trained on.

    Args:
        folder: `data/checkpoints/geometry`, or a copy.
        device: Where they shall lie.

    Raises:
        StageError: There is no such checkpoint, or another version wrote it.
    """
    from models.depth_net import DepthNetwork
    from models.pose_net import PoseNetwork
    from tasks.checkpoint_folder import load_weights
    from tasks.errors import StageError
    from tasks.trained import geometry_settings

    file = folder / "config.json"
    if not file.is_file():
        raise StageError(f"{file} does not exist; name the folder of a trained stage 1, as data/checkpoints/geometry")
    config, size = geometry_settings(folder)
    networks: dict[str, Module] = {
        "depth": DepthNetwork(config.depth_net, config.camera),
        "pose": PoseNetwork(config.pose_net, config.camera),
    }
    load_weights(folder, networks)
    return {name: network.to(device) for name, network in networks.items()}, size


@dataclass(frozen=True)
class Rendered:
    """Which people are drawn.

    Attributes:
        people: To learn from.
        unseen: To judge by.
        frames: Of each.
        workers: Processes that draw.
    """

    people: int
    unseen: int
    frames: int
    workers: int


def bench_weights(folder: Path, rendered: Rendered, device: str) -> list[Bar]:
    """Judge a trained stage 1; see `measure`.

    Args:
        folder: Its checkpoint.
        rendered: How many people judge.
        device: auto, cpu, cuda or cuda:N.
    """
    where = choose_device(device)
    networks, size = load_stage1(folder, where)
    return measure(networks, _unseen(rendered, size), where)


def bench_training(rendered: Rendered, size_px: int, config: Geometry, runtime: Runtime, device: str) -> list[Bar]:
    """Train stage 1 on rendered people by the pipeline's code and judge it on others; see `measure`.

    Args:
        rendered: How many people.
        size_px: Side of the frames.
        config: The section `geometry`.
        runtime: For the training loop.
        device: auto, cpu, cuda or cuda:N.
    """
    where = choose_device(device)
    heads = render_heads(0, rendered.people, rendered.frames, size_px, SEED, rendered.workers)
    networks = train_on(heads, config, runtime, where)
    return measure(networks, _unseen(rendered, size_px), where)


def _unseen(rendered: Rendered, size_px: int) -> RenderedHeads:
    return render_heads(FIRST_UNSEEN, rendered.unseen, rendered.frames, size_px, SEED, rendered.workers)
