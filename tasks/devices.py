"""Runs a training on one device in this process, or on several of this machine in a process each.

Lightning Fabric starts the processes and joins them (NCCL on GPUs, gloo on the CPU); `tasks.ranks` is what they do
together. Python's `spawn` is used: no torchrun, no environment to set, and the stage itself runs once only.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from models.config import Runtime
from models.pretrained import WeightsMissingError
from tasks.device import choose_device
from tasks.disk import storage_text
from tasks.errors import StageError
from tasks.ranks import Ranks

R = TypeVar("R")

STOP_S = 60.0
"""So long the processes may take to write a checkpoint when they are stopped."""


def on_devices(function: Callable[..., R], runtime: Runtime, *arguments: Any) -> R:
    """Call `function(*arguments, device)`, on `runtime.devices` devices at the same time.

    Args:
        function: At the top level of a module, so that other processes can import it.
        runtime: Which devices, and how many.
        arguments: Things that can be pickled.

    Returns:
        What it returned, in the first process if there are several.

    Raises:
        StageError: There are too few devices, Lightning Fabric is missing, or `function` raised it.
        WeightsMissingError, OSError: `function` raised it; of the latter, those of a full or read-only disk.
        RuntimeError: Anything else went wrong in one of several processes; the text is its traceback.
    """
    device, count = choose_device(runtime.device), runtime.devices
    if count == 1:
        return function(*arguments, device)
    there = torch.cuda.device_count() if device.type == "cuda" else count
    if there < count:
        raise StageError(f"runtime.devices is {count}, but torch sees {there} GPU; set it to {there}")
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment
    except ImportError:
        raise StageError(
            "runtime.devices above 1 needs Lightning Fabric: `pip install lightning-fabric`, or set it to 1"
        ) from None
    fabric = Fabric(accelerator=device.type, devices=count, strategy="ddp_spawn", plugins=[LightningEnvironment()])
    with tempfile.TemporaryDirectory(prefix="head3d-ranks-") as folder:
        said = Path(folder)
        try:
            # As bytes: Fabric looks into what it hands over, and fails at frozen dataclasses.
            work = pickle.dumps((function, arguments))
            result: R = fabric.launch(_one_of_several, work, os.getpid(), said)
        except (KeyboardInterrupt, SystemExit):
            _stop_children()
            raise
        except Exception:
            _stop_children()
            if (said / "expected").is_file():
                raise pickle.loads((said / "expected").read_bytes()) from None
            if (said / "unexpected").is_file():
                raise RuntimeError((said / "unexpected").read_text(encoding="utf-8")) from None
            raise
    return result


def _one_of_several(fabric: Any, work: bytes, parent: int, said: Path) -> Any:
    """What each process runs; the first that fails leaves its error in the folder `said`."""
    ranks = Ranks.here()
    first = torch.tensor([os.getpid()], device=fabric.device)
    ranks.same_([first])
    if ranks.first:
        signal.signal(signal.SIGTERM, _leave)
        signal.signal(signal.SIGINT, _leave)
    else:
        _follow(int(first), parent)
    try:
        function, arguments = pickle.loads(work)
        result = function(*arguments, fabric.device)
    except Exception as error:
        if _is_expected(error):
            _say(said / "expected", pickle.dumps(error))
        else:
            text = f"in process {ranks.index} of {ranks.count}:\n{traceback.format_exc()}"
            _say(said / "unexpected", text.encode())
        _end(1)
    except (SystemExit, KeyboardInterrupt) as stopped:
        _end(stopped.code if isinstance(stopped, SystemExit) and isinstance(stopped.code, int) else 130)
    dist.destroy_process_group()
    return result


def _is_expected(error: Exception) -> bool:
    """Whether the error's own text says what to do, or will: a stage makes a sentence of a full disk's."""
    if isinstance(error, StageError | WeightsMissingError):
        return True
    return isinstance(error, OSError) and bool(storage_text(error, Path()))


def _end(code: int) -> NoReturn:
    """End at once: taking NCCL down in good order would wait for the other processes, which wait for this one."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _say(file: Path, content: bytes) -> None:
    """Write a file, unless another process was earlier: its error is the cause, the others follow from it."""
    with contextlib.suppress(FileExistsError), file.open("xb") as stream:
        stream.write(content)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _follow(first: int, parent: int) -> None:
    """Every process but the first: stay silent, and end when the first has ended after a signal or the parent's end.

    The first process needs the others to finish its step and to write a checkpoint, so they must not end before it. A
    thread sees to that: the main thread may be held up inside NCCL, where Python's own handlers do not run.
    """
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 open as long as the process
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def watch() -> None:
        asked = False
        while True:
            asked = bool(select.select([read], [], [], 0.5)[0]) or asked or os.getppid() != parent
            if asked and not _lives(first):
                os._exit(1)
            time.sleep(0.1 if asked else 0.0)

    threading.Thread(target=watch, daemon=True, name="follow-first").start()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _stop_children() -> None:
    """Ask the processes to end, wait for the checkpoint, and end what is left."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    deadline = time.monotonic() + STOP_S
    while any(child.is_alive() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    for child in children:
        if child.is_alive():
            child.kill()
        child.join()
