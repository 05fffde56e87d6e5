"""Canonical heads made once for stage 3: those that a step would make, of frames that are not the driving one."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import Tensor

from models.canonical import RecurrentCanonical, mean_canonical, warp_references
from models.config import CoderNet, Optim
from models.geometry import intrinsics
from tasks.clip_data import ClipSet, Drawn, Recolour, step_generator
from tasks.head_bank import HeadBank, make_heads
from tests.tasks.factory import make_params
from tests.tasks.rendered import rendered_clip

SIZE, FRAMES = 48, 4


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    """Two clips of one video and one of another, with their true masks and made-up geometry."""
    drawn = [rendered_clip(person, FRAMES, SIZE) for person in (0, 1, 2)]
    generator = torch.Generator().manual_seed(0)
    table = pd.DataFrame({"clip": ["a", "b", "c"], "video": ["v", "v", "w"], "split": "train"})
    return ClipSet(
        table,
        torch.stack([torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip in drawn]),
        torch.stack([torch.from_numpy(clip.head).byte()[:, None] for clip in drawn]),
        torch.stack([torch.from_numpy(clip.landmarks) for clip in drawn]),
        torch.ones(3, FRAMES, SIZE, SIZE, dtype=torch.float16),
        torch.randn(3, FRAMES, 3, generator=generator) * 10,
        torch.zeros(3, FRAMES, 3),
    )


@pytest.fixture(scope="module")
def network() -> RecurrentCanonical:
    torch.manual_seed(0)
    canonical = RecurrentCanonical(CoderNet(width=4, residual_blocks=1)).eval()
    torch.nn.init.normal_(canonical.decoder.out.weight, std=0.1)
    return canonical


def optim(**more: object) -> Optim:
    values = {"batch_videos": 16, "references": 2, "span": "clip", "seed": 3, "precision": "float32"}
    return make_params().fusion.train.model_copy(update={**values, **more})


@pytest.fixture(scope="module")
def bank(clips: ClipSet, network: RecurrentCanonical) -> HeadBank:
    return make_heads(clips, optim(), 2, network, intrinsics(SIZE, SIZE, 10.0))


def drawn_head(index: int, variant: int, flip: bool) -> Drawn:
    return {"head": torch.tensor([[index, variant]]), "flip": torch.tensor([flip])}


@torch.no_grad()
def test_a_head_of_the_bank_is_what_a_step_would_make(clips: ClipSet, network: RecurrentCanonical, bank: HeadBank):
    same = Recolour(torch.ones(1, 3), torch.zeros(1))
    for index, variant in ((0, 1), (2, 0)):
        where = (bank.clip[index, variant], bank.frame[index, variant])
        heads, masks = clips.heads(*where)
        K = intrinsics(SIZE, SIZE, 10.0)
        warped, warp = warp_references(heads[None], masks[None], clips.depths(*where)[None], clips.poses(*where), K)
        wanted = network(heads[None], mean_canonical(warped, warp), warp)
        found = bank.take(drawn_head(index, variant, False), same)
        assert (found.image - wanted.image).abs().max() < 0.01  # stored in 8 bits
        assert (found.mask - wanted.mask).abs().max() < 0.003
        assert (found.depth - wanted.depth).abs().max() < 1e-3  # float16
        turned = bank.take(drawn_head(index, variant, True), same)
        assert torch.equal(turned.image, found.image.flip(-1))
        assert torch.equal(turned.depth, found.depth.flip(-1))


def test_colours_change_as_those_of_the_frames_do(bank: HeadBank):
    drawn = drawn_head(0, 0, False)
    plain = bank.take(drawn, Recolour(torch.ones(1, 3), torch.zeros(1)))
    recolour = Recolour(torch.tensor([[0.9, 1.1, 0.85]]), torch.tensor([0.4]))
    changed = bank.take(drawn, recolour)
    known: Tensor = plain.mask > 0.99
    wanted = recolour(plain.image)
    assert (changed.image - wanted).abs()[known.expand(-1, 3, -1, -1)].max() < 0.02
    assert changed.image[(plain.mask == 0).expand(-1, 3, -1, -1)].abs().max() == 0


@pytest.mark.parametrize("span", ["clip", "video"])
def test_the_driving_frame_is_none_of_the_references(clips: ClipSet, network: RecurrentCanonical, span: str):
    config = optim(span=span)
    bank = make_heads(clips, config, 2, network, intrinsics(SIZE, SIZE, 10.0))
    crossed = False
    for step in range(6):
        drawn = bank.draw(clips, config, step_generator(config, step))
        for (index, variant), clip, frame in zip(
            drawn["head"].tolist(), drawn["clip"].tolist(), drawn["frame"].tolist(), strict=True
        ):
            taken = list(zip(bank.clip[index, variant].tolist(), bank.frame[index, variant].tolist(), strict=True))
            assert (clip[0], frame[0]) == taken[0]
            assert (clip[1], frame[1]) not in taken
            videos = clips.table["video"].iloc[[index, *clip]]
            assert videos.nunique() == 1
            crossed |= clip[1] != index
    assert crossed == (span == "video")
    again = bank.draw(clips, config, step_generator(config, 5))
    assert all(torch.equal(again[name], drawn[name]) for name in drawn)
