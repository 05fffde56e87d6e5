"""kill -9 at any moment: what the next run ends with is what a run in one go makes, byte for byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import crop, parse
from tasks.paths import Paths
from tasks.workers import Outcome
from tests.tasks.light import light_params, light_project, make_light, snapshot

STAGES = {"crop": crop.run, "parse": parse.run}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    make_light(monkeypatch)


def forked(work: Callable[[], Any]) -> int:
    """Do it in a copy of this process, which has all imports done already; returns the copy's id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def outputs(stage: str, paths: Paths) -> dict[str, bytes]:
    return snapshot(*((paths.clips, paths.clip_table) if stage == "crop" else (paths.masks, paths.mask_table)))


def leftovers(paths: Paths) -> list[str]:
    """Files of a run that should be gone when it is finished."""
    found = [
        path for pattern in ("*.partial", ".spool", "*.old", "table.parquet") for path in paths.data.rglob(pattern)
    ]
    return [path.name for path in found]


def prepared(stage: str, root: Path, videos: int, seconds: float = 0.0) -> Paths:
    paths = light_project(root, videos, seconds)
    if stage == "parse":
        crop.run(light_params(), paths, "f")
    return paths


@pytest.mark.parametrize("stage", STAGES)
def test_ten_times_kill_9(stage: str, tmp_path: Path) -> None:
    """The stage with its workers, killed at seeded random moments, most of them in the middle of the work."""
    whole = prepared(stage, tmp_path / "whole", 24)
    killed = prepared(stage, tmp_path / "killed", 24, 0.12 if stage == "crop" else 0.0)
    run, moments, hits = STAGES[stage], random.Random(3), 0
    run(light_params(), whole, "f")
    for _ in range(10):
        pid = forked(lambda: run(light_params(), killed, "f"))
        time.sleep(moments.uniform(0.2, 0.7))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        hits += os.WIFSIGNALED(status)
    assert hits >= 7, "too fast for this test"
    run(light_params(), killed, "f")
    assert outputs(stage, killed) == outputs(stage, whole)
    assert leftovers(killed) == []


OPERATIONS = ("replace", "rename", "unlink", "rmdir")


def run_here(function: Callable[[Any], Any], jobs: list[Any], **options: Any) -> None:
    """`run_jobs` without processes."""
    for index, job in enumerate(jobs):
        options["on_result"](index, Outcome("ok", function(job), "", 1.0))


def until_operation(count: int, work: Callable[[], Any]) -> bool:
    """Do it in a copy of this process that dies just before its `count`-th change of the folder tree.

    Returns:
        Whether it died; else it ended before.
    """

    def dying() -> None:
        left = count
        for name in OPERATIONS:
            real = getattr(os, name)

            def operation(*given: Any, _real: Callable[..., Any] = real, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return _real(*given, **options)

            setattr(os, name, operation)
        work()

    _, status = os.waitpid(forked(dying), 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 9


STRIDE = {"crop": 19, "parse": 37}
"""Every how many steps a run dies in the test below; passed with 3 as well, which takes a minute."""


@pytest.mark.parametrize("stage", STAGES)
def test_dying_at_any_step(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One video is new, two are gone: the run sets the old store aside, copies from it, writes, and cleans up. It dies
    at its first step, some steps later, and so on; the run after it always ends alike."""
    monkeypatch.setattr(crop, "run_jobs", run_here)
    monkeypatch.setattr(parse, "run_jobs", run_here)
    run, after = STAGES[stage], ["v1", "v9", "v2", "v3", "v5"]
    start, whole = light_project(tmp_path / "start", 6), light_project(tmp_path / "whole", 0, names=after)
    for paths, mark in ((start, "old"), (whole, "new")):
        crop.run(light_params(), paths, mark)
        run(light_params(), paths, mark)
    light_project(tmp_path / "start", 0, names=after)
    if stage == "parse":
        crop.run(light_params(), start, "new")
    count, died = 1, True
    while died:
        paths = Paths(tmp_path / f"at{count}" / "data")
        shutil.copytree(start.data, paths.data)
        died = until_operation(count, lambda data=paths: run(light_params(), data, "new"))  # type: ignore[misc]
        run(light_params(), paths, "new")
        assert outputs(stage, paths) == outputs(stage, whole), f"died at step {count}"
        assert leftovers(paths) == []
        count += STRIDE[stage]
    assert count > 50
