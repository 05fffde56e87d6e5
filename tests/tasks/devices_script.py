"""As a user's script would train on several devices: `python -m tests.tasks.devices_script FOLDER DEVICES [WHAT STEP]`.

WHAT happens to the first process in the middle of STEP: `stop` (the parent gets SIGTERM), `nan` or `crash`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import torch

from tasks.devices import on_devices
from tasks.paths import Paths
from tasks.ranks import Ranks
from tasks.training import train
from tests.tasks.small_training import small_job, small_runtime


def stop_and_wait(parent: int) -> None:
    """Stop the parent, and go on once that has come back to this process."""
    noted, handler = threading.Event(), signal.getsignal(signal.SIGTERM)
    assert callable(handler)

    def note(number: int, frame: FrameType | None) -> None:
        noted.set()
        handler(number, frame)

    signal.signal(signal.SIGTERM, note)
    os.kill(parent, signal.SIGTERM)
    assert noted.wait(60)


def line(paths: Paths, what: str, step: int, parent: int, device: torch.device) -> dict[str, float]:
    """One process's part; without dropout, which each process would draw for itself."""
    job = small_job(device=device, dropout=0.0)

    def happen() -> None:
        if what == "stop" and Ranks.here().first:
            stop_and_wait(parent)
        if what == "crash" and Ranks.here().first:
            raise RuntimeError("as if out of memory")
        if what == "nan":
            with torch.no_grad():
                next(job.modules["net"].parameters()).fill_(float("nan"))

    job.losses.at = {step: happen}  # type: ignore[attr-defined]
    return train(job, paths.data, "fp", small_runtime(120.0))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    where, count, *more = sys.argv[1:]
    what, step = more or ("nothing", "0")
    runtime = small_runtime(devices=int(count))
    print(on_devices(line, runtime, Paths(Path(where)), what, int(step), os.getpid()))  # noqa: T201
