"""Stage `crop` on real files: good, broken and odd ones, killed and resumed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
import zarr

from models.config import Params
from tasks import crop, spool
from tasks.clip_table import SCHEMA, ok_clips, read_table
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.stores import array, open_store
from tasks.video import write_video
from tasks.workers import Outcome
from tests.tasks.factory import make_params
from tests.tasks.videos import face, set_rotation, write_gif

ROOT = Path(__file__).resolve().parents[2]
LENGTH, SIZE = 16, 32
SETTINGS: dict[str, Any] = {
    "size_px": SIZE, "clip_frames": LENGTH, "clips_per_video": 2, "detect_long_side_px": 128, "min_face_px": 24,
    "shard_clips": 3,
}  # fmt: skip


def settings(**crop_changes: Any) -> Params:
    return make_params(crop={**SETTINGS, **crop_changes}, runtime={"workers": 2, "video_deadline_s": 60.0})


def project(root: Path, make: dict[str, Callable[[Path], None]]) -> Paths:
    """A data folder whose manifest lists the files that `make` makes, named by its keys."""
    paths = Paths(root / "data")
    paths.raw.mkdir(parents=True)
    with paths.manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["video", "path", "dataset", "identity", "split", "sha256", "bytes"])
        for index, (name, function) in enumerate(make.items()):
            function(paths.raw / name)
            split = "test" if index % 2 else "train"
            table.writerow([name.split(".")[0], f"data/raw/{name}", "folder", f"id{index}", split, "0" * 64, 1])
    return paths


def good(person: int = 1, frames: int = 40) -> Callable[[Path], None]:
    return lambda path: write_video(path, face(frames, person=person), 25)


def truncated(path: Path) -> None:
    good()(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])


def text(path: Path) -> None:
    path.write_text("this is not a video\n" * 99, encoding="utf-8")


def headless(path: Path) -> None:
    good()(path)
    path.write_bytes(path.read_bytes()[:2000])


def rotated(path: Path) -> None:
    lying = np.rot90(face(40), 1, axes=(1, 2))  # the header turns it clockwise, upright again
    write_video(path.with_name("lying.mp4"), lying, 25)
    set_rotation(path.with_name("lying.mp4"), path, 90)


ZOO: dict[str, Callable[[Path], None]] = {
    "good.mp4": good(),
    "empty.mp4": lambda path: path.touch(),
    "text.mp4": text,
    "headless.mp4": headless,
    "truncated.mp4": truncated,
    "faceless.mp4": lambda path: write_video(path, face(40)[:, :24, :24].repeat(4, 1).repeat(4, 2), 25),
    "pair.mp4": lambda path: write_video(path, np.concatenate([face(40), face(40, person=2)], axis=2), 25),
    "brief.mp4": good(frames=10),
    "single.mp4": good(frames=30),
    "moving.gif": lambda path: write_gif(path, face(40), 10),
    "rotated.mp4": rotated,
    "odd.mp4": lambda path: write_video(path, face(40)[:, 3:, :121], 25),
    "gone.mp4": lambda path: None,
    "tiny.mp4": lambda path: write_video(path, np.pad(face(40)[:, ::3, ::3], ((0, 0), (9, 9), (9, 9), (0, 0))), 25),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Paths, dict[str, Any], pd.DataFrame]:
    paths = project(tmp_path_factory.mktemp("zoo"), ZOO)
    figures = crop.run(settings(), paths, "one")
    return paths, figures, read_table(paths.clip_table)


def row_of(table: pd.DataFrame, video: str) -> dict[str, Any]:
    return dict(table[table["video"] == video].iloc[0])


def test_every_file_has_a_verdict(zoo: tuple[Paths, dict[str, Any], pd.DataFrame]) -> None:
    _, figures, table = zoo
    verdicts = {name.split(".")[0]: row_of(table, name.split(".")[0])["reason"] for name in ZOO}
    assert verdicts == {
        "good": "", "empty": "empty_file", "text": "unreadable", "headless": "unreadable", "truncated": "",
        "faceless": "no_face", "pair": "two_faces", "brief": "too_short", "single": "", "moving": "", "rotated": "",
        "odd": "", "gone": "missing", "tiny": "too_small",
    }  # fmt: skip
    assert list(table.columns) == SCHEMA.names
    assert set(table.loc[table["reason"].isin(["empty_file", "unreadable", "missing"]), "status"]) == {"error"}
    assert set(table.loc[table["reason"].isin(["no_face", "two_faces", "too_short", "too_small"]), "status"]) == {
        "rejected"
    }
    assert (table.loc[table["status"] != "ok", "detail"].str.len() > 20).all()
    assert figures["videos"] == len(ZOO)
    assert figures["videos_ok"] == 6
    assert figures["clips"] == len(ok_clips(table)) == 10  # single.mp4 and the truncated one have room for one
    assert figures["reason_unreadable"] == 2
    assert figures["clips_train"] + figures["clips_test"] == figures["clips"]


def test_clips_do_not_overlap_and_share_their_box(zoo: tuple[Paths, dict[str, Any], pd.DataFrame]) -> None:
    _, _, table = zoo
    order = [name.split(".")[0] for name in ZOO]
    for video, clips in ok_clips(table).groupby("video"):
        assert clips["segment"].tolist() == list(range(len(clips)))
        assert clips["row"].tolist() == [2 * order.index(str(video)) + segment for segment in clips["segment"]]
        assert (clips["end_frame"] - clips["start_frame"] == LENGTH).all()
        assert clips["start_frame"].is_monotonic_increasing
        assert clips["start_frame"].diff().dropna().ge(LENGTH).all()
        assert len(clips[["box_x0", "box_y0", "box_x1", "box_y1"]].drop_duplicates()) == 1
        assert (clips["box_x1"] - clips["box_x0"] == clips["box_y1"] - clips["box_y0"]).all()
    assert "room for 1 of 2" in row_of(table, "single")["detail"]
    assert "promises 40 frames" in row_of(table, "truncated")["detail"]


def test_store_matches_the_table(zoo: tuple[Paths, dict[str, Any], pd.DataFrame]) -> None:
    paths, _, table = zoo
    store = open_store(paths.clips)
    done = np.asarray(array(store, "done")[:])
    assert np.flatnonzero(done).tolist() == ok_clips(table)["row"].tolist()
    frames, landmarks = np.asarray(array(store, "frames")[:]), np.asarray(array(store, "landmarks")[:])
    boxes = np.asarray(array(store, "face_box")[:])
    assert frames.shape == (2 * len(ZOO), LENGTH, SIZE, SIZE, 3)
    assert not frames[done == 0].any()
    assert np.isnan(landmarks[done == 0]).all()
    found, box = landmarks[done == 1], boxes[done == 1]
    assert ((found > 0) & (found < SIZE - 1)).all()
    assert ((found >= box[:, :, None, :2]) & (found <= box[:, :, None, 2:])).all()
    eyes, mouth = found[:, :, :2].mean(axis=2), found[:, :, 3:].mean(axis=2)
    assert (mouth[..., 1] - eyes[..., 1] > SIZE / 10).all()  # upright, the rotated one too
    assert not (paths.clips / ".spool").exists()
    assert list(paths.data.rglob("*.partial")) == []


def test_frames_are_those_of_the_video(zoo: tuple[Paths, dict[str, Any], pd.DataFrame]) -> None:
    """Two videos of the same head, one lying on its side: the same crops, up to a pixel of the box (upside
    down they would differ by 30); and they show what the box says."""
    paths, _, table = zoo
    frames = array(open_store(paths.clips), "frames")
    row, turned = row_of(table, "good"), row_of(table, "rotated")
    assert row["start_frame"] == turned["start_frame"]
    assert np.abs(np.asarray(frames[row["row"]], float) - np.asarray(frames[turned["row"]], float)).mean() < 10
    x0, y0, x1, y1 = (int(row[f"box_{name}"]) for name in ("x0", "y0", "x1", "y1"))
    for offset in (0, LENGTH - 1):
        source = face(40)[row["start_frame"] + offset].astype(float)
        stored = np.asarray(frames[row["row"]], float)[offset]
        inside = source[max(0, y0) : y1, max(0, x0) : x1].mean(axis=(0, 1))
        assert stored.mean(axis=(0, 1)) == pytest.approx(inside, abs=4)


def test_finished_is_finished_and_another_fingerprint_is_not(
    zoo: tuple[Paths, dict[str, Any], pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, figures, _ = zoo
    before = snapshot(paths)
    again = crop.run(settings(), paths, "one")
    assert again == {name: value for name, value in figures.items() if name not in ("seconds", "videos_per_s")}
    assert snapshot(paths) == before
    mine = project(tmp_path, {"a.mp4": good()})
    monkeypatch.setattr(crop, "run_jobs", run_here)
    crop.run(settings(), mine, "one")
    crop.run(settings(size_px=48), mine, "two")
    assert array(open_store(mine.clips), "frames").shape[2] == 48


def run_here(function: Callable[[Any], Any], jobs: list[Any], **options: Any) -> None:
    """`run_jobs` without processes; jobs whose name says so end as they would in a worker that hangs or dies."""
    for index, job in enumerate(jobs):
        kind = {"hangs": "deadline", "dies": "crashed", "raises": "failed"}.get(job.manifest["video"])
        if kind:
            options["on_result"](index, Outcome(kind, None, "said the worker", 1.0))  # type: ignore[arg-type]
        else:
            options["on_result"](index, Outcome("ok", function(job), "", 1.0))


def test_workers_that_hang_or_die_cost_their_own_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop, "run_jobs", run_here)
    paths = project(tmp_path, {name: good() for name in ("hangs.mp4", "fine.mp4", "dies.mp4", "raises.mp4")})
    figures = crop.run(settings(), paths, "f")
    assert (figures["clips"], figures["reason_deadline"], figures["reason_crashed"]) == (2, 1, 2)
    assert row_of(read_table(paths.clip_table), "hangs")["detail"] == "hangs.mp4: said the worker"


def test_nothing_came_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop, "run_jobs", run_here)
    paths = project(tmp_path, {"a.mp4": ZOO["empty.mp4"], "b.mp4": good(frames=10)})
    with pytest.raises(StageError, match=r"2 videos \(1 empty_file, 1 too_short\)"):
        crop.run(settings(), paths, "f")
    assert read_table(paths.clip_table)["status"].tolist() == ["error", "rejected"]
    good()(paths.raw / "a.mp4")  # repaired: the same command now works
    assert crop.run(settings(), paths, "f")["clips"] == 2


def test_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="acquire"):
        crop.run(settings(), Paths(tmp_path / "data"), "f")


SCRIPT = """
import sys
from pathlib import Path
from models.config import load_params
from tasks import crop
from tasks.paths import Paths
if __name__ == "__main__":
    crop.run(load_params(sys.argv[1]), Paths(Path(sys.argv[2])), "f")
