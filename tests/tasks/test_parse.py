"""The stage `parse`: labels of every clip, resumed after kill -9, and masks made again without parsing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tasks import parse, parse_clip
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.stores import array, open_store, read_fingerprint
from tests.tasks.rendered import make_clip_store, parse_params

ROOT = Path(__file__).parents[2]


def contents(paths: Paths) -> dict[str, np.ndarray]:
    group = open_store(paths.masks)
    return {name: np.asarray(array(group, name)[:]) for name in ("labels", "head", "done")}


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Nine clips in three shards; the face of row 6 is unknown."""
    paths = make_clip_store(tmp_path_factory.mktemp("parse"), 9, {6})
    figures = parse.run(parse_params(), paths, "first")
    assert figures["clips"] == 8
    assert figures["clips_failed"] == 1
    assert figures["reason_no_face"] == 1
    assert figures["clips_parsed_now"] == 9
    return paths


def test_masks_come_from_labels(parsed: Paths) -> None:
    found = contents(parsed)
    assert found["done"].tolist() == [0, 1, 1, 1, 1, 1, 0, 1, 1, 1]
    good = found["done"] == 1
    wanted = np.isin(found["labels"][good], parse_params().parse.head_labels)
    assert np.array_equal(found["head"][good], wanted)
    assert 0.05 < wanted.mean() < 0.9
    assert (found["labels"][~good] == 255).all()
    assert not found["head"][~good].any()
    assert np.array_equal(found["labels"][1], found["labels"][4])  # the same person again, in another shard


def test_a_failed_clip_costs_itself_and_says_why(parsed: Paths) -> None:
    table = pd.read_parquet(parsed.mask_table).set_index("row")
    assert table.index.tolist() == list(range(1, 10))
    assert [table.loc[6, column] for column in ("clip", "status", "reason")] == ["clip6_0", "error", "no_face"]
    assert "landmarks" in str(table.loc[6, "detail"])
    good = table.drop(index=6)
    assert (good["status"] == "ok").all()
    assert (good["reason"] == "").all()
    head = contents(parsed)["head"]
    assert table.loc[2, "head_area"] == pytest.approx(head[2].mean())
    assert table.loc[2, "flicker"] == pytest.approx(parse.flicker(head[2]))


def test_other_head_labels_parse_nothing_again(parsed: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(parsed)
    tried: list[object] = []

    def count_jobs(_function: object, jobs: list[object], **_: object) -> None:
        tried.extend(jobs)

    monkeypatch.setattr(parse, "run_jobs", count_jobs)
    figures = parse.run(parse_params(parse={"head_labels": [17]}), parsed, "second")
    after = contents(parsed)
    assert tried == []
    assert figures["clips_parsed_now"] == 0
    assert np.array_equal(after["labels"], before["labels"])
    assert np.array_equal(after["head"], (before["labels"] == 17).astype(np.uint8))
    table = pd.read_parquet(parsed.mask_table).set_index("row")
    assert table.loc[1, "head_area"] == pytest.approx(after["head"][1].mean())
    assert table.loc[6, "reason"] == "no_face"
    assert read_fingerprint(parsed.masks) == "second"
    parse.run(parse_params(), parsed, "first")
    assert np.array_equal(contents(parsed)["head"], before["head"])
    assert tried == []


def test_a_finished_stage_returns_at_once(parsed: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be done")

    monkeypatch.setattr(parse, "run_jobs", never)
    assert parse.run(parse_params(), parsed, "first")["clips"] == 8


def test_fingerprint_of_the_labels_leaves_out_head_labels_alone(parsed: Paths) -> None:
    params = parse_params(parse={"work_px": 32})
    assert parse.labels_fingerprint(params.parse, parsed) != parse.labels_fingerprint(parse_params().parse, parsed)
    other_head = parse_params(parse={"head_labels": [1]})
    assert parse.labels_fingerprint(other_head.parse, parsed) == parse.labels_fingerprint(parse_params().parse, parsed)


def test_killed_and_resumed_equals_a_run_in_one_go(parsed: Paths, tmp_path: Path) -> None:
    paths = make_clip_store(tmp_path, 9, {6})
    code = (
        "import sys, time; from pathlib import Path; from tasks import parse; from tasks.paths import Paths; "
        "from tests.tasks.rendered import parse_params; "
        "keep = parse.Spool.add; "  # slowed down, so that it is killed in the middle
        "parse.Spool.add = lambda *given: (keep(*given), time.sleep(0.15)); "
        "parse.run(parse_params(runtime={'workers': 1}), Paths(Path(sys.argv[1])), 'first')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(paths.data)], cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not list(paths.masks.glob(".spool/*.json")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not paths.mask_table.exists()
    stray = paths.masks / "labels" / "c.partial"
    stray.write_bytes(b"half")
    figures = parse.run(parse_params(), paths, "first")
    assert figures["clips"] == 8
    assert figures["clips_parsed_now"] < 9
    assert not stray.exists()
    assert not (paths.masks / ".spool").exists()
    for name, values in contents(parsed).items():
        assert np.array_equal(contents(paths)[name], values), name


def test_nothing_parsed_is_an_error(tmp_path: Path) -> None:
    paths = make_clip_store(tmp_path, 1, {1})
    with pytest.raises(StageError, match="no_face"):
        parse.run(parse_params(), paths, "first")


def test_settings_and_inputs_are_checked(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="dvc repro"):
        parse.run(parse_params(), Paths(tmp_path), "first")
    with pytest.raises(StageError, match="17 hair"):
        parse.run(parse_params(parse={"head_labels": [99]}), Paths(tmp_path), "first")


def test_flicker_of_known_masks() -> None:
    still = np.ones((3, 4, 4), np.uint8)
    assert parse.flicker(still) == 0.0
    half = still.copy()
    half[1, :2] = 0
    assert parse.flicker(half) == pytest.approx(0.5)
    assert parse.flicker(still[:1]) == 0.0


def test_implausible_masks_are_refused() -> None:
    class_ids = np.zeros((2, 10, 10), np.uint8)
    class_ids[:, 4:6, 4:6] = 1
    parse_clip.check_area(class_ids)
    class_ids[1] = 0
    with pytest.raises(parse_clip.SegmentationError, match="1 of 2 frames"):
        parse_clip.check_area(class_ids)
    with pytest.raises(parse_clip.SegmentationError, match="100%"):
        parse_clip.check_area(np.ones((2, 10, 10), np.uint8))


def test_few_processes_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parse_params(runtime={"workers": 16})
    monkeypatch.setattr(parse, "choose_device", lambda _: torch.device("cuda"))
    embedded = params.parse.model_copy(update={"parser": "embedded"})
    assert parse._workers(embedded, params.runtime) == parse.GPU_WORKERS
    assert parse._workers(params.parse.model_copy(update={"parser": "grabcut"}), params.runtime) == 16
    monkeypatch.setattr(parse, "choose_device", lambda _: torch.device("cpu"))
    assert parse._workers(embedded, params.runtime) == 16
