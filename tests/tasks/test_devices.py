"""Several processes train together as one would, and one process can go on where several were stopped."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from models.config import ConfigError, load_params
from models.pretrained import WeightsMissingError, load_registered
from tasks.checkpoints import numbered
from tasks.device import choose_device
from tasks.devices import on_devices
from tasks.disk import storage_errors
from tasks.errors import StageError
from tasks.ranks import Ranks
from tasks.training import train
from tests.tasks.factory import PRESET
from tests.tasks.small_training import small_job, small_runtime

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process ends with."""
    folder = tmp_path_factory.mktemp("alone")
    train(small_job(dropout=0.0), folder, "fp", small_runtime(120.0))
    return folder


def on_two(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.tasks.devices_script", str(folder), "2", *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def same(folder: Path, alone: Path) -> None:
    """The weights, and the curve: its rows are of the whole batch, also of steps before a stop."""
    found, expected = (load_file(place / "model.safetensors") for place in (folder, alone))
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name
    curve, curve_alone = (pd.read_csv(place / "loss.csv") for place in (folder, alone))
    pd.testing.assert_frame_equal(curve, curve_alone, rtol=1e-4)


def test_two_stopped_processes_save_once_and_one_goes_on(alone: Path, tmp_path: Path):
    stopped = on_two(tmp_path, "stop", "9")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert [path.name for path in numbered(tmp_path)] == ["step_00000010"]
    train(small_job(dropout=0.0), tmp_path, "fp", small_runtime(120.0))
    same(tmp_path, alone)


def test_two_processes_go_on_where_one_was_stopped(alone: Path, tmp_path: Path):
    job = small_job(dropout=0.0, at={7: lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(KeyboardInterrupt):
        train(job, tmp_path, "fp", small_runtime(120.0))
    ended = on_two(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "'loss_last'" in ended.stdout
    same(tmp_path, alone)


def test_an_error_in_one_process_is_told_once(tmp_path: Path):
    failed = on_two(tmp_path, "crash", "3")
    assert failed.returncode == 1
    assert "in process 0 of 2" in failed.stderr
    assert "as if out of memory" in failed.stderr
    assert "Connection closed" not in failed.stderr.split("in process 0 of 2")[1]


def full_disk(device: torch.device) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"checkpoint on {device}")


def no_weights(_: torch.device) -> None:
    load_registered("vgg19")


def broken(_: torch.device) -> None:
    raise FileNotFoundError(errno.ENOENT, "No such file", "clips")


def ended(code: int) -> None:
    raise RuntimeError(f"a process ended with {code}")


@pytest.mark.parametrize(
    ("work", "kind", "words"),
    [
        (full_disk, StageError, r"disk is full.*make room and run the stage again"),
        (no_weights, WeightsMissingError, r"vgg19-dcbb9e9d\.pth .* is missing; get it from"),
        (broken, RuntimeError, r"(?s)in process 0 of 1:\nTraceback.*No such file"),
    ],
)
def test_what_one_device_says_in_a_sentence_several_say_too(
    work: Callable[[torch.device], None],
    kind: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    """The process that fails is this one, which is quicker; its error takes the way through the file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("lightning_fabric.Fabric.launch", lambda self, function, *given: function(self, *given))
    monkeypatch.setattr("tasks.devices._end", ended)
    monkeypatch.setattr("tasks.devices.signal.signal", lambda *_: None)
    with pytest.raises(kind, match=words), storage_errors(tmp_path):
        on_devices(work, small_runtime(devices=2))


def test_every_sample_belongs_to_one_process():
    drawn = {"clip": torch.arange(12).view(4, 3), "move": torch.arange(12), "all": torch.tensor(7)}
    parts = [Ranks(index, 2).share(drawn, "fusion") for index in range(2)]
    assert torch.equal(torch.cat([part["clip"] for part in parts]), drawn["clip"])
    assert torch.equal(parts[1]["move"], drawn["clip"][2:].flatten())  # three rows a sample stay with their sample
    assert parts[0]["all"] == parts[1]["all"] == 7
    assert Ranks().share(drawn, "fusion") is drawn
    with pytest.raises(StageError, match=r"fusion: 4 rows of 'clip' cannot be shared evenly by 3 devices"):
        Ranks(0, 3).share(drawn, "fusion")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  devices: 1\n", "  devices: 3\n", r"geometry\.train\.batch_videos = 4 cannot be shared evenly"),
        ("  device: auto\n  devices: 1\n", '  device: "cuda:1"\n  devices: 2\n', "set device to auto"),
        ("  devices: 1\n", "  devices: 0\n", r"'runtime\.devices' = 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(old: str, new: str, message: str, tmp_path: Path):
    text = PRESET.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_params(tmp_path / "params.yaml")


def test_without_fabric_one_device_works_and_two_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert on_devices(str, small_runtime()) == "cpu"
    with pytest.raises(StageError, match="pip install lightning-fabric"):
        on_devices(str, small_runtime(devices=2))


def test_more_devices_than_there_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.devices.choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(StageError, match=r"runtime\.devices is 2, but torch sees 1 GPU; set it to 1"):
        on_devices(str, small_runtime(devices=2))


def test_a_gpu_with_a_number_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch):
    """Graphs and events that name no GPU would else belong to the first one."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [str(choose_device(name)) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    assert current == [torch.device("cuda", 1)]
    with pytest.raises(StageError, match=r"device is cuda:2, but torch numbers its GPUs up to cuda:1; set one"):
        choose_device("cuda:2")
    assert len(current) == 1


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x"])
def test_an_unknown_device_is_named(name: str):
    with pytest.raises(StageError, match=f"no device '{name}'; set runtime.device to auto, cpu, cuda or cuda:N"):
        choose_device(name)
