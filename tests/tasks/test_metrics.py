"""Figures against hand-computed values and against `lpips` called directly; what `compare` refuses."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import socket
import warnings
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from PIL import Image

from models.config import Evaluate
from models.pretrained import REGISTRY, Weights
from tasks.errors import StageError
from tasks.metrics import MAX_PSNR_DB, compare, l2, psnr_db
from tasks.perceptual_metric import PerceptualMetric, find_backbone_weights
from tasks.video import write_video
from tests.tasks.factory import head_clip

SETTINGS = Evaluate(lpips_backbone="alex", lpips_weights="", frame_stride=2)


@pytest.fixture(autouse=True)
def no_weights_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub folder, whatever this machine has, and no way to the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_arguments: object, **_names: object) -> None:
        raise AssertionError("something wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "hub"


def random_video(seed: int, frames: int = 5, size_px: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, size_px, size_px, 3), dtype=np.uint8)


def random_lpips() -> lpips.LPIPS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it passes torchvision's old `pretrained=`
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


def make_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of torchvision's AlexNet: its keys and shapes, other numbers, registered by its own hash."""
    net = random_lpips().net
    generator = torch.Generator().manual_seed(3)
    state = {
        "features." + key.split(".", 1)[1]: 0.05 * torch.randn(value.shape, generator=generator)
        for key, value in net.state_dict().items()
    }
    state["classifier.6.bias"] = torch.zeros(1000)
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "raw.pth"
    torch.save(state, raw)
    prefix = hashlib.sha256(raw.read_bytes()).hexdigest()[:8]
    path = raw.rename(folder / f"alexnet-owt-{prefix}.pth")
    entry = Weights(path.name, "https://example.org/", prefix, "none", "test")
    monkeypatch.setitem(REGISTRY, "alexnet", entry)
    return path


def test_l2_and_psnr_by_hand() -> None:
    truth = np.zeros((2, 1, 2, 3), np.uint8)
    pred = truth.copy()
    pred[0, 0, 0] = 255, 51, 0  # errors 1, 0.2, 0 and nine zeros
    assert l2(pred, truth) == pytest.approx((1 + 0.04) / 12, rel=1e-12)
    assert l2(truth, pred) == l2(pred, truth)  # no uint8 wrap-around
    assert psnr_db(0.01) == pytest.approx(20.0)
    assert psnr_db(0.0113) == pytest.approx(19.47, abs=0.005)  # the paper's Table 1
    assert psnr_db(0.0) == MAX_PSNR_DB


