"""`head3d bench prepare`: every part is measured on the same videos, and a plan follows from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli import app
from models.config import Params
from tasks import bench_prepare, bench_videos, crop, parse
from tasks.bench_prepare import plan
from tasks.errors import StageError
from tasks.video import probe, write_video
from tasks.workers import Outcome
from tests.tasks.factory import make_params
from tests.tasks.videos import face

LENGTH, SIZE = 16, 32


def run_here(function: Callable[[Any], Any], jobs: list[Any], **options: Any) -> None:
    for index, job in enumerate(jobs):
        options["on_result"](index, Outcome("ok", function(job), "", 0.001))


@pytest.fixture(autouse=True)
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench_prepare, bench_videos, crop, parse):
        monkeypatch.setattr(module, "run_jobs", run_here)


def settings() -> Params:
    size = {"size_px": SIZE, "clip_frames": LENGTH, "clips_per_video": 2, "min_face_px": 24, "shard_clips": 4}
    return make_params(crop=size, parse={"parser": "grabcut", "work_px": 32, "grabcut_iterations": 1})


@pytest.fixture
def videos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "videos"
    for person in (1, 2):
        write_video(folder / f"v{person}.mp4", face(40, person=person), 25)
    return sorted(folder.glob("*.mp4"))


def test_every_part_is_measured(videos: list[Path], tmp_path: Path) -> None:
    figures = bench_prepare.bench_prepare(settings(), videos, tmp_path / "bench")
    assert (figures["videos"], figures["clips"], figures["frames_read"]) == (2, 4, 80)
    assert figures["frames_parsed"] == 4 * LENGTH
    seconds = figures["seconds"]
    assert set(seconds) == {"start", "decode", "look", "parse", "crop_stage", "parse_stage", "whole"}
    assert seconds["whole"] == pytest.approx(seconds["crop_stage"] + seconds["parse_stage"], abs=0.02)
    assert figures["ratio"] == pytest.approx(seconds["whole"] / (seconds["decode"] + seconds["parse"]), rel=0.2)
    assert figures["bytes_per_clip"]["clips"] > 1000
    assert figures["peak_rss_mb"]["parent"] > 50
    assert json.loads(json.dumps(figures)) == figures
    with pytest.raises(StageError, match="no video"):
        bench_prepare.bench_prepare(settings(), [], tmp_path / "none")


def test_a_plan_multiplies_what_was_measured() -> None:
    figures = {
        "bytes_per_clip": {"clips": 1000.0, "masks": 100.0},
        "hash_bytes_per_s": 50_000,
        "clips_per_s": 2.0,
        "workers": 2,
    }
    found = plan(settings(), figures, 22_500)
    assert found["shards"] == 5625
    assert found["hours"] == pytest.approx(22_500 / 2 / 3600, abs=0.01)
    assert found["stores"]["clips.zarr"]["bytes"] == 22_500_000
    assert found["stores"]["clips.zarr"]["hash_seconds"] == 450
    assert found["stores"]["masks.zarr"]["files"] < found["stores"]["clips.zarr"]["files"] < 4 * 5625
    geometry = LENGTH * (SIZE * SIZE * 2 + 3 * 4 + 3 * 4) * 22_500
    assert found["stores"]["geometry.zarr"]["bytes"] == geometry
    assert found["bytes"] == sum(store["bytes"] for store in found["stores"].values())


def test_videos_are_drawn_at_720p(tmp_path: Path) -> None:
    paths = bench_videos.bench_videos(tmp_path, 3, 4)
    info = probe(paths[0])
    assert (info.width, info.height, info.frames) == (1280, 720, 4)
    assert paths[2].read_bytes() == paths[0].read_bytes() != paths[1].read_bytes()


def test_the_command(videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shutil.copy(Path(__file__).parents[2] / "dvc.yaml", tmp_path / "dvc.yaml")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings().model_dump()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            app(args=["bench", "prepare", *words])
        assert not ended.value.code
        return str(capsys.readouterr().out)

    content = json.loads(call(str(videos[0].parent), "--workers", "1", "--plan", "100", "--json"))
    assert (content["videos"], content["workers"], content["plan"]["clips"]) == (2, 1, 100)
    text = call(str(videos[0]))
    assert "ratio" in text
    assert "seconds.whole" in text
    assert not list(tmp_path.glob("head3d-bench-*"))
