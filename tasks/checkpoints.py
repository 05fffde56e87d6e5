"""Numbered checkpoints of a training that runs: whole or not there, the last two kept, a damaged one passed over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tasks.checkpoint_folder import WEIGHTS, write_state, write_tensors

KEPT = 2
"""So many checkpoints stay: should the newest be damaged, there is one before it."""
STATE, ABOUT = "state.pt", "about.json"


@dataclass
class TrainingState:
    """Everything that the rest of a training depends on, besides its settings and its data.

    Attributes:
        step: Steps taken.
        weights: Values of all networks, `network.key` -> tensor.
        average: Their running average; empty: there is none.
        optimiser: Its state_dict.
        history: Rows of the loss curve.
        looks: Figures of the looks at the networks.
        window: Losses of the steps since the last row, `(n, losses)`.
        random: States of torch's generators, of the CPU and of every GPU.
    """

    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimiser: dict[str, Any]
    history: list[dict[str, float]]
    looks: list[dict[str, float]]
    window: Tensor
    random: dict[str, Any] = field(default_factory=dict)


def random_states() -> dict[str, Any]:
    """States of torch's global generators."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": gpus}


def set_random_states(states: dict[str, Any]) -> None:
    """Put them back; those of GPUs that are not here are left out."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, index)


def git_revision() -> str | None:
    """Commit of this code, with `-dirty` where files have changed since; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


class CheckpointWriter:
    """Context that writes checkpoints in a thread, one at a time: the disk is slower than a GPU's memory, and training
    goes on meanwhile. Leaving it waits for the last one."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Prepare.

        Args:
            folder: Checkpoint folder of the stage.
            fingerprint: Of the run.
        """
        self._folder, self._fingerprint, self._revision = folder, fingerprint, git_revision()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except OSError as failed:
            if error is None:
                raise
            sys.stderr.write(f"{self._folder}: the last checkpoint could not be written ({failed})\n")

    def write(self, state: TrainingState) -> None:
        """Copy a state to the host's memory and begin to write it, once the one before is written.

        Raises:
            OSError: The one before could not be written.
        """
        self.wait()
        copied = TrainingState(**{name: _copied(value) for name, value in vars(state).items()})
        self._thread = threading.Thread(target=self._write, args=(copied,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is written.

        Raises:
            OSError: It could not be.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, state: TrainingState) -> None:
        try:
            save_checkpoint(self._folder, state, self._fingerprint, self._revision)
        except BaseException as error:
            self._error = error


def _copied(value: Any) -> Any:
    """The same values in memory of their own, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def save_checkpoint(folder: Path, state: TrainingState, fingerprint: str, revision: str | None) -> Path:
    """Write `step_00012345` in `folder`, complete or not at all, and throw away all but the last `KEPT`.

    Args:
        folder: Checkpoint folder of the stage.
        state: What to keep, on the CPU.
        fingerprint: Of the run.
        revision: From `git_revision`.

    Returns:
        The new checkpoint.

    Raises:
        OSError: It could not be written; nothing of it is left.
    """
    target = folder / f"step_{state.step:08d}"
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial, state, fingerprint, revision)
        if target.exists():  # a damaged one that this run passed over
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:  # on a full disk, half a checkpoint would take the room that is left
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in numbered(folder)[KEPT:]:
        shutil.rmtree(old)
    return target


def _write(folder: Path, state: TrainingState, fingerprint: str, revision: str | None) -> None:
    write_tensors(folder / WEIGHTS, state.weights)
    write_state(folder / STATE, {name: value for name, value in vars(state).items() if name != "weights"})
    about = {
        "step": state.step,
        "fingerprint": fingerprint,
        "git_revision": revision,
        "torch": torch.__version__,
        "crc32": {name: _crc32(folder / name) for name in (WEIGHTS, STATE)},
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def numbered(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    return sorted((path for path in folder.glob("step_*") if path.suffix != ".partial"), reverse=True)


def remove_partial(folder: Path) -> None:
    """Throw away what a killed run has left half written."""
    for stray in folder.glob("*.partial"):
        if stray.is_dir():
            shutil.rmtree(stray)
        else:
            stray.unlink()


def load_newest(folder: Path, fingerprint: str) -> TrainingState | None:
    """The newest checkpoint that is whole; says on stderr which ones are not.

    Args:
        folder: Checkpoint folder of the stage.
        fingerprint: Checkpoints of other runs are passed over.

    Returns:
        Its state, on the CPU; None if there is none.
    """
    found = numbered(folder)
    for index, path in enumerate(found):
        try:
            return _read(path, fingerprint)
        except Exception as error:  # a damaged file may fail in any way
            rest = f"going on from {found[index + 1].name}" if index + 1 < len(found) else "starting from the beginning"
            sys.stderr.write(f"{path} cannot be used ({error or type(error).__name__}); {rest}\n")
    return None


def _read(path: Path, fingerprint: str) -> TrainingState:
    about = json.loads((path / ABOUT).read_text())
    if about["fingerprint"] != fingerprint:
        raise ValueError("it belongs to a run with other settings, code or inputs")
    for name, expected in about["crc32"].items():
        if _crc32(path / name) != expected:
            raise ValueError(f"{name} is damaged: its checksum is another")
    rest = torch.load(path / STATE, map_location="cpu", weights_only=True)
    return TrainingState(weights=load_file(path / WEIGHTS), **rest)


def _crc32(file: Path) -> int:
    value = 0
    for part in _parts(file):
        value = zlib.crc32(part, value)
    return value


def _parts(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while part := stream.read(1 << 22):
            yield part
