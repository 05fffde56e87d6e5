"""Stage 2 on two processes, once on clips in memory and once on clips in a file that both share:
`python -m tests.tasks.streamed_script DATA SAME_DATA`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tasks import canonical, room
from tasks.clip_data import load_clips
from tasks.devices import on_devices
from tasks.paths import Paths
from tests.tasks.test_training import settings


def trained(folders: list[Path], device: torch.device) -> list[bool]:
    """One process's part; whether the clips were streamed."""
    streamed, params = [], settings(runtime={"devices": 2})
    for folder in folders:
        canonical.train_canonical(params, Paths(folder), "fp", device)
        streamed.append(load_clips(Paths(folder), "train", device, with_geometry=True, on_gpu="auto").streamed)
        room.free_host_memory = lambda: 0  # from now on
    return streamed


if __name__ == "__main__":
    streamed = on_devices(trained, settings(runtime={"devices": 2}).runtime, [Path(word) for word in sys.argv[1:]])
    print(f"streamed: {streamed}")  # noqa: T201
