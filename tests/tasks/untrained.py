"""A whole model with seeded weights that nobody trained, in memory and as checkpoints: the commands run with it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.canonical import RecurrentCanonical
from models.config import Params
from models.depth_net import DepthNetwork
from models.fusion import FusionNetwork
from models.head3d import Head3D
from models.pose_net import PoseNetwork


def untrained_model(params: Params) -> Head3D:
    """The networks of the settings with seeded weights, in eval mode."""
    torch.manual_seed(0)
    camera = params.geometry.camera
    return Head3D(
        DepthNetwork(params.geometry.depth_net, camera).eval(),
        PoseNetwork(params.geometry.pose_net, camera).eval(),
        RecurrentCanonical(params.canonical.net).eval(),
        FusionNetwork(params.fusion.net, params.fusion.flow_net).eval(),
        camera,
        params.crop.size_px,
    )


def write_checkpoints(folder: Path, params: Params) -> Path:
    """`untrained_model` as the three training stages would leave it.

    Args:
        folder: `data/checkpoints`.
        params: The settings.

    Returns:
        The folder.
    """
    model = untrained_model(params)
    parts: dict[str, dict[str, torch.nn.Module]] = {
        "geometry": {"depth": model.depth, "pose": model.pose},
        "canonical": {"canonical": model.canonical},
        "fusion": {"fusion": model.fusion},
    }
    for stage, networks in parts.items():
        (folder / stage).mkdir(parents=True)
        weights = {
            f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()
        }
        save_file(weights, folder / stage / "model.safetensors")
        used = {"crop": params.crop, "parse": params.parse, stage: getattr(params, stage)}
        config = {name: section.model_dump() for name, section in used.items()}
        (folder / stage / "config.json").write_text(json.dumps({**config, "size_px": params.crop.size_px}))
    return folder
