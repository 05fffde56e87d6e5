"""Checkpoints that cannot be used say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.errors import StageError
from tasks.trained import held_to_parts, load_model, load_preparation
from tests.tasks.factory import make_params
from tests.tasks.test_training import settings
from tests.tasks.untrained import write_checkpoints


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


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_settings_of_the_training_may_come_and_go(tmp_path: Path) -> None:
    checkpoints = write_checkpoints(tmp_path / "checkpoints", settings())
    frames = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)), torch.ones(2, 1, 48, 48)

    def image() -> torch.Tensor:
        model = load_model(checkpoints, torch.device("cpu"))
        return model.drive(model.subject(*frames, 0), *frames).image

    before, preparation = image(), load_preparation(checkpoints)
    needed = {"geometry": ("camera", "depth_net", "pose_net"), "canonical": ("net",), "fusion": ("net", "flow_net")}
    for stage, names in needed.items():

        def older(config: dict[str, Any], stage: str = stage, names: tuple[str, ...] = names) -> None:
            config[stage] = {name: config[stage][name] for name in names} | {"setting_of_tomorrow": 1}
            for net in ("depth_net", "pose_net", "flow_net"):
                for young in ("initial", "parts"):
                    config[stage].get(net, {}).pop(young, None)
            del config["parse"]["mirror"]

        rewrite(checkpoints / stage / "config.json", older)
    assert torch.equal(image(), before)
    assert load_preparation(checkpoints) == preparation
    assert not held_to_parts(checkpoints)


@pytest.mark.parametrize(
    ("stage", "path", "named"),
    [
        ("geometry", "geometry.camera", "'camera' is missing"),
        ("geometry", "geometry", "'camera' is missing"),
        ("canonical", "canonical.net.width", r"'net\.width' is missing"),
        ("fusion", "fusion.flow_net.regions", r"'flow_net\.regions' is missing"),
        ("fusion", "size_px", "'size_px' is missing"),
    ],
)
def test_without_what_the_networks_are_built_from_a_checkpoint_is_refused(
    tmp_path: Path, stage: str, path: str, named: str
) -> None:
    def poorer(config: dict[str, Any]) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            config = config[parent]
        del config[name]

    checkpoints = write_checkpoints(tmp_path / "checkpoints", settings())
    rewrite(checkpoints / stage / "config.json", poorer)
    with pytest.raises(StageError, match=rf"another version.*{named}.*`dvc repro` trains anew") as refused:
        load_model(checkpoints, torch.device("cpu"))
    assert "preset" not in str(refused.value)  # no params file can mend a checkpoint
