"""Prefetched batches are those drawn on the spot; errors and stops end the thread, and nothing hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks.batches import Batches, PrefetchedBatches
from tasks.errors import StageError
from tasks.ranks import Ranks
from tasks.stepper import Stepper
from tasks.training import train
from tests.tasks.point_training import POINTS, PointLoss, batches_on_a_slow_gpu, point_job, recorded_losses
from tests.tasks.small_training import result, small_runtime

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not running()


@pytest.mark.parametrize("ranks", [Ranks(), Ranks(0, 2), Ranks(1, 2)])
def test_a_prefetched_batch_is_the_one_drawn_on_the_spot(ranks: Ranks):
    """Each process brings its own share; a step out of turn is as good as any other."""
    job = point_job()
    plain = Batches(job, ranks)
    with PrefetchedBatches(job, ranks) as batches:
        for step in [*range(12), 3, 4, 40, 41, 42, 0]:
            drawn, found = plain.get(step), batches.get(step)
            assert set(found) == {*drawn, "points"}
            assert all(torch.equal(found[name], value) for name, value in drawn.items())
            assert torch.equal(found["points"], POINTS[drawn["which"]])
            assert len(found["which"]) == 8 // ranks.count
        assert len(running()) == 1
        assert found["points"].data_ptr() == batches.get(1)["points"].data_ptr()  # a recorded step reads it there


def test_the_thread_runs_ahead_and_no_further_than_it_may():
    asked: list[int] = []
    job = point_job(at={step: lambda step=step: asked.append(step) for step in range(20)})
    with PrefetchedBatches(job, Ranks()) as batches:
        for step in range(3):
            batches.get(step)
        deadline = time.monotonic() + 10
        while len(asked) < 3 + batches.SLOTS and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert asked == list(range(3 + batches.SLOTS))


def test_waiting_for_the_thread_is_waiting_for_data():
    at = {step: lambda: time.sleep(0.05) for step in range(10)}
    stepper = Stepper(point_job(at=at), False, {})
    for step in range(10):
        stepper.take(step)
    assert 0.3 < stepper.waited_s < 2
    stepper.close()


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [StageError("as if shared unevenly"), OSError("as if the disk were gone")])
def test_an_error_in_the_thread_ends_the_training_as_what_it_is(error: Exception, tmp_path: Path):
    with pytest.raises(type(error), match=str(error)):
        train(point_job(at={9: lambda: fail(error)}), tmp_path, "fp", small_runtime())


def test_a_stop_leaves_no_thread_and_the_rest_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(point_job(), tmp_path / "whole", "fp", small_runtime(120.0))
    real, calls = PointLoss.__call__, 0

    def interrupted(self: PointLoss, phase: str, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return real(self, phase, drawn)

    monkeypatch.setattr(PointLoss, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(point_job(), tmp_path / "run", "fp", small_runtime())
    assert not running()
    train(point_job(), tmp_path / "run", "fp", small_runtime(120.0))
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@GPU
def test_no_buffer_is_overwritten_while_the_gpu_reads_it():
    assert batches_on_a_slow_gpu()


@GPU
def test_recorded_steps_on_prefetched_batches_are_those_on_resident_points():
    prefetched, resident = recorded_losses()
    assert torch.equal(prefetched, resident)
