"""Workers: every job ends in an outcome, and no process outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks import worker_process
from tasks.errors import StageError
from tasks.workers import Outcome, run_jobs
from tests.tasks import worker_functions

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import sys
from tasks.workers import run_jobs
from tests.tasks.worker_functions import announce_and_sleep
if __name__ == "__main__":
    run_jobs(announce_and_sleep, [sys.argv[1]] * 2, workers=2, deadline_s=600.0, label="test", on_result=print)
"""


def collect(function, jobs, workers=2, deadline_s=60.0) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}

    def keep(index: int, outcome: Outcome) -> None:
        assert index not in outcomes
        outcomes[index] = outcome

    run_jobs(function, jobs, workers=workers, deadline_s=deadline_s, label="test", on_result=keep)
    return outcomes


def test_every_job_is_done_once() -> None:
    outcomes = collect(worker_functions.square, list(range(20)))
    assert {index: outcome.value for index, outcome in outcomes.items()} == {i: i * i for i in range(20)}


def test_no_jobs() -> None:
    assert collect(worker_functions.square, []) == {}


def test_bad_jobs_cost_only_themselves(tmp_path: Path) -> None:
    modes = ["fine", "hang", "die", "raise", "die_once"]
    start = time.monotonic()
    outcomes = collect(
        worker_functions.misbehave, [{"mode": mode, "folder": str(tmp_path)} for mode in modes], deadline_s=1.0
    )
    assert time.monotonic() - start < 30
    by_mode = {modes[index]: outcome for index, outcome in outcomes.items()}
    assert {mode: outcome.kind for mode, outcome in by_mode.items()} == {
        "fine": "ok",
        "hang": "deadline",
        "die": "crashed",
        "raise": "failed",
        "die_once": "ok",
    }
    assert by_mode["die_once"].value == "die_once after 2"
    assert "SIGSEGV" in by_mode["die"].detail
    assert len(list(tmp_path.glob("die_[0-9]*"))) == 2  # tried once more, not for ever
    assert len(list(tmp_path.glob("hang_*"))) == 1  # a deadline is final
    assert "this job is bad" in by_mode["raise"].detail


def test_old_workers_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "JOBS_PER_WORKER", 5)
    outcomes = collect(worker_functions.own_pid, list(range(20)), workers=1)
    pids = [outcomes[index].value for index in range(20)]
    assert len(set(pids)) == 4
    assert all(len(set(pids[first : first + 5])) == 1 for first in range(0, 20, 5))


def test_large_workers_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third job leaves 200 MB behind; nobody works in that process any more."""
    monkeypatch.setattr(worker_process, "GROWTH_BYTES", 100 << 20)
    outcomes = collect(worker_functions.leak, [0, 0, 200, 0, 0], workers=1)
    pids = [outcomes[index].value for index in range(5)]
    assert len(set(pids[:3])) == len(set(pids[3:])) == 1
    assert pids[2] != pids[3]
    assert not any(is_alive(pid) for pid in pids)


def test_age_counts_from_the_first_job() -> None:
    age = worker_process.Age(jobs=4, growth=100)
    assert [age.reached(rss) for rss in (500, 600, 450, 0)] == [False, False, False, True]
    age = worker_process.Age(jobs=9, growth=100)
    assert [age.reached(rss) for rss in (500, 601)] == [False, True]


def test_a_full_disk_stops_all_jobs() -> None:
    """It would cost every video alike: none of them is blamed."""
    with pytest.raises(
        StageError, match=r"a worker could not write .*No space left.* make room and run the stage again"
    ):
        collect(worker_functions.disk_full, list(range(50)))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    workers = tmp_path / "workers"
    workers.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script), str(workers)], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(list(workers.iterdir())) == 2, 60)
        parent.send_signal(how)
        assert parent.wait(20) != 0
    finally:
        parent.kill()
    pids = [int(path.name) for path in workers.iterdir()]
    wait_until(lambda: not any(is_alive(pid) for pid in pids), 10)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # a dead child that nobody has waited for is not alive
    return not (status.is_file() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
