"""Checkpoints while a training runs: what is left when it is stopped, killed or damaged, and what comes of it."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch

from models.config import ConfigError, Runtime, build
from tasks.checkpoint_folder import save_weights, write_losses
from tasks.checkpoints import CheckpointWriter, TrainingState, git_revision, load_newest, numbered
from tasks.disk import storage_errors
from tasks.errors import StageError
from tasks.training import train
from tests.tasks.full_disk import small_files
from tests.tasks.small_training import result, small_job, small_runtime

ROOT = Path(__file__).parents[2]


class Stopped(KeyboardInterrupt):
    """As the stage runner raises it."""


@pytest.fixture
def stopping() -> object:
    """SIGTERM stops as it does in the stage runner."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """What an uninterrupted run leaves."""
    train(small_job(), tmp_path / "whole", "fp", small_runtime(120.0))
    files = result(tmp_path / "whole")
    assert sorted(files) == ["config.json", "loss.csv", "model.safetensors", "stage.json"]
    return files


def stop_at(step: int, number: int = signal.SIGTERM) -> dict[int, Callable[[], None]]:
    return {step: lambda: signal.raise_signal(number)}


def steps_of(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in numbered(folder)]


@pytest.mark.parametrize("step", [2, 4, 13, 19])
def test_sigterm_ends_the_step_and_saves_it(step: int, stopping: object, whole: dict[str, bytes], tmp_path: Path):
    """In the middle of a log window, at the end of a phase, at the end of a window, at the last step."""
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train(small_job(at=stop_at(step)), folder, "fp", small_runtime(120.0))
    assert steps_of(folder) == [step + 1]
    job = small_job()
    torch.manual_seed(99)
    train(job, folder, "fp", small_runtime(120.0))
    assert job.losses.computed == 20 - (step + 1)  # type: ignore[attr-defined]
    assert result(folder) == whole


def test_ctrl_c_saves_too(whole: dict[str, bytes], tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        train(small_job(at=stop_at(9, signal.SIGINT)), tmp_path / "run", "fp", small_runtime(120.0))
    assert steps_of(tmp_path / "run") == [10]
    train(small_job(), tmp_path / "run", "fp", small_runtime())
    assert result(tmp_path / "run") == whole


@pytest.mark.parametrize(("later_s", "kept"), [(0.5, [4]), (5.0, [])])
def test_a_second_signal_does_not_wait_but_the_same_one_may_come_twice(
    later_s: float, kept: list[int], stopping: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr("tasks.interruption.time.monotonic", lambda: now[0])

    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        now[0] += later_s
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped):
        train(small_job(at={3: twice}), tmp_path, "fp", small_runtime(120.0))
    assert steps_of(tmp_path) == kept
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_killed_run_ends_with_the_same_bytes(whole: dict[str, bytes], tmp_path: Path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "tests.tasks.small_training", str(folder), "13", "SIGKILL"]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert steps_of(folder) == [13, 12]  # the last two, both whole
    assert not (folder / "model.safetensors").exists()
    (folder / "step_00000014.partial").mkdir()  # as if it had died while it wrote
    train(small_job(), folder, "fp", small_runtime(120.0))
    assert result(folder) == whole


def test_a_truncated_newest_one_is_passed_over(
    stopping: object, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(Stopped):
        train(small_job(at=stop_at(12)), tmp_path / "run", "fp", small_runtime())
    newest, before = numbered(tmp_path / "run")
    for name in ("state.pt", "model.safetensors"):
        file = newest / name
        file.write_bytes(file.read_bytes()[: -file.stat().st_size // 2])
        assert load_newest(tmp_path / "run", "fp").step == 12  # type: ignore[union-attr]
        said = capsys.readouterr().err
        assert f"{newest} cannot be used" in said
        assert f"going on from {before.name}" in said
    train(small_job(), tmp_path / "run", "fp", small_runtime(120.0))
    assert result(tmp_path / "run") == whole


def test_when_both_are_damaged_it_starts_anew_and_says_so(
    stopping: object, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(Stopped):
        train(small_job(at=stop_at(12)), tmp_path / "run", "fp", small_runtime())
    for path in numbered(tmp_path / "run"):
        (path / "about.json").unlink()
    train(small_job(), tmp_path / "run", "fp", small_runtime(120.0))
    assert "starting from the beginning" in capsys.readouterr().err
    assert result(tmp_path / "run") == whole


def test_other_settings_throw_it_away(stopping: object, tmp_path: Path):
    with pytest.raises(Stopped):
        train(small_job(at=stop_at(12)), tmp_path, "fp", small_runtime())
    assert load_newest(tmp_path, "another") is None
    job = small_job()
    train(job, tmp_path, "another", small_runtime(120.0))
    assert job.losses.computed == 20  # type: ignore[attr-defined]


def test_a_checkpoint_says_where_it_comes_from(stopping: object, tmp_path: Path):
    with pytest.raises(Stopped):
        train(small_job(at=stop_at(6)), tmp_path, "fp", small_runtime(120.0))
    about = json.loads((numbered(tmp_path)[0] / "about.json").read_text())
    assert about["fingerprint"] == "fp"
    assert about["git_revision"] == git_revision()
    assert set(about["crc32"]) == {"model.safetensors", "state.pt"}


def test_broken_weights_are_not_saved(tmp_path: Path):
    job = small_job()
    network = job.modules["net"]

    def spoil() -> None:
        with torch.no_grad():
            network[1].register_full_backward_hook(lambda *_: (torch.full((8, 8), math.nan),))  # type: ignore[index]

    job.losses.at = {8: spoil}  # type: ignore[attr-defined]
    with pytest.raises(StageError, match=r"weights net\.0\.weight, .* no longer a number at step 9"):
        train(job, tmp_path, "fp", small_runtime())
    assert steps_of(tmp_path) == [8, 7]


def test_a_run_never_loses_more_than_two_minutes():
    with pytest.raises(ConfigError, match=r"'checkpoint_every_s' = 121"):
        build(Runtime, small_runtime().model_dump() | {"checkpoint_every_s": 121.0})


@pytest.fixture
def full_disk() -> Iterator[None]:
    with small_files(3_000):
        yield


def state_of(weights: int, average: int) -> TrainingState:
    values = {"w": torch.zeros(weights)}
    return TrainingState(1, values, {"w": torch.zeros(average)}, {}, [], [], torch.empty(0, 0))


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(("weights", "average"), [(1000, 1), (1, 1000)])
def test_a_full_disk_is_told_and_half_a_checkpoint_removed(weights: int, average: int, tmp_path: Path):
    """The weights do not fit, or the state beside them."""
    message = r"size limit.*make room and run the stage again; it goes on"
    with pytest.raises(StageError, match=message), storage_errors(tmp_path), CheckpointWriter(tmp_path, "fp") as writer:
        writer.write(state_of(weights, average))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full_disk")
def test_final_weights_that_do_not_fit_are_told_too(tmp_path: Path):
    with pytest.raises(StageError, match=r"size limit.*make room"), storage_errors(tmp_path):
        save_weights(tmp_path, {"w": torch.zeros(1000)}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full_disk")
def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path):
    with pytest.raises(StageError, match=r"size limit"), storage_errors(tmp_path):
        train(small_job(), tmp_path, "fp", small_runtime())
    assert steps_of(tmp_path) == []


@pytest.mark.usefixtures("full_disk")
def test_a_stopped_run_says_that_the_last_checkpoint_did_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(KeyboardInterrupt), storage_errors(tmp_path):
        train(small_job(at=stop_at(7, signal.SIGINT)), tmp_path, "fp", small_runtime(120.0))
    assert "the last checkpoint could not be written" in capsys.readouterr().err


def test_the_writer_keeps_what_the_state_was(tmp_path: Path):
    """Training goes on, in place, while the thread writes."""
    weight = torch.zeros(3)
    state = TrainingState(1, {"w": weight}, {"w": weight}, {"state": {0: {"m": weight}}}, [], [], torch.empty(0, 0))
    with CheckpointWriter(tmp_path, "fp") as writer:
        writer.write(state)
        weight.fill_(7.0)
    kept = load_newest(tmp_path, "fp")
    assert kept is not None
    for value in (kept.weights["w"], kept.average["w"], kept.optimiser["state"][0]["m"]):
        assert value.tolist() == [0.0, 0.0, 0.0]


def test_a_finished_stage_keeps_no_checkpoint(whole: dict[str, bytes], tmp_path: Path):
    """Killed between the last mark and the tidying up."""
    folder = tmp_path / "whole"
    for left in (folder / "step_00000019", folder / "without_head" / "step_00000003.partial"):
        left.mkdir(parents=True)
        (left / "state.pt").write_bytes(b"x")
    (folder / "samples").mkdir()
    (folder / "samples" / "step_00000020.png").write_bytes(b"x")
    write_losses(folder, tmp_path / "metrics" / "small_loss.csv")
    assert set(result(folder)) == {*whole, "samples/step_00000020.png"}
    assert (tmp_path / "metrics" / "small_loss.csv").read_bytes() == whole["loss.csv"]
