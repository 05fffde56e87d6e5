"""The whole pipeline on the preset `tiny`: one run, then what must not run again, and what must."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.flows.test_dvc_yaml import ORDER
from tests.flows.toy import Project


def outputs(project: Project) -> set[str]:
    """Every file below data/ that a stage made for others; the raw videos stay outside DVC."""
    files = (path.relative_to(project.root) for path in (project.root / "data").rglob("*") if path.is_file())
    kept = (path for path in files if path.parts[:3] != ("data", "raw", "demo"))
    return {path.as_posix() for path in kept if not any(part.startswith(".") for part in path.parts)} - {
        "data/README.md"
    }


def test_every_stage_ran_and_left_its_figures(tiny_project: Project) -> None:
    log = (tiny_project.root.parent / "repro.log").read_text()
    assert tiny_project.ran(log) == ORDER
    for name in ORDER:
        assert json.loads((tiny_project.root / f"data/metrics/{name}.json").read_text())["seconds"] >= 0
    assert (tiny_project.root / "data/report/index.html").stat().st_size > 10_000
    for name in ("geometry", "canonical", "fusion"):
        losses = pd.read_csv(tiny_project.root / f"data/metrics/{name}_loss.csv")
        assert losses["total"].notna().all()


def test_git_sees_only_the_lock_file_and_nothing_runs_twice(tiny_project: Project) -> None:
    assert tiny_project.git("status", "--short").split() == ["??", "dvc.lock"]
    started = time.monotonic()
    assert tiny_project.ran(tiny_project.dvc("repro")) == []
    assert time.monotonic() - started < 6, "the bar is 3 s on an idle machine"


def test_changed_parameter_runs_what_depends_on_it(tiny_copy: Project) -> None:
    tiny_copy.edit("params.yaml", "raters: 2", "raters: 3")
    assert tiny_copy.ran(tiny_copy.dvc("repro")) == ["study", "report"]
    tiny_copy.edit("params.yaml", "video_deadline_s: 120.0", "video_deadline_s: 60.0")
    assert tiny_copy.ran(tiny_copy.dvc("repro")) == []
    dry = tiny_copy.git("diff", "--stat", "params.yaml")
    assert "params.yaml" in dry


def test_pushed_results_serve_a_second_clone(tiny_copy: Project, tmp_path: Path) -> None:
    tiny_copy.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    tiny_copy.git("add", "dvc.lock", ".dvc/config")
    tiny_copy.git("commit", "-q", "-m", "results")
    tiny_copy.dvc("push")
    tiny_copy.git("clone", "-q", ".", str(tmp_path / "second clone"))
    clone = Project(tmp_path / "second clone")
    clone.dvc("pull")
    assert clone.ran(clone.dvc("repro")) == []
    assert clone.git("status", "--short") == ""
    report = "data/report/index.html"
    assert (clone.root / report).read_bytes() == (tiny_copy.root / report).read_bytes()

    shutil.rmtree(clone.root / "data")
    clone.dvc("checkout")
    assert clone.ran(clone.dvc("repro")) == []
    assert outputs(clone) == outputs(tiny_copy)

    clone.edit("params.yaml", "min_face_px: 24", "min_face_px: 23")  # the demo's videos are not in the remote
    output = clone.dvc("repro", "crop")
    assert clone.ran(output) == ["crop"]
    assert "rendering them again" in output
    assert json.loads((clone.root / "data/metrics/crop.json").read_text())["clips"] > 0


def test_training_killed_in_the_middle_goes_on(tiny_copy: Project) -> None:
    text = (tiny_copy.root / "params.yaml").read_text(encoding="utf-8")
    head, fusion = text.split("\nfusion:\n")
    fusion = fusion.replace("steps: 6", "steps: 24", 1)
    head = re.sub(r"checkpoint_every_s: .*", "checkpoint_every_s: 0.1", head)
    (tiny_copy.root / "params.yaml").write_text(f"{head}\nfusion:\n{fusion}", encoding="utf-8")
    folder = tiny_copy.root / "data/checkpoints/fusion"
    assert list(folder.glob("step_*")) == []
    running = tiny_copy.start("python", "-m", "dvc", "repro", "fusion")
    deadline = time.monotonic() + 120
    while not any(path.suffix != ".partial" for path in folder.glob("step_*")):
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    output = tiny_copy.dvc("repro", "fusion")
    assert tiny_copy.ran(output) == ["fusion"]
    first = re.search(r"fusion:\s+\d+%\|[^|]*\| (\d+)/24", output)
    assert first, output
    assert int(first[1]) > 0, "training began from nothing"
    losses = pd.read_csv(tiny_copy.root / "data/metrics/fusion_loss.csv")
    assert list(losses["step"]) == list(range(1, 25))


def test_prefect_finds_what_dvc_made(tiny_project: Project, prefect_server: dict[str, str]) -> None:
    output = tiny_project.python("-m", "flows.full", "run", env=prefect_server)
    states = dict(re.findall(r"^(\w+) +(Cached|Completed)$", output, re.MULTILINE))
    assert states == dict.fromkeys(ORDER, "Cached")


@pytest.mark.parametrize("name", ["clips.zarr", "masks.zarr", "geometry.zarr"])
def test_stores_are_shards_not_thousands_of_files(tiny_project: Project, name: str) -> None:
    files = [file for file in (tiny_project.root / "data" / name).rglob("*") if file.is_file()]
    assert len(files) < 20
    assert not [file for file in files if file.suffix == ".partial"]
