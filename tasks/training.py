"""The one training loop, which the three stages share: steps, log, checkpoints, resume, one device or several."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from models.config import Runtime
from tasks.checkpoint_folder import mark, read_fingerprint, save_weights, weights_of
from tasks.checkpoints import (
    CheckpointWriter,
    TrainingState,
    load_newest,
    numbered,
    random_states,
    remove_partial,
    set_random_states,
)
from tasks.errors import StageError
from tasks.interruption import Interruption
from tasks.optimiser import restore
from tasks.ranks import Ranks
from tasks.room import Rows
from tasks.stepper import Stepper, Weights, trained_values
from tasks.training_log import TrainingLog

if TYPE_CHECKING:
    from tasks.training_look import Look


class StepLoss(Protocol):
    """The losses of a training stage. What is random in a step is drawn apart from what is computed of it, so that the
    computation can be recorded once as a CUDA graph.

    An adversarial loss fits in, too: the discriminator is one of the job's modules with a parameter group of its own,
    `total` is the sum of the generator's loss (through `torch.func.functional_call` with the discriminator's detached
    parameters) and the discriminator's (on the detached picture), so that one backward pass serves both.
    """

    def phase(self, step: int) -> str:
        """Steps of the same phase compute the same thing on tensors of the same shapes."""

    def draw(self, step: int) -> dict[str, Tensor]:
        """Everything random of a step, on the CPU: a function of the seed and the step alone.

        Rows belong to samples, in their order: several devices share them.
        """

    def __call__(self, phase: str, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named scalar losses; `total` is minimised.

        Args:
            phase: From `phase`.
            drawn: From `draw`, on the device, with what `Training.rows` adds.
        """


@dataclass
class Training:
    """One training stage.

    Attributes:
        name: Stage name; labels the progress bar and the files.
        modules: Networks that are trained, by the name under which their weights are stored.
        optimiser: Over their parameters; from `tasks.optimiser.adam`.
        steps: How many steps to take.
        losses: What is minimised.
        rates: Step number -> learning rate of each parameter group.
        settings: What is stored beside the weights, so that a checkpoint explains itself.
        log_every: Steps that a row of the loss curve averages.
        average: Share of the running average of all weights that stays in a step; 0: the last weights are kept.
        samples: Samples of a step, on all devices together; the progress bar counts in them.
        look: What the networks make of a few samples now; called in eval mode. None: nobody looks.
        sheet_every: Steps between two sample sheets, which come of `look`; 0: none.
        rows: What `losses` needs beside a step's draw (this process's share of it, on the CPU) of tensors that do not
            lie on the device; added to the draw under these names. None: they all do.
        history: Rows of the loss curve so far.
        looks: Figures of `look` so far.
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
    samples: int = 1
    look: Callable[[], Look] | None = None
    sheet_every: int = 0
    rows: Callable[[dict[str, Tensor]], dict[str, Rows]] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    looks: list[dict[str, float]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the networks lie."""
        return next(next(iter(self.modules.values())).parameters()).device


def train(job: Training, folder: Path, fingerprint: str, runtime: Runtime) -> dict[str, Any]:
    """Run a training stage to its end, from its last checkpoint if there is one.

    Args:
        job: What to train.
        folder: Checkpoint folder of the stage; what another fingerprint wrote there is thrown away.
        fingerprint: Hash of the code, settings and inputs.
        runtime: How often to write a checkpoint, and whether to record steps.

    Returns:
        First and last logged total loss, the seconds spent in this run, and the figures of the last look at the
        networks, with `collapsed`, the names of those that show a collapse, if there are any.

    Raises:
        StageError: The loss or a weight is no longer a number.
    """
    begin, ranks = time.monotonic(), Ranks.here()
    if runtime.sync_batch_norm:
        ranks.share_statistics(job.modules.values())
    run = _Run(job, folder, fingerprint, ranks)
    stepper = Stepper(job, runtime.cuda_graphs, run.averaged, ranks, runtime.compile)
    saved = time.monotonic()
    log = TrainingLog(job, folder, run.step, run.averaged, ranks.first)
    writer = CheckpointWriter(folder, fingerprint)
    with Interruption(ranks.first) as interruption, log, writer, stepper.batches:
        while run.step < job.steps:
            run.window.append(stepper.take(run.step))
            run.step += 1
            if run.row_is_due():
                run.close_row(stepper.names)
                log.row(stepper.waited_s)
            log.step(run.step)
            due = time.monotonic() - saved > runtime.checkpoint_every_s and run.step < job.steps
            if ranks.first and (due or interruption.number):
                writer.write(run.state(stepper.names))
                saved = time.monotonic()
            if interruption.number:
                interruption.leave()
    stepper.close()
    if ranks.first:
        run.finish()
    ranks.wait()
    return {
        "loss_first": job.history[0]["total"],
        "loss_last": job.history[-1]["total"],
        "train_seconds": round(time.monotonic() - begin, 1),
        **log.last_look(),
    }


