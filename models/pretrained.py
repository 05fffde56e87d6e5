"""Weights from elsewhere: what each file is, where it belongs, how it is checked. Nothing is downloaded here."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """One public weights file.

    Attributes:
        file: Its name.
        url: Where a person gets it.
        sha256: Its hash, or the first digits of it; empty where none is published: then it is not checked.
        licence: Its licence.
        purpose: What it is for here.
    """

    file: str
    url: str
    sha256: str
    licence: str
    purpose: str


_HUB = "https://download.pytorch.org/models/"
REGISTRY = {
    "vgg19": Weights("vgg19-dcbb9e9d.pth", _HUB + "vgg19-dcbb9e9d.pth", "dcbb9e9d", "BSD-3-Clause", "perceptual loss"),
    "alexnet": Weights(
        "alexnet-owt-7be5be79.pth", _HUB + "alexnet-owt-7be5be79.pth", "7be5be79", "BSD-3-Clause", "LPIPS (alex)"
    ),
    "vgg16": Weights("vgg16-397923af.pth", _HUB + "vgg16-397923af.pth", "397923af", "BSD-3-Clause", "LPIPS (vgg)"),
    "squeezenet1_1": Weights(
        "squeezenet1_1-b8a52dc0.pth", _HUB + "squeezenet1_1-b8a52dc0.pth", "b8a52dc0", "BSD-3-Clause", "LPIPS (squeeze)"
    ),
    "mobilenet_v2": Weights(
        "mobilenet_v2-b0353104.pth", _HUB + "mobilenet_v2-b0353104.pth", "b0353104", "BSD-3-Clause", "start of F_D"
    ),
    "bisenet": Weights(
        "79999_iter.pth",
        "https://drive.google.com/open?id=154JgKpzCPW82qINcVieuPH3fZ2e0P812",
        "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
        "code MIT; trained on CelebAMask-HQ: non-commercial research",
        "face parser of parse.parser: bisenet",
    ),
    "hopenet": Weights(
        "hopenet_robust_alpha1.pkl",
        "https://drive.google.com/open?id=1m25PrSE7g9D2q2XJVMR6IA7RaCvWSzCR",
        "",
        "code Apache-2.0; trained on 300W-LP: look at its terms, which are for research",
        "start of F_P (geometry.pose_net.backbone: resnet50)",
    ),
}


class WeightsMissingError(FileNotFoundError):
    """A weights file is not on this machine; the text says which file to put where."""


class WeightsFormatError(WeightsMissingError):
    """The file is there, but its content is not what its name promises; the text says what is wrong with it."""


def weights_folder() -> Path:
    """torch hub's checkpoint folder (moved by TORCH_HOME)."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torch"
    return Path(home) / "hub" / "checkpoints"


def find_weights(name: str, file: Path | None = None) -> Path:
    """The checked file of a registered name.

    Args:
        name: Key of `REGISTRY`.
        file: Where it is; None: under its own name in `weights_folder()`.

    Returns:
        Its path.

    Raises:
        WeightsMissingError: It is not there.
        WeightsFormatError: Its hash is another.
    """
    entry = REGISTRY[name]
    path = file or weights_folder() / entry.file
    if not path.is_file():
        where = f"{path} does not exist: " if file else ""
        raise WeightsMissingError(
            f"{where}{entry.file} ({entry.purpose}) is missing; get it from {entry.url} and put it into "
            f"{weights_folder()}"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(entry.sha256):
        raise WeightsFormatError(
            f"{path} has SHA-256 {digest}, not {entry.sha256}; it is damaged or another file: get it again from "
            f"{entry.url}"
        )
    return path


def load_registered(name: str, file: Path | None = None) -> dict[str, Tensor]:
    """State dict of a registered file; nothing in it is run.

    Args:
        name: Key of `REGISTRY`.
        file: As for `find_weights`.

    Returns:
        Key -> tensor, on the CPU.

    Raises:
        WeightsMissingError: It is not there.
        WeightsFormatError: See `find_weights`; or it holds something else than tensors.
    """
    path = find_weights(name, file)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsFormatError(f"{path} holds more than tensors and is not read") from None


def load_official(name: str, path: Path | None = None) -> nn.Module:
    """A network with its published weights, which computes what the published code computes.

    Args:
        name: `hopenet`: F_P on ResNet-50 (`models.hopenet.HopeNet`).
        path: The file; None: its own name in `weights_folder()`.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        ValueError: The name is unknown.
        WeightsMissingError: The file is not there.
        WeightsFormatError: The file has another format.
    """
    if name != "hopenet":
        raise ValueError(f"there is no official network '{name}'; there is: hopenet")
    # By name: an import statement would make every stage that reads a weights file depend on the networks.
    network: nn.Module = importlib.import_module("models.hopenet").load_hopenet(path)
    return network
