"""`head3d inspect`: the sheet of a clip, and what the stores hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows.cli import app
from models.config import Quality
from tasks import labels, parse, sheets
from tasks.errors import StageError
from tasks.inspect import describe_stores, inspect_store, worst_clips
from tasks.inspect_sheets import (
    PLOT_PX,
    SHEET_FRAMES,
    TILE_PX,
    clip_series,
    inspect_clip,
    mask_change,
    worst_sheet,
    write_picture,
)
from tasks.paths import Paths
from tasks.sheets_plot import LINE_RGB, line_plot
from tasks.stores import array, open_store
from tests.tasks.rendered import make_clip_store, parse_params

OFF = Quality(max_border_share=1.0, min_head_area=0.0, min_sharpness=0.0, max_mask_jump=1.0, max_least_yaw_deg=180.0)


def limits(**changes: float) -> Quality:
    return OFF.model_copy(update=changes)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = make_clip_store(tmp_path_factory.mktemp("inspect"), 4, {3})
    parse.run(parse_params(), paths, "f")
    return paths


def test_sheet_shows_frame_labels_and_outline(project: Paths) -> None:
    sheet = inspect_clip(project, "clip2_0", 2, OFF)
    times = -(-TILE_PX // 48)
    tile, gap, text = 48 * times, sheets.GAP_PX, sheets.TEXT_PX
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == gap + 2 * (tile + gap)
    class_ids = np.asarray(array(open_store(project.masks), "labels")[2])
    frames = np.asarray(array(open_store(project.clips), "frames")[2])
    left, first = gap, gap + 2 * text
    second, third = first + tile + gap + text, first + 2 * (tile + gap + text)

    def picture(top: int, start: int) -> np.ndarray:
        return sheet[top : top + tile : times, start : start + tile : times]

    assert np.array_equal(picture(first, left), frames[0])
    assert np.array_equal(picture(first, left + tile + gap), frames[-1])
    assert np.array_equal(picture(second, left), labels.COLOURS[class_ids[0]])
    outlined = picture(third, left)
    on_edge = (outlined == sheets.OUTLINE_RGB).all(axis=2)
    assert on_edge.any()
    assert np.isin(class_ids[0][on_edge], parse_params().parse.head_labels).all()
    assert np.array_equal(outlined[~on_edge], frames[0][~on_edge])


def test_a_clip_without_mask_shows_its_frames(project: Paths) -> None:
    with_mask, without = inspect_clip(project, "clip2_0", 3, OFF), inspect_clip(project, "clip3_0", 3, OFF)
    assert without.shape[0] < with_mask.shape[0] / 2
    assert without.shape[1] == with_mask.shape[1]


def test_a_clip_that_came_after_the_masks_shows_its_frames(project: Paths, tmp_path: Path) -> None:
    paths = make_clip_store(tmp_path, 6, set())
    shutil.copytree(project.masks, paths.masks)  # of the first four clips
    assert inspect_clip(paths, "clip6_0", 3, OFF).shape == inspect_clip(project, "clip3_0", 3, OFF).shape
    assert clip_series(paths, "clip6_0")["head_area"] is None


def test_a_clip_by_row_or_video(project: Paths) -> None:
    wanted = inspect_clip(project, "clip2_0", 2, OFF)
    assert np.array_equal(inspect_clip(project, "2", 2, OFF), wanted)
    assert np.array_equal(inspect_clip(project, "clip2", 2, OFF), wanted)


def test_sheet_as_a_file(project: Paths, tmp_path: Path) -> None:
    sheet = inspect_clip(project, "clip1_0", SHEET_FRAMES, OFF)
    write_picture(sheet, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        assert np.array_equal(np.asarray(image), sheet)


def test_sheet_ends_with_the_mask_over_time_and_the_measures(project: Paths) -> None:
    sheet = inspect_clip(project, "clip2_0", 3, limits(min_head_area=0.99))
    head = np.asarray(array(open_store(project.masks), "head")[2])
    text = 2 * sheets.TEXT_PX  # measures, and the one flag
    width = sheet.shape[1]
    plots = sheet[-text - 2 * PLOT_PX : -text]
    area = line_plot(head.mean(axis=(1, 2)), width, PLOT_PX, "head mask, share of the frame, by frame", marks=[0, 1, 2])
    change = line_plot(mask_change(head), width, PLOT_PX, "change of the mask, 1 - IoU with the frame before")
    assert np.array_equal(plots, np.concatenate([area, change]))
    assert np.array_equal(sheet[-sheets.TEXT_PX :], sheets.text_line("tiny: the head is small in the frame", width))


def test_a_plot_goes_up_where_the_values_do() -> None:
    plot = line_plot([0.0, 1.0, float("nan"), 0.5, 0.5], 200, 100, "t", top=1.0)
    assert plot.shape == (100, 200, 3)
    ys, xs = np.nonzero(np.abs(plot.astype(int) - LINE_RGB).sum(axis=2) < 60)
    rising = ys[(xs > 45) & (xs < 75)]
    assert rising.max() - rising.min() > 40  # from the bottom to the top between frames 0 and 1
    assert not ((xs > 85) & (xs < 150)).any()  # the gap about the NaN
    flat = ys[xs > 165]
    assert flat.size
    assert flat.max() - flat.min() <= 2
    assert line_plot([], 200, 100, "empty").shape == (100, 200, 3)


def test_the_worst_come_first_with_their_reasons(project: Paths) -> None:
    found = worst_clips(project, OFF, 10)
    assert found[0].clip == "clip3_0"  # it has no mask
    assert found[0].why[0] == "no mask: no_face"
    assert len(found) == 4
    assert not any(item.flags for item in found)
    table = pd.read_parquet(project.mask_table)
    least = table[table["status"] == "ok"].sort_values("head_area").iloc[0]
    strict = limits(min_head_area=float(least["head_area"]) + 1e-6)
    second = worst_clips(project, strict, 2)[1]
    assert (second.clip, second.flags) == (least["clip"], ["tiny"])
    assert second.badness > 1
    assert second.why[0].startswith("tiny: head_area 0.")
    sheet = worst_sheet(project, strict, 2)
    assert sheet.dtype == np.uint8
    assert worst_sheet(project, strict, 4).shape[0] > 1.8 * sheet.shape[0]
    with pytest.raises(StageError, match="dvc repro parse"):
        worst_clips(Paths(project.data / "elsewhere"), OFF, 3)


def test_one_clip_in_numbers(project: Paths) -> None:
    series = clip_series(project, "clip2_0")
    head = np.asarray(array(open_store(project.masks), "head")[2])
    assert series["record"]["row"] == 2
    assert series["head_area"] == pytest.approx(head.mean(axis=(1, 2)).tolist(), abs=1e-5)
    assert len(series["mask_change"]) == len(head) - 1
    assert clip_series(project, "clip3_0")["head_area"] is None


def test_stores_in_words(project: Paths) -> None:
    text = describe_stores(project, limits(min_head_area=0.99))
    assert "5 (ok 4, rejected 1)" in text
    assert "3 of 4 clips" in text
    assert "none: rejected, no_face; no face in 3 of 3 frames" in text
    assert "clip3_0: no_face" in text
    assert "flags         3 clips: tiny 3; training uses 0 clips" in text
    assert "1 no_face: No face is found" in text


def test_unknown_and_refused_clips(project: Paths) -> None:
    with pytest.raises(StageError, match="clip2_0"):
        inspect_clip(project, "clip2_9", 3, OFF)
    with pytest.raises(StageError, match="no_face"):
        inspect_clip(project, "none", 3, OFF)


def test_store_report(project: Paths) -> None:
    report = inspect_store(project, OFF)
    assert (report.videos, report.clips, report.parsed) == (5, 4, 3)
    assert report.frames == (3, 48, 48, 3)
    assert report.videos_by_status == {"ok": 4, "rejected": 1}
    assert report.reasons == {"no_face": 1}
    assert report.failed_masks == {"no_face": 1}
    assert report.unparsed[0][:2] == ("clip3_0", "no_face")
    assert report.identities_by_split == {"train": 3}
    assert report.clips_by_split == {"train": 4}
    assert report.refused == [("none", "rejected", "no_face", "no face in 3 of 3 frames")]
    assert report.smallest[0][1] == report.measures["head_area"]["min"]
    assert report.largest[0][1] == report.measures["head_area"]["max"]
    assert report.most_flicker[0][1] == report.measures["flicker"]["max"]
    assert (report.flags, report.clips_flagged, report.train_used) == ({}, 0, 3)
    strict = inspect_store(project, limits(min_head_area=0.99))
    assert (strict.flags, strict.flags_train, strict.train_used) == ({"tiny": 3}, {"tiny": 3}, 0)
    assert {clip for clip, _ in report.most_flicker} == {"clip1_0", "clip2_0", "clip4_0"}


def test_store_report_before_parse(project: Paths, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="dvc repro"):
        inspect_store(Paths(tmp_path), OFF)
    paths = Paths(tmp_path / "data")
    paths.data.mkdir()
    shutil.copy(project.clip_table, paths.clip_table)
    report = inspect_store(paths, OFF)
    assert (report.clips, report.parsed, report.frames) == (4, 0, ())
    assert report.measures == {}


def test_the_command(project: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """As a user calls it, from a folder of the project."""
    root = tmp_path / "project"
    shutil.copytree(project.data, root / "data")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(Path(__file__).parents[2] / name, root / name)
    monkeypatch.chdir(root)

    def call(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            app(args=["inspect", *words])
        return int(ended.value.code or 0), capsys.readouterr().out

    assert call("clip2_0", "-o", "a.png")[0] == 0
    assert call("--worst", "3", "-o", "worst.png") == (0, call("--worst", "3")[1])
    code, text = call("--worst", "3", "--json")
    assert (code, json.loads(text)[0]["clip"]) == (0, "clip3_0")
    code, text = call("--store", "--json")
    assert (code, json.loads(text)["reasons"]) == (0, {"no_face": 1})
    code, text = call("clip2_0", "--json")
    content = json.loads(text)
    assert (code, content["record"]["clip"], len(content["head_area"])) == (0, "clip2_0", 3)
    assert set(content["values"]) > {"head_area", "flicker"}
    assert "head masks    3 of 4 clips" in call("--store")[1]
    assert call("--verify") == (0, "every shard of data/clips.zarr, data/masks.zarr is as it was written\n")
    chunk = next(path for path in (root / "data" / "masks.zarr" / "labels" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:100])
    code, text = call("--verify")
    assert code == 1
    assert "damaged (labels)" in text
    assert sorted(path.name for path in root.glob("*.png")) == ["a.png", "worst.png"]
    assert call()[0] == 2
    assert call("clip2_0", "--store")[0] == 2
    assert call("nothing_like_it")[0] == 1