@pytest.mark.parametrize("pred", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((1, 4, 4, 3), np.uint8)])
def test_l2_refuses_other_types_and_shapes(pred: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        l2(pred, np.zeros((2, 4, 4, 3), np.uint8))


def test_perceptual_equals_lpips_called_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_weights(tmp_path / "weights", monkeypatch)
    metric = PerceptualMetric(SETTINGS.model_copy(update={"lpips_weights": str(path)}))
    pred, truth = random_video(1), random_video(2)
    reference = random_lpips()
    state = torch.load(path, weights_only=True)
    for part in (reference.net.slice1, reference.net.slice2, reference.net.slice3, reference.net.slice4,
                 reference.net.slice5):  # fmt: skip
        for number, layer in part.named_children():
            if isinstance(layer, torch.nn.Conv2d):
                names = ("weight", "bias")
                layer.load_state_dict({name: state[f"features.{number}.{name}"] for name in names})

    def signed(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 * 2 - 1

    with torch.no_grad():
        frames = [float(reference(signed(pred[t]), signed(truth[t]))) for t in (0, 2, 4)]  # stride 2
    assert metric.name == "lpips"
    assert metric.video(pred, truth) == pytest.approx(np.mean(frames), rel=1e-5)
    assert metric.weights.sha256[:8] in metric.definition


def test_without_weights_the_figure_has_another_name_and_says_which_file_to_put_where(tmp_path: Path) -> None:
    metric = PerceptualMetric(SETTINGS)
    assert metric.name == "lpips_random_backbone"
    for part in ("not LPIPS", "alexnet-owt-7be5be79.pth", "7be5be79", str(tmp_path / "hub" / "checkpoints"), "seed 0"):
        assert part in metric.definition
    pred, truth = random_video(1), random_video(2)
    value = metric.video(pred, truth)
    torch.rand(3)  # the seed must not depend on what was drawn before
    assert PerceptualMetric(SETTINGS).video(pred, truth) == value
    assert metric.video(truth, truth) == 0
    assert 0 < value < 10
    assert math.isnan(metric.video(pred[:, :16, :16], truth[:, :16, :16]))


def test_building_the_metric_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    PerceptualMetric(SETTINGS)
    assert torch.equal(torch.rand(1), expected)


def test_weights_in_torch_hub_are_found_and_a_broken_file_is_not_used(
    no_weights_no_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_weights(no_weights_no_network / "checkpoints", monkeypatch)
    assert find_backbone_weights("alex", "").file == path
    path.write_bytes(path.read_bytes()[:-100])
    found = find_backbone_weights("alex", "")
    assert found.file is None
    assert "instead of" in found.message
    with pytest.raises(StageError, match="instead of"):
        find_backbone_weights("alex", str(path))
    with pytest.raises(StageError, match="no such file"):
        find_backbone_weights("alex", str(path) + "x")


def test_compare_folders_lists_what_does_not_fit(tmp_path: Path) -> None:
    pred, truth = tmp_path / "pred", tmp_path / "truth"
    for folder in (pred, truth):
        (folder / "more").mkdir(parents=True)
    moved, _ = head_clip(1, 0.0, 6, 64)
    write_video(pred / "same.mp4", moved, 25)
    shutil.copy(pred / "same.mp4", truth / "same.mp4")
    write_video(pred / "length.mp4", moved, 25)
    write_video(truth / "length.mp4", moved[:4], 25)
    write_video(pred / "size.mp4", moved, 25)
    write_video(truth / "size.mp4", moved[:, :32, :32], 25)
    grey = np.full((40, 40, 3), 100, np.uint8)
    Image.fromarray(grey).save(pred / "more" / "image.png")
    Image.fromarray(grey + 51).save(truth / "more" / "image.png")
    Image.fromarray(grey).save(pred / "twice.png")
    Image.fromarray(grey).save(pred / "twice.bmp")
    Image.fromarray(grey).save(truth / "twice.png")
    Image.fromarray(grey).save(pred / "alone.png")
    (truth / "broken.png").write_text("no image")
    Image.fromarray(grey).save(pred / "broken.png")
    (truth / "notes.txt").write_text("not a video")
    (truth / "zero.mp4").touch()
    result = compare(pred, truth, SETTINGS)
    assert json.loads(json.dumps(result)) == result
    items = {item["name"]: item for item in result["items"]}
    assert set(items) == {"same", "more/image"}
    assert items["same"]["l2"] == 0
    assert items["same"]["frames"] == 6
    assert items["more/image"]["l2"] == pytest.approx(0.04)
    assert result["l2"] == pytest.approx(0.02)
    assert result["psnr_db"] == pytest.approx((MAX_PSNR_DB + 10 * math.log10(25)) / 2)
    reasons = {item["name"]: item["reason"] for item in result["refused"]}
    assert "6 and 4 frames" in reasons["length"]
    assert "64x64 and 32x32" in reasons["size"]
    assert "twice.bmp, twice.png" in reasons["twice"]
    assert "not an image" in reasons["broken"]
    assert (result["only_in_pred"], result["only_in_truth"]) == (["alone"], ["zero"])
    assert "random alex backbone" in result["definitions"]["lpips_random_backbone"]


def test_compare_says_what_is_wrong(tmp_path: Path) -> None:
    moved, _ = head_clip(1, 0.0, 4, 32)
    write_video(tmp_path / "a.mp4", moved, 25)
    write_video(tmp_path / "b.mp4", moved[:3], 25)
    (tmp_path / "empty").mkdir()
    for pred, truth, message in (
        ("a.mp4", "b.mp4", "4 and 3 frames"),
        ("a.mp4", "none.mp4", "does not exist"),
        ("a.mp4", "empty", "is a folder"),
        ("empty", "empty", "same names"),
    ):
        with pytest.raises(StageError, match=message):
            compare(tmp_path / pred, tmp_path / truth, SETTINGS)
