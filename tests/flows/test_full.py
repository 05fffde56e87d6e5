"""The Prefect flow against a real server and real DVC, on a project whose stages take no time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.stage_process import StageProcesses, StageRunError
from tests.conftest import end_group
from tests.flows.test_stage import gone, wait_for
from tests.flows.toy import Project, make_toy

CACHED = dict.fromkeys(("first", "left", "right", "last"), "Cached")


@pytest.fixture
def toy(tmp_path: Path) -> Project:
    return make_toy(tmp_path / "with space" / "toy")


def flow(project: Project, env: dict[str, str], *arguments: str) -> dict[str, str]:
    """Run the flow here; stage -> final state, from what it prints at the end."""
    output = project.python("-m", "flows.full", "run", *arguments, env=env)
    return dict(re.findall(r"^(\w+) +(Cached|Completed)$", output, re.MULTILINE))


class Served:
    """A project whose deployment is being served."""

    def __init__(self, project: Project, env: dict[str, str]) -> None:
        self.project, self.env, self.api = project, env, env["PREFECT_API_URL"]

    def deploy(self, *arguments: str, code: int | None = 0) -> str:
        return self.project.python(
            "-m", "prefect", "deployment", "run", "head3d/full", *arguments, code=code, env=self.env
        )

    def states(self, output: str) -> dict[str, str]:
        """Stage -> state of the run that `prefect deployment run` started, from the server."""
        run = self.run_id(output)
        body = {"task_runs": {"flow_run_id": {"any_": [run]}}}
        tasks: list[dict[str, Any]] = httpx.post(f"{self.api}/task_runs/filter", json=body, timeout=20).json()
        return {task["name"]: task["state"]["name"] for task in tasks}

    @staticmethod
    def run_id(output: str) -> str:
        found = re.search(r"UUID: ([0-9a-f-]{36})", output)
        assert found, output
        return found[1]


@pytest.fixture
def served(toy: Project, prefect_server: dict[str, str]) -> Iterator[Served]:
    process = toy.start("python", "-m", "flows.full", "serve", env=prefect_server)
    url = f"{prefect_server['PREFECT_API_URL']}/deployments/name/head3d/full"
    try:
        deadline = time.monotonic() + 60
        while httpx.get(url, timeout=10).json().get("status") != "READY":
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "nothing was served"
            time.sleep(0.3)
        yield Served(toy, prefect_server)
    finally:
        end_group(process)


def test_deployment_runs_what_dvc_left_and_dvc_what_it_left(served: Served) -> None:
    toy = served.project
    output = served.deploy("--watch")
    assert served.states(output) == dict.fromkeys(CACHED, "Completed")
    assert toy.ran(toy.dvc("repro")) == []

    toy.edit("params.yaml", "smooth_frames: 3", "smooth_frames: 5")  # only `left` and what reads it
    assert toy.ran(toy.dvc("repro")) == ["left", "last"]
    started = time.monotonic()
    output = served.deploy("--watch")
    seconds = time.monotonic() - started
    assert served.states(output) == CACHED
    assert seconds < 30, f"a run with nothing to do took {seconds:.0f} s"


def artifacts_of(env: dict[str, str], run: str) -> dict[str, dict[str, Any]]:
    """Key -> artifact of a flow run, from the server."""
    body = {"artifacts": {"flow_run_id": {"any_": [run]}}, "limit": 100}
    found = httpx.post(f"{env['PREFECT_API_URL']}/artifacts/filter", json=body, timeout=20).json()
    return {artifact["key"]: artifact for artifact in found if artifact["key"]}


def last_run(env: dict[str, str]) -> str:
    body = {"sort": "EXPECTED_START_TIME_DESC", "limit": 1}
    (run,) = httpx.post(f"{env['PREFECT_API_URL']}/flow_runs/filter", json=body, timeout=20).json()
    return str(run["id"])


def test_every_stage_leaves_artifacts_also_when_it_was_up_to_date(toy: Project, prefect_server: dict[str, str]) -> None:
    toy.dvc("repro", "first")
    states = flow(toy, prefect_server)
    assert states == {"first": "Cached", "left": "Completed", "right": "Completed", "last": "Completed"}
    found = artifacts_of(prefect_server, last_run(prefect_server))
    kinds = {name: found[f"head3d-{name}"]["type"] for name in CACHED}
    assert set(kinds.values()) == {"markdown"}
    assert "**Cached**" in found["head3d-first"]["data"]
    assert "**Completed**" in found["head3d-left"]["data"]
    assert "- `data/left`" in found["head3d-left"]["data"]
    rows = json.loads(found["head3d-first-figures"]["data"])
    assert {row["figure"]: row["value"] for row in rows} | {"seconds": 0} == {
        "seconds": 0, "letters": 5, "share": 0.333333, "nothing": "",
    }  # fmt: skip
    assert found["head3d-left-picture"]["type"] == "image"
    assert found["head3d-left-picture"]["data"].startswith("data:image/webp;base64,")
    assert "head3d-right-picture" not in found, "its picture cannot be drawn, and the stage is not worth less for it"


def test_cancelling_ends_every_process_and_the_next_run_goes_on(served: Served) -> None:
    toy = served.project
    (toy.root / "slow").touch()
    output = served.deploy()
    pids = [int(pid) for pid in wait_for(toy.root / "pids", 60).split()]
    dvc = [each.pid for each in psutil.Process(pids[0]).parents() if "dvc" in " ".join(each.cmdline())]
    toy.python("-m", "prefect", "flow-run", "cancel", served.run_id(output), env=served.env)
    assert gone([*pids, *dvc[:1]], seconds=30), "a process outlived the cancelled run"
    assert toy.ran(toy.dvc("repro")) == ["left", "last"]
    assert (toy.root / "data/metrics/left.json").read_text().count('"resumed": 1') == 1


def test_flow_runs_only_what_a_parameter_changes(toy: Project, prefect_server: dict[str, str]) -> None:
    toy.dvc("repro")
    toy.edit("params.yaml", "raters: 3", "raters: 4")
    states = flow(toy, prefect_server)
    assert states == {"first": "Cached", "left": "Cached", "right": "Completed", "last": "Cached"}, (
        "`last` reads a file that did not change"
    )
    assert toy.ran(toy.dvc("repro")) == []


def test_flow_takes_targets_and_preset(toy: Project, prefect_server: dict[str, str]) -> None:
    assert flow(toy, prefect_server, "left", "--preset", "tiny") == {"first": "Completed", "left": "Completed"}
    assert not (toy.root / "data/right.txt").exists()
    assert "Preset `tiny`" in (toy.root / "params.yaml").read_text().splitlines()[0]


def test_failed_stage_is_named_and_nothing_after_it_runs(toy: Project, prefect_server: dict[str, str]) -> None:
    (toy.root / "source.txt").write_text("bad")
    output = toy.python("-m", "flows.full", "run", code=1, env=prefect_server)
    assert "stage 'first' ended in state Failed" in output
    assert "source.txt is bad; write something else" in output
    assert "Traceback" not in output
    assert not (toy.root / "data/left").exists()


def test_other_run_is_waited_for_and_then_named(toy: Project) -> None:
    toy.dvc("repro", "first")
    (toy.root / "slow").touch()
    other = toy.start("python", "-m", "dvc", "repro", "left")
    try:
        wait_for(toy.root / "pids")
        said: list[str] = []
        with pytest.raises(StageRunError, match="another run is in progress, still after"):
            StageProcesses(toy.root, patience_s=1).run("left", said.append)
        assert any(line.startswith("another run is in progress; trying again") for line in said)
    finally:
        end_group(other)
        gone([int(pid) for pid in (toy.root / "pids").read_text().split()])


def test_serve_without_server_says_how_to_start_one(toy: Project, tmp_path: Path) -> None:
    env = {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api", "HEAD3D_SERVER_PATIENCE_S": "0"}
    output = toy.python("-m", "flows.full", "serve", code=1, env=env)
    assert "prefect server start --background" in output
