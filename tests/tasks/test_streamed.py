"""The stages on clips that do not lie on the device end with the same bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.config import Params
from tasks import canonical, fusion, room
from tasks.batches import PrefetchedBatches
from tasks.clip_data import load_clips
from tasks.head_bank import HeadBank
from tasks.paths import Paths
from tests.tasks.small_training import result
from tests.tasks.test_training import STAGES, parsed_clips, settings, weights

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def streamed(**more: Any) -> Params:
    return settings(runtime={"clips_on_gpu": "never"}, **more)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return parsed_clips(tmp_path_factory.mktemp("batches"))


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
    camera = settings().geometry.camera
    losses = [fusion.FusionLoss(settings().fusion, networks, camera, here)]
    monkeypatch.setattr(room, "free_host_memory", lambda: 0)
    there = load_clips(resident, "train", CPU, with_geometry=True, on_gpu="auto")
    losses.append(fusion.FusionLoss(settings().fusion, networks, camera, there))
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
