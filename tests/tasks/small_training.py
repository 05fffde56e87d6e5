"""A training that takes no time: a small network learns a line; and what may befall it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from models.config import Runtime
from tasks.optimiser import adam
from tasks.ranks import batch_mean
from tasks.training import Training, train

CPU = torch.device("cpu")


class LineLoss:
    """Distance to y = 3 x - 1 on those noisy points that are known; `at[step]` is done when that step is computed."""

    def __init__(self, network: torch.nn.Module, at: dict[int, Any] | None = None) -> None:
        self.network, self.at, self.computed = network, at or {}, 0
        self.mean = batch_mean()
        self._step = 0

    def phase(self, step: int) -> str:
        return "start" if step < 5 else "rest"

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        self._step = step
        generator = torch.Generator().manual_seed(step)
        return {"x": torch.randn(8, 1, generator=generator), "noise": torch.randn(8, 1, generator=generator)}

    def __call__(self, phase: str, drawn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.computed += 1
        if self._step in self.at:
            self.at[self._step]()
        target = 3 * drawn["x"] - 1 + 0.1 * drawn["noise"]
        known = drawn["noise"] > -0.5  # devices that share a batch know unequally many
        error = self.mean(((self.network(drawn["x"]) - target).square() * known).sum(), known.sum())
        return {"error": error, "total": error} if phase == "start" else {"late": error, "total": error}


def small_job(
    steps: int = 20, log_every: int = 7, dropout: float = 0.2, device: torch.device = CPU, **more: Any
) -> Training:
    """Dropout draws from torch's own generator: its state, too, must come back."""
    torch.manual_seed(0)
    at = more.pop("at", None)
    layers = [torch.nn.Linear(1, 8), torch.nn.Dropout(dropout), torch.nn.ReLU(), torch.nn.Linear(8, 1)]
    network = torch.nn.Sequential(*layers).to(device)
    optimiser = adam([{"params": list(network.parameters())}], 1e-2)
    loss = LineLoss(network, at)
    rates = [1e-2]
    return Training("small", {"net": network}, optimiser, steps, loss, lambda _: rates, {}, log_every, 0.9, 8, **more)


def small_runtime(checkpoint_every_s: float = 1e-9, **more: Any) -> Runtime:
    """On the CPU; a checkpoint after every step."""
    values: dict[str, Any] = {
        "device": "cpu", "devices": 1, "sync_batch_norm": True, "clips_on_gpu": "auto", "cuda_graphs": False,
        "compile": False, "scheduler": "local", "stores": "", "workers": 1, "video_deadline_s": 1.0,
        "checkpoint_every_s": checkpoint_every_s,
    }  # fmt: skip
    return Runtime(**{**values, **more})


def result(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint folder with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":  # python -m tests.tasks.small_training FOLDER [STEP SIGNAL]: a signal inside a step
    where, more = Path(sys.argv[1]), sys.argv[2:]

    def happen() -> None:
        for thread in threading.enumerate():  # what is kept then must not hang on the disk's speed
            if thread.name == "checkpoint":
                thread.join()
        os.kill(os.getpid(), signal.Signals[more[1]])

    happens = {int(more[0]): happen} if more else {}
    train(small_job(at=happens), where, "fp", small_runtime())
