"""Load the trained model from its three checkpoint folders, which carry their own settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.canonical import RecurrentCanonical
from models.config import Canonical, ConfigError, Crop, Fusion, Geometry, Parse, SectionT, build
from models.depth_net import DepthNetwork
from models.fusion import FusionNetwork
from models.head3d import Head3D
from models.pose_net import PoseNetwork
from tasks.checkpoint_folder import load_weights
from tasks.errors import StageError
from tasks.paths import WITHOUT_HEAD


def load_model(checkpoints: Path, device: torch.device) -> Head3D:
    """The trained model, frozen and in eval mode.

    Args:
        checkpoints: `data/checkpoints`, with the folders geometry, canonical and fusion.
        device: Where it shall lie.

    Returns:
        The model.

    Raises:
        StageError: A folder is missing or holds other networks.
    """
    settings = {stage: _settings(checkpoints / stage) for stage in ("geometry", "canonical", "fusion")}
    geometry = _section(Geometry, settings["geometry"], "geometry", checkpoints / "geometry")
    canonical = _section(Canonical, settings["canonical"], "canonical", checkpoints / "canonical")
    fusion = _section(Fusion, settings["fusion"], "fusion", checkpoints / "fusion")
    model = Head3D(
        DepthNetwork(geometry.depth_net, geometry.camera),
        PoseNetwork(geometry.pose_net, geometry.camera),
        RecurrentCanonical(canonical.net),
        FusionNetwork(fusion.net, fusion.flow_net),
        geometry.camera,
        int(settings["fusion"]["size_px"]),
    )
    load_weights(checkpoints / "geometry", {"depth": model.depth, "pose": model.pose})
    load_weights(checkpoints / "canonical", {"canonical": model.canonical})
    load_weights(checkpoints / "fusion", {"fusion": model.fusion})
    for network in (model.depth, model.pose, model.canonical, model.fusion):
        network.to(device).eval().requires_grad_(False)
    return model


def load_without_head(model: Head3D, checkpoints: Path) -> Head3D:
    """The model with the fusion network that was trained without x_hat_dri (Table 3); everything else is shared.

    Raises:
        StageError: That network was not trained.
    """
    folder = checkpoints / "fusion" / WITHOUT_HEAD
    if not folder.is_dir():
        raise StageError(f"{folder} does not exist: set fusion.without_head_steps above 0, then `dvc repro`")
    fusion = _section(Fusion, _settings(folder), "fusion", folder)
    network = FusionNetwork(fusion.net, fusion.flow_net, with_head=False)
    load_weights(folder, {"fusion": network})
    return replace(model, fusion=network.to(model.device).eval().requires_grad_(False))


def load_preparation(checkpoints: Path) -> tuple[Crop, Parse]:
    """How the videos were cropped and parsed that the model was trained on: new ones must be, too."""
    folder = checkpoints / "fusion"
    settings = _settings(folder)
    return _section(Crop, settings, "crop", folder), _section(Parse, settings, "parse", folder)


def held_to_parts(checkpoints: Path) -> bool:
    """Whether Phi's regions were held to parts of the face (`fusion.parts_weight`)."""
    folder = checkpoints / "fusion"
    return _section(Fusion, _settings(folder), "fusion", folder).parts_weight > 0


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise StageError(
            f"{file} does not exist: the model is not trained; `dvc repro` trains it, `dvc pull` fetches it"
        )
    settings: dict[str, Any] = json.loads(file.read_text())
    return settings


def _section(model: type[SectionT], settings: dict[str, Any], name: str, folder: Path) -> SectionT:
    """A section of a checkpoint's own settings.

    Raises:
        StageError: Another version wrote them.
    """
    try:
        return build(model, settings[name], f"{folder / 'config.json'}, {name}")
    except (ConfigError, KeyError) as error:
        raise StageError(
            f"the checkpoint is of another version of Head3D ({error}); `dvc repro` trains anew, or use that version"
        ) from None
