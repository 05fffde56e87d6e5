"""The training loop that the three stages share: steps (recorded as CUDA graphs), log, checkpoints, resume."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.config import Runtime
from tasks.errors import StageError
from tasks.progress import progress


class StepLoss(Protocol):
    """The losses of a training stage. What is random in a step is drawn apart from what is computed of it, so that the
    computation can be recorded once as a CUDA graph."""

    def phase(self, step: int) -> str:
        """Steps of the same phase compute the same thing on tensors of the same shapes."""

    def draw(self, step: int) -> dict[str, Tensor]:
        """Everything random of a step, on the CPU: a function of the seed and the step alone."""

    def __call__(self, phase: str, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named scalar losses; `total` is minimised.

        Args:
            phase: From `phase`.
            drawn: From `draw`, on the device.
        """


@dataclass
class Training:
    """One training stage.

    Attributes:
        name: Stage name; labels the progress bar and the files.
        modules: Networks that are trained, by the name under which their weights are stored.
        optimiser: Over their parameters; from `adam`.
        steps: How many steps to take.
        losses: What is minimised.
        rates: Step number -> learning rate of each parameter group.
        settings: What is stored beside the weights, so that a checkpoint explains itself.
        log_every: Steps that a row of the loss curve averages.
        average: Share of the running average of all weights that stays in a step; 0: the last weights are kept.
    """

    name: str
    modules: Mapping[str, nn.Module]
    optimiser: torch.optim.Optimizer
    steps: int
    losses: StepLoss
    rates: Callable[[int], list[float]]
    settings: Mapping[str, Any]
    log_every: int
    average: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the networks lie."""
        return next(next(iter(self.modules.values())).parameters()).device


def adam(groups: list[dict[str, Any]], lr: float) -> torch.optim.Adam:
    """Adam with the paper's betas (Sec. 4.2), in the form that the parameters' device runs best.

    Args:
        groups: Parameter groups, each with a list `params`.
        lr: Learning rate to start with.
    """
    on_gpu = groups[0]["params"][0].is_cuda
    if not on_gpu:
        return torch.optim.Adam(groups, lr=lr, betas=(0.5, 0.999))
    # A rate in a tensor and steps counted on the GPU: both can change between replays of a recorded step.
    rates = [torch.tensor(lr, device=groups[0]["params"][0].device) for _ in groups]
    groups = [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)]
    return torch.optim.Adam(groups, betas=(0.5, 0.999), fused=True, capturable=True)


def train(job: Training, folder: Path, fingerprint: str, runtime: Runtime) -> dict[str, float]:
    """Run a training stage to its end, from its last checkpoint if there is one.

    Args:
        job: What to train.
        folder: Checkpoint folder of the stage; what another fingerprint wrote there is thrown away.
        fingerprint: Hash of the code, settings and inputs.
        runtime: How often to write a checkpoint, and whether to record steps.

    Returns:
        First and last logged total loss, and the seconds spent in this run.

    Raises:
        StageError: The loss is no longer a number.
    """
    begin = time.monotonic()
    step, averaged = _resume(job, folder, fingerprint)
    saved = time.monotonic()
    stepper = Stepper(job, runtime.cuda_graphs, averaged)
    with progress(job.name, job.steps, "step", initial=step) as bar:
        window: list[Tensor] = []
        try:
            while step < job.steps:
                window.append(stepper.take(step))
                step += 1
                # A row never mixes phases: their losses have other names.
                phase_ends = step < job.steps and job.losses.phase(step) != job.losses.phase(step - 1)
                if step % job.log_every == 0 or step == job.steps or phase_ends:
                    _log(job, step, stepper.names, torch.stack(window).mean(0).tolist())
                    window = []
                    bar.set_postfix_str(f"loss {job.history[-1]['total']:.4f}")
                    if time.monotonic() - saved > runtime.checkpoint_every_s:
                        _save_state(job, folder, averaged, step)
                        saved = time.monotonic()
                bar.update()
        except KeyboardInterrupt:
            if not window:  # a half-filled log window would not be the same after a resume
                _save_state(job, folder, averaged, step)
            raise
    _finish(job, folder, fingerprint, averaged)
    return {
        "loss_first": job.history[0]["total"],
        "loss_last": job.history[-1]["total"],
        "train_seconds": round(time.monotonic() - begin, 1),
    }


class Stepper:
    """Takes training steps; on a GPU it records one step of each phase as a CUDA graph and replays it.

    A step here is a thousand and more small kernels, and starting them from Python takes several times as long as
    running them. A recorded step is started at once.
    """

    WARM_STEPS = 3
    """Steps taken one by one before the recording: they let cuDNN choose and Adam allocate."""

    def __init__(self, job: Training, record: bool, averaged: Weights) -> None:
        """Prepare.

        Args:
            job: What is trained.
            record: Whether to record steps where that is possible.
            averaged: The running average, changed in place; empty: there is none.
        """
        self.job, self.names = job, [""]
        self._average = [(averaged[name], value) for name, value in trained_values(job).items() if name in averaged]
        self.record = record and job.device.type == "cuda"
        self._phase, self._taken = "", 0
        self._drawn: dict[str, Tensor] = {}
        self._values = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None

    def take(self, step: int) -> Tensor:
        """Take a step; returns its losses in the order of `names`."""
        job = self.job
        phase = job.losses.phase(step)
        if phase != self._phase:
            self._phase, self._taken, self._graph = phase, 0, None
        for group, rate in zip(job.optimiser.param_groups, job.rates(step), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        drawn = job.losses.draw(step)
        if self._taken == 0:
            self._drawn = {name: value.to(job.device) for name, value in drawn.items()}
        elif job.device.type == "cpu":
            self._drawn = drawn
        else:
            for name, value in drawn.items():
                self._drawn[name].copy_(value.pin_memory(), non_blocking=True)
        if self.record and self._taken == self.WARM_STEPS:
            self._record()
        if self._graph is None:
            values = self._compute()
        else:
            self._graph.replay()
            values = self._values.clone()
        self._taken += 1
        return values

    def _compute(self) -> Tensor:
        self.job.optimiser.zero_grad(set_to_none=True)
        losses = self.job.losses(self._phase, self._drawn)
        losses["total"].backward()
        self.job.optimiser.step()
        if self._average:
            kept, new = ([pair[i] for pair in self._average] for i in (0, 1))
            torch._foreach_lerp_(kept, new, 1 - self.job.average)
        self.names = list(losses)
        return torch.stack([value.detach().float() for value in losses.values()])

    def _record(self) -> None:
        torch.cuda.synchronize()
        self.job.optimiser.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._values = self._compute()
        self._graph = graph


def _log(job: Training, step: int, names: list[str], values: list[float]) -> None:
    row = {"step": float(step), **dict(zip(names, values, strict=True))}
    row["lr"] = float(job.optimiser.param_groups[0]["lr"])
    bad = [name for name in names if not math.isfinite(row[name])]
    if bad:
        raise StageError(
            f"{job.name}: {', '.join(bad)} is no longer a number at step {step}; "
            f"lower the learning rate of this stage in params.yaml and run again"
        )
    job.history.append(row)


Weights = dict[str, Tensor]


def trained_values(job: Training) -> Weights:
    """All floating-point values of the networks: weights and the statistics of batch norms."""
    return {
        f"{name}.{key}": value
        for name, module in job.modules.items()
        for key, value in module.state_dict().items()
        if value.is_floating_point()
    }


def _resume(job: Training, folder: Path, fingerprint: str) -> tuple[int, Weights]:
    """Load the last state of the same fingerprint; returns the step to go on with, and the running average."""
    state_file = folder / "state.pt"
    if folder.exists() and read_fingerprint(folder) != fingerprint:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stray in folder.glob("*.partial"):
        stray.unlink()
    (folder / "stage.json").write_text(json.dumps({"fingerprint": fingerprint, "complete": False}))
    values = trained_values(job) if job.average else {}
    if not state_file.is_file():
        return 0, {name: value.clone() for name, value in values.items()}
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    for name, module in job.modules.items():
        module.load_state_dict(state["modules"][name])
    rates = [group["lr"] for group in job.optimiser.param_groups]
    job.optimiser.load_state_dict(state["optimiser"])
    for group, rate in zip(job.optimiser.param_groups, rates, strict=True):
        group["lr"] = rate  # a rate kept in a tensor must stay on its device
    job.history[:] = state["history"]
    return int(state["step"]), {name: state["average"][name].to(value.device) for name, value in values.items()}


def _save_state(job: Training, folder: Path, averaged: Weights, step: int) -> None:
    state = {
        "average": averaged,
        "step": step,
        "modules": {name: module.state_dict() for name, module in job.modules.items()},
        "optimiser": job.optimiser.state_dict(),
        "history": job.history,
    }
    partial = folder / "state.pt.partial"
    torch.save(state, partial)
    partial.replace(folder / "state.pt")


def _finish(job: Training, folder: Path, fingerprint: str, averaged: Weights) -> None:
    weights = {
        f"{name}.{key}": averaged.get(f"{name}.{key}", value).detach().cpu().contiguous()
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
