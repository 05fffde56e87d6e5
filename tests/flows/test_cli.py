"""The console script: every command's help, settings written and refused, errors as one message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flows.cli import app
from flows.doctor import check_weights
from flows.preset_files import preset_text
from models.config import Params, build
from models.pretrained import REGISTRY, weights_folder
from tasks.video import write_video

COMMANDS = (
    *("preset", "doctor", "inspect", "parse", "metrics", "check-geometry", "check-expressions", "train-parser"),
    *("animate", "canonical", "view", "attention", "export"),
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the project and is the working directory."""
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "dvc.yaml").write_text((root / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "params.yaml").write_text(preset_text("demo"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(args=list(words))
    code = ended.value.code
    return code if isinstance(code, int) else 0


def settings(project: Path) -> dict[str, Any]:
    return yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"head3d {command}" in text


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    text = capsys.readouterr().out
    assert all(f" {command} " in text for command in COMMANDS)


def test_preset_writes_the_file_as_it_ships(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("preset", "tiny") == 0
    assert "crop.size_px: 64 -> 48" in capsys.readouterr().out
    assert (project / "params.yaml").read_text(encoding="utf-8") == preset_text("tiny")
    assert call("preset", "tiny") == 0
    assert "nothing changed" in capsys.readouterr().out


def test_preset_takes_a_folder_and_settings(project: Path) -> None:
    (project / "my videos").mkdir()
    words = ["--limit", "3", "--set", "geometry.lr_pose=2e-5", "--set", "crop.margin=1"]
    assert call("preset", "folder", "--folder", "my videos", *words) == 0
    content = settings(project)
    assert content["acquire"]["sources"] == ["folder"]
    assert content["acquire"]["folder"] == {
        "path": "my videos",
        "limit": 3,
        "identity_pattern": yaml.safe_load(preset_text("local"))["acquire"]["folder"]["identity_pattern"],
    }
    assert content["geometry"]["lr_pose"] == 2e-5
    assert content["crop"]["margin"] == 1.0
    assert "# Keys carry their units" in (project / "params.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demoo"], "did you mean 'demo'?"),
        (["demo", "--set", "crop.sizepx=64"], "did you mean 'crop.size_px'?"),
        (["demo", "--set", "crop=64"], "is a group of settings"),
        (["demo", "--set", "crop.size_px=64.5"], "'crop.size_px' = 64.5"),
        (["demo", "--set", "crop.size_px"], "write it as key=value"),
        (["local"], "acquire.folder.path is empty"),
        (["local", "--folder", "nowhere"], "is not a directory"),
        (["demo", "--limit", "3"], "give --folder too"),
    ],
)
def test_preset_refuses_and_changes_nothing(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert call("preset", *words) == 1
    assert message in capsys.readouterr().err
    assert (project / "params.yaml").read_text(encoding="utf-8") == preset_text("demo")
    assert [file.name for file in project.iterdir() if file.name.endswith(".new")] == []


def test_preset_list(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("preset", "--list") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("demo", "local", "paper", "paper-256", "paper-512", "rendered", "tiny"))


def test_unexpected_error_is_short_and_debug_shows_where(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the [disk] is on fire")

    monkeypatch.setattr("flows.commands_setup.write_preset", broken)
    assert call("preset", "demo") == 1
    short = capsys.readouterr().err
    assert "RuntimeError: the [disk] is on fire" in short
    assert "--debug" in short
    assert "Traceback" not in short
    assert call("preset", "demo", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_outside_a_project_it_says_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("preset", "demo") == 1
    assert "run this inside the Head3D project" in capsys.readouterr().err


def test_doctor_names_a_broken_setting(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("size_px: 64", "size_pix: 64"), encoding="utf-8")
    assert call("doctor") == 1
    out = capsys.readouterr().out
    assert "did you mean 'crop.size_px'" in out
    assert "not a git repository" in out


def test_doctor_names_damaged_weights_that_a_stage_would_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`if_present` goes without a file that is missing, not without one that is damaged."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    params = build(Params, yaml.safe_load(preset_text("paper")))
    assert {params.geometry.depth_net.initial, params.geometry.pose_net.initial} == {"if_present"}
    names = ("mobilenet_v2", "hopenet")

    def problems() -> dict[str, str]:
        found = {check.name: check for check in check_weights(params)}
        return {name: found[f"weights {name}"].text for name in names if found[f"weights {name}"].state == "problem"}

    assert problems() == {}
    weights_folder().mkdir(parents=True)
    for name in names:
        (weights_folder() / REGISTRY[name].file).write_bytes(b"half a download")
    found = problems()
    assert "get it again" in found["mobilenet_v2"]
    assert "set geometry.depth_net.initial: random" in found["mobilenet_v2"]
    assert "cannot be read" in found["hopenet"]


def test_doctor_says_why_a_video_gives_no_clip(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "empty.mp4").touch()
    assert call("doctor", "--video", "empty.mp4") == 1
    assert "empty_file" in capsys.readouterr().out


def test_metrics_of_a_video_with_itself(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    write_video(project / "a.mp4", frames, 25)
    assert call("metrics", "a.mp4", "a.mp4", "--device", "auto", "--json") == 0
    result = yaml.safe_load(capsys.readouterr().out)
    assert result["l2"] == 0
    assert result["videos"] == 1


def test_a_wrong_pick_or_range_shows_before_any_work(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "a.mp4").touch()
    for words in (["animate", "a.mp4", "a.mp4"], ["canonical", "a.mp4"], ["view", "a.mp4"]):
        assert call(*words, "-o", "out.png", "--pick", "best") == 2
        assert "'best' is neither even nor spread" in capsys.readouterr().err
    assert call("canonical", "a.mp4", "-o", "head.obj") == 1
    assert "head.obj: the head is written as .glb" in capsys.readouterr().err
    assert call("view", "a.mp4", "-o", "turn.png", "--yaw", "-40:40:5") == 1
    assert "`dvc repro` trains it" in capsys.readouterr().err
    assert call("view", "--help") == 0
    assert "first:last:step" in capsys.readouterr().out  # rich takes :end: and others for pictures


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("animate", "me.mp4", "speech.mp4"), ".mp4"),
        (("attention", "me.mp4", "speech.mp4"), ".png"),
        (("view", "me.mp4", "--yaw", "0"), ".mp4"),
        (("canonical", "me.mp4"), ".glb"),
        (("inspect", "person03_0"), ".png"),
        (("train-parser", "folder"), ".safetensors"),
        (("study", "simulate"), ".png"),
    ],
)
def test_an_output_that_would_be_lost_is_refused_before_anything_is_read(
    project: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], kind: str
) -> None:
    (project / "folder").mkdir()
    for name in ("me.mp4", "speech.mp4", "file"):
        (project / name).write_bytes(b"read, it says that it is no video")
    cases = {
        "folder": f"folder is a folder; name a file in it, for example -o {project}",
        "new/out.gif": "out.gif: ",  # mp4 bytes under this name play nowhere
        f"file/out{kind}": "file is a file, so nothing can be written below it",
    }
    for out, text in cases.items():
        assert call(*words, "-o", str(project / out)) == 1
        assert text in capsys.readouterr().err
    assert not (project / "new").exists()


@pytest.mark.parametrize("words", [("animate", "me.mp4", "speech.mp4"), ("view", "me.mp4", "--yaw", "0")])
def test_no_output_takes_the_place_of_a_video_that_is_read(
    project: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    videos = [word for word in words if word.endswith(".mp4")]
    for name in videos:
        (project / name).write_bytes(b"mine")
    for name in videos:
        (project / f"link_{name}").symlink_to(name)
        for out in (name, f"link_{name}"):
            assert call(*words, "-o", out) == 1
            assert f"{name} is read by this command and would be overwritten" in capsys.readouterr().err
        assert (project / name).read_bytes() == b"mine"


def test_script_is_installed() -> None:
    script = Path(sys.executable).with_name("head3d")
    done = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"
