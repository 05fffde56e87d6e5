"""Full and read-only disks: one clear message, nothing lost, and the next run goes on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import crop, disk, parse
from tasks.disk import check_room, check_writable, size_text, storage_errors, whole_file
from tasks.errors import StageError
from tasks.workers import Outcome
from tests.tasks.full_disk import limit_files, small_files
from tests.tasks.light import light_params, light_project, make_light, snapshot

STAGES = {"crop": crop.run, "parse": parse.run}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    make_light(monkeypatch)


def mount(folder: Path, *options: str) -> bool:
    folder.mkdir(exist_ok=True)
    command = ["mount", *options, str(folder)]
    return bool(shutil.which("mount")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small disk; and, for where a test may not mount one, a limit for the size of a file."""
    folder = tmp_path / "small"
    folder.mkdir()
    if request.param == "tmpfs":
        if not mount(folder, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
            pytest.skip("no permission to mount a tmpfs; the file size limit stands for it")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        with small_files(-1):
            yield folder


def fill(folder: Path, free: int) -> None:
    """Leave little room."""
    if os.path.ismount(folder):
        (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - free))
    else:
        limit_files(4_000)


def clear(folder: Path) -> None:
    """Make room again."""
    (folder / "filler").unlink(missing_ok=True)
    limit_files(-1)


@pytest.mark.parametrize(
    ("stage", "small"), [("crop", "tmpfs"), ("parse", "tmpfs"), ("crop", "limit")], indirect=["small"]
)
def test_the_disk_becomes_full(stage: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real workers, who meet it first as a rule; the stage goes on when there is room."""
    monkeypatch.setattr(disk, "SPARE_BYTES", 0)
    run, whole, paths = STAGES[stage], light_project(tmp_path / "whole", 14), light_project(small, 14)
    crop.run(light_params(), whole, "f")
    if stage == "parse":
        shutil.rmtree(paths.data)
        shutil.copytree(whole.data, paths.data)
    run(light_params(), whole, "f")
    fill(small, 90_000)
    with pytest.raises(StageError, match=r"(disk is full|size limit).*make room and run the stage again"):
        run(light_params(), paths, "f")
    clear(small)
    run(light_params(), paths, "f")
    outputs = [
        (data.clips, data.clip_table) if stage == "crop" else (data.masks, data.mask_table) for data in (whole, paths)
    ]
    assert snapshot(*outputs[1]) == snapshot(*outputs[0])
    assert list(paths.data.rglob("*.partial")) == []


def failing(number: int, after: int) -> Callable[..., Any]:
    """`os.replace` that fails for good after some calls."""
    real, left = os.replace, after

    def replace(*given: Any, **options: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(number, os.strerror(number), str(given[0]))
        real(*given, **options)

    return replace


def run_here(function: Callable[[Any], Any], jobs: list[Any], **options: Any) -> None:
    for index, job in enumerate(jobs):
        options["on_result"](index, Outcome("ok", function(job), "", 1.0))


@pytest.mark.parametrize(
    ("after", "number"),
    [(0, errno.EROFS), (3, errno.ENOSPC), (9, errno.EDQUOT), (20, errno.ENOSPC), (31, errno.ENOSPC)],
)
def test_whatever_is_written_when_it_fails(
    after: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop, "run_jobs", run_here)
    paths, whole = light_project(tmp_path / "a", 5), light_project(tmp_path / "b", 5)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(number, after))
        with pytest.raises(StageError, match=r"disk is full|quota is used up|read-only"):
            crop.run(light_params(), paths, "f")
    crop.run(light_params(), paths, "f")
    crop.run(light_params(), whole, "f")
    assert snapshot(paths.clips, paths.clip_table) == snapshot(whole.clips, whole.clip_table)
    assert list(paths.data.rglob("*.partial")) == []


def test_too_little_room_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crop, "run_jobs", run_here)
    paths = light_project(tmp_path, 30)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
    with pytest.raises(StageError, match=r"disk is full: 1.0 kB are free at .* about 1\d\d.\d kB are to be written"):
        crop.run(light_params(), paths, "f")
    monkeypatch.setattr(disk, "SPARE_BYTES", 0)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 50_000)
    crop.run(light_params(), paths, "f")
    assert "may become full: about 1" in capsys.readouterr().err


def test_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real read-only mount where that is permitted, else the system's answer to it."""
    paths = light_project(tmp_path / "a", 2)
    crop.run(light_params(), paths, "f")
    whole = snapshot(paths.clips)
    if mount(tmp_path / "a", "--bind", str(tmp_path / "a")):
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path / "a")], check=True)
            with pytest.raises(StageError, match=r"cannot write .*read-only file system.*nothing was lost"):
                crop.run(light_params(), paths, "g")
        finally:
            subprocess.run(["umount", "-l", str(tmp_path / "a")], check=True)
    for number, text in ((errno.EACCES, "permission denied"), (errno.EROFS, "read-only file system")):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "touch", lambda *_, _n=number, **__: (_ for _ in ()).throw(OSError(_n, "no", "data")))
            with pytest.raises(StageError, match=text):
                check_writable(paths.data)
    assert snapshot(paths.clips) == whole


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "none", "x")


def fail_after_half(file: Path, error: type[BaseException]) -> None:
    file.write_text("tw")
    raise error


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, shared: bool) -> None:
    file = tmp_path / "table.csv"
    with whole_file(file, shared) as partial:
        assert partial.parent == tmp_path
        partial.write_text("one")
        assert not file.exists()
    assert file.read_text() == "one"
    for error in (ValueError, OSError, KeyboardInterrupt):
        with pytest.raises(error), whole_file(file, shared) as partial:
            fail_after_half(partial, error)
        assert list(tmp_path.iterdir()) == [file]
        assert file.read_text() == "one"
    with pytest.raises(FileNotFoundError), whole_file(file, shared):  # nothing was written
        pass
    assert file.read_text() == "one"


def test_a_name_that_cannot_be_taken_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", failing(errno.ENOSPC, 0))
    with pytest.raises(OSError, match="No space"), whole_file(tmp_path / "a") as partial:
        partial.write_text("one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shared", [False, True])
def test_kill_9_in_the_middle_leaves_the_old_file(tmp_path: Path, shared: bool) -> None:
    """What it leaves beside it is written over, or has the killed process's name."""
    file = tmp_path / "table.csv"
    file.write_text("one")
    script = (
        "import os, pathlib, signal, sys\n"
        "from tasks.disk import whole_file\n"
        f"with whole_file(pathlib.Path(sys.argv[1]), {shared}) as partial:\n"
        "    partial.write_text('tw')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(file)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert file.read_text() == "one"
    assert [path.suffix for path in tmp_path.iterdir() if path != file] == [".partial"]
    with whole_file(file, shared) as partial:
        partial.write_text("three")
    assert file.read_text() == "three"
    assert len(list(tmp_path.glob("*.partial"))) == shared


def test_room(tmp_path: Path) -> None:
    assert check_room(tmp_path / "not" / "yet", least_bytes=1, about_bytes=1) == ""
    assert "may become full" in check_room(tmp_path, least_bytes=1, about_bytes=1 << 60)
    with pytest.raises(StageError, match="disk is full"):
        check_room(tmp_path, least_bytes=1 << 60, about_bytes=1 << 60)
    assert [size_text(count) for count in (999, 1500, 2.5e9)] == ["999 bytes", "1.5 kB", "2.5 GB"]
