"""Load the trained model from its three checkpoint folders, which carry their own settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from models.canonical import RecurrentCanonical
from models.config import (
    Camera,
    CoderNet,
    ConfigError,
    Crop,
    DepthNet,
    FlowNet,
    NonNegativeFloat,
    Parse,
    PoseNet,
    Positive,
    SectionT,
    build,
)
from models.depth_net import DepthNetwork
from models.fusion import FusionNetwork
from models.head3d import Head3D
from models.pose_net import PoseNetwork
from tasks.checkpoint_folder import load_weights
from tasks.errors import StageError
from tasks.paths import WITHOUT_HEAD

AS_BEFORE: dict[str, Any] = {
    "geometry.depth_net.initial": "random",
    "geometry.pose_net.initial": "random",
    "fusion.flow_net.parts": {"regions": 0, "scale": 1.0, "width": 1, "blocks": 1},
    "fusion.parts_weight": 0.0,
    "parse.mirror": False,
}
"""Settings that are younger than some checkpoints -> the value that means: as it was before the setting came. A new
setting that one of the sections below reads belongs here, or older checkpoints are refused."""


class Needed(BaseModel):
    """What the trained networks are built from. The other settings of their stage say how they were trained: these may
    come and go, and the weights stay good."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Size(Needed):
    """Beside the sections, in every checkpoint."""

    size_px: Positive


class GeometryNets(Needed):
    """Of the section `geometry`."""

    camera: Camera
    depth_net: DepthNet
    pose_net: PoseNet


class CanonicalNets(Needed):
    """Of the section `canonical`."""

    net: CoderNet


class FusionNets(Needed):
    """Of the section `fusion`."""

    net: CoderNet
    flow_net: FlowNet
    parts_weight: NonNegativeFloat  # says what Phi's regions stand for, see `held_to_parts`


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
    geometry, _ = geometry_settings(checkpoints / "geometry")
    canonical = _section(CanonicalNets, "canonical", checkpoints / "canonical")
    fusion = _section(FusionNets, "fusion", checkpoints / "fusion")
    model = Head3D(
        DepthNetwork(geometry.depth_net, geometry.camera),
        PoseNetwork(geometry.pose_net, geometry.camera),
        RecurrentCanonical(canonical.net),
        FusionNetwork(fusion.net, fusion.flow_net),
        geometry.camera,
        _section(Size, "", checkpoints / "fusion").size_px,
    )
    load_weights(checkpoints / "geometry", {"depth": model.depth, "pose": model.pose})
    load_weights(checkpoints / "canonical", {"canonical": model.canonical})
    load_weights(checkpoints / "fusion", {"fusion": model.fusion})
    for network in (model.depth, model.pose, model.canonical, model.fusion):
        network.to(device).eval().requires_grad_(False)
    return model


def geometry_settings(folder: Path) -> tuple[GeometryNets, int]:
    """What stage 1's networks are built from, and the side of the frames that it was trained at.

    Raises:
        StageError: There is no such checkpoint, or another version wrote it.
    """
    return _section(GeometryNets, "geometry", folder), _section(Size, "", folder).size_px


def load_without_head(model: Head3D, checkpoints: Path) -> Head3D:
    """The model with the fusion network that was trained without x_hat_dri (Table 3); everything else is shared.

    Raises:
        StageError: That network was not trained.
    """
    folder = checkpoints / "fusion" / WITHOUT_HEAD
    if not folder.is_dir():
        raise StageError(f"{folder} does not exist: set fusion.without_head_steps above 0, then `dvc repro`")
    fusion = _section(FusionNets, "fusion", folder)
    network = FusionNetwork(fusion.net, fusion.flow_net, with_head=False)
    load_weights(folder, {"fusion": network})
    return replace(model, fusion=network.to(model.device).eval().requires_grad_(False))


def load_preparation(checkpoints: Path) -> tuple[Crop, Parse]:
    """How the videos were cropped and parsed that the model was trained on: new ones must be, too."""
    folder = checkpoints / "fusion"
    return _section(Crop, "crop", folder), _section(Parse, "parse", folder)


def held_to_parts(checkpoints: Path) -> bool:
    """Whether Phi's regions were held to parts of the face (`fusion.parts_weight`)."""
    folder = checkpoints / "fusion"
    return _section(FusionNets, "fusion", folder).parts_weight > 0


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise StageError(
            f"{file} does not exist: the model is not trained; `dvc repro` trains it, `dvc pull` fetches it"
        )
    settings: dict[str, Any] = json.loads(file.read_text())
    for path, value in AS_BEFORE.items():
        *parents, name = path.split(".")
        place: Any = settings
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict):  # else a whole section is missing, which nothing stands for
            place.setdefault(name, value)
    return settings


def _section(model: type[SectionT], name: str, folder: Path) -> SectionT:
    """A section of a checkpoint's own settings; all of them for an empty name.

    Raises:
        StageError: There are none, or another version wrote them.
    """
    settings = _settings(folder)
    try:
        where = ", ".join(filter(None, [str(folder / "config.json"), name]))
        return build(model, settings.get(name, {}) if name else settings, where)
    except ConfigError as error:
        raise StageError(
            f"the checkpoint is of another version of Head3D ({error}); `dvc repro` trains anew, or use that version"
        ) from None
