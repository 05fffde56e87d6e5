"""Rendered heads with known truth: the same in any number of processes, and the truth is true."""

from __future__ import annotations

import itertools

import pytest
import torch

from models.geometry import Pose, intrinsics, pose_from_euler
from models.warp import warp_canonical_from_frame, warp_frame_from_canonical
from tasks.demo_render import FOV_DEG
from tasks.rendered_heads import RenderedHeads, as_clips, render_heads

SIZE_PX = 48
FRAMES = 6
SEED = 5


@pytest.fixture(scope="module")
def heads() -> RenderedHeads:
    return render_heads(3, 2, FRAMES, SIZE_PX, SEED, workers=1)


def _pose(heads: RenderedHeads, index: int, scale: float = 1.0) -> Pose:
    yaw, pitch, roll = heads.angles_deg[index].unsqueeze(1)
    return pose_from_euler(yaw, pitch, roll, heads.translation_m[index][None] * scale)


def _depth_off_mm(heads: RenderedHeads, source: int, target: int, scale: float = 1.0) -> float:
    """Median distance between one frame's depth carried to another's pose (Eq. 1 and 3) and that frame's own depth.

    Args:
        heads: The frames.
        source: Whose depth.
        target: In whose pose.
        scale: Factor of translation and relief; 1 is right.
    """
    depth = heads.depth[source][None].float()
    depth = torch.where(depth > 0, 1 + (depth - 1) * scale, torch.ones_like(depth))
    K = intrinsics(SIZE_PX, SIZE_PX, FOV_DEG)
    there = warp_canonical_from_frame(depth, heads.masks[source][None].float(), _pose(heads, source, scale), K)
    back = warp_frame_from_canonical(there.depth, there.visibility, _pose(heads, target, scale), K)
    truth = 1 + (heads.depth[target].float() - 1) * scale
    both = (back.visibility[0, 0] > 0.9) & (heads.masks[target, 0] > 0)
    assert both.sum() > 0.2 * heads.masks[target].sum()
    return float((back.depth[0] - truth).abs()[both].median()) * 1000


def test_the_fields_are_what_they_say(heads: RenderedHeads) -> None:
    count = 2 * FRAMES
    assert heads.images.shape == (count, 3, SIZE_PX, SIZE_PX)
    assert heads.images.dtype == heads.masks.dtype == torch.uint8
    assert heads.masks.shape == (count, 1, SIZE_PX, SIZE_PX)
    assert torch.equal(heads.masks[:, 0] > 0, heads.depth > 0)
    inside = heads.depth[heads.depth > 0]
    assert inside.min() > 0.9
    assert inside.max() < 1.1
    assert heads.person.tolist() == [3] * FRAMES + [4] * FRAMES
    assert (heads.angles_deg.abs() <= torch.tensor([50.0, 25.0, 25.0])).all()
    assert heads.angles_deg[:FRAMES, 0].std() > 5


def test_more_workers_draw_the_same(heads: RenderedHeads) -> None:
    again = render_heads(3, 2, FRAMES, SIZE_PX, SEED, workers=2)
    assert all(torch.equal(getattr(heads, name), getattr(again, name)) for name in vars(heads))
    alone = render_heads(4, 1, FRAMES, SIZE_PX, SEED, workers=1)
    assert torch.equal(alone.images, heads.images[FRAMES:])


@pytest.mark.parametrize("person", [0, 1])
def test_the_truth_takes_one_frame_to_another(heads: RenderedHeads, person: int) -> None:
    frames = [person * FRAMES + index for index in range(FRAMES)]
    pairs = list(itertools.pairwise(frames))
    right = [_depth_off_mm(heads, *pair) for pair in pairs]
    assert sum(right) / len(right) < 1.0
    # As if the crop's zoom were not in depth and translation.
    for wrong in (0.8, 1.25):
        off = [_depth_off_mm(heads, *pair, scale=wrong) for pair in pairs]
        assert sum(off) > 2 * sum(right)


def test_clips_hold_one_person_each(heads: RenderedHeads) -> None:
    clips = as_clips(heads, FRAMES // 2, torch.device("cpu"))
    assert len(clips) == 4
    assert clips.size_px == SIZE_PX
    assert torch.equal(clips.frames.flatten(0, 1), heads.images)
    assert torch.equal(clips.landmarks.flatten(0, 1), heads.landmarks)
    assert clips.table["identity"].tolist() == ["rendered3"] * 2 + ["rendered4"] * 2
    assert clips.table["clip"].is_unique
    for length in (4, 5, 2 * FRAMES):
        with pytest.raises(ValueError, match="mix people"):
            as_clips(heads, length, torch.device("cpu"))
