"""The source faceforensics: every layout people have, nothing manipulated, and the steps when it is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.config import Params
from tasks import acquire
from tasks.errors import StageError
from tasks.paths import Paths
from tests.tasks.factory import make_params
from tests.tasks.test_acquire import rows


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "project" / "data").mkdir(parents=True)
    return Paths(tmp_path / "project" / "data")


def params(path: Path | str, **changes: Any) -> Params:
    settings = {"path": str(path), **changes}
    return make_params(acquire={"sources": ["faceforensics"], "faceforensics": settings})


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """FaceForensics++ with everything its script can fetch; a folder above has a method's name."""
    root = tmp_path / "deepfakes" / "FF++"
    for level, count in (("raw", 3), ("c23", 12), ("c40", 20)):
        fill(root, *(f"original_sequences/youtube/{level}/videos/{index:03d}.mp4" for index in range(count)))
        fill(root, f"original_sequences/actors/{level}/videos/01__walking.mp4")
        fill(root, f"manipulated_sequences/Deepfakes/{level}/videos/000_003.mp4")
        fill(root, f"manipulated_sequences/Face2Face/masks/videos/{level}.mp4")
        fill(root, f"manipulated_sequences/DeepFakeDetection/{level}/videos/01_02__walking__AB12CD34.mp4")
    fill(root, "downloaded_videos/--b1Ua-kWJE/--b1Ua-kWJE.mp4", "original_sequences/youtube/c23/videos/notes.txt")
    return root


ALL = [f"ff-{index:03d}" for index in range(20)]


def test_the_best_of_every_original_is_taken(paths: Paths, newer: Path) -> None:
    summary = acquire.run(params(newer), paths, "f")
    listed = rows(paths)
    assert [item["video"] for item in listed] == ALL
    assert [item["identity"] for item in listed] == ALL
    assert {(item["split"], item["dataset"], item["section"], item["box"]) for item in listed} == {
        ("test", "faceforensics", "", "")
    }
    assert summary["faceforensics"] == {"originals": 20, "chosen": 20, "compression": {"c23": 9, "c40": 8, "raw": 3}}
    assert all("/original_sequences/youtube/" in item["path"] for item in listed)


@pytest.mark.parametrize(
    "inside", ["original_sequences", "original_sequences/youtube", "original_sequences/youtube/c40/videos"]
)
def test_it_may_point_further_in(paths: Paths, newer: Path, inside: str) -> None:
    assert acquire.run(params(newer / inside), paths, "f")["videos"] == 20


@pytest.mark.parametrize(("compression", "count"), [("raw", 3), ("c0", 3), ("c23", 12), ("c40", 20)])
def test_one_compression(paths: Paths, newer: Path, compression: str, count: int) -> None:
    assert acquire.run(params(newer, compression=compression), paths, "f")["videos"] == count


def test_first_version_of_plusplus_without_youtube(paths: Paths, tmp_path: Path) -> None:
    fill(tmp_path / "FF", "original_sequences/c23/videos/000.mp4", "original_sequences/hq/videos/001.mp4")
    acquire.run(params(tmp_path / "FF", compression="c23"), paths, "f")
    assert [item["video"] for item in rows(paths)] == ["ff-000", "ff-001"]


def test_the_original_faceforensics_gives_its_test_part(paths: Paths, tmp_path: Path) -> None:
    root = tmp_path / "FaceForensics_compressed"
    names = ("-PMjPTgYiuE_0_JKsfXX792AU_3", "aaaaaaaaaaa_1_bbbbbbbbbbb_2")
    for part in ("train", "val", "test"):
        for kind in ("original", "altered", "mask"):
            fill(root, *(f"{part}/{kind}/{name}_{part}.avi" for name in names))
    acquire.run(params(tmp_path, compression="raw"), paths, "f")
    assert {Path(item["path"]).parent.as_posix() for item in rows(paths)} == {(root / "test" / "original").as_posix()}
    assert len({item["identity"] for item in rows(paths)}) == 2
    assert acquire.run(params(root / "train"), paths, "g")["videos"] == 2
    assert acquire.run(params(root / "val" / "original"), paths, "h")["videos"] == 2


def test_flat_copies(paths: Paths, tmp_path: Path) -> None:
    fill(tmp_path / "FaceForensics++_C23", "original/000.mp4", "original/01__walking.mp4", "Deepfakes/000_003.mp4")
    fill(tmp_path / "mine", "001.mp4", "002.mp4", "001_870.mp4", "FaceSwap/003.mp4", "other.mp4")
    acquire.run(params(tmp_path / "FaceForensics++_C23", compression="c23"), paths, "f")
    assert [item["video"] for item in rows(paths)] == ["ff-000"]
    acquire.run(params(tmp_path / "mine"), paths, "g")
    assert [item["video"] for item in rows(paths)] == ["ff-001", "ff-002"]


def test_choice_is_seeded(paths: Paths, newer: Path) -> None:
    chosen = []
    for fingerprint in ("a", "b"):
        summary = acquire.run(params(newer, test_videos=5), paths, fingerprint)
        assert summary["test_identities"] == summary["videos"] == 5
        chosen.append([item["video"] for item in rows(paths)])
    assert chosen[0] == chosen[1]
    assert chosen[0] != ALL[:5]


def test_too_few_is_said(paths: Paths, newer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    acquire.run(params(newer), paths, "f")
    assert "150 videos are wanted, 20 are there" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["", "nowhere", "empty", "manipulated"])
def test_missing_prints_the_steps(paths: Paths, newer: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    place = newer / "manipulated_sequences" if what == "manipulated" else tmp_path / what
    with pytest.raises(StageError) as error:
        acquire.run(params(place if what else ""), paths, "f")
    text = str(error.value)
    assert "form" in text
    assert "python download-FaceForensics.py FOLDER -d original -c c23 -t videos" in text
    assert "acquire.faceforensics.path" in text
    assert "--faceforensics FOLDER" in text


def test_another_compression_than_there_is(paths: Paths, newer: Path) -> None:
    with pytest.raises(StageError, match=r"there: c23\); set acquire\.faceforensics\.compression: any"):
        acquire.run(params(newer / "original_sequences" / "youtube" / "c23", compression="raw"), paths, "f")


def test_several_sources_share_one_manifest(paths: Paths, newer: Path, tmp_path: Path) -> None:
    """A person called 001 of a folder is not video 001 of FaceForensics, nor is an id used twice."""
    fill(tmp_path / "mine", "ff-001/ff-001.mp4", "ff-001/ff-001 b.mp4", "p2.mp4", "p3.mp4", "p4.mp4")
    both = make_params(
        acquire={
            "sources": ["folder", "faceforensics"],
            "folder": {"path": str(tmp_path / "mine"), "identity_pattern": "(nothing)"},
            "faceforensics": {"path": str(newer), "test_videos": 20},
        }
    )
    summary = acquire.run(both, paths, "f")
    listed = {item["video"]: item for item in rows(paths)}
    assert summary["videos"] == len(listed) == 25
    assert listed["folder-ff-001"]["identity"] == "folder-ff-001"
    assert listed["faceforensics-ff-001"]["identity"] == "faceforensics-ff-001"
    assert listed["ff-002"]["identity"] == "ff-002"
    assert summary["test_identities"] == 22
    assert summary["train_identities"] == 2
    assert list(listed) == sorted(listed)
