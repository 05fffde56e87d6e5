"""`head3d inspect`: the sheet of a clip, and what the stores hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks import labels, parse, sheets
from tasks.errors import StageError
from tasks.inspect import SHEET_FRAMES, TILE_PX, describe_stores, inspect_clip, inspect_store, write_sheet
from tasks.paths import Paths
from tasks.stores import array, open_store
from tests.tasks.rendered import make_clip_store, parse_params


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = make_clip_store(tmp_path_factory.mktemp("inspect"), 4, {3})
    parse.run(parse_params(), paths, "f")
    return paths


def test_sheet_shows_frame_labels_and_outline(project: Paths) -> None:
    sheet = inspect_clip(project, "clip2_0", 2)
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
    with_mask, without = inspect_clip(project, "clip2_0", 3), inspect_clip(project, "clip3_0", 3)
    assert without.shape[0] < with_mask.shape[0] / 2
    assert without.shape[1] == with_mask.shape[1]


def test_a_clip_by_row_or_video(project: Paths) -> None:
    wanted = inspect_clip(project, "clip2_0", 2)
    assert np.array_equal(inspect_clip(project, "2", 2), wanted)
    assert np.array_equal(inspect_clip(project, "clip2", 2), wanted)


def test_sheet_as_a_file(project: Paths, tmp_path: Path) -> None:
    write_sheet(project, "clip1_0", tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        assert np.array_equal(np.asarray(image), inspect_clip(project, "clip1_0", SHEET_FRAMES))


def test_stores_in_words(project: Paths) -> None:
    text = describe_stores(project)
    assert "5 (ok 4, rejected 1)" in text
    assert "3 of 4 clips" in text
    assert "none: rejected, no_face; no face in 3 of 3 frames" in text
    assert "clip3_0: no_face" in text


def test_unknown_and_refused_clips(project: Paths) -> None:
    with pytest.raises(StageError, match="clip2_0"):
        inspect_clip(project, "clip2_9", 3)
    with pytest.raises(StageError, match="no_face"):
        inspect_clip(project, "none", 3)


def test_store_report(project: Paths) -> None:
    report = inspect_store(project)
    assert (report.videos, report.clips, report.parsed) == (5, 4, 3)
    assert report.frames == (3, 48, 48, 3)
    assert report.videos_by_status == {"ok": 4, "rejected": 1}
    assert report.reasons == {"no_face": 1}
    assert report.failed_masks == {"no_face": 1}
    assert report.unparsed[0][:2] == ("clip3_0", "no_face")
    assert report.identities_by_split == {"train": 3}
    assert report.clips_by_split == {"train": 4}
    assert report.refused == [("none", "rejected", "no_face", "no face in 3 of 3 frames")]
    assert report.smallest[0][1] == report.head_area["min"]
    assert report.largest[0][1] == report.head_area["max"]
    assert report.most_flicker[0][1] == report.flicker["max"]
    assert {clip for clip, _ in report.most_flicker} == {"clip1_0", "clip2_0", "clip4_0"}


def test_store_report_before_parse(project: Paths, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="dvc repro"):
        inspect_store(Paths(tmp_path))
    paths = Paths(tmp_path / "data")
    paths.data.mkdir()
    shutil.copy(project.clip_table, paths.clip_table)
    report = inspect_store(paths)
    assert (report.clips, report.parsed, report.frames) == (4, 0, ())
    assert report.head_area == {}
