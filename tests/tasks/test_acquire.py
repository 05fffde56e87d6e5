"""The stage acquire: a folder's hostile names, identities and splits, the demo's resume."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from models.config import Params
from tasks import acquire, demo
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.workers import Outcome
from tests.tasks.factory import make_params


def rows(paths: Paths) -> list[dict[str, str]]:
    with paths.manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def folder_params(folder: Path, **changes: Any) -> Params:
    return make_params(acquire={"sources": ["folder"], "folder": {"path": str(folder), **changes}})


def demo_params(**changes: Any) -> Params:
    values = {"people": 2, "frames": 3, "size_px": 64, "fps": 25, "max_yaw_deg": 20.0} | changes
    return make_params(runtime={"workers": 1}, acquire={"sources": ["demo"], "demo": values})


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "project" / "data").mkdir(parents=True)
    return Paths(tmp_path / "project" / "data")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A tree of files with awkward names; the stage looks at names and bytes only."""
    names = (
        "id001_talk one.MP4",
        "id001_b.mov",
        "id002_x.avi",
        "-dash.mkv",
        'it\'s "quoted", really.webm',
        "línea\nnueva.mpeg",
        "sub/Ана/клип 1.mpg",
        "sub/Ана/clip.gif",
        "other/clip.m4v",
        "take_0.mp4",
        "take.mp4",
        "TAKE.mov",
        "empty1.mp4",
        "empty2.mp4",
        "notes.txt",
        ".hidden.mp4",
        ".cache/x.mp4",
    )
    folder = tmp_path / "my videos"
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name.startswith("empty") else name.encode())
    return folder


