"""Moving images between a frame and the canonical frame: z-buffered splatting of depth, then backward sampling.

Eq. 1 tells where a frame's pixel goes, but an image is sampled at its destination, whose depth is not known: so the
source's depth is first splatted into the destination frame, keeping the nearest surface, and the inverse map (Eq. 3 for
a warp to the canonical frame, Eq. 1 for one to a frame) then says where each destination pixel comes from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry import (
    Pose,
    pixel_grid,
    points_to_canonical,
    points_to_frame,
    project,
    to_canonical,
    to_frame,
)
from models.kept import constant
from models.precision import full_precision

SURFACE_M = 0.005
"""Softness of the z-buffer: what lies further behind the nearest surface than a few of these does not count."""
FARTHEST_M = 1e3
"""Where nothing was splatted, the z-buffer begins here."""
FULL_SUPPORT = 0.5
"""Splatted weight at which a destination pixel counts as fully seen (a surface stretched by two gives about this)."""


class Splat(NamedTuple):
    """Depth carried into another frame.

    Attributes:
        depth: `(B, H, W)`, metres; the nominal 1 m where nothing was splatted.
        support: `(B, H, W)`, in [0, 1]; how well a pixel is covered.
    """

    depth: Tensor
    support: Tensor


class Warp(NamedTuple):
    """Where each pixel of the destination comes from.

    Attributes:
        pixels: Source pixel of each destination pixel, `(B, H, W, 2)`, (x, y).
        visibility: `(B, 1, H, W)`, in [0, 1]; 0 where the source shows nothing.
        depth: Depth in the destination frame, `(B, H, W)`, metres.
    """

    pixels: Tensor
    visibility: Tensor
    depth: Tensor


def splat_depth(pixels: Tensor, depth: Tensor, weight: Tensor) -> Splat:
    """Carry depth values to new pixels, the nearest surface first; differentiable in all three arguments.

    Source: our choice. Bilinear splatting; a value's weight falls with its distance behind the nearest one of its
    pixel, exp(-(z - z_min) / 5 mm), where z_min is found in a first pass. One 3x3 spread at a thousandth of the weight
    closes the pinholes of a stretched surface.

    Args:
        pixels: Destination of each source pixel, `(B, H, W, 2)`, pixels (x, y).
        depth: Depth there, `(B, H, W)`, metres.
        weight: `(B, H, W)`, in [0, 1]; 0 leaves a source pixel out.

    Returns:
        The splat, in a frame of the same size.
    """
    batch, height, width = depth.shape
    index, share = _corners(pixels)
    index, share = index.flatten(1), (share * weight[:, None]).flatten(1)
    values = depth[:, None].expand(-1, 4, -1, -1).flatten(1)
    # Pixels of next to no share must not own the z-buffer.
    candidates = torch.add(values, share.detach() <= 1e-3, alpha=FARTHEST_M)
    nearest = torch.full((batch, height * width), FARTHEST_M, dtype=depth.dtype, device=depth.device)
    nearest = nearest.scatter_reduce_(1, index, candidates, reduce="amin")
    behind = (values - nearest.gather(1, index)).clamp(min=0)
    share = share * torch.exp(behind / -SURFACE_M)
    sums = torch.zeros(batch, 2, height * width, dtype=depth.dtype, device=depth.device)
    sums = sums.scatter_add_(2, index[:, None].expand(-1, 2, -1), torch.stack([share, share * values], 1))
    sums = sums.view(batch, 2, height, width)
    spread = F.avg_pool2d(sums, 3, stride=1, padding=1)
    total, summed = torch.add(sums, spread, alpha=1e-3).unbind(1)
    seen = total > 1e-5
    filled = torch.where(seen, summed / total.clamp(min=1e-5), 1.0)
    # Coverage is judged over 3x3 pixels: between the samples of a stretched surface the weight itself has pinholes.
    support = (torch.maximum(sums[:, 0], spread[:, 0]) / FULL_SUPPORT).clamp(max=1) * seen
    return Splat(filled, support)


def _corners(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The four pixels around each place, in the order of rows.

    Args:
        pixels: `(B, H, W, 2)`, (x, y).

    Returns:
        Their indices in the frame, `(B, 4, H, W)`, and bilinear shares, 0 for those outside of it.
    """
    height, width = pixels.shape[1:3]

    def make() -> Tensor:
        """The corners' steps, 1 - steps, 2 steps - 1; the first and last pixel."""
        rows, columns = torch.arange(4, device=pixels.device) // 2, torch.arange(4, device=pixels.device) % 2
        steps = torch.stack([columns, rows], -1).to(pixels)
        last = torch.cat([torch.full_like(steps[:, :1], side - 1) for side in (width, height)], 1)
        return torch.stack([steps, 1 - steps, 2 * steps - 1, torch.zeros_like(steps), last])

    steps, far, sign, first, last = constant("corners", (height, width), pixels, make)[:, :, None, None].unbind(0)
    floor = pixels.detach().floor()
    place = floor[:, None] + steps
    held = place.clamp(first, last)
    inside = (held == place).all(-1)
    across, down = torch.addcmul(far, (pixels - floor)[:, None], sign).unbind(-1)  # the offset, or 1 less it
    # What is outside has no share and any index; NaN, which is outside, would make one that ends the program.
    index = torch.add(held[..., 0], held[..., 1], alpha=width).long() * inside
    return index, across * down * inside


