"""One worker process: started, given one job at a time over a pipe, replaced when it has grown old or large.

The same process serves the local pool (`tasks.workers`) and, one per thread, the workers of a Dask cluster
(`tasks.dask_worker`), so that a decoder that hangs or crashes costs one job in both.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

import psutil

from tasks.disk import FATAL

START_DEADLINE_S = 180.0
"""How long a worker may take for its imports."""
JOBS_PER_WORKER = 250
"""A worker is replaced after so many jobs: decoders leak, and a start costs only a few seconds."""
GROWTH_BYTES = 1 << 30
"""It is replaced at once when a job leaves it this much larger than its first job did."""

Name = tuple[str, str]
"""Module and qualified name of a job function."""


class Answer(NamedTuple):
    """What a worker sends back.

    Attributes:
        kind: `ready` (imports are done), `ok`, `failed` (the function raised), `fatal` (the disk is full or read-only:
            no other job would fare better).
        value: What the function returned; for `fatal` the error number.
        detail: What was raised.
        last: The worker ends after this answer: it is to be replaced.
    """

    kind: Literal["ready", "ok", "failed", "fatal"]
    value: Any = None
    detail: str = ""
    last: bool = False


def name_of(function: Callable[[Any], Any]) -> Name:
    """How a worker finds the function again."""
    return function.__module__, function.__qualname__


class Child:
    """A worker process and our end of the pipe to it.

    Attributes:
        name: The function it calls.
        pipe: Ready for reading when the worker has answered or died.
    """

    def __init__(self, name: Name) -> None:
        self.name = name
        ours, theirs = socket.socketpair()
        arguments = (theirs.fileno(), os.getpid(), *name, JOBS_PER_WORKER, GROWTH_BYTES)
        code = f"import sys; sys.path[:] = {sys.path!r}; from tasks.worker_process import main; main(*{arguments!r})"
        # Not multiprocessing: a Dask worker is one of its daemons, which may not have children.
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")},
        )
        theirs.close()
        self.pipe = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, job: bytes) -> None:
        """Give it a pickled job; one that died this moment is noticed at the next `receive`."""
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(job)

    def receive(self) -> Answer:
        """Its answer.

        Raises:
            EOFError, OSError: It died.
        """
        return Answer(*self.pipe.recv())

    def kill(self) -> int | None:
        """End it for good; returns the exit code it ended with. Safe to call again."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that died by itself: its own code, not our signal's
            self._process.wait(0.2)
        self._process.kill()
        code = self._process.wait()
        self.pipe.close()
        return code

    def signal_end(self) -> None:
        """Send SIGKILL without waiting."""
        self._process.kill()


def exit_text(exit_code: int | None) -> str:
    """How a process ended, in words."""
    if exit_code is not None and exit_code < 0:
        try:
            return f"signal {signal.Signals(-exit_code).name}"
        except ValueError:
            return f"signal {-exit_code}"
    return f"exit code {exit_code}"


# -- inside the worker ------------------------------------------------------------------------------------------------


def main(handle: int, parent: int, module: str, name: str, jobs: int, growth: int) -> None:
    """A worker's life: get ready, then one job after the other until the parent closes the pipe."""
    _end_with_parent(parent)
    pipe = Connection(handle)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    pipe.send(tuple(Answer("ready")))
    age = Age(jobs, growth)
    while True:
        try:
            job = pipe.recv_bytes()
        except EOFError:
            return
        answer = _answer(function, job)._replace(last=age.reached(psutil.Process().memory_info().rss))
        pipe.send(tuple(answer))
        if answer.last:
            return


def _answer(function: Callable[[Any], Any], job: bytes) -> Answer:
    try:
        return Answer("ok", function(pickle.loads(job)))
    except Exception as error:  # whatever it is, it costs this job only
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno in FATAL:
            return Answer("fatal", error.errno, text)
        return Answer("failed", None, text)


class Age:
    """When a worker is to be replaced: after `jobs` jobs, or `growth` bytes above what its first job left."""

    def __init__(self, jobs: int, growth: int) -> None:
        self._left, self._growth = jobs, growth
        self._first: int | None = None

    def reached(self, rss_bytes: int) -> bool:
        """Count a job, after which the process holds so much memory."""
        self._left -= 1
        if self._first is None:
            self._first = rss_bytes
        return self._left <= 0 or rss_bytes - self._first > self._growth


def _end_with_parent(parent: int) -> None:
    """Make sure that this process ends when the parent does, even by SIGKILL and even inside a decoder that hangs."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2); the death of the thread that started us counts
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
