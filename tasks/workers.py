"""Many independent jobs in worker processes of their own, each with a deadline.

Third-party decoders hang, crash and leak; here that costs one job. A hung worker is killed (SIGKILL) when its job's
deadline passes, a crashed one's job is tried once more, and no worker outlives its parent, however that one ends.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

from tasks.errors import StageError
from tasks.progress import progress

ATTEMPTS = 2
"""A job whose worker died is tried once more: it may have been killed for memory that another job held."""
START_DEADLINE_S = 180.0
"""How long a worker may take for its imports."""
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


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
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
) -> None:
    """Call `function(job)` for every job in worker processes; results come in any order.

    Args:
        function: At the top level of an importable module; what it loads once (a model) it keeps in its module.
        jobs: What pickles; results are sent back the same way, so keep them small.
        workers: How many processes (one computing thread each).
        deadline_s: Seconds a job may take, counted from when a worker that has started gets it.
        label: What the progress bar calls the work.
        on_result: Called in this process with the job's index and its outcome.
        unit: What a job is called.
        initial: Jobs an earlier run has done, for the progress bar.

    Raises:
        StageError: Workers cannot start at all.
    """
    pool = _Pool(function, jobs, deadline_s)
    with _terminated_is_an_exit(), progress(label, len(jobs) + initial, unit, initial) as bar:
        try:
            for index, outcome in pool.outcomes(min(workers, len(jobs))):
                on_result(index, outcome)
                bar.update(1)
        finally:
            pool.kill_all()


class _Pool:
    """The workers of one call, and which job each of them has."""

    def __init__(self, function: Callable[[Any], Any], jobs: Sequence[Any], deadline_s: float) -> None:
        self._name = (function.__module__, function.__qualname__)
        self._jobs = jobs
        self._deadline_s = deadline_s
        self._waiting = deque(range(len(jobs)))
        self._attempts = [0] * len(jobs)
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def outcomes(self, workers: int) -> Iterator[tuple[int, Outcome]]:
        open_jobs = len(self._jobs)
        while open_jobs:
            busy = sum(worker.job is not None for worker in self._workers)
            while len(self._workers) < min(workers, busy + len(self._waiting)):
                self._start()
            for index, outcome in self._step():
                open_jobs -= 1
                yield index, outcome

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker_main, args=(theirs, *self._name, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))

    def _step(self) -> list[tuple[int, Outcome]]:
        """Wait a moment for news; return the jobs that ended."""
        wait([worker.pipe for worker in self._workers], timeout=TICK_S)
        ended = [self._look_at(worker) for worker in list(self._workers)]
        return [item for item in ended if item is not None]

    def _look_at(self, worker: _Worker) -> tuple[int, Outcome] | None:
        index, result = worker.job, None
        seconds = time.monotonic() - worker.since
        try:
            if worker.pipe.poll():
                result = self._received(worker, worker.pipe.recv(), seconds)
            elif worker.ready and index is not None and seconds > self._deadline_s:
                self._kill(worker)
                text = f"took longer than runtime.video_deadline_s = {self._deadline_s:g} s and was stopped"
                return index, Outcome("deadline", None, text, seconds)
            elif not worker.ready and seconds > START_DEADLINE_S:
                raise EOFError
        except (EOFError, OSError):  # the other end is gone: the worker died
            return self._died(worker, seconds)
        if worker.ready and worker.job is None and self._waiting:
            self._give(worker)
        return result

    def _received(self, worker: _Worker, message: Any, seconds: float) -> tuple[int, Outcome] | None:
        self._failed_starts = 0
        worker.ready = True
        index, worker.job = worker.job, None
        if index is None:
            return None  # it has only reported that it is ready
        kind, value, detail = message
        return index, Outcome(kind, value, detail, seconds)

    def _give(self, worker: _Worker) -> None:
        index = self._waiting.popleft()
        worker.job, worker.since = index, time.monotonic()
        self._attempts[index] += 1
        with contextlib.suppress(OSError):  # it died this moment: the next look finds the pipe closed
            worker.pipe.send(self._jobs[index])

    def _died(self, worker: _Worker, seconds: float) -> tuple[int, Outcome] | None:
        exit_code = self._kill(worker)
        if worker.job is None:
            self._failed_starts += not worker.ready
            if self._failed_starts >= FAILED_STARTS:
                raise StageError(
                    f"worker processes end before their first job ({_exit_text(exit_code)}); their messages stand "
                    "above. Run `head3d doctor` to see what is missing"
                )
            return None
        if self._attempts[worker.job] < ATTEMPTS:
            self._waiting.append(worker.job)
            return None
        text = f"its worker process died in {ATTEMPTS} attempts ({_exit_text(exit_code)})"
        return worker.job, Outcome("crashed", None, text, seconds)

    def _kill(self, worker: _Worker) -> int | None:
        """End a worker for good; returns the exit code it ended with."""
        self._workers.remove(worker)
        worker.process.join(0.2)  # one that died by itself: its own code, not the one of our signal
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        return worker.process.exitcode

    def kill_all(self) -> None:
        """End every worker; safe to call at any time."""
        for worker in list(self._workers):
            worker.process.kill()
        for worker in list(self._workers):
            self._kill(worker)


def _exit_text(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        try:
            return f"signal {signal.Signals(-exit_code).name}"
        except ValueError:
            return f"signal {-exit_code}"
    return f"exit code {exit_code}"


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


def _worker_main(pipe: Connection, module: str, name: str, parent: int) -> None:
    """A worker's life: get ready, then one job after the other until the parent closes the pipe."""
    _end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    pipe.send("ready")
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("ok", function(job), "")
        except Exception as error:  # whatever it is, it costs this job only
            answer = ("failed", None, f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _end_with_parent(parent: int) -> None:
    """Make sure that this process ends when the parent does, even by SIGKILL and even inside a decoder that hangs."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
