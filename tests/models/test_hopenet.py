"""HopeNet's public checkpoint format: the same angles as the public code, and clear words about other files."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import mobilenet_v2

from models.config import Camera, DepthNet, PoseNet
from models.depth_net import DepthNetwork
from models.geometry import rotation_from_euler
from models.hopenet import HopeNet, angles_from_hopenet, load_hopenet
from models.initial import start_depth, start_pose
from models.pose_net import PoseNetwork
from models.pretrained import REGISTRY, WeightsFormatError, WeightsMissingError, load_official
from tests.models.hopenet_file import picture, public_state

CAMERA = Camera(
    fov_deg=10, depth_min_m=0.9, depth_max_m=1.1, border_depth_m=1.04, max_angle_deg=60, max_translation_m=0.1
)
PUBLIC_ANGLES = [[-11.5629, -10.2237, -5.3106], [-24.4272, -22.0907, -1.2881]]
"""Yaw, pitch and roll of `picture()` with `public_state()`, printed by a run of the public network definition
(deep-head-pose at f7bbb99, code/hopenet.py, strict loading, torch on a CPU)."""


@pytest.fixture(scope="module")
def state() -> OrderedDict[str, Tensor]:
    return public_state()


@pytest.fixture(scope="module")
def file(state: OrderedDict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hopenet") / "hopenet_robust_alpha1.pkl"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as old as the public one
    return path


@torch.no_grad()
def test_the_angles_are_those_of_the_public_code(file: Path) -> None:
    network = load_official("hopenet", file)
    assert isinstance(network, HopeNet)
    assert isinstance(network, PoseNetwork)
    assert not network.training
    public = network.public_angles_deg(picture())
    assert (public - torch.tensor(PUBLIC_ANGLES)).abs().max() < 2e-3
    found = network(picture())
    assert torch.allclose(found.angles_deg, angles_from_hopenet(public), atol=1e-4)
    assert found.translation_m.abs().max() == 0


@torch.no_grad()
def test_it_starts_f_p_with_the_bounds_of_the_settings(file: Path) -> None:
    network = load_hopenet(file, CAMERA)
    plain = PoseNetwork(PoseNet(backbone="resnet50", initial="random", input_px=224), CAMERA)
    plain.load_state_dict(network.state_dict(), strict=True)  # the same weights as any F_P on ResNet-50
    raw = network.public_angles_deg(picture())
    # F_P's own forward bounds softly; without that it is the public figure.
    bounded = plain.eval()(picture()).angles_deg
    assert torch.allclose(bounded, 60 * torch.tanh(raw / 60), atol=1e-3)
    turned = network(picture()).angles_deg
    assert torch.allclose(turned, 60 * torch.tanh(angles_from_hopenet(raw) / 60), atol=1e-3)


def test_angles_keep_the_rotation_and_look_up_becomes_negative() -> None:
    one = angles_from_hopenet(torch.tensor([[20.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 20.0]]))
    expected = torch.tensor([[20.0, 0.0, 0.0], [0.0, -20.0, 0.0], [0.0, 0.0, 20.0]])
    assert torch.allclose(one, expected, atol=1e-4)
    yaw, pitch, roll = 35.0, -15.0, 10.0
    ours = angles_from_hopenet(torch.tensor([[yaw, pitch, roll]]))
    turn = rotation_from_euler(*ours.unbind(-1))[0]
    # The axes as the public code draws them on the picture: x to the right, y down, and the nose.
    y, p, r = -math.radians(yaw), math.radians(pitch), math.radians(roll)
    right = (math.cos(y) * math.cos(r), math.cos(p) * math.sin(r) + math.cos(r) * math.sin(p) * math.sin(y))
    down = (-math.cos(y) * math.sin(r), math.cos(p) * math.cos(r) - math.sin(p) * math.sin(y) * math.sin(r))
    nose = (math.sin(y), -math.cos(y) * math.sin(p))
    for ours_axis, drawn in ((turn[:2, 0], right), (turn[:2, 1], down), (-turn[:2, 2], nose)):
        assert torch.allclose(ours_axis, torch.tensor(drawn), atol=1e-5)


def test_gradients_pass_through_the_angles() -> None:
    angles = torch.tensor([[30.0, 10.0, -5.0], [0.0, 0.0, 0.0]], requires_grad=True)
    angles_from_hopenet(angles).sum().backward()
    assert angles.grad is not None
    assert torch.isfinite(angles.grad).all()


def without(state: OrderedDict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(names)}


def test_other_files_are_refused_with_the_reason(state: OrderedDict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "other.pkl"
    small = {key: value for key, value in state.items() if value.numel() < 5000}
    cases: list[tuple[object, str]] = [
        ({f"module.{key}": value for key, value in small.items()}, r"saved from DataParallel.*removeprefix"),
        (without(state, "fc_yaw", "layer"), r"lacks \d+ keys: layer1\.0\.conv1\.weight.* more"),
        ({**without(state, "layer"), "angles.weight": torch.ones(1)}, r"keys that HopeNet has not: angles\.weight"),
        ({"epoch": 3, "state_dict": small}, r"holds a dict with the keys epoch, state_dict"),
        (torch.ones(3), "holds a Tensor"),
    ]
    for content, words in cases:
        torch.save(content, path)
        with pytest.raises(WeightsFormatError, match=words):
            load_official("hopenet", path)
    for damaged in ("<html>quota exceeded</html>", "half a download", ""):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(WeightsFormatError, match="cannot be read"):
            load_official("hopenet", path)


def test_other_networks_are_refused_with_the_shape(state: OrderedDict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "other.pkl"
    torch.save({**state, "fc_roll.weight": torch.zeros(62, 2048)}, path)
    with pytest.raises(WeightsFormatError, match=r"fc_roll\.weight \(62, 2048\) instead of \(66, 2048\)"):
        load_official("hopenet", path)


def test_names_and_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is: hopenet"):
        load_official("hopnet")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsMissingError, match=r"hopenet_robust_alpha1\.pkl.*is missing"):
        load_official("hopenet")
    assert "300W-LP" in REGISTRY["hopenet"].licence


@torch.no_grad()
def test_f_p_starts_from_the_file_where_it_is_at_hand(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PoseNetwork(PoseNet(backbone="resnet50", initial="random", input_px=224), CAMERA).eval()
    monkeypatch.setenv("TORCH_HOME", str(file.parent / "nothing"))
    assert start_pose(plain, "if_present") == "random"
    with pytest.raises(WeightsMissingError, match=r"hopenet_robust_alpha1\.pkl"):
        start_pose(plain, "pretrained")
    folder = file.parent / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("TORCH_HOME", str(file.parent / "home"))
    assert start_pose(plain, "if_present") == "hopenet"
    monkeypatch.setenv("TORCH_HOME", str(file.parent / "other"))
    other = file.parent / "other" / "hub" / "checkpoints" / file.name
    other.parent.mkdir(parents=True)
    torch.save({"module.conv1.weight": torch.zeros(1)}, other)
    with pytest.raises(WeightsFormatError, match="saved from DataParallel"):
        start_pose(PoseNetwork(PoseNet(backbone="resnet50", initial="random", input_px=224), CAMERA), "if_present")
    public = load_hopenet(file)
    feature = torch.rand(5, 2048)
    index = torch.arange(66.0)
    for head, sign in (("fc_yaw", 1), ("fc_pitch", -1), ("fc_roll", 1)):
        theirs, ours = (
            (getattr(net, head)(feature)[:, 1:].softmax(-1) * index[1:]).sum(-1) * 3 - 99 for net in (public, plain)
        )
        assert torch.allclose(ours, sign * theirs, atol=1e-3)


def test_f_d_starts_from_imagenet_where_the_file_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(1)
    public = mobilenet_v2(weights=None)  # torchvision's file holds this state dict
    file = tmp_path / "hub" / "checkpoints" / REGISTRY["mobilenet_v2"].file
    file.parent.mkdir(parents=True)
    torch.save(public.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(REGISTRY, "mobilenet_v2", replace(REGISTRY["mobilenet_v2"], sha256=digest))
    network = DepthNetwork(DepthNet(encoder="mobilenet_v2", initial="if_present", width=32), CAMERA).eval()
    assert start_depth(network, "if_present") == "imagenet"
    image = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        theirs = public.eval().features((image - mean) / std)
        assert torch.allclose(network.encoder(image)[-1], theirs, atol=1e-5)
    file.write_bytes(b"half a download")
    for initial in ("if_present", "pretrained"):
        with pytest.raises(WeightsFormatError, match="damaged or another file: get it again"):
            start_depth(network, initial)
    file.unlink()
    assert start_depth(network, "if_present") == "random"
    with pytest.raises(WeightsMissingError, match="is missing"):
        start_depth(network, "pretrained")
