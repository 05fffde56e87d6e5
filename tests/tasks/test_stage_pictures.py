"""Pictures of what the stages left, for whoever watches a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.paths import Paths
from tasks.stage_pictures import COLUMNS, PICTURES, TILE_PX, stage_picture
from tests.tasks.factory import Project, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("pictures"), people=3, frames=4, cross=2, videos=False)


def size_of(stage: str, project: Project) -> tuple[int, int]:
    picture = stage_picture(stage, project.paths)
    assert picture is not None
    assert picture.dtype == np.uint8
    assert picture.std() > 10
    return picture.shape[0], picture.shape[1]


def test_clips_and_masks_stand_in_rows_of_six(project: Project) -> None:
    height, width = size_of("crop", project)
    assert COLUMNS * TILE_PX < width < COLUMNS * (TILE_PX + 8)
    assert TILE_PX < height < 2 * TILE_PX  # six clips
    assert size_of("parse", project)[0] > 2 * TILE_PX  # each beside its labels


def test_outputs_show_every_method_of_some_pairs(project: Project) -> None:
    height, width = size_of("generate", project)
    assert width > 8 * TILE_PX  # subject, driving, six methods
    assert 4 * TILE_PX < height < 4 * (TILE_PX + 30)  # two self pairs (the third failed) and two cross pairs


def test_the_last_sample_sheet_of_a_training_is_taken_and_made_smaller(project: Project) -> None:
    assert stage_picture("fusion", project.paths) is None
    folder = project.paths.checkpoint("fusion") / "samples"
    folder.mkdir(parents=True)
    for step, colour in ((20, "red"), (100, "lime")):
        Image.new("RGB", (2400, 600), colour).save(folder / f"step_{step:08d}.png")
    picture = stage_picture("fusion", project.paths)
    assert picture is not None
    assert picture.shape == (300, 1200, 3)
    assert picture[150, 600].tolist() == [0, 255, 0]


@pytest.mark.parametrize("stage", [*PICTURES, "evaluate"])
def test_what_is_not_there_is_not_drawn(stage: str, tmp_path: Path) -> None:
    assert stage_picture(stage, Paths(tmp_path)) is None
