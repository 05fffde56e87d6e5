"""The path from a network's probabilities to labels: sizes, smoothing over time, islands. The network is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bisenet import BiSeNet
from tasks import labels
from tasks.errors import StageError
from tasks.labels import HEAD_AND_HAT
from tasks.parser_network import ParserNetwork, load_network
from tasks.segment import check_parser, segment
from tasks.segment_network import enlarged_labels, find_islands, segment_network, steady
from tests.tasks.colour_parser import ColourParser, painted, use_colour_parser
from tests.tasks.factory import head_clip, make_params
from tests.tasks.rendered import rendered_clip

NOWHERE = np.full((64, 4), np.nan)


@pytest.fixture
def network() -> ParserNetwork:
    return ParserNetwork(ColourParser(), torch.device("cpu"), 32, mirror=False)


@pytest.fixture
def colour_parser(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_colour_parser(monkeypatch)
    yield
    load_network.cache_clear()


def disc(side: int, centre: tuple[float, float], radius: float, label: int = labels.SKIN) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side]
    inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    return np.where(inside, label, labels.BACKGROUND).astype(np.uint8)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float((a == b).mean())


@pytest.mark.parametrize(("side", "least"), [(64, 1.0), (128, 0.98), (48, 0.96), (200, 0.98)])
def test_labels_come_back_at_the_frames_size(network: ParserNetwork, side: int, least: float) -> None:
    _, class_ids = head_clip(1, 0.0, 3, side)
    found = segment_network(painted(class_ids), NOWHERE, network, 64, 1)
    assert found.dtype == np.uint8
    assert found.shape == class_ids.shape
    assert agreement(found, class_ids) >= least


def test_a_frame_that_is_not_square(network: ParserNetwork) -> None:
    class_ids = np.zeros((2, 96, 160), np.uint8)
    class_ids[:, 20:70, 40:120] = labels.HAIR
    found = segment_network(painted(class_ids), NOWHERE, network, 64, 1)
    assert agreement(found, class_ids) > 0.97


def test_enlarged_outlines_are_smooth_not_stepped() -> None:
    truth = disc(512, (255.5, 255.5), 150)
    covered = (truth == labels.SKIN).reshape(64, 8, 64, 8).mean(axis=(1, 3))
    share = torch.zeros(64, 64, 19)
    share[..., labels.SKIN] = torch.from_numpy(covered)
    share[..., labels.BACKGROUND] = 1 - share[..., labels.SKIN]
    found = enlarged_labels(share, share.argmax(dim=-1).byte().numpy(), (512, 512))
    stepped = np.kron((covered > 0.5).astype(np.uint8), np.ones((8, 8), np.uint8))
    assert (found != truth).sum() < 0.25 * (stepped != truth).sum()


def test_a_large_picture_in_strips_is_the_same(network: ParserNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    _, class_ids = head_clip(2, 0.0, 1, 64)
    share = network.probabilities(painted(class_ids))[0]
    whole = enlarged_labels(share, class_ids[0], (301, 203))
    monkeypatch.setattr("tasks.segment_network.LARGE_PIXELS", 5_000)
    assert agreement(enlarged_labels(share, class_ids[0], (301, 203)), whole) > 0.9999


def test_the_batches_sizes_do_not_show(network: ParserNetwork) -> None:
    _, class_ids = head_clip(3, 0.0, 11, 32)
    frames = painted(class_ids)

    def run(cuts: list[int]) -> torch.Tensor:
        return torch.cat(list(steady(np.split(frames, cuts), network, 5)))

    whole = run([])
    assert whole.shape == (11, 32, 32, 19)
    for cuts in ([1, 2, 3], [4, 8], [10], list(range(1, 11))):
        assert torch.allclose(run(cuts), whole, atol=1e-6)
    assert torch.equal(torch.cat(list(steady([frames], network, 1))), network.probabilities(frames))


def test_flicker_of_a_still_picture_is_steadied(network: ParserNetwork) -> None:
    share = network.probabilities(painted(disc(32, (16, 16), 9))[None])
    frames = np.full((9, 32, 32, 3), 128, np.uint8)

    class Flickering(ParserNetwork):
        def probabilities(self, images: np.ndarray) -> torch.Tensor:
            out = share.repeat(len(images), 1, 1, 1)
            out[4] = network.probabilities(painted(disc(32, (16, 16), 5))[None])[0]  # one frame goes wrong
            return out

    odd = Flickering(ColourParser(), torch.device("cpu"), 32, mirror=False)
    raw, steadied = (segment_network(frames, NOWHERE, odd, 32, window) for window in (1, 3))
    assert not np.array_equal(raw[4], raw[3])
    assert np.array_equal(steadied[4], steadied[3])


def test_a_moving_edge_is_not_smeared(network: ParserNetwork) -> None:
    class_ids = np.stack([disc(64, (16 + 4 * t, 32), 12) for t in range(9)])
    raw, steadied = (segment_network(painted(class_ids), NOWHERE, network, 64, window) for window in (1, 5))
    assert np.array_equal(raw, class_ids)
    assert agreement(steadied, class_ids) > 0.995


def test_only_the_head_under_the_face_box_stays(network: ParserNetwork) -> None:
    small, large = disc(64, (14, 20), 8), disc(64, (44, 40), 15)
    class_ids = np.maximum(small, large)
    class_ids[50:, :30] = labels.CLOTH
    frames = painted(class_ids)[None]
    largest = segment_network(frames, NOWHERE, network, 64, 1)[0]
    assert not np.isin(largest[:, :28], HEAD_AND_HAT).any()
    assert (largest[52:, :28] == labels.CLOTH).all()
    assert agreement(largest[:, 28:], class_ids[:, 28:]) == 1.0
    chosen = segment_network(frames, np.array([[8.0, 14, 20, 26]]), network, 64, 1)[0]
    assert agreement(chosen[:32, :24], class_ids[:32, :24]) == 1.0
    assert not np.isin(chosen[:, 28:], labels.SKIN).any()


def test_an_earring_just_off_the_ear_is_no_island() -> None:
    class_ids = disc(128, (64, 60), 30)
    class_ids[92:98, 60:64] = labels.EARRING  # two pixels below
    assert find_islands(class_ids, np.full(4, np.nan)) is None
    class_ids[110:114, 60:64] = labels.EARRING
    islands = find_islands(class_ids, np.full(4, np.nan))
    assert islands is not None
    assert islands.sum() == 16


def test_the_method_of_the_settings_is_used(colour_parser: None) -> None:
    settings = make_params(parse={"parser": "embedded", "work_px": 64, "smooth_frames": 3}).parse
    _, class_ids = head_clip(4, 0.0, 25, 64)  # more than a batch
    unknown = np.full((25, 5, 2), np.nan)
    found = segment(painted(class_ids), unknown, np.full((25, 4), np.nan), settings, "cpu")
    assert agreement(found, class_ids) > 0.99
    check_parser(settings)


def test_the_side_is_one_that_the_network_takes(network: ParserNetwork) -> None:
    assert [network.side(px) for px in (1, 100, 128, 145, 512)] == [32, 96, 128, 160, 512]


def test_bisenet_without_its_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = make_params(parse={"parser": "bisenet"}).parse
    with pytest.raises(StageError, match=r"79999_iter\.pth.*put it into"):
        check_parser(settings)


def test_bisenet_is_loaded_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = BiSeNet().eval()
    monkeypatch.setattr("tasks.parser_network.load_registered", lambda _name, _file: network.state_dict())
    load_network.cache_clear()
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    share = load_network("bisenet", "cpu", mirror=False).probabilities(frames)
    load_network.cache_clear()
    with torch.inference_mode():
        expected = network(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255).softmax(dim=1)
    assert torch.allclose(share, expected.permute(0, 2, 3, 1), atol=1e-5)


def test_the_shipped_weights_find_rendered_heads() -> None:
    clip = rendered_clip(2, 4, 96)
    load_network.cache_clear()
    settings = make_params(parse={"parser": "embedded", "work_px": 128, "smooth_frames": 3}).parse
    found = np.isin(segment(clip.frames, clip.landmarks, clip.face_box, settings, "cpu"), settings.head_labels)
    both, either = (found & clip.head).sum(axis=(1, 2)), (found | clip.head).sum(axis=(1, 2))
    assert (both / either).min() > 0.88


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_half_precision_on_a_gpu_gives_the_same_labels() -> None:
    clip = rendered_clip(2, 4, 96)
    settings = make_params(parse={"parser": "embedded", "work_px": 128, "smooth_frames": 3}).parse
    one, other = (segment(clip.frames, clip.landmarks, clip.face_box, settings, name) for name in ("cpu", "cuda"))
    assert agreement(one, other) > 0.998
