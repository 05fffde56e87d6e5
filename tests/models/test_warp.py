"""Splatting and warping against a ray-cast sphere, and their gradients against finite differences."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry import back_project, intrinsics, pose_from_euler
from models.warp import (
    flow_from_pixels,
    sample,
    sample_head,
    sampling_grid,
    splat_depth,
    warp_canonical_from_frame,
    warp_frame_from_canonical,
)

SIZE = 64
K = intrinsics(SIZE, SIZE, 10.0)


def ray_cast(rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A textured sphere of 5 cm about (0, 0, 1 m): image, mask and depth, by exact intersection."""
    rays = back_project(torch.ones(1, SIZE, SIZE), K)[0]
    a, b, c = (rays**2).sum(-1), -2 * rays[..., 2], 1 - 0.05**2
    disc = b**2 - 4 * a * c
    depth = (-b - disc.clamp(min=0).sqrt()) / (2 * a)
    hit = disc > 0
    on_head = (rays * depth[..., None] - torch.tensor([0.0, 0.0, 1.0])) @ rotation
    colour = 0.5 + 0.4 * torch.stack(
        [torch.sin(90 * on_head[..., 0]), torch.sin(70 * on_head[..., 1] + 1), torch.cos(60 * on_head[..., 0])]
    )
    return (colour * hit)[None], hit[None, None].float(), torch.where(hit, depth, torch.ones_like(depth))[None]


def turned(yaw: float, pitch: float = 0.0):
    return pose_from_euler(torch.tensor([yaw]), torch.tensor([pitch]), torch.zeros(1), torch.zeros(1, 3))


def psnr(a: Tensor, b: Tensor, mask: Tensor) -> float:
    mse = ((a - b) ** 2 * mask).sum() / (3 * mask.sum())
    return float(-10 * torch.log10(mse))


def test_identity_pose_returns_the_image():
    torch.manual_seed(0)
    image, depth, mask = (
        torch.rand(2, 3, SIZE, SIZE),
        0.95 + 0.05 * torch.rand(2, SIZE, SIZE),
        torch.ones(2, 1, SIZE, SIZE),
    )
    still = pose_from_euler(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(2, 3))
    for build in (warp_canonical_from_frame, warp_frame_from_canonical):
        warp = build(depth, mask, still, K)
        assert (sample(image, warp.pixels) - image).abs().max() < 1e-5
        assert (sample_head(image, mask, warp.pixels)[0] - image).abs().max() < 1e-5
        assert warp.visibility.min() > 0.999
        assert flow_from_pixels(warp.pixels).abs().max() < 1e-3


def test_turned_sphere_matches_its_ray_cast():
    canonical, mask, depth = ray_cast(torch.eye(3))
    for yaw in (-20.0, 10.0, 20.0):
        pose = turned(yaw, 8.0)
        truth, truth_mask, truth_depth = ray_cast(pose.rotation[0])
        warp = warp_frame_from_canonical(depth, mask, pose, K)
        seen = (warp.visibility > 0.9) * truth_mask
        assert seen.sum() > 0.75 * truth_mask.sum()
        assert psnr(sample(canonical, warp.pixels), truth, seen) > 30
        back = warp_canonical_from_frame(truth_depth, truth_mask, pose, K)
        seen = (back.visibility > 0.9) * mask
        assert psnr(sample(truth, back.pixels), canonical, seen) > 30


