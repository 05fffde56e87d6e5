"""Exported files, loaded again, give the model's frames; what goes in and comes out is written beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.head3d import Head3D
from models.per_frame import SubjectState
from tasks import export_model as exporting
from tasks.errors import StageError
from tasks.export_model import difference, export_model, export_state, paths_of
from tasks.trained import load_model
from tests.tasks.test_training import held_to_parts, settings
from tests.tasks.untrained import write_checkpoints
from tests.tasks.videos import face

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoints(tmp_path_factory.mktemp("model") / "checkpoints", held_to_parts(settings()))


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of a head and masks."""
    images = torch.from_numpy(face(12, 48, 2).copy()).permute(0, 3, 1, 2).float() / 255
    masks = torch.zeros(12, 1, 48, 48)
    masks[:, :, 10:40, 12:36] = 1
    return images, masks


@pytest.fixture(scope="module")
def model(checkpoints: Path) -> Head3D:
    return load_model(checkpoints, CPU)


def test_a_subjects_torch_file_gives_its_tensors(checkpoints: Path, model: Head3D, tmp_path: Path):
    figures = export_model(checkpoints, tmp_path, "torch", 2, 3, ["subject"])
    assert figures["subject.pt2"]["largest"] < 1e-5
    described = json.loads((tmp_path / "interface.json").read_text())["subject.pt2"]
    assert [one["name"] for one in described["inputs"]] == ["images", "masks"]
    assert described["inputs"][0]["shape"] == [3, 3, 48, 48]
    images, masks = pictures()
    made = torch.export.load(tmp_path / "subject.pt2").module()(images[:3], masks[:3])
    subject = model.subject(images[:3], masks[:3], 0)
    state = dict(zip([one["name"] for one in described["outputs"]], made, strict=True))
    assert set(state) == {*SubjectState._fields[:-2], "reference_deg", "reference_m"}
    for name, expected in {
        "canonical_image": subject.head.image,
        "canonical_depth": subject.head.depth,
        "reference_deg": subject.reference_pose.angles_deg,
    }.items():
        torch.testing.assert_close(state[name], expected, atol=1e-4, rtol=1e-4)


def test_a_frames_onnx_file_gives_the_models_frames(checkpoints: Path, tmp_path: Path):
    found = export_model(checkpoints, tmp_path, "onnx", 1, 2, ["frame"])["frame.onnx"]
    assert found["mean"] < 1e-5
    assert found["share_above_half_a_level"] < 1e-3
    described = json.loads((tmp_path / "interface.json").read_text())["frame.onnx"]
    assert [one["name"] for one in described["inputs"]] == ["driving", "mask", *SubjectState._fields]
    assert [one["name"] for one in described["outputs"]] == ["frame", "angles_deg", "translation_m"]
    assert "onnxruntime" in (tmp_path / "USAGE.txt").read_text()
    assert {file.name for file in tmp_path.iterdir()} == {"frame.onnx", "interface.json", "USAGE.txt"}


def test_the_two_paths_one_after_the_other_are_the_model_also_in_the_relative_mode(model: Head3D):
    frame, subject = (one.module for one in paths_of(model, 2, 3))
    images, masks = pictures()
    with torch.no_grad():
        state = dict(zip(subject.outputs, subject(images[:3], masks[:3]), strict=True))
        given, zero = [state[name] for name in SubjectState._fields[:-2]], torch.zeros(1, 3)
        _, angles, shift = frame(images[3:5], masks[3:5], *given, zero, zero)
        offsets = state["reference_deg"] - angles[:1], state["reference_m"] - shift[:1]
        found = frame(images[5:7], masks[5:7], *given, *offsets)[0]
        first = model.pose(images[3:4] * masks[3:4])
    expected = model.drive(model.subject(images[:3], masks[:3], 0), images[5:7], masks[5:7], first).image
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_judged_frames_are_not_the_traced_ones_and_the_head_is_turned(model: Head3D):
    for one in paths_of(model, 1, 2):
        assert not torch.equal(one.traced[0], one.judged[0])
    frame = paths_of(model, 1, 2)[0]
    assert frame.judged[-2].abs().max() > 5  # straight ahead, the splat has nothing to decide


def test_a_file_that_gives_other_frames_is_removed(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def wrong(one: exporting.Exported, file: Path) -> list[np.ndarray]:
        file.write_bytes(b"x")
        return [part.numpy() + 0.01 for part in one.module(*one.judged)]

    monkeypatch.setitem(exporting.WRITERS, "torch", ("pt2", wrong))
    with pytest.raises(StageError, match=r"frame\.pt2 does not give the model's pictures.*--format onnx"):
        export_model(checkpoints, tmp_path, "torch", 1, 2)
    assert not (tmp_path / "frame.pt2").exists()
    with pytest.raises(StageError, match="take torch or onnx"):
        export_model(checkpoints, tmp_path, "tflite", 1, 2)
    assert difference([torch.zeros(2, 2)], [np.full((2, 2), np.nan)])["share_above_half_a_level"] == 0
    nowhere = difference([torch.zeros(2, 2)], [np.full((2, 2), np.nan)])
    assert not nowhere["mean"] <= exporting.MOST_MEAN


def test_a_subjects_state_is_written_for_the_frame_path(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tasks import prepared

    frames = face(6, 48, 1).copy()
    head = np.zeros((6, 48, 48), np.uint8)
    head[:, 10:40, 12:36] = 1
    monkeypatch.setattr(
        prepared, "prepare", lambda *_: prepared.HeadVideo(frames, head, 25.0, {}, 0, np.arange(6) / 25)
    )
    export_state(checkpoints, tmp_path / "me.mp4", tmp_path / "out", 3)
    state = np.load(tmp_path / "out" / "state.npz")
    assert set(state.files) == {*SubjectState._fields, "reference_deg", "reference_m"}
    assert state["reference"].shape == (1, 3, 48, 48)
    assert (state["offset_deg"] == 0).all()