class _Run:
    """How far a training has come.

    Attributes:
        step: Steps taken.
        averaged: The running average; empty: there is none.
        window: Losses of each step since the last row of the curve, the same in every process.
    """

    def __init__(self, job: Training, folder: Path, fingerprint: str, ranks: Ranks) -> None:
        self.job, self.folder, self.fingerprint, self.ranks = job, folder, fingerprint, ranks
        self.step = 0
        self.window: list[Tensor] = []
        if ranks.first:
            if folder.exists() and read_fingerprint(folder) != fingerprint:
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            remove_partial(folder)
            mark(folder, fingerprint, complete=False)
        ranks.wait()
        values = trained_values(job) if job.average else {}
        self.averaged = {name: value.clone() for name, value in values.items()}
        state = load_newest(folder, fingerprint)
        if state is not None:
            self._restore(state)
        ranks.same_([*_all_values(job).values(), *self.averaged.values()])

    def _restore(self, state: TrainingState) -> None:
        job = self.job
        for name, module in job.modules.items():
            module.load_state_dict(weights_of(name, state.weights))
        restore(job.optimiser, state.optimiser)
        for name, value in self.averaged.items():
            value.copy_(state.average[name])
        job.history[:], job.looks[:] = state.history, state.looks
        self.window = list(state.window.to(job.device))
        self.step = state.step
        set_random_states(state.random)

    def row_is_due(self) -> bool:
        """Whether a row of the curve ends here; a row never mixes phases: their losses have other names."""
        job, step = self.job, self.step
        phase_ends = step < job.steps and job.losses.phase(step) != job.losses.phase(step - 1)
        return step % job.log_every == 0 or step == job.steps or phase_ends

    def close_row(self, names: list[str]) -> None:
        """Add a row to the curve: the mean of the steps since the last one.

        Raises:
            StageError: A loss is no longer a number.
        """
        mean = torch.stack(self.window).mean(0)
        row = {"step": float(self.step), **dict(zip(names, mean.tolist(), strict=True))}
        row["lr"] = float(self.job.optimiser.param_groups[0]["lr"])
        self._check(names, [row[name] for name in names])
        self.job.history.append(row)
        self.window = []

    def _check(self, names: list[str], values: list[float]) -> None:
        bad = [name for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
        if bad:
            raise StageError(
                f"{self.job.name}: {', '.join(bad)} is no longer a number at step {self.step}; "
                f"lower the learning rate of this stage in params.yaml and run again"
            )

    def state(self, names: list[str]) -> TrainingState:
        """What a checkpoint keeps, unless the training is broken: an older one is worth more then.

        Raises:
            StageError: A loss or a weight is no longer a number.
        """
        job, values = self.job, _all_values(self.job)
        if self.window:
            self._check(names, torch.stack(self.window).sum(0).tolist())
        weights = {name: value for name, value in values.items() if value.is_floating_point()}
        sums = torch.stack([norm.float() for norm in torch._foreach_norm(list(weights.values()))]).tolist()
        self._check([f"weights {name}" for name in weights], sums)
        return TrainingState(
            step=self.step,
            weights=values,
            average=self.averaged,
            optimiser=job.optimiser.state_dict(),
            history=job.history,
            looks=job.looks,
            window=torch.stack(self.window) if self.window else torch.empty(0, 0),
            random=random_states(),
        )

    def finish(self) -> None:
        """Leave the final weights, and throw away what only a resume needs."""
        values = {name: self.averaged.get(name, value) for name, value in _all_values(self.job).items()}
        save_weights(self.folder, values, self.job.settings)
        mark(self.folder, self.fingerprint, complete=True)
        for path in numbered(self.folder):
            shutil.rmtree(path)


def _all_values(job: Training) -> Weights:
    """Everything in the networks' state_dicts, `network.key` -> tensor."""
    return {f"{name}.{key}": value for name, m in job.modules.items() for key, value in m.state_dict().items()}
