"""Jobs on a real Dask cluster: a scheduler and two worker processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import crop, dask_jobs
from tasks.errors import StageError
from tasks.workers import Outcome, run_jobs
from tests.tasks import worker_functions
from tests.tasks.light import light_params, light_project, make_light, snapshot

pytest.importorskip("distributed")
ROOT = Path(__file__).resolve().parents[2]


class Cluster:
    """A Dask scheduler and its workers, each a process."""

    def __init__(self, folder: Path) -> None:
        self._file, self._folder = folder / "scheduler.json", folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        end = time.monotonic() + 60
        while not self._file.is_file():
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.1)
        self.address = str(json.loads(self._file.read_text(encoding="utf-8"))["address"])
        self.workers = [self.start_worker() for _ in range(2)]

    def start_worker(self) -> subprocess.Popen[bytes]:
        own = ("--nthreads", "1", "--no-nanny", "--local-directory", str(self._folder))
        return self._start("worker", "--host", "127.0.0.1", *own)

    def _start(self, kind: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", kind, "--scheduler-file", str(self._file), "--no-dashboard", *options]
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=self._folder, stderr=subprocess.DEVNULL
        )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("dask"))
    yield found
    found.stop()


def collect(cluster: Cluster, function: Any, jobs: list[Any], shared: Path, deadline_s: float = 60.0) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}

    def keep(index: int, outcome: Outcome) -> None:
        assert index not in outcomes
        outcomes[index] = outcome

    run_jobs(
        function, jobs, workers=1, deadline_s=deadline_s, label="test", on_result=keep, scheduler=cluster.address,
        shared=shared,
    )  # fmt: skip
    return [outcomes[index] for index in range(len(jobs))]


def test_bad_jobs_cost_only_themselves(cluster: Cluster, tmp_path: Path) -> None:
    modes = ["fine", "hang", "die", "raise", "die_once"]
    jobs = [{"mode": mode, "folder": str(tmp_path)} for mode in modes]
    found = dict(zip(modes, collect(cluster, worker_functions.misbehave, jobs, tmp_path, 1.0), strict=True))
    assert [found[mode].kind for mode in modes] == ["ok", "deadline", "crashed", "failed", "ok"]
    assert found["die_once"].value == "die_once after 2"
    assert "SIGSEGV" in found["die"].detail
    assert "this job is bad" in found["raise"].detail
    assert "video_deadline_s = 1 s" in found["hang"].detail
    assert all(worker.poll() is None for worker in cluster.workers)
    assert list((tmp_path / ".locks").iterdir()) == []


def test_few_jobs_are_in_flight(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    submit = dask_jobs._Cluster._submit

    def counting(self: Any, index: int) -> None:
        nonlocal most
        submit(self, index)
        most = max(most, len(self._out))

    monkeypatch.setattr(dask_jobs._Cluster, "_submit", counting)
    found = collect(cluster, worker_functions.square, list(range(60)), tmp_path)
    assert [outcome.value for outcome in found] == [number**2 for number in range(60)]
    assert most <= 4


def test_a_worker_killed_midway_changes_nothing(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_light(monkeypatch)
    here = light_project(tmp_path / "here", 12)
    there = light_project(tmp_path / "there", 12, seconds=0.25)
    crop.run(light_params(), here, "f")

    def kill() -> None:
        while len(list((there.clips / ".spool").glob("*.json"))) < 2:
            time.sleep(0.02)
        cluster.workers[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    figures = crop.run(light_params(scheduler=cluster.address), there, "f")
    killer.join()
    assert cluster.workers[0].wait(5) == -signal.SIGKILL
    assert figures["videos"] == 12
    assert figures["videos_error"] == 0
    assert snapshot(there.clips, there.clip_table) == snapshot(here.clips, here.clip_table)
    cluster.workers[0] = cluster.start_worker()


def test_disk_of_a_worker_is_full(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="disk is full"):
        collect(cluster, worker_functions.disk_full, [1, 2], tmp_path)


def test_no_scheduler_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dask_jobs, "CONNECT_S", 1.0)
    for scheduler, text in (("tcp://127.0.0.1:9", "no Dask scheduler answers"), ("cluster", "neither 'local' nor")):
        with pytest.raises(StageError, match=text):
            run_jobs(
                worker_functions.square, [1], workers=1, deadline_s=9.0, label="test", on_result=print,
                scheduler=scheduler, shared=tmp_path,
            )  # fmt: skip
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(StageError, match=r"head3d\[cluster\]"):
        dask_jobs._connect("tcp://127.0.0.1:9")


def test_workers_that_cannot_help_are_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_jobs, "all_code_hash", lambda: "another")
    with pytest.raises(StageError, match="another version"):
        collect(cluster, worker_functions.square, [1], tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(dask_jobs, "look", worker_functions.sees_nothing)
    with pytest.raises(StageError, match=r"does not see .*shared file system"):
        collect(cluster, worker_functions.square, [1], tmp_path)
