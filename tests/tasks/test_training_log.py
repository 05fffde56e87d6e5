"""What can be seen of a training while it runs and afterwards: bar, loss.csv, sample sheets, DVC's plots."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tasks import training_log
from tasks.checkpoints import numbered
from tasks.stepper import Stepper
from tasks.training import Training, train
from tasks.training_look import Look
from tests.tasks.small_training import result, small_job, small_runtime

ROOT = Path(__file__).parents[2]
DVC_YAML = """
stages:
  small:
    cmd: "'{python}' -m tests.tasks.small_training data/small"
    outs:
      - data/small:
          persist: true
metrics:
  - data/small/live/metrics.json
plots:
  - data/small/live/plots/metrics:
      x: step
"""


def pictured(**more: Any) -> Training:
    """A training with a sheet every eighth step, whose grey is the first weight."""
    job = small_job(**more)
    job.sheet_every = 8

    def look() -> Look:
        grey = next(job.modules["net"].parameters())[0, 0].sigmoid()
        return Look({"grey": grey * torch.ones(1, 3, 16, 16)}, {"grey": float(grey)})

    job.look = look
    return job


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project around the working directory, without Git."""
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_bar_tells_speed_waiting_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train(small_job(), tmp_path, "fp", small_runtime(120.0))
    said = capsys.readouterr().err
    assert "samples/s" in said
    assert "% waiting for data" in said
    assert "20/20 [" in said


def test_the_curve_is_there_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training_log, "CURVE_EVERY_S", 0.0)
    seen: list[list[float]] = []

    def read() -> None:
        seen.append(pd.read_csv(tmp_path / "loss.csv")["step"].tolist())

    train(small_job(at={8: read, 15: read}), tmp_path, "fp", small_runtime(120.0))
    assert seen == [[5, 7], [5, 7, 14]]
    assert pd.read_csv(tmp_path / "loss.csv")["step"].tolist() == [5, 7, 14, 20]


@pytest.mark.parametrize("anew", [False, True])
def test_an_interrupted_run_leaves_the_same_sheets_and_dvclive_files(anew: bool, project: Path):
    train(pictured(), project / "whole", "fp", small_runtime(120.0))
    whole = result(project / "whole")
    assert {name for name in whole if name.startswith("samples/")} == {
        f"samples/step_{step:08d}.png" for step in (8, 16, 20)
    }

    def killed() -> None:
        raise RuntimeError("as if killed")

    with pytest.raises(RuntimeError):
        train(pictured(at={17: killed}), project / "run", "fp", small_runtime())
    assert len(list((project / "run" / "samples").iterdir())) == 2
    if anew:
        for path in numbered(project / "run"):
            shutil.rmtree(path)
    train(pictured(), project / "run", "fp", small_runtime(120.0))
    assert result(project / "run") == whole
    metrics = json.loads(whole["live/metrics.json"])
    assert metrics["step"] == 20
    assert {"total", "late", "error", "lr", "grey"} <= set(metrics)
    curve = whole["live/plots/metrics/total.tsv"].decode().split()
    assert curve[:2] == ["step", "total"]
    assert curve[2::2] == ["5", "7", "14", "20"]
    assert whole["live/plots/images/samples.png"]


def test_without_dvclive_nothing_else_is_missing(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dvclive", None)
    train(pictured(), project / "run", "fp", small_runtime(120.0))
    assert not (project / "run" / "live").exists()
    assert len(list((project / "run" / "samples").iterdir())) == 3


def test_outside_a_dvc_project_no_project_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    train(small_job(), tmp_path / "run", "fp", small_runtime(120.0))
    assert not (tmp_path / ".dvc").exists()
    assert not (tmp_path / "run" / "live").exists()


def test_dvc_shows_it_and_runs_nothing_again(tmp_path: Path):
    """In a Git checkout, as users have it: no commit is made, nothing is tracked twice, no network is asked."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", "HTTPS_PROXY": "http://127.0.0.1:9"}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def dvc(*words: str) -> str:
        return run(sys.executable, "-m", "dvc", *words)

    run("git", "init", "-q")
    dvc("init", "-q")
    (tmp_path / "dvc.yaml").write_text(DVC_YAML.format(python=sys.executable), encoding="utf-8")
    run("git", "add", ".")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    assert "Running stage 'small'" in dvc("repro")
    assert "didn't change, skipping" in dvc("repro")
    metrics = json.loads(dvc("metrics", "diff", "--json"))
    assert metrics["data/small/live/metrics.json"]["total"]["new"] > 0
    plots = json.loads(dvc("plots", "show", "--json", "-o", "plots"))
    assert any("live/plots/metrics/total.tsv" in name for name in plots.get("data", plots))
    assert run("git", "rev-list", "--count", "--all").strip() == "1"


def test_waiting_for_data_is_what_drawing_takes(monkeypatch: pytest.MonkeyPatch):
    """By a clock that only drawing moves."""
    now = [0.0]
    monkeypatch.setattr("tasks.stepper.time.perf_counter", lambda: now[0])
    job = small_job()
    draw = job.losses.draw

    def slow(step: int) -> dict[str, torch.Tensor]:
        now[0] += 2.0
        return draw(step)

    job.losses.draw = slow  # type: ignore[method-assign]
    stepper = Stepper(job, False, {})
    for step in range(3):
        stepper.take(step)
    assert stepper.waited_s == 6.0
