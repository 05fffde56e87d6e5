"""Where large tensors go, how much is free, and what is said when nothing is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from models.config import ClipsOnGpu, ConfigError, Runtime, build
from tasks import room
from tasks.errors import StageError
from tasks.room import IN_FILE, IN_MEMORY, ON_DEVICE, Room, Rows, free_host_memory
from tests.tasks.small_training import small_runtime

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SHAPES: room.Shapes = {"frames": ((3, 2, 4), torch.uint8), "depth": ((3, 2), torch.float16)}


def memory(monkeypatch: pytest.MonkeyPatch, host: int, gpu: int = 0) -> None:
    monkeypatch.setattr(room, "free_host_memory", lambda: host)
    monkeypatch.setattr(room, "free_gpu_memory", lambda _: gpu)


@pytest.mark.parametrize(
    ("on_gpu", "device", "size", "processes", "place"),
    [
        ("auto", GPU, 50, 1, ON_DEVICE),  # half of the GPU's 100
        ("auto", GPU, 51, 1, IN_MEMORY),
        ("auto", GPU, 700, 1, IN_MEMORY),  # 70% of the host's 1000
        ("auto", GPU, 701, 1, IN_FILE),
        ("auto", GPU, 351, 2, IN_FILE),  # each of two processes would keep its own
        ("auto", GPU, 50, 8, ON_DEVICE),  # each has its own GPU
        ("always", GPU, 100, 1, ON_DEVICE),
        ("never", GPU, 1, 1, IN_MEMORY),
        ("auto", CPU, 700, 1, ON_DEVICE),
        ("auto", CPU, 701, 1, IN_FILE),
        ("auto", CPU, 351, 2, IN_FILE),
        ("never", CPU, 1, 1, IN_MEMORY),
    ],
)
def test_large_tensors_go_where_they_fit(
    on_gpu: ClipsOnGpu, device: torch.device, size: int, processes: int, place: int, monkeypatch: pytest.MonkeyPatch
):
    memory(monkeypatch, 1000, 100)
    assert Room(device, on_gpu, Path())._fitting(size, processes) == place


def test_what_must_lie_on_the_gpu_and_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch):
    memory(monkeypatch, 10**12, 20 * 10**9)
    with pytest.raises(StageError, match=r"take 30\.0 GB and 20\.0 GB are free on cuda:0; set it to auto"):
        Room(GPU, "always", Path())._fitting(30 * 10**9, 1)


@pytest.mark.parametrize("host", [10**12, 0])
def test_tensors_in_memory_or_a_file_hold_what_is_put_there(host: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    memory(monkeypatch, host)
    space = Room(CPU, "never", tmp_path).space(SHAPES)
    assert space.streamed
    assert not list(tmp_path.iterdir())  # the file has no name any more
    assert list(space.mine(3)) == [0, 1, 2]
    for name, (shape, dtype) in SHAPES.items():
        assert (space.tensors[name].shape, space.tensors[name].dtype) == (shape, dtype)
    values = torch.arange(24, dtype=torch.uint8).view(3, 2, 4)
    space.tensors["frames"].copy_(values)
    space.filled()
    part = Rows(space.tensors["frames"].flatten(0, 1), torch.tensor([[5, 0], [3, 3]]))
    out = torch.empty(part.shape, dtype=torch.uint8)
    part.into(out)
    assert torch.equal(out, values.flatten(0, 1)[part.which])
    for wrong in (-1, 6):
        with pytest.raises(IndexError, match=r"rows .* of 6"):
            Rows(part.source, torch.tensor([[0, 1], [2, wrong]])).into(out)


def test_a_stray_file_of_a_killed_run_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    memory(monkeypatch, 0)
    (tmp_path / ".large-frames").write_text("stray")
    Room(CPU, "auto", tmp_path).space(SHAPES)
    assert not list(tmp_path.iterdir())


class Usage(NamedTuple):
    free: int


def test_without_memory_and_disk_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    memory(monkeypatch, 8 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(50 * 10**9))
    large: room.Shapes = {"frames": ((7500, 40, 3, 512, 512), torch.uint8)}
    said = (
        r"the clips take 235\.9 GB: .*memory.* \(8\.0 GB are free\).*\(50\.0 GB are free in .*"
        r"Free disk space, .* fewer clips .* or smaller ones \(crop\.size_px\)"
    )
    with pytest.raises(StageError, match=said):
        Room(CPU, "auto", tmp_path).space(large)
    assert not list(tmp_path.iterdir())


def group(folder: Path, limit: str, used: int, cache: int) -> tuple[Path, Path]:
    folder.mkdir()
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {cache}\nactive_file 1\n")
    return folder / "memory.max", folder / "memory.current"


def test_a_container_has_what_its_limit_leaves(tmp_path: Path):
    assert room._left(*group(tmp_path / "limited", "1000", 700, 99)) == 400  # the files' cache gives way
    assert room._left(*group(tmp_path / "free", "max", 700, 99)) > 2**60
    assert room._left(tmp_path / "no" / "a", tmp_path / "no" / "b") > 2**60
    assert 2**20 < free_host_memory() < 2**50


def test_the_setting_has_three_values():
    values: dict[str, Any] = small_runtime().model_dump()
    assert build(Runtime, values | {"clips_on_gpu": "never"}).clips_on_gpu == "never"
    with pytest.raises(ConfigError, match=r"'clips_on_gpu' = 'maybe'.*'auto', 'always' or 'never'"):
        build(Runtime, values | {"clips_on_gpu": "maybe"})
