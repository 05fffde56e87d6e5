"""The losses of Eq. 4, Eq. 6 and the equivariance loss of stage 3."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry import pixel_grid
from models.motion import Regions, heat_maps, matrix_sqrt
from models.precision import full_precision
from models.warp import normalised_grid


def head_reconstruction(rendered: Tensor, head: Tensor) -> Tensor:
    """||x_dri_rendered - x_dri||_1 of Eq. 4 and 6, the mean over pixels and channels.

    Args:
        rendered: `(B, 3, H, W)`, in [0, 1].
        head: Driving head on black, the same.

    Returns:
        `(B,)`.
    """
    return (rendered - head).abs().mean(dim=(1, 2, 3))


def symmetry(image: Tensor) -> Tensor:
    """L_sym of Eq. 4: the canonical head against its mirror image.

    Args:
        image: x_bar^c, `(B, 3, H, W)`.

    Returns:
        `(B,)`.
    """
    return (image - image.flip(-1)).abs().mean(dim=(1, 2, 3))


def depth_smoothness(depth: Tensor, image: Tensor) -> Tensor:
    """L_D of Eq. 4, as in Godard et al. [11]: |dx d| e^-|dx I| + |dy d| e^-|dy I|.

    Args:
        depth: d_bar^c, `(B, H, W)`, metres.
        image: x_bar^c, `(B, 3, H, W)`; detached.

    Returns:
        `(B,)`; the depth is counted in units of 0.1 m (half its range), so that lambda_D of the paper has a sensible
        weight.
    """
    image, depth = image.detach(), depth / 0.1
    dx, dy = (depth[:, :, 1:] - depth[:, :, :-1]).abs(), (depth[:, 1:] - depth[:, :-1]).abs()
    edge_x = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().mean(1)
    edge_y = (image[:, :, 1:] - image[:, :, :-1]).abs().mean(1)
    return (dx * torch.exp(-edge_x)).mean(dim=(1, 2)) + (dy * torch.exp(-edge_y)).mean(dim=(1, 2))


def near_features(landmarks: Tensor, height: int, width: int) -> Tensor:
    """Where eyes and mouth are: what moves when an expression changes is a few percent of a frame.

    Source: our choice. Round Gaussians about each eye and the middle of the mouth, as wide as a third and a half of the
    distance between the eyes.

    Args:
        landmarks: Eyes, nose and corners of the mouth, `(B, 5, 2)`, pixels (x, y); NaN where unknown.
        height: H.
        width: W.

    Returns:
        `(B, 1, H, W)`, in [0, 1]; 0 everywhere where a landmark is unknown.
    """
    known = torch.isfinite(landmarks).all(-1).all(-1)
    points = torch.nan_to_num(landmarks)
    eyes, mouth = points[:, :2], points[:, 3:].mean(1, keepdim=True)
    apart = (eyes[:, 0] - eyes[:, 1]).norm(dim=-1).clamp(min=0.05 * width)[:, None]
    wide = torch.cat([apart / 3, apart / 3, apart / 2], dim=1)
    away = pixel_grid(height, width, landmarks) - torch.cat([eyes, mouth], dim=1)[:, :, None, None]
    near = torch.exp(-0.5 * away.square().sum(-1) / wide.square()[..., None, None]).amax(1)
    return (near * known[:, None, None])[:, None]


def known_mean(total: Tensor, known: Tensor) -> Tensor:
    """A sum by how much of it is known; 0 where nothing is."""
    return total / known.clamp(min=1)


def _as_regions(parts: Tensor) -> tuple[Tensor, Regions]:
    """Which of `parts (B, P, 5)` are known, `(B, P)` bool, and all as regions; unknown ones are points."""
    known = torch.isfinite(parts).all(-1)
    parts = torch.nan_to_num(parts)
    return known, Regions(parts[..., :2], matrix_sqrt(torch.stack([parts[..., 2:4], parts[..., 3:5]], -2)))


@full_precision
def part_distance(regions: Regions, parts: Tensor, mean: Callable[[Tensor, Tensor], Tensor] = known_mean) -> Tensor:
    """How far the first regions are from parts of the face that are known.

    Source: our choice. Centres in units of 0.02 (about a pixel of a frame of 128). Extents, the square roots of the
    covariances, in units of 0.005 (a third of a pixel): a lid's or a lip's motion is no more. Relative to the size of
    the part, they taught nothing: an eye is wide and its height counted for little.

    Args:
        regions: `(B, K, ...)`.
        parts: x, y, xx, xy, yy of the first P regions, `(B, P, 5)`, normalised coordinates; NaN where unknown.
        mean: `known_mean`; where devices share a batch, one over what all of them know.

    Returns:
        Scalar, the mean over known parts.
    """
    known, wanted = _as_regions(parts)
    count = parts.shape[1]
    away = (regions.centre[:, :count] - wanted.centre).abs().mean(-1) / 0.02
    off = (regions.frame[:, :count] - wanted.frame).abs().mean((-1, -2)) / 0.005
    return mean(((away + off) * known).sum(), known.sum())


@full_precision
def part_shares(shares: Tensor, parts: Tensor, mean: Callable[[Tensor, Tensor], Tensor] = known_mean) -> Tensor:
    """How far both flows are from moving every part of the face with its own region: a cross-entropy.

    Source: our choice. x_hat_dri is well placed as it is, and what an eye or a mouth adds to L_rec is little: left to
    that, neither flow learned to use the regions that are known to sit there, and expressions did not follow.

    Args:
        shares: Of the candidate motions, `(B, 2, K + 1, h, w)`, the background's first (`FusionMaps`).
        parts: x, y, xx, xy, yy of the first P regions in s_dri, `(B, P, 5)`, normalised coordinates; NaN where unknown.
        mean: As in `part_distance`.

    Returns:
        Scalar, the mean over the pixels of known parts, as the parts' Gaussians weigh them; where these overlap, the
        regions share.
    """
    known, regions = _as_regions(parts)
    near = heat_maps(regions, *shares.shape[-2:]) * known[..., None, None]
    weight = near.amax(1, keepdim=True)
    wanted = weight * near / near.sum(1, keepdim=True).clamp(min=1e-6)
    lost = wanted[:, None] * shares[:, :, 1 : 1 + parts.shape[1]].clamp(min=1e-6).log()
    return mean(-lost.sum() / 2, weight.sum())


def unevenness(logits: Tensor, dim: int | tuple[int, ...] = 1) -> Tensor:
    """How far a softmax is from the middle, where it can still learn: squared logits about their mean.

    Source: our choice. A share of nearly 0 has nearly no gradient; Omega_F, whose features count by a_dec, was given
    up in one of two trainings, and what a head uncovers was not painted any more (`.readme/results.md`, stage 3).

    Args:
        logits: Of any shape.
        dim: Over which the softmax is taken.

    Returns:
        Scalar.
    """
    return (logits - logits.mean(dim, keepdim=True)).square().mean()


APART, HEAT_SHARE = 0.1, 1e-3
"""Free regions whose centres are nearer than the root of the first (normalised coordinates) crowd one another; and what
the logits of their heat maps count beside that."""


@full_precision
def crowding(regions: Regions, logits: Tensor) -> Tensor:
    """How much free regions crowd one another, and how near they are to being stuck.

    Source: squared distances below 0.1 count, as in FaceV2V's prior of keypoints [43]; the logits are our choice. Left
    to L_rec and equivariance, all free regions lay on one point between the eyes, or on single pixels of a corner,
    where a heat map has no gradient left, and nothing moved shoulders and hair (`.readme/results.md`, stage 3).

    Args:
        regions: `(B, K, ...)`.
        logits: Of their heat maps, `(B, K, h, w)`, before the temperature.

    Returns:
        Scalar; 0 for a single region with an even map.
    """
    centre = regions.centre
    away = (centre[:, :, None] - centre[:, None]).square().sum(-1)
    crowded = (APART - away).clamp(min=0).sum((1, 2)).mean() / centre.shape[1] - APART  # without each beside itself
    return crowded + HEAT_SHARE * unevenness(logits, (2, 3))


def _relative_difference(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| of covariances, relative to the size of both: relative to one, a region that is a point in one image and
    large in the other costs thousands."""
    size = (a + b).detach().diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp(min=1e-4) / 2
    return ((a - b) / size).abs()


