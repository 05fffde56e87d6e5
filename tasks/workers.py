"""Many independent jobs, each with a deadline: in worker processes of this machine, or on a Dask cluster.

Third-party decoders hang, crash and leak; here that costs one job. A hung worker is killed (SIGKILL) when its job's
deadline passes, a crashed one's job is tried once more, one that has grown is replaced, and no worker outlives its
parent, however that one ends.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from tasks.disk import storage_text
from tasks.errors import StageError
from tasks.progress import progress
from tasks.worker_process import START_DEADLINE_S, Child, Name, exit_text, name_of

ATTEMPTS = 2
"""A job whose worker died is tried once more: it may have been killed for memory that another job held."""
FAILED_STARTS = 3
"""So many workers in a row that die before their first job: the installation is broken, not a job."""
TICK_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        kind: `ok`; `failed` (the function raised); `deadline` (killed); `crashed` (its worker died, twice).
        value: What the function returned, if ok.
        detail: A sentence for people, if not.
        seconds: How long it took.
    """

    kind: Literal["ok", "failed", "deadline", "crashed"]
    value: Any
    detail: str
    seconds: float


Outcomes = Generator[tuple[int, Outcome], None, None]
"""Index of a job and what became of it."""


@dataclass
class _Worker:
    child: Child
    ready: bool = False
    job: int | None = None
    since: float = field(default_factory=time.monotonic)


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    workers: int,
    deadline_s: float,
    label: str,
    on_result: Callable[[int, Outcome], None],
    unit: str = "video",
    initial: int = 0,
    scheduler: str = "local",
    shared: Path | None = None,
) -> None:
    """Call `function(job)` for every job in worker processes; results come in any order.

    Args:
        function: At the top level of an importable module; what it loads once (a model) it keeps in its module.
        jobs: What pickles; results are sent back the same way, so keep them small.
        workers: How many processes (one computing thread each); a cluster's size counts instead where there is one.
        deadline_s: Seconds a job may take, counted from when a worker that has started gets it.
        label: What the progress bar calls the work.
        on_result: Called in this process with the job's index and its outcome.
        unit: What a job is called.
        initial: Jobs an earlier run has done, for the progress bar.
        scheduler: `local`, or the address of a Dask scheduler (`tcp://host:port`).
        shared: The folder the jobs work in; a cluster's workers must see it at the same place.

    Raises:
        StageError: Workers cannot start at all, the cluster cannot be used, or the disk is full or read-only.
    """
    outcomes: Outcomes
    if scheduler == "local" or not jobs:
        outcomes = _Pool(function, jobs, deadline_s).outcomes(min(workers, len(jobs)))
    else:
        from tasks.dask_jobs import cluster_outcomes

        outcomes = cluster_outcomes(function, jobs, scheduler, deadline_s, label, shared or Path())
    with (
        _terminated_is_an_exit(),
        contextlib.closing(outcomes),
        progress(label, len(jobs) + initial, unit, initial) as bar,
    ):
        for index, outcome in outcomes:
            on_result(index, outcome)
            bar.update(1)


def disk_failure(number: int, detail: str) -> StageError:
    """The error of a stage whose worker met a full or read-only disk."""
    text = storage_text(OSError(number, detail), Path())
    return StageError(f"a worker could not write ({detail}): {text}")


class _Pool:
    """The workers of one call, and which job each of them has."""

    def __init__(self, function: Callable[[Any], Any], jobs: Sequence[Any], deadline_s: float) -> None:
        self._name: Name = name_of(function)
        self._jobs = jobs
        self._deadline_s = deadline_s
        self._waiting = deque(range(len(jobs)))
        self._attempts = [0] * len(jobs)
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def outcomes(self, workers: int) -> Outcomes:
        open_jobs = len(self._jobs)
        try:
            while open_jobs:
                busy = sum(worker.job is not None for worker in self._workers)
                while len(self._workers) < min(workers, busy + len(self._waiting)):
                    self._workers.append(_Worker(Child(self._name)))
                for index, outcome in self._step():
                    open_jobs -= 1
                    yield index, outcome
        finally:
            self._kill_all()

    def _step(self) -> list[tuple[int, Outcome]]:
        """Wait a moment for news; return the jobs that ended."""
        wait([worker.child.pipe for worker in self._workers], timeout=TICK_S)
        ended = [self._look_at(worker) for worker in list(self._workers)]
        return [item for item in ended if item is not None]

    def _look_at(self, worker: _Worker) -> tuple[int, Outcome] | None:
        index, result = worker.job, None
        seconds = time.monotonic() - worker.since
        try:
            if worker.child.pipe.poll():
                result = self._received(worker, seconds)
            elif worker.ready and index is not None and seconds > self._deadline_s:
                self._kill(worker)
                return index, deadline_outcome(self._deadline_s, seconds)
            elif not worker.ready and seconds > START_DEADLINE_S:
                raise EOFError
        except (EOFError, OSError):  # the other end is gone: the worker died
            return self._died(worker, seconds)
        if worker in self._workers and worker.ready and worker.job is None and self._waiting:
            self._give(worker)
        return result

    def _received(self, worker: _Worker, seconds: float) -> tuple[int, Outcome] | None:
        answer = worker.child.receive()
        self._failed_starts = 0
        worker.ready = True
        index, worker.job = worker.job, None
        if answer.last:
            self._kill(worker)
        if answer.kind == "fatal":
            raise disk_failure(answer.value, answer.detail)
        if answer.kind == "ready" or index is None:
            return None
        return index, Outcome(answer.kind, answer.value, answer.detail, seconds)

    def _give(self, worker: _Worker) -> None:
        index = self._waiting.popleft()
        worker.job, worker.since = index, time.monotonic()
        self._attempts[index] += 1
        worker.child.send(pickle.dumps(self._jobs[index]))

    def _died(self, worker: _Worker, seconds: float) -> tuple[int, Outcome] | None:
        exit_code = self._kill(worker)
        if worker.job is None:
            self._failed_starts += not worker.ready
            if self._failed_starts >= FAILED_STARTS:
                raise StageError(broken_start(exit_code))
            return None
        if self._attempts[worker.job] < ATTEMPTS:
            self._waiting.append(worker.job)
            return None
        return worker.job, crashed_outcome(exit_code, seconds)

    def _kill(self, worker: _Worker) -> int | None:
        self._workers.remove(worker)
        return worker.child.kill()

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.child.signal_end()
        for worker in list(self._workers):
            self._kill(worker)


def deadline_outcome(deadline_s: float, seconds: float) -> Outcome:
    """Of a job that was killed."""
    text = f"took longer than runtime.video_deadline_s = {deadline_s:g} s and was stopped"
    return Outcome("deadline", None, text, seconds)


def crashed_outcome(exit_code: int | None, seconds: float) -> Outcome:
    """Of a job whose worker died in every attempt."""
    return Outcome("crashed", None, f"its worker process died in {ATTEMPTS} attempts ({exit_text(exit_code)})", seconds)


def broken_start(exit_code: int | None) -> str:
    """What to say where workers do not even begin."""
    return (
        f"worker processes end before their first job ({exit_text(exit_code)}); their messages stand above. "
        "Run `head3d doctor` to see what is missing"
    )


@contextlib.contextmanager
def _terminated_is_an_exit() -> Iterator[None]:
    """SIGTERM unwinds the stack, as Ctrl-C does, so that `finally` ends the workers; a handler already set stays."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
