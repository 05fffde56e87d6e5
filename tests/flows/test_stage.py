"""The stage runner, on a project whose stages take no time."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.fingerprint import content_hash, fingerprint
from flows.graph import read_graph
from flows.stage import plain
from models.config import ConfigError, load_params
from tests.flows.toy import Project, make_toy


@pytest.fixture
def toy(tmp_path: Path) -> Project:
    return make_toy(tmp_path / "with space" / "toy")


def stage(toy: Project, name: str, code: int | None = 0, **env: str) -> str:
    return toy.python("-m", "flows.stage", name, code=code, env=env)


def wait_for(path: Path, seconds: float = 20) -> str:
    deadline = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
    return path.read_text()


def gone(pids: list[int], seconds: float = 15) -> bool:
    """Whether all these processes end in time; what is left is killed."""
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _gone, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        process.kill()
    return not alive


@pytest.fixture
def slow_left(toy: Project) -> Iterator[Project]:
    stage(toy, "first")
    (toy.root / "slow").touch()
    yield toy
    pids = toy.root / "pids"
    if pids.is_file():
        gone([int(pid) for pid in pids.read_text().split()], seconds=0)


def test_summary_has_seconds_and_plain_numbers(toy: Project) -> None:
    stage(toy, "first")
    summary = json.loads((toy.root / "data/metrics/first.json").read_text())
    assert list(summary) == ["seconds", "letters", "share", "nothing"]
    assert summary["letters"] == 5
    assert summary["share"] == 0.333333
    assert summary["nothing"] is None


def test_plain_takes_numpy() -> None:
    import numpy as np

    assert plain({"a": np.float32(0.5), "b": [np.int64(3), float("inf")]}) == {"a": 0.5, "b": [3, None]}


def test_expected_failures_are_one_message(toy: Project) -> None:
    assert "data/first.txt does not exist" in stage(toy, "left", code=1)
    (toy.root / "source.txt").write_text("bad")
    output = stage(toy, "first", code=1)
    assert output.strip() == "first: source.txt is bad; write something else"
    toy.edit("params.yaml", "work_px", "work_pixels")
    output = stage(toy, "first", code=1)
    assert "did you mean 'parse.work_px'" in output
    assert "Traceback" not in output
    assert "there are: first, left, right, last" in stage(toy, "middle", code=1)


def test_undeclared_setting_is_refused(toy: Project) -> None:
    stage(toy, "first")
    (toy.root / "peek").touch()
    assert "stage 'right' uses the settings 'fusion'" in stage(toy, "right", code=1)


def test_fingerprint_follows_what_dvc_yaml_lists(toy: Project) -> None:
    stage(toy, "first")

    def now() -> str:
        return fingerprint(read_graph(toy.root)["left"], load_params(toy.root / "params.yaml"), toy.root)

    marks = [now()]
    for name, old, new in (
        ("params.yaml", "smooth_frames: 3", "smooth_frames: 5"),
        ("tasks/shared.py", "source", "origin"),
        ("data/first.txt", "hello", "hullo"),
    ):
        toy.edit(name, old, new)
        marks.append(now())
    assert len(set(marks)) == 4
    toy.edit("params.yaml", "raters: 3", "raters: 4")
    toy.edit("params.yaml", "workers: 2", "workers: 1")
    toy.edit("tasks/right.py", "raters", "rater_count")
    assert now() == marks[-1]


def test_additive_setting_leaves_what_is_there(toy: Project) -> None:
    stage(toy, "first")
    toy.edit("dvc.yaml", "meta: {gpu: true}", "meta: {gpu: true, additive: [parse.work_px]}")

    def now() -> str:
        return fingerprint(read_graph(toy.root)["left"], load_params(toy.root / "params.yaml"), toy.root)

    before = now()
    toy.edit("params.yaml", "work_px: 128", "work_px: 160")
    assert now() == before
    toy.edit("params.yaml", "smooth_frames: 3", "smooth_frames: 5")
    assert now() != before
    toy.edit("dvc.yaml", "parse.work_px]", "parse.work_pixels]")
    with pytest.raises(ConfigError, match=r"parse\.work_pixels"):
        now()


def test_content_hash_sees_both_ends_of_long_files(tmp_path: Path) -> None:
    file = tmp_path / "store" / "c" / "0"
    file.parent.mkdir(parents=True)
    content = bytearray(os.urandom(1 << 20))
    file.write_bytes(content)
    first = content_hash(tmp_path / "store")
    content[-1] ^= 1
    file.write_bytes(content)
    second = content_hash(tmp_path / "store")
    (file.parent / "0.partial").write_bytes(b"left by kill -9")
    assert first != second == content_hash(tmp_path / "store")
    file.rename(file.with_name("1"))
    assert content_hash(tmp_path / "store") != second


def test_second_run_is_kept_out_and_a_stopped_one_resumes(slow_left: Project) -> None:
    toy = slow_left
    running = toy.start("python", "-m", "flows.stage", "left")
    pids = [int(pid) for pid in wait_for(toy.root / "pids").split()]
    refused = stage(toy, "left", code=1)
    assert f"another run is in progress: stage 'left (process {pids[0]} on {socket.gethostname()})'" in refused
    os.kill(running.pid, signal.SIGTERM)
    output, _ = running.communicate(timeout=20)
    assert running.returncode == 128 + signal.SIGTERM
    assert "goes on from here" in output
    assert "Traceback" not in output
    assert gone(pids), "a worker outlived its stage"
    stage(toy, "left")
    assert json.loads((toy.root / "data/metrics/left.json").read_text())["resumed"] == 1


def test_a_killed_run_leaves_no_lock(slow_left: Project) -> None:
    toy = slow_left
    running = toy.start("python", "-m", "flows.stage", "left")
    pids = [int(pid) for pid in wait_for(toy.root / "pids").split()]
    os.kill(pids[0], signal.SIGKILL)
    running.wait(20)
    assert (toy.root / "data/.locks/left.lock").is_file()
    stage(toy, "left")
    assert list((toy.root / "data/.locks").glob("*.holder")) == []


def test_a_read_only_folder_is_one_message(toy: Project) -> None:
    """As on a disk that is mounted read-only; permissions would not stop root."""
    (toy.root / "sitecustomize.py").write_text(
        "import errno, pathlib\n"
        "def mkdir(self, *_, **__):\n"
        "    raise OSError(errno.EROFS, 'Read-only file system', str(self))\n"
        "pathlib.Path.mkdir = mkdir\n"
    )
    output = stage(toy, "first", code=1, PYTHONPATH=str(toy.root))
    assert output.startswith("first: cannot write data/.locks: read-only file system")
    assert "Traceback" not in output


def test_killed_dvc_does_not_leave_its_stage_running(slow_left: Project) -> None:
    toy = slow_left
    running = toy.start("python", "-m", "dvc", "repro", "left")
    pids = [int(pid) for pid in wait_for(toy.root / "pids").split()]
    running.kill()
    running.communicate()
    assert gone(pids), "the stage outlived the dvc that started it"
    output = toy.dvc("repro")
    assert toy.ran(output) == ["left", "right", "last"]
    assert json.loads((toy.root / "data/metrics/left.json").read_text())["resumed"] == 1


def test_fresh_throws_finished_work_away(toy: Project) -> None:
    toy.dvc("repro", "left")
    (toy.root / "data/left/extra").write_text("x")
    stage(toy, "left")
    assert (toy.root / "data/left/extra").is_file()
    stage(toy, "left", HEAD3D_FRESH="1")
    assert not (toy.root / "data/left/extra").exists()
