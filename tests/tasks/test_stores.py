"""Damaged files of a store: never wrong pictures, a clear message, and only these clips are made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks import crop, parse
from tasks.errors import StageError
from tasks.inspect import describe_stores
from tasks.paths import Paths
from tasks.stores import array, damage_report, digest_of, open_store, read_fingerprint
from tasks.workers import Outcome
from tests.tasks.light import light_params, light_project, make_light, snapshot

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content[:200] + bytes([content[200] ^ 255]) + content[201:],
    "zeroed": lambda content: bytes(len(content)),
}


class Runner:
    """`run_jobs` without processes, which notes what was asked for."""

    def __init__(self, outcomes: dict[str, str] | None = None) -> None:
        self.asked: list[str] = []
        self.outcomes = outcomes or {}

    def __call__(self, function: Callable[[Any], Any], jobs: list[Any], **options: Any) -> None:
        for index, job in enumerate(jobs):
            name = job.manifest["video"] if hasattr(job, "manifest") else str(job.row)
            self.asked.append(name)
            kind = self.outcomes.get(name, "ok")
            value = function(job) if kind == "ok" else None
            options["on_result"](index, Outcome(kind, value, "said the worker", 1.0))  # type: ignore[arg-type]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    make_light(monkeypatch)
    found = Runner()
    monkeypatch.setattr(crop, "run_jobs", found)
    monkeypatch.setattr(parse, "run_jobs", found)
    return found


@pytest.fixture
def finished(tmp_path: Path, runner: Runner) -> Paths:
    """Ten videos, cropped and parsed."""
    paths = light_project(tmp_path, 10)
    crop.run(light_params(), paths, "f")
    parse.run(light_params(), paths, "f")
    runner.asked.clear()
    return paths


@pytest.mark.parametrize(("kind", "name"), [*((kind, "frames") for kind in DAMAGE), ("flipped", "face_box")])
def test_a_damaged_shard_is_an_error_and_only_its_clips_are_made_again(
    kind: str, name: str, finished: Paths, runner: Runner
) -> None:
    whole = snapshot(finished.clips, finished.clip_table)
    file = sorted(path for path in (finished.clips / name / "c" / "2").rglob("*") if path.is_file())[0]
    file.write_bytes(DAMAGE[kind](file.read_bytes()))
    values = array(open_store(finished.clips), name)
    for key in (6, slice(None)):
        with pytest.raises(StageError, match=r"clips.zarr/\w+ is damaged: clips 6 to 8 .*dvc checkout"):
            values[key]
    assert np.isfinite(values[0]).all()
    report = damage_report(finished.clips)
    assert len(report) == 1
    assert f"clips 6 to 8 are damaged ({name})" in report[0]
    assert describe_stores(finished, light_params().quality).startswith(f"DAMAGED       {report[0]}")
    crop.run(light_params(), finished, "f")
    assert runner.asked == ["v3"]  # v4, the shard's other video, gave no clip
    assert snapshot(finished.clips, finished.clip_table) == whole
    assert damage_report(finished.clips) == []


def test_damaged_masks_are_made_again(finished: Paths, runner: Runner) -> None:
    whole = snapshot(finished.masks, finished.mask_table)
    for name, part in (("head", "0"), ("done", "2"), ("labels", "5")):
        file = sorted(path for path in (finished.masks / name / "c" / part).rglob("*") if path.is_file())
        (file[0] if file else finished.masks / name / "c" / part).write_bytes(b"")
    assert len(damage_report(finished.masks)) == 3
    parse.run(light_params(), finished, "f")
    assert {int(row) // 3 for row in runner.asked} == {0, 2, 5}
    assert snapshot(finished.masks, finished.mask_table) == whole


def test_a_lost_shard_is_noticed(finished: Paths, runner: Runner) -> None:
    """Zarr reads a missing file as "never written"; the digests tell."""
    next(path for path in (finished.clips / "frames" / "c" / "0").rglob("*") if path.is_file()).unlink()
    assert "clips 0 to 2 are damaged (frames)" in damage_report(finished.clips)[0]
    crop.run(light_params(), finished, "f")
    assert runner.asked == ["v0", "v1"]


def test_a_damaged_header_is_an_error(finished: Paths) -> None:
    header = finished.clips / "zarr.json"
    header.write_bytes(header.read_bytes()[:100])
    with pytest.raises(StageError, match=r"header of .*clips.zarr is damaged.*dvc checkout"):
        crop.run(light_params(), finished, "f")
    assert (finished.clips / "frames").is_dir()  # nothing was thrown away


def test_what_may_go_better_is_tried_again(tmp_path: Path, runner: Runner) -> None:
    paths = light_project(tmp_path / "a", 10)
    gone = paths.raw / "v1.json"
    content = gone.read_bytes()
    gone.unlink()
    runner.outcomes = {"v2": "deadline", "v8": "crashed"}
    first = crop.run(light_params(), paths, "f")
    assert (first["reason_missing"], first["reason_deadline"], first["reason_crashed"]) == (1, 1, 1)
    runner.asked.clear()
    runner.outcomes = {}
    gone.write_bytes(content)
    figures = crop.run(light_params(), paths, "f")
    assert runner.asked == ["v1", "v2", "v8"]
    assert figures["videos_error"] == 0
    whole = light_project(tmp_path / "b", 10)
    crop.run(light_params(), whole, "f")
    assert pd.read_parquet(paths.clip_table).equals(pd.read_parquet(whole.clip_table))
    before, after = (
        {name: content for name, content in snapshot(data.clips).items() if not name.endswith("clips.zarr/zarr.json")}
        for data in (whole, paths)
    )
    assert before == after


def test_parse_tries_again_what_timed_out(tmp_path: Path, runner: Runner) -> None:
    paths = light_project(tmp_path, 4)
    crop.run(light_params(), paths, "f")
    runner.outcomes = {"1": "deadline"}
    assert parse.run(light_params(), paths, "f")["reason_deadline"] == 1
    runner.asked.clear()
    runner.outcomes = {}
    parse.run(light_params(), paths, "f")
    assert runner.asked == ["1"]


def test_new_videos_cost_only_themselves(tmp_path: Path, runner: Runner) -> None:
    names = ["v0", "v1", "v2", "v3", "v6"]
    paths, whole = light_project(tmp_path / "a", 0, names=names), light_project(tmp_path / "b", 0, names=["v7", *names])
    for stage in (crop, parse):
        stage.run(light_params(), paths, "old")
        stage.run(light_params(), whole, "new")
    light_project(tmp_path / "a", 0, names=["v7", *names])
    runner.asked.clear()
    crop.run(light_params(), paths, "new")
    assert runner.asked == ["v7"]
    runner.asked.clear()
    parse.run(light_params(), paths, "new")
    assert runner.asked == ["0", "1"]  # the two clips of v7
    assert snapshot(paths.clips, paths.clip_table, paths.masks, paths.mask_table) == snapshot(
        whole.clips, whole.clip_table, whole.masks, whole.mask_table
    )
    runner.asked.clear()
    crop.run(
        light_params().model_copy(update={"crop": light_params().crop.model_copy(update={"margin": 0.1})}), paths, "m"
    )
    assert len(runner.asked) == 6  # other settings, other clips
    assert not paths.clips.with_name("clips.zarr.old").exists()


def test_the_old_store_is_taken_back_as_it_is(tmp_path: Path, runner: Runner) -> None:
    """Videos are added, the run is killed, and they are removed again."""
    paths = light_project(tmp_path, 4)
    crop.run(light_params(), paths, "old")
    whole = snapshot(paths.clips, paths.clip_table)
    light_project(tmp_path, 5)

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crop, "run_jobs", stopped)
        with pytest.raises(KeyboardInterrupt):
            crop.run(light_params(), paths, "new")
    light_project(tmp_path, 4)
    runner.asked.clear()
    crop.run(light_params(), paths, "old")
    assert runner.asked == []
    assert read_fingerprint(paths.clips) == "old"
    assert snapshot(paths.clips, paths.clip_table) == whole


def test_measures_reach_the_table(finished: Paths) -> None:
    table = pd.read_parquet(finished.mask_table)
    assert list(table.columns[:7]) == ["row", "clip", "status", "reason", "detail", "head_area", "flicker"]
    frames = array(open_store(finished.clips), "frames")
    good = table[table["status"] == "ok"]
    assert len(good) > 5
    for row, sharpness in zip(good["row"], good["sharpness"], strict=True):
        assert sharpness == pytest.approx(frames[int(row)].mean())
    assert table.loc[table["status"] != "ok", "sharpness"].isna().all()
    assert table["least_yaw_deg"].isna().all()
    clips = pd.read_parquet(finished.clip_table).set_index("row")["digest"]
    assert (clips.loc[table["row"]].to_numpy() == table["digest"].to_numpy()).all()


def test_digests_do_not_know_a_negative_zero() -> None:
    assert digest_of(np.array([0.0, 1.0], np.float16)) == digest_of(np.array([-0.0, 1.0], np.float16))
    assert digest_of(np.array([1], np.uint8)) != digest_of(np.array([2], np.uint8))


def test_json_of_the_header_is_small(finished: Paths) -> None:
    attributes = json.loads((finished.clips / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    assert set(attributes) == {"shard_clips", "digests", "fingerprint", "made_by", "complete"}
    assert list(attributes["digests"]) == ["0", "3", "6", "9", "12", "15"]
