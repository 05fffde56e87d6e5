"""Phi (Sec. 3.3): regions, candidate motions and their mixture, after the MRAA paper [38]; two flows, three maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import FlowNet
from models.precision import full_precision
from models.resize import bilinear_x2
from models.warp import normalised_grid


class Regions(NamedTuple):
    """Moving regions of an image as Gaussians, in normalised coordinates [-1, 1].

    Attributes:
        centre: `(B, K, 2)`, xy.
        frame: A with A A^T = covariance of the region, `(B, K, 2, 2)`.
    """

    centre: Tensor
    frame: Tensor


class FusionMaps(NamedTuple):
    """What Phi gives to Eq. 7.

    Attributes:
        pixels_head: Where each output pixel comes from in x_hat_dri, `(B, h, w, 2)`, at Phi's scale.
        pixels_reference: The same in s_ref.
        attention: a_head, a_ref, a_dec, `(B, 3, h, w)`; they sum to 1.
    """

    pixels_head: Tensor
    pixels_reference: Tensor
    attention: Tensor


class Hourglass(nn.Module):
    """U-Net of `blocks` levels: 3x3 convolution, batch norm, ReLU, pooling; bilinear upsampling with skips."""

    def __init__(self, channels_in: int, width: int, max_width: int, blocks: int) -> None:
        super().__init__()
        widths = [min(max_width, width * 2 ** (i + 1)) for i in range(blocks)]
        ins = [channels_in, *widths]
        self.down = nn.ModuleList(self._block(ins[i], ins[i + 1]) for i in range(blocks))
        ups, last = [], widths[-1]
        for i in reversed(range(blocks)):
            out = min(max_width, width * 2**i)
            ups.append(self._block(last, out))
            last = out + ins[i]
        self.up = nn.ModuleList(ups)
        self.channels = last

    @staticmethod
    def _block(channels_in: int, channels_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, h, w)` to `(B, channels, h, w)`."""
        skips = [x]
        for block in self.down:
            skips.append(F.avg_pool2d(block(skips[-1]), 2, ceil_mode=True))
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = bilinear_x2(x)[:, :, : skip.shape[2], : skip.shape[3]]  # an odd size was rounded up on the way down
            x = torch.cat([block(x), skip], dim=1)
        return x


@full_precision
def scores(head: nn.Conv2d, features: Tensor) -> Tensor:
    """Logits in float32: with bfloat16's 8 bits, those of a softmax that says where something is would be off by 4%.

    Args:
        head: The convolution that gives them; its weights may be shorter.
        features: `(B, C, h, w)`.
    """
    bias = head.bias.float() if head.bias is not None else None
    return F.conv2d(features.float(), head.weight.float(), bias, padding="same")


class RegionPredictor(nn.Module):
    """K soft regions of an image: centre and covariance of softmax heat maps."""

    def __init__(self, config: FlowNet) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.body = Hourglass(3, config.width // 2, config.max_width, config.blocks)
        self.head = nn.Conv2d(self.body.channels, config.regions, 7, padding=3)

    def forward(self, image: Tensor) -> Regions:
        """Regions of `image (B, 3, h, w)` in [0, 1]."""
        logits = scores(self.head, self.body(image * 2 - 1))
        return regions_from_heat((logits.flatten(2) / self.temperature).softmax(-1).view_as(logits))


@full_precision
def regions_from_heat(heat: Tensor) -> Regions:
    """Mean and covariance of each heat map.

    Args:
        heat: `(B, K, h, w)`; every map sums to 1.

    Returns:
        The regions.
    """
    height, width = heat.shape[-2:]
    grid = normalised_grid(height, width, heat)[0]
    across, down = grid[0, :, 0], grid[:, 0, 1]
    columns, rows = heat.sum(2), heat.sum(3)  # (B, K, w), (B, K, h): first moments need only these
    x, y = columns @ across, rows @ down
    xx, yy = columns @ across.square() - x * x, rows @ down.square() - y * y
    xy = ((heat @ across) * down).sum(-1) - x * y
    covariance = torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)
    return Regions(torch.stack([x, y], -1), _matrix_sqrt(covariance))


