"""What a finished training leaves: model.safetensors, config.json, loss.csv and stage.json, in one folder."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tasks.disk import whole_file
from tasks.errors import StageError

WEIGHTS, SETTINGS, CURVE, MARK = "model.safetensors", "config.json", "loss.csv", "stage.json"


def mark(folder: Path, fingerprint: str, complete: bool) -> None:
    """Write down which run the folder belongs to, and whether it has come to its end."""
    with whole_file(folder / MARK) as partial:  # half of it would pass for another run's, whose steps are thrown away
        partial.write_text(json.dumps({"fingerprint": fingerprint, "complete": complete}) + "\n")


def read_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the run that wrote a checkpoint folder; None if there is none."""
    try:
        return str(json.loads((folder / MARK).read_text())["fingerprint"])
    except (OSError, ValueError, KeyError):
        return None


def is_finished(folder: Path, fingerprint: str) -> bool:
    """Whether the stage has run to its end with this fingerprint."""
    try:
        stage = json.loads((folder / MARK).read_text())
    except (OSError, ValueError):
        return False
    return bool(stage.get("complete")) and stage.get("fingerprint") == fingerprint and (folder / WEIGHTS).is_file()


def save_weights(folder: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Write the weights and the settings that explain them, each whole or not at all."""
    with whole_file(folder / WEIGHTS) as partial:
        write_tensors(partial, weights)
    with whole_file(folder / SETTINGS) as partial:
        partial.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file through Python: the package's own writing does not raise an OSError on a full disk.

    Raises:
        OSError: The disk is full or read-only.
    """
    file.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))


def write_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write with `torch.save` through Python, for the same reason: its own writing raises a RuntimeError.

    Raises:
        OSError: The disk is full or read-only.
    """
    content = io.BytesIO()
    torch.save(state, content)
    file.write_bytes(content.getbuffer())


def weights_of(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's own state_dict among the weights of several, whose names begin with the network's."""
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}


def load_weights(folder: Path, modules: Mapping[str, nn.Module]) -> None:
    """Load a finished stage's weights into its networks.

    Raises:
        StageError: The file is missing or holds other networks.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise StageError(f"{file} does not exist; `dvc repro {folder.name}` trains it (or `dvc pull` fetches it)")
    weights = load_file(file)
    for name, module in modules.items():
        try:
            module.load_state_dict(weights_of(name, weights))
        except RuntimeError as error:
            raise StageError(f"{file} does not fit the networks of its config.json: {error}") from None


def write_losses(folder: Path, target: Path) -> None:
    """Copy the loss curve of a finished stage to where DVC plots it.

    Also throws away the numbered checkpoints of a run that was killed at its very end: they would go into DVC's cache.
    """
    for left in [path for path in folder.rglob("step_*") if path.is_dir()]:
        shutil.rmtree(left)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / CURVE, target)