def test_the_far_side_is_not_visible():
    _, mask, depth = ray_cast(torch.eye(3))
    warp = warp_frame_from_canonical(depth, mask, turned(40.0), K)
    # At +40 degrees of yaw the front has gone to the left: the right rim shows what the canonical frame never saw.
    row = warp.visibility[0, 0, SIZE // 2]
    columns = torch.nonzero(mask[0, 0, SIZE // 2])[:, 0]
    assert row[columns[:4]].min() > 0.5
    assert row[columns[-4:]].max() < 0.5


def test_the_nearest_surface_wins():
    pixels = torch.full((1, 1, 2, 2), 0.0)
    depth = torch.tensor([[[0.95, 1.05]]])
    for order in ([0, 1], [1, 0]):
        splat = splat_depth(pixels, depth[..., order], torch.ones(1, 1, 2))
        assert abs(splat.depth[0, 0, 0].item() - 0.95) < 1e-4


def test_what_has_no_weight_is_not_splatted():
    _, mask, depth = ray_cast(torch.eye(3))
    warp = warp_frame_from_canonical(depth, mask * 0, turned(10.0), K)
    assert warp.visibility.max() == 0


def test_pixels_that_are_no_numbers_do_not_end_the_program():
    """Networks that went wrong are to be named by the training's watch, not by a GPU's assertion about an index."""
    for value in (torch.nan, torch.inf, -torch.inf):
        pixels = torch.full((1, 4, 4, 2), value)
        assert splat_depth(pixels, torch.ones(1, 4, 4), torch.ones(1, 4, 4)).depth.shape == (1, 4, 4)
    depth = torch.ones(1, SIZE, SIZE)
    depth[0, 3, 5] = torch.nan
    assert warp_canonical_from_frame(depth, torch.ones(1, 1, SIZE, SIZE), turned(5.0), K).pixels.shape == (
        1,
        SIZE,
        SIZE,
        2,
    )


def test_gradients_of_splat_and_warp():
    torch.manual_seed(1)
    size = 8
    small = intrinsics(size, size, 10.0, torch.float64)
    depth = (1 + 0.004 * torch.rand(1, size, size, dtype=torch.float64)).requires_grad_()
    weight = (0.4 + 0.5 * torch.rand(1, 1, size, size, dtype=torch.float64)).requires_grad_()
    image = torch.rand(1, 3, size, size, dtype=torch.float64).requires_grad_()
    angles = torch.tensor([7.0, 5.0, -3.0], dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)

    def warped(depth, weight, image, angles, shift):
        pose = pose_from_euler(angles[:1], angles[1:2], angles[2:], shift)
        warp = warp_canonical_from_frame(depth, weight, pose, small)
        return sample(image, warp.pixels), *sample_head(image, weight, warp.pixels), warp.visibility, warp.depth

    assert torch.autograd.gradcheck(warped, (depth, weight, image, angles, shift), eps=1e-7, atol=2e-3, rtol=2e-3)


def test_features_are_sampled_at_their_own_size():
    image = torch.rand(1, 4, SIZE // 4, SIZE // 4)
    still = warp_canonical_from_frame(torch.ones(1, SIZE, SIZE), torch.ones(1, 1, SIZE, SIZE), turned(0.0), K)
    assert (sample(image, still.pixels) - image).abs().max() < 1e-4


def test_outside_the_image_is_black_or_its_edge():
    image = torch.full((1, 1, 4, 4), 0.6)
    away = torch.full((1, 4, 4, 2), 9.0)
    assert sample(image, away).max() == 0
    assert torch.allclose(sample(image, away, "border"), image)


def test_a_head_sampled_twice_stays_nearer_to_the_ray_cast_than_bilinearly():
    """Inside, and at the step to the black about it, where a cubic alone would overshoot."""
    _, mask, depth = ray_cast(torch.eye(3))
    for yaw in (-20.0, 10.0):
        pose = turned(yaw, 8.0)
        truth, truth_mask, truth_depth = ray_cast(pose.rotation[0])
        back = warp_canonical_from_frame(truth_depth, truth_mask, pose, K)
        there = warp_frame_from_canonical(depth, mask, pose, K)
        cubic, opacity = sample_head(*sample_head(truth, truth_mask, back.pixels), there.pixels)
        linear = sample(sample(truth, back.pixels), there.pixels)
        seen = (there.visibility > 0.9) * truth_mask * (sample(back.visibility, there.pixels) > 0.9)
        inside = -F.max_pool2d(-seen, 7, 1, 3)
        assert psnr(cubic, truth, inside) > psnr(linear, truth, inside) + 3
        assert psnr(cubic, truth, seen) > psnr(linear, truth, seen) + 1
        for part in (cubic, opacity):
            assert part.min() >= 0
            assert part.max() <= 1


def test_a_head_s_edge_gets_no_bright_rim():
    mask = (torch.arange(8.0) > 3).float().expand(1, 1, 8, 8)
    pixels = torch.stack(torch.meshgrid(torch.arange(8.0) + 0.4, torch.arange(8.0), indexing="xy"), -1)[None]
    colour, opacity = (part[0, 0, 4, :6] for part in sample_head(0.5 * mask, mask, pixels))
    assert F.grid_sample(mask, sampling_grid(pixels), "bicubic", align_corners=True)[0, 0, 4, :6].max() > 1.05
    torch.testing.assert_close(colour, 0.5 * opacity)
    assert opacity.max() == 1
    assert opacity.min() == 0