def test_folder_lists_every_video(paths: Paths, videos: Path) -> None:
    summary = acquire.run(folder_params(videos), paths, "f")
    listed = rows(paths)
    assert summary["videos"] == len(listed) == 14
    assert summary["duplicates"] == 0
    assert list(listed[0]) == list(acquire.COLUMNS)
    ids = [row["video"] for row in listed]
    assert ids == sorted(ids)
    assert len({name.lower() for name in ids}) == 14
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) for name in ids)
    assert not any(re.search(r"_\d+$", name) for name in ids), "`take_0` would be the first clip of `take`"
    for row in listed:
        data = Path(row["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert len(data) == int(row["bytes"])
    assert summary["bytes"] == sum(int(row["bytes"]) for row in listed)
    assert {row["dataset"] for row in listed} == {"folder"}


def test_identity_comes_from_the_name_or_the_place(paths: Paths, videos: Path) -> None:
    acquire.run(folder_params(videos), paths, "f")
    who = {Path(row["path"]).name: row["identity"] for row in rows(paths)}
    assert who["id001_talk one.MP4"] == who["id001_b.mov"] == "id001"
    assert who["клип 1.mpg"] == who["clip.gif"] == "Ана"
    assert who["-dash.mkv"] == "-dash"
    assert who["take.mp4"] == "take"


def test_ids_do_not_depend_on_other_files(paths: Paths, videos: Path) -> None:
    acquire.run(folder_params(videos), paths, "f")
    before = {row["path"]: row["video"] for row in rows(paths)}
    (videos / "one more.mp4").write_bytes(b"more")
    acquire.run(folder_params(videos), paths, "g")
    after = {row["path"]: row["video"] for row in rows(paths)}
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()


def test_same_content_is_listed_once(paths: Paths, videos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (videos / "copy of take.mp4").write_bytes((videos / "take.mp4").read_bytes())
    summary = acquire.run(folder_params(videos), paths, "f")
    assert summary["videos"] == 14
    assert summary["duplicates"] == 1
    assert "same content" in caplog.text


def test_a_video_that_was_added_is_found_when_acquire_runs_again(paths: Paths, videos: Path) -> None:
    before = acquire.run(folder_params(videos), paths, "f")["videos"]
    (videos / "added.mp4").write_bytes(b"another one")
    assert acquire.run(folder_params(videos), paths, "f")["videos"] == before + 1
    assert any(row["path"].endswith("added.mp4") for row in rows(paths))


def test_links_do_not_run_in_circles(paths: Paths, videos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (videos / "sub" / "loop").symlink_to(videos, target_is_directory=True)
    (videos / "gone.mp4").symlink_to(videos / "nowhere.mp4")
    os.link(videos / "take.mp4", videos / "hard.mp4")
    summary = acquire.run(folder_params(videos), paths, "f")
    assert summary["videos"] == 14
    assert "gone.mp4" in caplog.text


def test_limit_is_a_seeded_choice(paths: Paths, videos: Path) -> None:
    chosen = []
    for fingerprint in ("a", "b"):
        assert acquire.run(folder_params(videos, limit=5), paths, fingerprint)["videos"] == 5
        chosen.append([row["path"] for row in rows(paths)])
    assert chosen[0] == chosen[1]
    assert acquire.run(folder_params(videos, limit=99), paths, "c")["videos"] == 14


def test_path_below_the_project_is_relative(paths: Paths, videos: Path) -> None:
    inside = paths.data.parent / "films"
    videos.rename(inside)
    acquire.run(folder_params(Path("films")), paths, "f")
    assert all(row["path"].startswith("films/") for row in rows(paths))
    assert all((paths.data.parent / row["path"]).is_file() for row in rows(paths))


@pytest.mark.parametrize("make", [False, True])
def test_folder_without_videos_says_what_to_do(paths: Paths, tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(StageError, match=r"acquire\.folder\.path"):
        acquire.run(folder_params(folder), paths, "f")
    assert not paths.manifest.exists()


@pytest.mark.parametrize("pattern", ["id[0-9]+", "(id"])
def test_bad_pattern_is_named(paths: Paths, videos: Path, pattern: str) -> None:
    with pytest.raises(StageError, match="identity_pattern"):
        acquire.run(folder_params(videos, identity_pattern=pattern), paths, "f")


@pytest.mark.parametrize(("count", "testing"), [(1, 0), (2, 1), (3, 1), (4, 2), (10, 2), (24, 5), (100, 20)])
def test_split_is_by_identity(count: int, testing: int) -> None:
    settings = make_params().acquire
    names = [f"p{index}" for index in range(count)]
    split = acquire.split_identities(names * 3, settings)
    assert set(split) == set(names)
    assert sum(side == "test" for side in split.values()) == testing
    assert split == acquire.split_identities(reversed(names), settings), "the order of the files does not matter"


def test_videos_of_one_person_stand_on_one_side(paths: Paths, videos: Path) -> None:
    summary = acquire.run(folder_params(videos), paths, "f")
    sides: dict[str, set[str]] = {}
    for row in rows(paths):
        sides.setdefault(row["identity"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert summary["train_identities"] + summary["test_identities"] == summary["identities"] == len(sides)


def in_this_process(
    function: Callable[[Any], Any], jobs: Sequence[Any], *, on_result: Callable[[int, Outcome], None], **_: Any
) -> None:
    """`run_jobs` without the seconds that a worker takes to start (test_workers.py is about those)."""
    for index, job in enumerate(jobs):
        on_result(index, Outcome("ok", function(job), "", 0.0))


def test_demo_is_kept_resumed_and_thrown_away(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_jobs", in_this_process)
    params = demo_params()
    first = acquire.run(params, paths, "f")
    assert first["videos"] == first["identities"] == 2
    assert first["render_seconds"] > 0
    listed = rows(paths)
    assert [row["path"] for row in listed] == ["data/raw/demo/person000.mp4", "data/raw/demo/person001.mp4"]
    files = {path.name: path for path in (paths.raw / "demo").iterdir()}
    manifest, kept = paths.manifest.read_bytes(), files["person000.mp4"].stat().st_mtime_ns

    assert acquire.run(params, paths, "f") == first
    assert files["person000.mp4"].stat().st_mtime_ns == kept, "finished and same: nothing is rendered"

    # killed in the middle: one video is not there, another's partial file is; DVC has taken the manifest away
    files["person001.mp4"].unlink()
    (paths.raw / "demo" / ".person001.mp4.123.partial").write_bytes(b"half")
    paths.manifest.unlink()
    acquire.run(params, paths, "f")
    assert paths.manifest.read_bytes() == manifest, "a resumed run gives the same bytes"
    assert files["person000.mp4"].stat().st_mtime_ns == kept
    assert {path.name for path in (paths.raw / "demo").iterdir()} == set(files)

    acquire.run(demo_params(people=1), paths, "other")
    assert [row["video"] for row in rows(paths)] == ["person000"]
    assert not files["person001.mp4"].exists(), "what another fingerprint wrote is gone"