def sample(image: Tensor, pixels: Tensor, padding: str = "zeros") -> Tensor:
    """Backward warping by bilinear sampling.

    Args:
        image: `(B, C, H, W)`; may be smaller than the frame that `pixels` refers to (features): the pixel map, given at
            the size of the frame, is then resized to the image.
        pixels: Source pixel of each destination pixel, `(B, H', W', 2)`, (x, y) in the frame of H' x W' pixels.
        padding: Outside the image: `zeros`, or `border` (its edge goes on).

    Returns:
        `(B, C, H, W)`.
    """
    grid = sampling_grid(pixels)
    if image.shape[-2:] != pixels.shape[1:3]:
        grid = F.interpolate(grid.permute(0, 3, 1, 2), image.shape[-2:], mode="bilinear", align_corners=True)
        grid = grid.permute(0, 2, 3, 1)
    return sample_grid(image, grid, padding)


def sample_head(image: Tensor, mask: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Backward warping of a head on black, by cubic convolution.

    Source: our choice. A head is sampled twice on its way from a reference to the driving frame; sampled bilinearly it
    kept 0.84 of its gradients, so 0.99 (`.readme/results.md`, stage 2). What a cubic overshoots is cut, and the step
    to the black about the head, whose overshoot would be a bright rim, is known from the mask.

    Args:
        image: Colour times mask, in [0, 1], `(B, C, H, W)`.
        mask: `(B, 1, H, W)`, in [0, 1].
        pixels: As in `sample`, of the same size.

    Returns:
        Both, warped, in [0, 1].
    """
    both = torch.cat([image, mask], 1)
    both = F.grid_sample(both, sampling_grid(pixels), mode="bicubic", padding_mode="zeros", align_corners=True)
    colour, opacity = both.split([image.shape[1], 1], 1)
    return (colour / opacity.clamp(min=1)).clamp(0, 1), opacity.clamp(0, 1)


def sampling_grid(pixels: Tensor) -> Tensor:
    """Pixels of a frame as `grid_sample` counts them, from -1 to 1.

    Args:
        pixels: `(..., H, W, 2)`, (x, y) in the frame of H x W pixels.

    Returns:
        The same shape.
    """
    height, width = pixels.shape[-3:-1]
    # In the steps that grid_sample takes back, so that they cancel; with any other the identity is off by 1.6e-5.
    if height == width:
        return pixels / ((width - 1) / 2) - 1
    return torch.stack([pixels[..., 0] / ((width - 1) / 2) - 1, pixels[..., 1] / ((height - 1) / 2) - 1], dim=-1)


def sample_grid(image: Tensor, grid: Tensor, padding: str = "zeros") -> Tensor:
    """`sample` by a grid from -1 to 1, `(B, H', W', 2)`, to `(B, C, H', W')`."""
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=True)


def full_size(pixels: Tensor, height: int, width: int) -> Tensor:
    """A pixel map at another size of the frame, as `sample` resizes it.

    Args:
        pixels: `(B, h, w, 2)`, (x, y) in the frame of h x w pixels.
        height: H.
        width: W.

    Returns:
        `(B, H, W, 2)`, (x, y) in the frame of H x W pixels.
    """
    resized = F.interpolate(pixels.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=True)
    across, down = resized.unbind(1)
    scale_x, scale_y = (width - 1) / (pixels.shape[2] - 1), (height - 1) / (pixels.shape[1] - 1)
    return torch.stack([across * scale_x, down * scale_y], dim=-1)


@full_precision
def warp_canonical_from_frame(depth: Tensor, mask: Tensor, pose: Pose, K: Tensor) -> Warp:
    """How to build the canonical frame x_i^c out of a frame x_i (Eq. 1, sampled backward by Eq. 3).

    Args:
        depth: Depth of the frame, `(B, H, W)`, metres.
        mask: Head mask of the frame, `(B, 1, H, W)`, in [0, 1].
        pose: Pose of the head in the frame.
        K: `(3, 3)`.

    Returns:
        For each canonical pixel, where to sample the frame.
    """
    points = points_to_canonical(depth, pose, K)
    splat = splat_depth(project(points, K), points[..., 2], mask[:, 0])
    pixels = to_frame(splat.depth, pose, K)
    return Warp(pixels, splat.support[:, None] * sample(mask, pixels), splat.depth)


@full_precision
def warp_frame_from_canonical(depth: Tensor, mask: Tensor, pose: Pose, K: Tensor) -> Warp:
    """How to build a frame out of the canonical frame (Eq. 3, sampled backward by Eq. 1).

    Args:
        depth: Depth of the canonical frame, `(B, H, W)`, metres.
        mask: Head mask of the canonical frame, `(B, 1, H, W)`, in [0, 1].
        pose: Pose that the head shall have.
        K: `(3, 3)`.

    Returns:
        For each pixel of the frame, where to sample the canonical frame.
    """
    pixels, splat = pixels_from_canonical(depth, mask, pose, K)
    return Warp(pixels, splat.support[:, None] * sample(mask, pixels), splat.depth)


@full_precision
def pixels_from_canonical(depth: Tensor, mask: Tensor, pose: Pose, K: Tensor) -> tuple[Tensor, Splat]:
    """`warp_frame_from_canonical`, whose arguments it has, before the mask is sampled.

    Returns:
        Pixels of the canonical frame, `(B, H, W, 2)`, and its depth in the frame.
    """
    points = points_to_frame(depth, pose, K)
    splat = splat_depth(project(points, K), points[..., 2], mask[:, 0])
    return to_canonical(splat.depth, pose, K), splat


def flow_from_pixels(pixels: Tensor) -> Tensor:
    """Eq. 5: backward flow, the source pixel minus the destination pixel.

    Args:
        pixels: Source pixel of each destination pixel, `(B, H, W, 2)`.

    Returns:
        `(B, 2, H, W)`, pixels, xy.
    """
    return (pixels - pixel_grid(pixels.shape[1], pixels.shape[2], pixels)).permute(0, 3, 1, 2)


def normalised_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Identity sampling grid in [-1, 1], `(1, H, W, 2)`, xy; not to be changed."""

    def make() -> Tensor:
        return sampling_grid(pixel_grid(height, width, like))[None]

    return constant("normalised_grid", (height, width), like, make)
