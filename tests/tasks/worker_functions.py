"""Functions that the worker tests run in other processes (those import them by name)."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any


def square(job: int) -> int:
    return job * job


def misbehave(job: dict[str, Any]) -> str:
    """Do what the job says: end well, raise, hang so that only SIGKILL helps, or die once or always."""
    mode = job["mode"]
    Path(job["folder"], f"{mode}_{time.monotonic_ns()}").touch()
    if mode == "raise":
        raise ValueError("this job is bad")
    if mode == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    tries = len(list(Path(job["folder"]).glob(f"{mode}_*")))
    if mode == "die" or (mode == "die_once" and tries == 1):
        os.kill(os.getpid(), signal.SIGSEGV)
    return f"{mode} after {tries}"


def announce_and_sleep(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


def own_pid(_job: int) -> int:
    return os.getpid()


_kept: list[bytearray] = []


def leak(megabytes: int) -> int:
    """Keep so much memory for ever."""
    _kept.append(bytearray(os.urandom(1)) * (megabytes << 20))
    return os.getpid()


def disk_full(_job: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


def sees_nothing(_token: str) -> dict[str, Any]:
    """What a Dask worker of a machine without the shared folder would say."""
    return {"sees": False, "writes": False, "code": ""}
