"""What several test files share: a finished tiny run of the whole pipeline, and a Prefect server of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from flows.preset_files import write_preset
from tests.flows.toy import Project, make_copy

if TYPE_CHECKING:
    from tests.tasks.factory import Project as FactoryProject

SERVER_START_S = 90

# The networks of the tests are so small that a second thread only waits, and sums keep their order with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist's processes ignore Ctrl-C, and so would all that tests start and stop by it."""
    if hasattr(config, "workerinput"):
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The whole pipeline, run once with `dvc repro` on the preset `tiny` and committed. Copy it before changing it.

    pytest-xdist's processes share the run, which takes minutes; each has its own copy, because DVC locks a project.
    """
    several = "PYTEST_XDIST_WORKER" in os.environ
    shared = tmp_path_factory.getbasetemp().parent if several else tmp_path_factory.mktemp("all")
    made = shared / "tiny"
    with FileLock(shared / "tiny.lock"):
        if not (made / "repro.log").exists():
            _run_tiny(made)
    own = tmp_path_factory.mktemp("tiny")
    shutil.copytree(made, own, symlinks=True, dirs_exist_ok=True)
    return Project(own / "project")


def _run_tiny(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was stopped
    folder.mkdir()
    project = make_copy(folder / "project")
    write_preset("tiny", project.root / "params.yaml")
    project.git("add", ".")
    project.git("commit", "-q", "-m", "tiny")
    output = project.dvc("repro")
    (folder / "repro.log").write_text(output, encoding="utf-8")


@pytest.fixture
def tiny_copy(tiny_project: Project, tmp_path: Path) -> Project:
    """A copy of the finished tiny run that a test may change."""
    shutil.copytree(tiny_project.root, tmp_path / "copy", symlinks=True)
    return Project(tmp_path / "copy")


@pytest.fixture(scope="session")
def report_project(tmp_path_factory: pytest.TempPathFactory) -> FactoryProject:
    """A small finished run with its report. Leave it as it is."""
    from tests.tasks.report_project import make_report

    return make_report(tmp_path_factory.mktemp("report"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and all it started, and wait for it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=15)
            break


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real Prefect server on a port of its own; yields the environment in which Prefect talks to it."""
    import httpx

    home = tmp_path_factory.mktemp("prefect")
    port = _free_port()
    env = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            cwd=home,
            env={**os.environ, **env},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + SERVER_START_S
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{env['PREFECT_API_URL']}/health", timeout=5).is_success:
                        break
                assert server.poll() is None, (home / "server.log").read_text()
                assert time.monotonic() < deadline, "the Prefect server did not start"
                time.sleep(0.3)
            yield env
        finally:
            end_group(server)
