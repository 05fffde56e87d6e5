"""What runs on the workers of a Dask cluster: each of their threads keeps one worker process and hands jobs on to it.

The decoder runs in that process, not in the Dask worker: it can be killed at the job's deadline, and its crash is an
answer instead of the end of a Dask worker.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from tasks.source_code import all_code_hash
from tasks.worker_process import START_DEADLINE_S, Child, Name, exit_text

TICK_S = 0.5
SEE_PATIENCE_S = 10.0
"""A network file system may show a new file only after some seconds."""
_own = threading.local()


class Report(NamedTuple):
    """How a job went on the cluster: kind of the outcome (or `fatal`, `stopped`, `no_start`), and the rest of it."""

    kind: str
    value: Any
    detail: str
    seconds: float


def look(token: str) -> dict[str, Any]:
    """What this machine has: whether it sees and may write the run's folder, and which code."""
    path = Path(token)
    end = time.monotonic() + SEE_PATIENCE_S
    while not path.is_file() and time.monotonic() < end:
        time.sleep(0.2)
    return {
        "sees": path.is_file(),
        "writes": os.access(path.parent, os.W_OK),
        "code": all_code_hash(),
    }


def run_in_child(name: Name, job: bytes, deadline_s: float, token: str) -> Report:
    """Do one job in this thread's worker process.

    Args:
        name: The job function.
        job: The job, pickled (this process need not import what it is made of).
        deadline_s: Seconds it may take.
        token: A file that exists as long as the run that asks; without it nobody waits for the answer.

    Returns:
        How it went.
    """
    if not _exists(token):
        return Report("no_folder", None, str(Path(token).parent), 0.0)
    since = time.monotonic()
    try:
        child = _child(name)
        if child is None:
            return Report("no_start", None, f"no answer within {START_DEADLINE_S:g} s", time.monotonic() - since)
        since = time.monotonic()
        child.send(job)
        while not child.pipe.poll(TICK_S):
            seconds = time.monotonic() - since
            if seconds > deadline_s:
                _drop()
                return Report("deadline", None, "", seconds)
            if not Path(token).is_file():
                _drop()
                return Report("stopped", None, "the run that asked has ended", seconds)
        answer = child.receive()
    except (EOFError, OSError):
        ready = getattr(_own, "child", None) is not None
        return Report("crashed" if ready else "no_start", _drop(), "", time.monotonic() - since)
    if answer.last:
        _drop()
    return Report(answer.kind, answer.value, answer.detail, time.monotonic() - since)


def _exists(token: str) -> bool:
    end = time.monotonic() + SEE_PATIENCE_S
    while not Path(token).is_file():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _child(name: Name) -> Child | None:
    """This thread's worker process, ready for a job; None if it does not get ready."""
    child: Child | None = getattr(_own, "child", None)
    if child is not None and child.name == name:
        return child
    _drop()
    child = _own.starting = Child(name)
    if not child.pipe.poll(START_DEADLINE_S):
        _drop()
        return None
    child.receive()
    _own.child, _own.starting = child, None
    return child


def _drop() -> str:
    """End this thread's worker process; returns how it had ended."""
    text = ""
    for kind in ("child", "starting"):
        child: Child | None = getattr(_own, kind, None)
        if child is not None:
            with contextlib.suppress(OSError):
                text = exit_text(child.kill())
        setattr(_own, kind, None)
    return text
