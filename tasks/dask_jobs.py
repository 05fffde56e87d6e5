"""`tasks.workers.run_jobs` on a Dask cluster (`runtime.scheduler: tcp://host:port`).

Every worker of the cluster must have the same version of head3d installed and see the project's folder at the same
path. Each of its threads works on one job at a time, in a process of its own (`tasks.dask_worker`).
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from tasks.dask_worker import Report, look, run_in_child
from tasks.errors import StageError
from tasks.source_code import all_code_hash
from tasks.worker_process import name_of
from tasks.workers import ATTEMPTS, Outcome, Outcomes, deadline_outcome, disk_failure

CONNECT_S = 10.0
FIRST_WORKER_S = 30.0
"""How long to wait at the start until a worker has joined."""
NO_WORKER_S = 120.0
"""How long to go on without any worker: a batch system may be starting new ones."""
LOOK_S = 5.0
AHEAD = 2
"""Jobs sent ahead for each thread of the cluster: enough to keep it busy, few enough not to flood the scheduler."""


def cluster_outcomes(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    scheduler: str,
    deadline_s: float,
    label: str,
    shared: Path,
) -> Outcomes:
    """Do the jobs on the cluster; what becomes of each, in any order.

    Args:
        function: As for `run_jobs`.
        jobs: Likewise.
        scheduler: Address of the Dask scheduler.
        deadline_s: Seconds a job may take.
        label: Name of the work.
        shared: A folder that all workers must see and may write.

    Raises:
        StageError: The cluster cannot be reached or used.
    """
    client = _connect(scheduler)
    folder = shared.resolve() / ".locks"
    token = folder / f"{label}-{uuid.uuid4().hex}.cluster"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{label}-*.cluster"):  # of a run that was killed: its jobs still out there end now
            old.unlink(missing_ok=True)
        token.touch()
        _check_workers(client, scheduler, token)
        yield from _Cluster(client, scheduler, function, jobs, deadline_s, token).outcomes()
    finally:
        token.unlink(missing_ok=True)
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.close(timeout=5)


def _connect(scheduler: str) -> Any:
    if "://" not in scheduler:
        raise StageError(
            f"runtime.scheduler = '{scheduler}' is neither 'local' nor the address of a Dask scheduler (tcp://host:port)"
        )
    try:
        from distributed import Client
    except ImportError:
        raise StageError(
            f"runtime.scheduler = {scheduler} needs Dask: pip install 'head3d[cluster]', or set it to local"
        ) from None
    try:
        return Client(scheduler, timeout=CONNECT_S, set_as_default=False, name="head3d")
    except (OSError, ValueError) as error:
        raise StageError(
            f"no Dask scheduler answers at runtime.scheduler = {scheduler} ({_first_line(error)}). Start one with "
            "`dask scheduler` and workers with `dask worker ADDRESS`, correct the address, or set runtime.scheduler: "
            "local"
        ) from None


def _check_workers(client: Any, scheduler: str, token: Path) -> None:
    """Every worker must have our code and see our folder: otherwise results would differ or get lost."""
    try:
        client.wait_for_workers(1, timeout=FIRST_WORKER_S)
    except (OSError, RuntimeError):
        raise StageError(
            f"the Dask scheduler {scheduler} has no workers; start some on the machines that shall work: "
            f"`dask worker {scheduler} --nthreads 1 --nworkers N`"
        ) from None
    ours = all_code_hash()
    for worker, found in client.run(look, str(token), on_error="return").items():
        if isinstance(found, Exception):
            raise StageError(
                f"the Dask worker {worker} cannot run head3d ({type(found).__name__}: {_first_line(found)}); "
                "install the same version there (pip install)"
            )
        if not found["sees"] or not found["writes"]:
            lacks = "see" if not found["sees"] else "write"
            raise StageError(
                f"the Dask worker {worker} does not {lacks} {token.parent.parent}: workers of a cluster need the "
                "project's folder at the same path (a shared file system), or set runtime.scheduler: local"
            )
        if found["code"] != ours:
            raise StageError(
                f"the Dask worker {worker} runs another version of head3d: install this one there and restart it"
            )


class _Cluster:
    """The jobs of one call, and which of them are out."""

    def __init__(
        self,
        client: Any,
        scheduler: str,
        function: Callable[[Any], Any],
        jobs: Sequence[Any],
        deadline_s: float,
        token: Path,
    ) -> None:
        self._client, self._scheduler = client, scheduler
        self._name, self._jobs, self._deadline_s = name_of(function), jobs, deadline_s
        self._token = str(token)
        self._waiting = deque(range(len(jobs)))
        self._attempts = [0] * len(jobs)
        self._out: dict[int, Any] = {}
        self._inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._threads = 1
        self._looked = self._worker_seen = time.monotonic()

    def outcomes(self) -> Outcomes:
        self._count_threads()
        try:
            while self._waiting or self._out:
                while self._waiting and len(self._out) < AHEAD * self._threads:
                    self._submit(self._waiting.popleft())
                with contextlib.suppress(queue.Empty):
                    index, future = self._inbox.get(timeout=LOOK_S)
                    del self._out[index]
                    outcome = self._outcome(index, self._report(future))
                    if outcome is not None:
                        yield index, outcome
                if time.monotonic() - self._looked > LOOK_S:
                    self._count_threads()
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(list(self._out.values()), force=True)

    def _submit(self, index: int) -> None:
        self._attempts[index] += 1
        future = self._client.submit(
            run_in_child,
            self._name,
            pickle.dumps(self._jobs[index]),
            self._deadline_s,
            self._token,
            pure=False,
            key=f"head3d-{Path(self._token).stem}-{index}-{self._attempts[index]}",
        )
        self._out[index] = future
        future.add_done_callback(lambda done: self._inbox.put((index, done)))

    def _report(self, future: Any) -> Report:
        """What a future holds, its own failures included."""
        if future.status == "finished":
            return Report(*future.result(timeout=CONNECT_S))
        if future.status == "error":
            error = future.exception(timeout=CONNECT_S)
            if type(error).__name__ == "KilledWorker":
                return Report("killed", None, "every Dask worker that took it died", 0.0)
            raise StageError(
                f"the Dask cluster {self._scheduler} failed at a job ({type(error).__name__}: {_first_line(error)}); "
                "finished work is kept"
            )
        raise StageError(
            f"the Dask scheduler {self._scheduler} is gone; finished work is kept: start it again, then run the stage "
            "again (or with runtime.scheduler: local)"
        )

    def _outcome(self, index: int, report: Report) -> Outcome | None:
        """The job's outcome; None where it is tried once more."""
        kind, value, detail, seconds = report
        if kind in ("ok", "failed"):
            return Outcome(cast(Any, kind), value, detail, seconds)
        if kind == "deadline":
            return deadline_outcome(self._deadline_s, seconds)
        if kind == "fatal":
            raise disk_failure(value, detail)
        if kind == "no_folder":
            raise StageError(f"a Dask worker that joined later does not see {detail}: it needs the same folder")
        if self._attempts[index] < ATTEMPTS:
            self._waiting.append(index)
            return None
        if kind == "no_start":
            raise StageError(f"a Dask worker cannot start its worker process ({detail or value}); see its log")
        return Outcome("crashed", None, f"its worker process died in {ATTEMPTS} attempts ({detail or value})", seconds)

    def _count_threads(self) -> None:
        """How many jobs the cluster can work on now; workers come and go."""
        now = self._looked = time.monotonic()
        try:
            threads = sum(self._client.nthreads().values())
        except Exception:  # whatever a lost connection raises; the futures' state tells of it
            return
        if threads:
            self._threads, self._worker_seen = threads, now
        elif now - self._worker_seen > NO_WORKER_S:
            raise StageError(
                f"the Dask scheduler {self._scheduler} has had no worker for {NO_WORKER_S:.0f} s; finished work is "
                "kept: start workers and run the stage again"
            )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
