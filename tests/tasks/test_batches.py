"""Prefetched batches are those drawn on the spot; trainings on them end with the same bytes, and nothing hangs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.config import Params
from tasks import canonical, fusion, parse, room
from tasks.batches import Batches, PrefetchedBatches
from tasks.clip_data import load_clips
from tasks.errors import StageError
from tasks.head_bank import HeadBank
from tasks.optimiser import adam
from tasks.paths import Paths
from tasks.ranks import Ranks
from tasks.room import Rows
from tasks.stepper import Stepper
from tasks.training import Training, train
from tests.tasks.rendered import make_clip_store
from tests.tasks.small_training import result, small_runtime
from tests.tasks.test_training import STAGES, settings, weights

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
POINTS = torch.rand(500, 6, generator=torch.Generator().manual_seed(1))


class PointLoss:
    """A network's answers to some of many points, which do not lie on the device, shall be 1."""

    def __init__(self, network: torch.nn.Module, at: dict[int, Any] | None = None) -> None:
        self.network, self.at, self.device = network, at or {}, next(network.parameters()).device

    def phase(self, step: int) -> str:
        return "start" if step < 5 else "rest"

    def draw(self, step: int) -> dict[str, Tensor]:
        if step in self.at:
            self.at[step]()
        generator = torch.Generator().manual_seed(step)
        which = torch.randint(len(POINTS), (8, 3), generator=generator)
        return {"which": which, "noise": torch.randn(8, 1, 1, generator=generator), "step": torch.tensor(step)}

    def rows(self, drawn: dict[str, Tensor]) -> dict[str, Rows]:
        return {"points": Rows(POINTS, drawn["which"])}

    def __call__(self, phase: str, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        del phase
        error = (self.network(drawn["points"]) + 0.1 * drawn["noise"] - 1).square().mean()
        return {"error": error, "total": error}


def point_job(steps: int = 12, device: torch.device = CPU, at: dict[int, Any] | None = None) -> Training:
    torch.manual_seed(0)
    network = torch.nn.Linear(6, 2).to(device)
    loss = PointLoss(network, at)
    optimiser = adam([{"params": list(network.parameters())}], 1e-2)
    return Training("points", {"net": network}, optimiser, steps, loss, lambda _: [1e-2], {}, 4, rows=loss.rows)


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


# -- the stages -------------------------------------------------------------------------------------------------------


def streamed(**more: Any) -> Params:
    return settings(runtime={"clips_on_gpu": "never"}, **more)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Six clips of three people, parsed."""
    paths = make_clip_store(tmp_path_factory.mktemp("batches"), 6, set(), frames=4, size_px=48)
    parse.run(settings(), paths, "parse")
    return paths


@pytest.fixture(scope="module")
def resident(prepared: Paths) -> Paths:
    """All stages trained on clips that lie on the device."""
    paths = Paths(prepared.data.with_name("resident"))
    shutil.copytree(prepared.data, paths.data)
    for name, run in STAGES.items():
        run(settings(), paths, f"fp-{name}")
    return paths


def same(paths: Paths, resident: Paths, stage: str) -> None:
    assert weights(paths, stage) == weights(resident, stage)
    curve = f"{stage}_loss.csv"
    assert (paths.metrics / curve).read_bytes() == (resident.metrics / curve).read_bytes()


def test_every_stage_ends_with_the_same_bytes(prepared: Paths, resident: Paths, monkeypatch: pytest.MonkeyPatch):
    """On clips in the host's memory, and stages 1 and 3 stopped in the middle."""
    paths = Paths(prepared.data.with_name("streamed"))
    shutil.copytree(prepared.data, paths.data)
    brought: set[str] = set()
    real, calls = PrefetchedBatches.get, 0

    def watched(self: PrefetchedBatches, step: int) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls in (4, 8 + 1 + 4 + 3):  # stage 1 takes eight steps (the fourth twice), stage 2 four
            raise KeyboardInterrupt
        found = real(self, step)
        brought.update(f"{self.job.name} {name}" for name in found if name.startswith(("clips_", "bank_")))
        return found

    monkeypatch.setattr(PrefetchedBatches, "get", watched)
    for name, run in STAGES.items():
        if name != "canonical":
            with pytest.raises(KeyboardInterrupt):
                run(streamed(), paths, f"fp-{name}")
            assert list(paths.checkpoint(name).glob("step_*"))
        run(streamed(), paths, f"fp-{name}")
        same(paths, resident, name)
    of = {"geometry": ("frames", "head"), "canonical": ("frames", "head", "depth"), "fusion": ("frames", "head")}
    wanted = {f"{stage} clips_{name}" for stage, names in of.items() for name in names}
    assert brought == wanted | {f"fusion bank_{name}" for name in ("image", "mask", "depth")}


def test_clips_in_a_file_train_the_same(resident: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There is no memory for them, nor for the canonical heads made of them."""
    paths = Paths(tmp_path / "data")
    shutil.copytree(resident.data, paths.data)
    monkeypatch.setattr(room, "free_host_memory", lambda: 0)
    files: list[str] = []
    real = torch.from_file

    def noted(name: str, **more: Any) -> Tensor:
        files.append(Path(name).name)
        return real(name, **more)

    monkeypatch.setattr(torch, "from_file", noted)
    before = sorted(path.name for path in paths.data.iterdir())
    for stage in ("canonical", "fusion"):
        files.clear()
        shutil.rmtree(paths.checkpoint(stage))
        STAGES[stage](settings(), paths, f"fp-{stage}")  # auto
        same(paths, resident, stage)
        assert {".large-frames", ".large-head", ".large-depth"} <= set(files)
        assert (".large-image" in files) == (stage == "fusion")
    assert sorted(path.name for path in paths.data.iterdir()) == before


@pytest.mark.parametrize("fused", [{"heads_per_clip": 0}, {"without_head_steps": 3}])
def test_stage_3_in_its_other_forms(fused: dict[str, int], resident: Paths, tmp_path: Path):
    """Heads made in every step, whose depth is brought; and the network that is shown no head."""
    made = []
    for name, params in (("resident", settings()), ("streamed", streamed())):
        paths = Paths(tmp_path / name)
        shutil.copytree(resident.data, paths.data)
        changed = params.model_copy(update={"fusion": params.fusion.model_copy(update=fused)})
        fusion.run(changed, paths, "fp-other" if "heads_per_clip" in fused else "fp-fusion")
        made.append(result(paths.checkpoint("fusion")))
    assert made[0] == made[1]


def test_what_is_looked_at_outside_a_step_comes_from_anywhere(resident: Paths, monkeypatch: pytest.MonkeyPatch):
    here = load_clips(resident, "train", CPU, with_geometry=True)
    networks = {**fusion.build_networks(settings().fusion, CPU), **canonical.build_networks(settings().canonical, CPU)}
    depth = canonical.load_depth_network(settings(), resident, CPU)
    losses = [fusion.FusionLoss(settings().fusion, networks, depth, here)]
    monkeypatch.setattr(room, "free_host_memory", lambda: 0)
    there = load_clips(resident, "train", CPU, with_geometry=True, on_gpu="auto")
    losses.append(fusion.FusionLoss(settings().fusion, networks, depth, there))
    assert (here.streamed, there.streamed) == (False, True)
    clip, frame = torch.tensor([0, 3, 3]), torch.tensor([1, 0, 3])
    for a, b in zip(here.heads(clip, frame), there.heads(clip, frame), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(here.depths(2), there.depths(2))
    assert [isinstance(loss.bank, HeadBank) and loss.bank.streamed for loss in losses] == [False, True]
    drawn = losses[0].draw(5)
    one, other = (loss.inputs(drawn) for loss in losses)
    for a, b in zip((*one[0], *one[1:]), (*other[0], *other[1:]), strict=True):
        assert torch.equal(a, b)


def test_two_processes_fill_and_share_one_file(resident: Paths, tmp_path: Path):
    """Stage 2 on two processes ends with the same bytes, whether each has all clips or both have one file of them."""
    folders = [tmp_path / where for where in ("memory", "file")]
    for folder in folders:
        shutil.copytree(resident.data, folder)
        shutil.rmtree(Paths(folder).checkpoint("canonical"))
    command = [sys.executable, "-m", "tests.tasks.streamed_script", *map(str, folders)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "streamed: [False, True]" in ended.stdout
    in_memory, in_file = (result(Paths(folder).checkpoint("canonical")) for folder in folders)
    assert in_memory == in_file
    assert not list(folders[1].glob(".large*"))


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@GPU
def test_no_buffer_is_overwritten_while_the_gpu_reads_it():
    """The host is far ahead of a GPU that takes its time; what it then reads is still each step's own batch."""
    job, found = point_job(device=torch.device("cuda", 0)), []
    plain = Batches(point_job(), Ranks())
    with PrefetchedBatches(job, Ranks()) as batches:
        for step in range(60):
            values = batches.get(step)
            torch.cuda._sleep(5_000_000)
            found.append(values["points"].clone())
    for step, points in enumerate(found):
        assert torch.equal(points.cpu(), POINTS[plain.get(step)["which"]])


class ResidentLoss(PointLoss):
    """The same on points that lie on the device."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__(network)
        self.points = POINTS.to(self.device)

    def __call__(self, phase: str, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().__call__(phase, {**drawn, "points": self.points[drawn["which"]]})


@GPU
def test_recorded_steps_on_prefetched_batches_are_those_on_resident_points():
    """The same losses, whether the points come by the thread or lie on the GPU."""
    device, made = torch.device("cuda", 0), []
    for kind in (PointLoss, ResidentLoss):
        job = point_job(30, device)
        job.losses = kind(job.modules["net"])
        if kind is ResidentLoss:
            job.rows = None
        stepper = Stepper(job, True, {})
        made.append(torch.stack([stepper.take(step) for step in range(30)]).cpu())
        assert stepper._graph is not None
        stepper.close()
    assert torch.equal(made[0], made[1])