class RandomTransform:
    """A random affine map plus a thin-plate spline, one per sample, for the equivariance loss.

    Source: FOMM [36] (design: affine I + N(0, 0.05), spline of 5 x 5 points with sigma 0.005).
    """

    def __init__(self, noise: Tensor) -> None:
        """Build the map.

        Args:
            noise: Standard normal numbers, `(B, 31)`: see `draw`.
        """
        device = noise.device
        self.affine = noise[:, :6].view(-1, 2, 3) * 0.05 + torch.eye(2, 3, device=device)
        line = torch.linspace(-1, 1, 5, device=device)
        self.points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(1, 25, 2)
        self.weights = noise[:, 6:] * 0.005

    @staticmethod
    def draw(batch: int, generator: torch.Generator) -> Tensor:
        """What `__init__` takes, for `batch` maps: 6 numbers of the affine part and 25 of the spline."""
        return torch.randn(batch, 31, generator=generator)

    def __call__(self, xy: Tensor) -> Tensor:
        """Move points.

        Args:
            xy: `(B, n, 2)`, normalised.

        Returns:
            The same shape.
        """
        moved = torch.einsum("bij,bnj->bni", self.affine[:, :, :2], xy) + self.affine[:, None, :, 2]
        distance = (xy[:, :, None] - self.points[:, None]).abs().sum(-1)
        bend = (distance.square() * torch.log(distance + 1e-6) * self.weights[:, None]).sum(-1, keepdim=True)
        return moved + bend

    def warp(self, image: Tensor) -> Tensor:
        """The image sampled at the moved grid, `(B, C, H, W)`."""
        batch, _, height, width = image.shape
        grid = self(normalised_grid(height, width, image).view(1, -1, 2).expand(batch, -1, -1))
        return F.grid_sample(image, grid.view(batch, height, width, 2), padding_mode="reflection", align_corners=True)

    def jacobian(self, xy: Tensor) -> Tensor:
        """Derivative of the map at points, by central differences, `(B, n, 2, 2)`."""
        step = 1e-2
        shifts = step * torch.eye(2, device=xy.device)
        return torch.stack([(self(xy + shift) - self(xy - shift)) / (2 * step) for shift in shifts], dim=-1)


@full_precision
def equivariance(regions: Regions, moved: Regions, transform: RandomTransform) -> Tensor:
    """Regions of a transformed image must be the transformed regions (shift and affine part).

    The transform maps the warped image's coordinates to the original's, so a region found in the warped image, moved by
    the transform, must fall on the original one.

    Args:
        regions: Of the image.
        moved: Of `transform.warp(image)`.
        transform: The map between them.

    Returns:
        Scalar.
    """
    shift = (regions.centre - transform(moved.centre)).abs().mean()
    pushed = transform.jacobian(moved.centre) @ moved.frame
    covariance, target = pushed @ pushed.transpose(-1, -2), regions.frame @ regions.frame.transpose(-1, -2)
    return shift + _relative_difference(covariance, target).mean()
