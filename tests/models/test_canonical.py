"""Canonical heads: the mean of what references show, its depth, and what Omega_H changes of it."""

import pytest
import torch
from torch import Tensor

from models.canonical import CanonicalHead, RecurrentCanonical, mean_canonical, render_head, warp_references
from models.config import CoderNet
from models.geometry import Pose, intrinsics, pose_from_euler
from models.warp import Warp, warp_frame_from_canonical

SIZE, K = 64, intrinsics(64, 64, 10.0)
Y, X = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
RADIUS = ((X - 32) ** 2 + (Y - 32) ** 2).float().sqrt()
DOME, INSIDE = 0.95 + 0.05 * (RADIUS / 20) ** 2, (RADIUS < 20).float()


def still(count: int) -> Pose:
    return Pose(torch.eye(3).expand(count, 3, 3), torch.zeros(count, 3))


def references(count: int = 2) -> tuple[Tensor, Tensor, Warp]:
    """Head images `(1, N, 3, 64, 64)` of a dome that faces the camera, each of its own brightness, warped."""
    heads = torch.stack([(0.3 + 0.4 * i) * INSIDE.expand(3, -1, -1) for i in range(count)])[None]
    masks = INSIDE.expand(1, count, 1, -1, -1)
    return heads, *warp_references(heads, masks, DOME.expand(1, count, -1, -1), still(count), K)


def test_mean_head_is_as_bright_and_as_far_as_what_one_reference_saw():
    warped = torch.zeros(1, 2, 3, SIZE, SIZE)
    visibility, depth = torch.zeros(2, 1, SIZE, SIZE), torch.full((2, SIZE, SIZE), 0.9)
    warped[0, 0, :, :32], visibility[0, :, :32], depth[0] = 0.8, 1.0, 0.97
    head = mean_canonical(warped, Warp(torch.zeros(2, SIZE, SIZE, 2), visibility, depth))
    assert torch.allclose(head.image[0, :, :32], torch.tensor(0.8))
    assert torch.allclose(head.depth[0, :32], torch.tensor(0.97))
    assert (head.image[0, :, 32:] == 0).all()
    assert (head.mask[0, :, 32:] == 0).all()
    assert (head.depth[0, 40:] == 1).all()


def test_depth_of_the_mean_head_is_that_of_its_references():
    """Turned by 15 degrees to either side, a dome comes back as it is, to a tenth of its relief."""
    angles = torch.tensor([-15.0, 15.0])
    pose = pose_from_euler(angles, 0 * angles, 0 * angles, torch.zeros(2, 3))
    facing = CanonicalHead(INSIDE.expand(1, 3, -1, -1) * 0.6, INSIDE[None, None], DOME[None])
    turned = warp_frame_from_canonical(facing.depth.expand(2, -1, -1), facing.mask.expand(2, -1, -1, -1), pose, K)
    images, seen = render_head(facing.repeated(2), pose, K)
    masks = (seen > 0.5).float()
    warped, warp = warp_references((images * masks)[None], masks[None], turned.depth[None], pose, K)
    found = mean_canonical(warped, warp)
    inner = (RADIUS < 15)[None]
    assert (found.depth - DOME[None])[inner].abs().max() < 0.005
    assert found.mask[0][inner].min() > 0.9


def test_depth_is_smoothed_where_references_jump():
    _, warped, warp = references(1)
    noise = 0.01 * torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    rough = mean_canonical(warped, warp._replace(depth=warp.depth + noise)).depth
    smooth = mean_canonical(warped, warp).depth
    inner = (RADIUS < 17)[None]
    assert (rough - smooth)[inner].std() < 0.5 * noise[inner].std()
    assert (smooth - DOME[None])[inner].abs().max() < 0.001


@pytest.fixture
def network() -> RecurrentCanonical:
    torch.manual_seed(0)
    return RecurrentCanonical(CoderNet(width=4, residual_blocks=1)).eval()


def test_an_untrained_recurrent_head_is_the_mean_head(network: RecurrentCanonical):
    heads, warped, warp = references()
    mean = mean_canonical(warped, warp)
    found = network(heads, mean, warp)
    torch.testing.assert_close(found.image, mean.image, atol=1e-5, rtol=0)
    assert torch.equal(found.mask, mean.mask)
    assert torch.equal(found.depth, mean.depth)


def test_omega_h_changes_colour_mask_and_depth_within_bounds(network: RecurrentCanonical):
    torch.nn.init.normal_(network.decoder.out.weight, std=2.0)
    heads, warped, warp = references()
    mean = mean_canonical(warped, warp)
    found = network(heads, mean, warp)
    for ours, theirs in zip(found, mean, strict=True):
        assert (ours - theirs).abs().max() > 0.005
    assert found.mask.min() >= 0
    assert found.mask.max() <= 1
    assert found.mask[mean.mask == 0].abs().max() == 0  # nothing is made up where nobody looked
    assert (found.image <= found.mask + 1e-6).all()
    assert (found.depth - mean.depth).abs().max() <= 0.03 + 1e-6


def test_omega_h_sees_detail_finer_than_the_memory(network: RecurrentCanonical):
    """Stripes of one pixel: at a quarter of the size alone, their phase cannot be told."""
    torch.nn.init.normal_(network.decoder.out.weight, std=0.5)
    stripes = ((X % 2) * INSIDE).expand(1, 1, 3, -1, -1).float()
    masks = INSIDE.expand(1, 1, 1, -1, -1)
    changes = []
    for heads in (stripes, (1 - stripes) * masks):
        warped, warp = warp_references(heads, masks, DOME[None, None], still(1), K)
        mean = mean_canonical(torch.full_like(warped, 0.5), warp)
        changes.append(network(heads, mean, warp).image - mean.image)
    assert (changes[0] - changes[1])[0, :, 24:40, 24:40].abs().mean() > 1e-3
