"""Checkpoints that cannot be used say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.errors import StageError
from tasks.trained import load_preparation
from tests.tasks.factory import make_params


def checkpoint(folder: Path, **sections: object) -> Path:
    (folder / "fusion").mkdir(parents=True)
    (folder / "fusion" / "config.json").write_text(json.dumps(sections))
    return folder


def test_preparation_is_what_the_checkpoint_was_trained_with(tmp_path: Path) -> None:
    params = make_params(crop={"margin": 0.25})
    folder = checkpoint(tmp_path, crop=params.crop.model_dump(), parse=params.parse.model_dump())
    assert load_preparation(folder) == (params.crop, params.parse)


def test_no_checkpoint_and_one_of_another_version_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not trained"):
        load_preparation(tmp_path)
    params = make_params()
    older = {name: value for name, value in params.crop.model_dump().items() if name != "train_clips_per_video"}
    folder = checkpoint(tmp_path / "old", crop=older, parse=params.parse.model_dump())
    with pytest.raises(StageError, match=r"another version.*train_clips_per_video"):
        load_preparation(folder)
