"""`head3d preset` and `head3d doctor` for the sources VoxCeleb and FaceForensics; nothing asks the network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.doctor import Check
from flows.doctor_sources import check_source
from flows.preset_files import preset_text
from models.config import load_params
from tests.flows.test_cli import call
from tests.tasks.vox_server import small_list


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the project, with a list and folders to name."""
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "dvc.yaml").write_text((root / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "params.yaml").write_text(preset_text("demo"), encoding="utf-8")
    (tmp_path / "list.csv").write_text(small_list(), encoding="utf-8")
    (tmp_path / "ff" / "original_sequences" / "youtube" / "c23" / "videos").mkdir(parents=True)
    (tmp_path / "ff" / "original_sequences" / "youtube" / "c23" / "videos" / "000.mp4").touch()
    (tmp_path / "vox").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def acquire_of(project: Path) -> dict[str, Any]:
    return yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))["acquire"]


def test_paper_takes_the_list_and_the_folders(project: Path) -> None:
    assert call("preset", "paper", "--voxceleb-list", "list.csv", "--faceforensics", "ff", "--limit", "500") == 0
    content = acquire_of(project)
    assert content["sources"] == ["voxceleb", "faceforensics"]
    assert content["voxceleb"]["metadata"] == "list.csv"
    assert content["voxceleb"]["limit"] == 500
    assert content["faceforensics"]["path"] == "ff"
    assert call("preset", "paper", "--voxceleb-list", "https://example.org/list.csv", "--voxceleb-videos", "vox") == 0
    content = acquire_of(project)
    assert content["voxceleb"]["metadata"] == "https://example.org/list.csv"
    assert content["voxceleb"]["videos"] == "vox"


def test_another_preset_gets_the_sources_that_are_named(project: Path) -> None:
    assert call("preset", "local", "--folder", "vox", "--voxceleb-list", "list.csv", "--limit", "3") == 0
    content = acquire_of(project)
    assert content["sources"] == ["folder", "voxceleb"]
    assert (content["folder"]["limit"], content["voxceleb"]["limit"]) == (3, 0)
    assert call("preset", "demo", "--voxceleb-videos", "vox") == 0
    assert acquire_of(project)["sources"] == ["voxceleb"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--voxceleb-list", "nowhere.csv"], "--voxceleb-list nowhere.csv is not a file"),
        (["--voxceleb-videos", "nowhere"], "--voxceleb-videos nowhere is not a directory"),
        (["--faceforensics", "list.csv"], "--faceforensics list.csv is not a directory"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert call("preset", "paper", *words) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert acquire_of(project)["sources"] == ["demo"]


def checks(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the doctor asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return {check.name: check for check in check_source(project, load_params(project / "params.yaml"))}


def test_doctor_says_what_is_missing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("preset", "paper") == 0
    monkeypatch.setenv("PATH", str(project))
    found = checks(project, monkeypatch)
    assert found["VoxCeleb list"].state == found["FaceForensics"].state == "problem"
    assert "--voxceleb-list" in found["VoxCeleb list"].text
    assert "download-FaceForensics.py" in found["FaceForensics"].text
    assert found["ffmpeg"].state == found["JavaScript"].state == "note"


def test_doctor_reads_the_list_and_the_folders(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("preset", "paper", "--voxceleb-list", "list.csv", "--faceforensics", "ff") == 0
    kept = project / "data" / "raw" / "voxceleb"
    kept.mkdir(parents=True)
    (kept / "status.csv").write_text("clip,video_id,status\na,b,ok\nc,d,dead\ne,f,ok\n", encoding="utf-8")
    found = checks(project, monkeypatch)
    assert found["VoxCeleb list"] == Check("ok", "VoxCeleb list", "24 of 24 rows can be used, 6 people")
    assert "2 ok, 1 dead" in found["VoxCeleb clips"].text
    assert found["FaceForensics"] == Check("note", "FaceForensics", "1 originals, 150 are wanted")
    assert call("preset", "paper", "--voxceleb-videos", "vox") == 0
    found = checks(project, monkeypatch)
    assert found["VoxCeleb list"].state == found["VoxCeleb videos"].state == "ok"
    assert "ffmpeg" not in found
    (project / "vox").rmdir()
    assert checks(project, monkeypatch)["VoxCeleb videos"].state == "problem"
