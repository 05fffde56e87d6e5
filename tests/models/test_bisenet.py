"""BiSeNet: the public checkpoint's keys and shapes, and the public code's output."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from models import pretrained
from models.bisenet import BiSeNet
from models.pretrained import WeightsMissingError, find_weights, load_registered
from tasks.labels import NAMES

KEYS, VALUES = 191, 13_313_119
LAYOUT_SHA256 = "3fbee299cf8e9aea98e8191ab6109a896e5a6e9a327f9ba3b7dd024092096823"
"""Of the lines `key shape`, sorted, of the state dict of the public code's `BiSeNet(19)`."""

PLACES = [(0, 0, 0, 0), (0, 18, 71, 87), (1, 7, 35, 44), (1, 17, 3, 80), (0, 10, 50, 13)]
EXPECTED = {
    "main": ((-1.11304, 0.82753, -8.11544, 0.97673, -0.52996), 1.05225, 3.29890),
    "at_8": ((-3.37185, 0.66392, 1.72697, -0.55489, 0.03959), -0.20129, 2.70170),
    "at_16": ((-1.02216, -2.41616, -3.58366, -1.77878, 0.18960), -1.16307, 1.70411),
}
"""Values at PLACES, mean and standard deviation of the three outputs of the public code with the weights and the image
that `noise` below makes: zllrunning/face-parsing.PyTorch, commit d2e684c, model.py and resnet.py, eval mode, float64,
torch 2.11."""


def noise(count: int, seed: int) -> np.ndarray:
    """`count` float32 values in [-1, 1) that every machine makes alike: mixed integers, no generator."""
    low = np.uint64(0xFFFFFFFF)
    x = (np.arange(count, dtype=np.uint64) + np.uint64(seed * 7919 + 1)) * np.uint64(2654435761) & low
    x ^= x >> np.uint64(15)
    x = x * np.uint64(2246822519) & low
    x ^= x >> np.uint64(13)
    return (x / 2**32 * 2 - 1).astype(np.float32)


def noisy_weights(network: BiSeNet) -> dict[str, torch.Tensor]:
    """Weights from `noise` by the key's place in the sorted list; the outputs stay in about +-10."""
    state = network.state_dict()
    for index, key in enumerate(sorted(state)):
        value = state[key]
        if not value.is_floating_point():
            continue
        values = torch.from_numpy(noise(value.numel(), index)).view(value.shape)
        if value.ndim == 4:
            values = values * (3.5 / value[0].numel()) ** 0.5
        elif key.endswith("running_var"):
            values = 1 + 0.5 * values
        elif key.endswith("weight"):
            values = 1 + 0.25 * values
        else:
            values = 0.2 * values
        state[key] = values
    return state


@pytest.fixture(scope="module")
def network() -> BiSeNet:
    made = BiSeNet().eval()
    made.load_state_dict(noisy_weights(made), strict=True)
    return made


def test_keys_and_shapes_are_the_checkpoints(network: BiSeNet) -> None:
    state = network.state_dict()
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in sorted(state.items()))
    assert (len(state), sum(value.numel() for value in state.values())) == (KEYS, VALUES)
    assert hashlib.sha256(lines.encode()).hexdigest() == LAYOUT_SHA256


def test_it_computes_what_the_public_code_computes(network: BiSeNet) -> None:
    image = torch.from_numpy((noise(2 * 3 * 72 * 88, 999).reshape(2, 3, 72, 88) + 1) / 2)
    with torch.no_grad():
        heads, main = network.heads(image), network(image)
    assert torch.equal(heads.main, main)
    for name, (values, mean, deviation) in EXPECTED.items():
        found = getattr(heads, name)
        assert found.shape == (2, len(NAMES), 72, 88)
        assert [float(found[place]) for place in PLACES] == pytest.approx(values, abs=2e-4)
        assert float(found.mean()) == pytest.approx(mean, abs=1e-4)
        assert float(found.std()) == pytest.approx(deviation, abs=1e-4)


def test_class_ids_are_the_public_codes() -> None:
    # its prepropess_data.py numbers the dataset's masks from 1 in this order
    public = "skin l_brow r_brow l_eye r_eye eye_g l_ear r_ear ear_r nose mouth u_lip l_lip neck neck_l cloth hair hat"
    ours = {
        "l_brow": "left brow", "r_brow": "right brow", "l_eye": "left eye", "r_eye": "right eye", "eye_g": "glasses",
        "l_ear": "left ear", "r_ear": "right ear", "ear_r": "earring", "u_lip": "upper lip", "l_lip": "lower lip",
        "neck_l": "necklace",
    }  # fmt: skip
    assert ("background", *(ours.get(name, name) for name in public.split())) == NAMES


def test_the_file_is_looked_for_and_checked(network: BiSeNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    with pytest.raises(WeightsMissingError, match=r"79999_iter\.pth.*put it into") as missing:
        find_weights("bisenet")
    assert str(folder) in str(missing.value)
    folder.mkdir(parents=True)
    file = folder / "79999_iter.pth"
    torch.save(network.state_dict(), file, _use_new_zipfile_serialization=False)  # as old as the public one
    with pytest.raises(WeightsMissingError, match="468e13ca"):
        find_weights("bisenet")
    with pytest.raises(WeightsMissingError, match="468e13ca"):
        load_registered("bisenet", file)
    with pytest.raises(WeightsMissingError, match="nowhere"):
        load_registered("bisenet", tmp_path / "nowhere.pth")
    entry = pretrained.REGISTRY["bisenet"]
    changed = pretrained.Weights(
        entry.file, entry.url, hashlib.sha256(file.read_bytes()).hexdigest(), entry.licence, entry.purpose
    )
    monkeypatch.setitem(pretrained.REGISTRY, "bisenet", changed)
    fresh = BiSeNet()
    fresh.load_state_dict(load_registered("bisenet"), strict=True)
    assert torch.equal(fresh.conv_out.conv_out.weight, network.conv_out.conv_out.weight)


def test_a_file_that_holds_more_than_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "79999_iter.pth"
    torch.save({"weight": torch.ones(1), "run": Path("x")}, file)
    entry = pretrained.REGISTRY["bisenet"]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    changed = pretrained.Weights(entry.file, entry.url, digest, entry.licence, entry.purpose)
    monkeypatch.setitem(pretrained.REGISTRY, "bisenet", changed)
    with pytest.raises(WeightsMissingError, match="tensors"):
        load_registered("bisenet", file)