"""


def test_killed_in_the_middle_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = settings()
    make = {f"v{index}.mp4": good(person=1 + index % 2, frames=40 - index) for index in range(7)}
    make["v3.mp4"] = ZOO["empty.mp4"]
    paths, whole = project(tmp_path / "killed", make), project(tmp_path / "whole", make)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump()), encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "params.yaml"), str(paths.data)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    spool = paths.clips / ".spool"
    try:
        end = time.monotonic() + 200
        while len(finished(spool)) < 3:
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    finally:
        process.kill()
    time.sleep(0.3)  # its workers notice
    kept = len(finished(spool))
    assert 3 <= kept < 7
    assert not paths.clip_table.exists()
    (paths.clips / "frames" / "stray.partial").touch()

    counts = []

    def counting(function: Callable[[Any], Any], jobs: list[Any], **options: Any) -> None:
        counts.append(len(jobs))
        run_here(function, jobs, **options)

    monkeypatch.setattr(crop, "run_jobs", counting)
    crop.run(params, paths, "f")
    crop.run(params, whole, "f")
    assert counts == [7 - kept, 7]
    assert snapshot(paths) == snapshot(whole)


def finished(folder: Path) -> set[str]:
    """Videos that a spool has taken note of."""
    found = set()
    for path in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # its shard was written this moment
            content = json.loads(path.read_text(encoding="utf-8"))
            found |= set(content["items"]) if path.stem.startswith("shard_") else {path.stem}
    return found


def snapshot(paths: Paths) -> dict[str, bytes]:
    files = [path for path in (*paths.clips.rglob("*"), paths.clip_table) if path.is_file()]
    return {str(path.relative_to(paths.data)): path.read_bytes() for path in files}


def test_a_shard_is_written_once_whatever_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 clips a shard and 2 a video: videos lie across shards, and arrive backwards."""
    written: list[int] = []
    write_rows = spool.write_rows

    def note(group: zarr.Group, first: int, *rest: Any) -> None:
        written.append(first)
        write_rows(group, first, *rest)

    def backwards(function: Callable[[Any], Any], jobs: list[Any], **options: Any) -> None:
        for index in reversed(range(len(jobs))):
            options["on_result"](index, Outcome("ok", function(jobs[index]), "", 1.0))

    monkeypatch.setattr(spool, "write_rows", note)
    make = {f"v{index}.mp4": good(person=1 + index % 2) for index in range(4)}
    there, back = project(tmp_path / "there", make), project(tmp_path / "back", make)
    monkeypatch.setattr(crop, "run_jobs", run_here)
    crop.run(settings(), there, "f")
    assert written == [0, 3, 6]
    written.clear()
    monkeypatch.setattr(crop, "run_jobs", backwards)
    crop.run(settings(), back, "f")
    assert written == [6, 3, 0]
    assert snapshot(there) == snapshot(back)
