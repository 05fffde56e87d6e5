"""The training loop that the three stages share: steps, log, checkpoints, resume."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.config import Runtime
from tasks.errors import StageError
from tasks.progress import progress


@dataclass
class Training:
    """One training stage.

    Attributes:
        name: Stage name; labels the progress bar and the files.
        modules: Networks that are trained, by the name under which their weights are stored.
        optimiser: Over their parameters.
        steps: How many steps to take.
        losses: Step number -> named scalar losses; `total` is minimised.
        rates: Step number -> learning rate of each parameter group.
        settings: What is stored beside the weights, so that a checkpoint explains itself.
    """

    name: str
    modules: Mapping[str, nn.Module]
    optimiser: torch.optim.Optimizer
    steps: int
    losses: Callable[[int], dict[str, Tensor]]
    rates: Callable[[int], list[float]]
    settings: Mapping[str, Any]
    log_every: int
    history: list[dict[str, float]] = field(default_factory=list)


def train(job: Training, folder: Path, fingerprint: str, runtime: Runtime) -> dict[str, float]:
    """Run a training stage to its end, from its last checkpoint if there is one.

    Args:
        job: What to train.
        folder: Checkpoint folder of the stage; what another fingerprint wrote there is thrown away.
        fingerprint: Hash of the code, settings and inputs.
        runtime: How often to write a checkpoint.

    Returns:
        First and last logged total loss, and the seconds spent in this run.

    Raises:
        StageError: The loss is no longer a number.
    """
    begin = time.monotonic()
    step = _resume(job, folder, fingerprint)
    saved = time.monotonic()
    with progress(job.name, job.steps, "step", initial=step) as bar:
        window: list[dict[str, Tensor]] = []
        try:
            while step < job.steps:
                for group, rate in zip(job.optimiser.param_groups, job.rates(step), strict=True):
                    group["lr"] = rate
                losses = job.losses(step)
                job.optimiser.zero_grad(set_to_none=True)
                losses["total"].backward()
                job.optimiser.step()
                step += 1
                window.append({name: value.detach() for name, value in losses.items()})
                if step % job.log_every == 0 or step == job.steps:
                    _log(job, step, window)
                    window = []
                    bar.set_postfix_str(f"loss {job.history[-1]['total']:.4f}")
                    if time.monotonic() - saved > runtime.checkpoint_every_s:
                        _save_state(job, folder, fingerprint, step)
                        saved = time.monotonic()
                bar.update()
        except KeyboardInterrupt:
            if not window:  # a half-filled log window would not be the same after a resume
                _save_state(job, folder, fingerprint, step)
            raise
    _finish(job, folder, fingerprint)
    return {
        "loss_first": job.history[0]["total"],
        "loss_last": job.history[-1]["total"],
        "train_seconds": round(time.monotonic() - begin, 1),
    }


def _log(job: Training, step: int, window: list[dict[str, Tensor]]) -> None:
    row: dict[str, float] = {"step": float(step)}
    for name in window[-1]:
        row[name] = float(torch.stack([losses[name] for losses in window if name in losses]).mean())
    row["lr"] = float(job.optimiser.param_groups[0]["lr"])
    bad = [name for name in window[-1] if not torch.isfinite(torch.tensor(row[name]))]
    if bad:
        raise StageError(
            f"{job.name}: {', '.join(bad)} is no longer a number at step {step}; "
            f"lower the learning rate of this stage in params.yaml and run again"
        )
    job.history.append(row)


def _resume(job: Training, folder: Path, fingerprint: str) -> int:
    """Load the last state of the same fingerprint; returns the step to go on with."""
    state_file = folder / "state.pt"
    if folder.exists() and read_fingerprint(folder) != fingerprint:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stray in folder.glob("*.partial"):
        stray.unlink()
    (folder / "stage.json").write_text(json.dumps({"fingerprint": fingerprint, "complete": False}))
    if not state_file.is_file():
        return 0
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    for name, module in job.modules.items():
        module.load_state_dict(state["modules"][name])
    job.optimiser.load_state_dict(state["optimiser"])
    job.history[:] = state["history"]
    return int(state["step"])


def _save_state(job: Training, folder: Path, fingerprint: str, step: int) -> None:
    state = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in job.modules.items()},
        "optimiser": job.optimiser.state_dict(),
        "history": job.history,
    }
    partial = folder / "state.pt.partial"
    torch.save(state, partial)
    partial.replace(folder / "state.pt")


def _finish(job: Training, folder: Path, fingerprint: str) -> None:
    weights = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in job.modules.items()
        for key, value in module.state_dict().items()
    }
    partial = folder / "model.safetensors.partial"
    save_file(weights, partial)
    partial.replace(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(job.settings, indent=2, sort_keys=True) + "\n")
    pd.DataFrame(job.history).to_csv(folder / "loss.csv", index=False)
    (folder / "stage.json").write_text(json.dumps({"fingerprint": fingerprint, "complete": True}) + "\n")
    (folder / "state.pt").unlink(missing_ok=True)


def read_fingerprint(folder: Path) -> str | None:
    """Fingerprint of the run that wrote a checkpoint folder; None if there is none."""
    try:
        return str(json.loads((folder / "stage.json").read_text())["fingerprint"])
    except (OSError, ValueError, KeyError):
        return None


def is_finished(folder: Path, fingerprint: str) -> bool:
    """Whether the stage has run to its end with this fingerprint."""
    try:
        stage = json.loads((folder / "stage.json").read_text())
    except (OSError, ValueError):
        return False
    return (
        bool(stage.get("complete"))
        and stage.get("fingerprint") == fingerprint
        and (folder / "model.safetensors").is_file()
    )


def load_weights(folder: Path, modules: Mapping[str, nn.Module]) -> None:
    """Load a finished stage's weights into its networks.

    Raises:
        StageError: The file is missing or holds other networks.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise StageError(f"{file} does not exist; `dvc repro {folder.name}` trains it (or `dvc pull` fetches it)")
    weights = load_file(file)
    for name, module in modules.items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise StageError(f"{file} does not fit the networks of its config.json: {error}") from None


def write_losses(folder: Path, target: Path) -> None:
    """Copy the loss curve of a finished stage to where DVC plots it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "loss.csv", target)