def _matrix_sqrt(matrix: Tensor) -> Tensor:
    """Square root of symmetric positive 2x2 matrices, in closed form.

    MRAA takes U S^(1/2) of an SVD, whose columns change sign at random; the symmetric root does not (our choice).
    """
    eye = torch.eye(2, dtype=matrix.dtype, device=matrix.device)
    matrix = matrix + 1e-4 * eye  # a region of one pixel still has an extent
    determinant = matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]
    root = determinant.clamp(min=1e-12).sqrt()
    trace = matrix[..., 0, 0] + matrix[..., 1, 1]
    return (matrix + root[..., None, None] * eye) / (trace + 2 * root).clamp(min=1e-6).sqrt()[..., None, None]


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse of 2x2 matrices, in closed form."""
    (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    return adjugate / (a * d - b * c)[..., None, None]


@full_precision
def heat_maps(regions: Regions, height: int, width: int) -> Tensor:
    """Gaussians of the regions, `(B, K, height, width)`, 1 at the centre."""
    away = normalised_grid(height, width, regions.centre)[:, None] - regions.centre[:, :, None, None]
    unit = torch.einsum("bkij,bkhwj->bkhwi", _inverse(regions.frame), away)
    return torch.exp(-0.5 * unit.square().sum(-1))


@full_precision
def candidate_grids(source: Regions, driving: Regions, height: int, width: int) -> Tensor:
    """Where the source would be sampled if everything moved like one region; the background's motion comes first.

    Args:
        source: Regions of the image that is warped.
        driving: The same regions in the driving frame.
        height: Height of the grids.
        width: Width of the grids.

    Returns:
        `(B, K + 1, h, w, 2)`, normalised.
    """
    grid = normalised_grid(height, width, source.centre)
    motion = source.frame @ _inverse(driving.frame)
    away = grid[:, None] - driving.centre[:, :, None, None]
    moved = torch.einsum("bkij,bkhwj->bkhwi", motion, away) + source.centre[:, :, None, None]
    still = grid[:, None].expand(len(moved), 1, -1, -1, -1)
    return torch.cat([still, moved], dim=1)


class FlowPredictor(nn.Module):
    """Phi: flows x_hat_dri <- s_dri and s_ref <- s_dri and the attention maps of Eq. 7.

    Source: Sec. 3.3 and 4.2 (the flow predictor of MRAA with three attention maps). The regions of the driving frame
    are matched with those of the driving head and with those of the reference: two candidate sets, one hourglass.
    """

    def __init__(self, config: FlowNet) -> None:
        super().__init__()
        self.scale = config.scale
        candidates = config.regions + 1
        self.regions = RegionPredictor(config)
        self.body = Hourglass(2 * candidates * 4, config.width, config.max_width, config.blocks)
        self.mask_head = nn.Conv2d(self.body.channels, candidates, 7, padding=3)
        self.mask_reference = nn.Conv2d(self.body.channels, candidates, 7, padding=3)
        self.attention = nn.Conv2d(self.body.channels, 3, 7, padding=3)

    def shrink(self, image: Tensor) -> Tensor:
        """The image at Phi's working scale."""
        if self.scale == 1:
            return image
        return F.interpolate(image, scale_factor=self.scale, mode="bilinear", antialias=True, align_corners=False)

    def _candidates(self, image: Tensor, source: Regions, driving: Regions) -> tuple[Tensor, Tensor]:
        batch, _, height, width = image.shape
        grids = candidate_grids(source, driving, height, width)
        count = grids.shape[1]
        repeated = image[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        moved = F.grid_sample(repeated, grids.flatten(0, 1), padding_mode="zeros", align_corners=True)
        heat = heat_maps(driving, height, width) - heat_maps(source, height, width)
        heat = torch.cat([torch.zeros_like(heat[:, :1]), heat], dim=1)
        features = torch.cat([heat[:, :, None], moved.view(batch, count, 3, height, width)], dim=2)
        return grids, features.flatten(1, 2)

    def find_regions(self, images: Sequence[Tensor]) -> list[Regions]:
        """Regions of several batches in one pass, so that a batch norm sees what it sees in use.

        Args:
            images: At Phi's working scale, `(B, 3, h, w)` each.
        """
        found = self.regions(torch.cat(list(images)))
        parts = zip(found.centre.chunk(len(images)), found.frame.chunk(len(images)), strict=True)
        return [Regions(*part) for part in parts]

    def mix(self, small: Sequence[Tensor], regions: Sequence[Regions]) -> FusionMaps:
        """Flows and attention from regions.

        Args:
            small: x_hat_dri, s_ref and s_dri (x_hat_dri once more for a novel view, Sec. 3.4), each from `shrink`,
                `(B, 3, h, w)`.
            regions: Of the three, from `find_regions`.

        Returns:
            Pixel maps and attention at `scale` of the size.
        """
        of_head, of_reference, of_driving = regions
        grids_head, features_head = self._candidates(small[0], of_head, of_driving)
        grids_reference, features_reference = self._candidates(small[1], of_reference, of_driving)
        x = self.body(torch.cat([features_head, features_reference], dim=1))
        height, width = x.shape[-2:]

        def blend(mask: nn.Conv2d, grids: Tensor) -> Tensor:
            share = scores(mask, x).softmax(1)
            across, down = (share[..., None] * grids).sum(1).unbind(-1)
            return torch.stack([(across + 1) * ((width - 1) / 2), (down + 1) * ((height - 1) / 2)], dim=-1)

        return FusionMaps(
            blend(self.mask_head, grids_head),
            blend(self.mask_reference, grids_reference),
            scores(self.attention, x).softmax(1),
        )
