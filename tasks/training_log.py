"""What a training shows while it runs: progress bar, loss.csv, DVCLive's files and sample sheets."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tasks.checkpoint_folder import CURVE
from tasks.collapse import FROM_SHARE, LOOKS, dangers
from tasks.disk import whole_file
from tasks.progress import progress
from tasks.stepper import Weights, trained_values

if TYPE_CHECKING:
    from tasks.training import Training

CURVE_EVERY_S = 5.0
"""How old loss.csv may be while a training runs."""
LIVE, SAMPLES = "live", "samples"


class TrainingLog:
    """Context of a training; nothing is shown or written in any but the first process.

    Everything it writes into the checkpoint folder follows from the training's history, so that an interrupted run
    leaves the same files as an uninterrupted one.
    """

    def __init__(self, job: Training, folder: Path, step: int, averaged: Weights, first: bool) -> None:
        """Prepare.

        Args:
            job: What is trained.
            folder: Its checkpoint folder.
            step: Steps that earlier runs have taken.
            averaged: The running average of the weights, which is what will be kept; empty: there is none.
            first: Whether this process writes.
        """
        self.job, self.folder, self.averaged, self.first = job, folder, averaged, first
        self._bar = progress(job.name, job.steps, "step", initial=step, silent=not first)
        self._live = _live(folder / LIVE) if first else None
        self._begin = self._now = time.monotonic()
        self._step = self._last = step
        self._waited, self._written = 0.0, 0.0
        self._warned: set[str] = set()
        for row in sorted([*job.history, *job.looks], key=lambda row: row["step"]) if first else []:
            self._add_live(row)
        if first:
            self._keep_sheets(step)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self.first and self.job.history:
            self._write_curve()
        if self._live is not None and self.job.history:
            self._live.make_summary()

    def step(self, step: int) -> None:
        """A step was taken."""
        job = self.job
        self._bar.update(step - self._step)
        self._step = step
        if not self.first or job.look is None:
            return
        measure = step * LOOKS // job.steps > (step - 1) * LOOKS // job.steps
        draw = job.sheet_every > 0 and (step % job.sheet_every == 0 or step == job.steps)
        if measure or draw:
            with resting(job, self.averaged):
                look = job.look()
                if measure:
                    self._note(step, look.figures)
                if draw:
                    self._write_sheet(step, look.sheet())

    def row(self, waited_s: float) -> None:
        """A row was added to the history.

        Args:
            waited_s: Seconds in which the device has waited for data since the start of this run.
        """
        if not self.first:
            return
        now, row = time.monotonic(), self.job.history[-1]
        rate = (row["step"] - self._last) * self.job.samples / max(now - self._now, 1e-9)
        share = (waited_s - self._waited) / max(now - self._now, 1e-9)
        self._last, self._now, self._waited = int(row["step"]), now, waited_s
        memory = f", {torch.cuda.memory_reserved() / 2**30:.1f} GiB" if self.job.device.type == "cuda" else ""
        text = f"loss {row['total']:.4f}, {rate:,.0f} samples/s, {100 * share:.1f}% waiting for data{memory}"
        self._bar.set_postfix_str(text, refresh=False)
        self._add_live(row)
        if now - self._written > CURVE_EVERY_S:
            self._write_curve()
            self._written = now
            if self._live is not None:
                self._live.make_summary()

    def last_look(self) -> dict[str, Any]:
        """Figures of the last look, and which of them show a collapse."""
        if not self.job.looks:
            return {}
        figures = {name: value for name, value in self.job.looks[-1].items() if name != "step"}
        collapsed = ", ".join(danger.figure for danger in dangers(figures))
        return {**figures, "collapsed": collapsed} if collapsed else figures

    def _note(self, step: int, figures: dict[str, float]) -> None:
        """Keep a look's figures and warn of what has newly collapsed."""
        self.job.looks.append({"step": float(step), **figures})
        self._add_live(self.job.looks[-1])
        found = dangers(figures) if step >= FROM_SHARE * self.job.steps else []
        for danger in found:
            if danger.figure not in self._warned:
                self._bar.write(f"Warning: {self.job.name}, step {step}: {danger.text}", file=sys.stderr)
        self._warned = {danger.figure for danger in found}

    def _write_curve(self) -> None:
        import pandas as pd

        with whole_file(self.folder / CURVE) as partial:
            pd.DataFrame(self.job.history).to_csv(partial, index=False)

    def _add_live(self, row: dict[str, float]) -> None:
        if self._live is not None:
            self._live.step = int(row["step"])
            for name, value in row.items():
                if name != "step":
                    self._live.log_metric(name, value)

    def _write_sheet(self, step: int, picture: np.ndarray) -> None:
        from PIL import Image

        target = self.folder / SAMPLES / f"step_{step:08d}.png"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(target)
        if self._live is not None:
            self._live.log_image("samples.png", target)

    def _keep_sheets(self, step: int) -> None:
        """Throw away the sheets of steps that will be taken again."""
        for path in sorted((self.folder / SAMPLES).glob("step_*.png")):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
            elif self._live is not None:
                self._live.log_image("samples.png", path)


@contextlib.contextmanager
def resting(job: Training, averaged: Weights) -> Iterator[None]:
    """The networks as they would be kept now (averaged, in eval mode, without gradients); afterwards as they were."""
    training = [(part, part.training) for module in job.modules.values() for part in module.modules()]
    values = [(value, averaged[name]) for name, value in trained_values(job).items() if name in averaged]
    before = [value.clone() for value, _ in values]
    # A compiled network would be compiled a second time for it, which takes minutes.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        try:
            for part, _ in training:
                part.training = False
            for value, average in values:
                value.copy_(average)
            yield
        finally:
            for part, was in training:
                part.training = was
            for (value, _), own in zip(values, before, strict=True):
                value.copy_(own)


def _live(folder: Path) -> Any | None:
    """DVCLive on a folder, which `dvc metrics` and `dvc plots` read; None where it is not installed.

    It only writes files: no experiment, no commit, no dvc.yaml of its own. Outside a DVC project there is nobody to
    read them, and DVCLive would make a project of the Git checkout around it.
    """
    here = Path.cwd()
    roots = [place for place in (here, *here.parents) if (place / ".dvc").is_dir()]
    if not roots or not folder.resolve().is_relative_to(roots[0]):
        return None
    try:
        from dvclive import Live
    except ImportError:
        return None
    live = Live(str(folder), save_dvc_exp=False, dvcyaml=None)
    live.summary = {"step": 0}  # first, so that the file does not hang on when it was written for the first time
    return live
