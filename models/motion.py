"""Phi (Sec. 3.3): regions, candidate motions and their mixture, after the MRAA paper [38]; two flows, three maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import FlowNet
from models.kept import constant
from models.layout import channels_last
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

    def held(self, count: int) -> Regions:
        """The same, but no gradient goes back through the first `count`: those are told where they are."""
        return Regions(*(torch.cat([part[:, :count].detach(), part[:, count:]], 1) for part in self)) if count else self

    def free(self, count: int) -> Regions:
        """Those after the first `count`."""
        return Regions(self.centre[:, count:], self.frame[:, count:])


class Seen(NamedTuple):
    """What Phi knows of one image.

    Attributes:
        small: It at Phi's scale, `(B, 3, h, w)`.
        regions: Its regions, those held to parts of the face first.
    """

    small: Tensor
    regions: Regions


class Looked(NamedTuple):
    """What Phi sees in several batches of images.

    Attributes:
        seen: Of each batch.
        moved: The free regions of the transformed last one, if there is one.
        free: The free regions of all of them one after the other, the transformed one too.
        logits: Of the heat maps of `free`.
    """

    seen: list[Seen]
    moved: Regions | None
    free: Regions
    logits: Tensor


class FusionMaps(NamedTuple):
    """What Phi gives to Eq. 7.

    Attributes:
        pixels_head: Where each output pixel comes from in x_hat_dri, `(B, h, w, 2)`, at Phi's scale.
        pixels_reference: The same in s_ref.
        attention: a_head, a_ref, a_dec, `(B, 3, h, w)`; they sum to 1.
        shares: Of the candidate motions in each flow, `(B, 2, K + 1, h, w)`, the background's first; they sum to 1.
        logits: What Phi gives the attention's softmax, `(B, 3, h, w)`.
    """

    pixels_head: Tensor
    pixels_reference: Tensor
    attention: Tensor
    shares: Tensor
    logits: Tensor


HELD_REACH = 3.0
"""A region that is held to a part of the face moves what lies within so many of its standard deviations (a uniform disc
ends at two). Without a limit the first regions that are known moved everything, the others found nothing to do, and
shoulders and hair were never learned (our choice; measured in .readme/results.md)."""


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
        skips = [channels_last(x)]
        for block in self.down:
            skips.append(F.avg_pool2d(block(skips[-1]), 2, ceil_mode=True))
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = bilinear_x2(x)[:, :, : skip.shape[2], : skip.shape[3]]  # an odd size was rounded up on the way down
            x = torch.cat([block(x), skip], dim=1)
        return x


@full_precision
def scores(heads: Sequence[nn.Conv2d], features: Tensor) -> Tensor:
    """Logits in float32: with bfloat16's 8 bits, those of a softmax that says where something is would be off by 4%.

    Args:
        heads: The convolutions that give them, all of one size; their weights may be shorter.
        features: `(B, C, h, w)`.

    Returns:
        Logits of one after the other.
    """
    weights = [head.weight.float() for head in heads]
    biases = [head.bias.float() for head in heads if head.bias is not None]
    weight, bias = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (weights, biases))
    return F.conv2d(features.float(), weight, bias, padding="same")


class RegionPredictor(nn.Module):
    """K soft regions of an image: centre and covariance of softmax heat maps."""

    def __init__(self, regions: int, width: int, max_width: int, blocks: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.body = Hourglass(3, width, max_width, blocks)
        self.head = nn.Conv2d(self.body.channels, regions, 7, padding=3)

    def forward(self, image: Tensor) -> tuple[Regions, Tensor]:
        """Regions of `image (B, 3, h, w)` in [0, 1], and the logits of their heat maps, `(B, K, h, w)`."""
        logits = scores((self.head,), self.body(torch.rsub(image, -1, alpha=-2)))
        return regions_from_heat((logits.flatten(2) / self.temperature).softmax(-1).view_as(logits)), logits


@full_precision
def regions_from_heat(heat: Tensor) -> Regions:
    """Mean and covariance of each heat map.

    Args:
        heat: `(B, K, h, w)`; every map sums to 1.

    Returns:
        The regions.
    """
    centre, covariance = heat_moments(heat)
    return Regions(centre, matrix_sqrt(covariance))


def heat_moments(heat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(B, K, 2)`, xy, and covariance `(B, K, 2, 2)` of heat maps `(B, K, h, w)` that sum to 1, normalised."""
    moments = (heat[:, :, None] * _powers(heat.shape[-2], heat.shape[-1], heat)).sum((-2, -1))
    centre = moments[..., :2]
    second = moments[..., 2:].unflatten(-1, (2, 2))
    return centre, second - centre[..., None] * centre[..., None, :]


def _powers(height: int, width: int, like: Tensor) -> Tensor:
    """x, y, x x, x y, y x, y y of every pixel in normalised coordinates, `(6, h, w)`."""

    def make() -> Tensor:
        xy = normalised_grid(height, width, like)[0].permute(2, 0, 1)
        return torch.cat([xy, (xy[:, None] * xy).flatten(0, 1)])

    return constant("powers", (height, width), like, make)


def _eye(like: Tensor) -> Tensor:
    """I of 2x2 matrices."""
    return constant("eye", (2,), like, lambda: torch.eye(2, dtype=like.dtype, device=like.device))


def matrix_sqrt(matrix: Tensor) -> Tensor:
    """Square root of symmetric positive 2x2 matrices, in closed form.

    MRAA takes U S^(1/2) of an SVD, whose columns change sign at random; the symmetric root does not (our choice).
    """
    matrix = torch.add(matrix, _eye(matrix), alpha=1e-4)  # a region of one pixel still has an extent
    determinant = matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]
    root = determinant.clamp(min=1e-12).sqrt()
    size = torch.add(matrix[..., 0, 0] + matrix[..., 1, 1], root, alpha=2).clamp(min=1e-6).sqrt()
    return (matrix + root[..., None, None] * _eye(matrix)) / size[..., None, None]


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse of 2x2 matrices, in closed form."""
    signs = constant("signs", (2,), matrix, lambda: 2 * _eye(matrix) - 1)
    adjugate = matrix.flip(-2, -1).mT * signs
    determinant = (matrix[..., 0, :] * adjugate[..., 0]).sum(-1)
    return adjugate / determinant[..., None, None]


def _apply(matrix: Tensor, points: Tensor) -> Tensor:
    """2x2 matrices `(..., 2, 2)` times points `(..., h, w, 2)`, by sums: a GPU's own products may round to 11 bits."""
    return (matrix[..., None, None, :, :] * points[..., None, :]).sum(-1)


@full_precision
def heat_maps(regions: Regions, height: int, width: int) -> Tensor:
    """Gaussians of the regions, `(B, K, height, width)`, 1 at the centre."""
    return _gaussian(_unit(regions, height, width))


def _unit(regions: Regions, height: int, width: int) -> Tensor:
    """Every pixel as the regions see it: A^-1 (q - centre), `(..., K, h, w, 2)`."""
    away = normalised_grid(height, width, regions.centre)[0] - regions.centre[..., None, None, :]
    return _apply(_inverse(regions.frame), away)


def _gaussian(unit: Tensor) -> Tensor:
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
    return _grids(source, _unit(driving, height, width))


def _grids(source: Regions, unit: Tensor) -> Tensor:
    """`candidate_grids` of pixels as the driving regions see them (`_unit`); any number of leading dimensions."""
    moved = _apply(source.frame, unit) + source.centre[..., None, None, :]
    still = normalised_grid(unit.shape[-3], unit.shape[-2], unit)[0].expand(*moved.shape[:-4], 1, -1, -1, -1)
    return torch.cat([still, moved], dim=-4)


def _out_of_reach(unit: Tensor, held: int) -> Tensor:
    """What the candidates of the first `held` regions lose beyond `HELD_REACH`, as a Gaussian falls; others nothing.

    Args:
        unit: Pixels as the driving regions see them, `(..., K, h, w, 2)`.
        held: So many regions are held to parts of the face.

    Returns:
        To be added to logits, `(..., K + 1, h, w)`.
    """
    beyond = (unit[..., :held, :, :, :].square().sum(-1) - HELD_REACH**2).clamp(min=0)
    return F.pad(-0.5 * beyond, (0, 0, 0, 0, 1, unit.shape[-4] - held))


def _apart(regions: Regions, count: int) -> list[Regions]:
    """Regions of batches that went through together."""
    return [Regions(*part) for part in zip(*(values.chunk(count) for values in regions), strict=True)]


def _shrunk(image: Tensor, scale: float) -> Tensor:
    """`(B, 3, H, W)` at a scale."""
    if scale == 1:
        return image
    return F.interpolate(image, scale_factor=scale, mode="bilinear", antialias=True, align_corners=False)


class FlowPredictor(nn.Module):
    """Phi: flows x_hat_dri <- s_dri and s_ref <- s_dri and the attention maps of Eq. 7.

    Source: Sec. 3.3 and 4.2 (the flow predictor of MRAA with three attention maps). The regions of the driving frame
    are matched with those of the driving head and with those of the reference: two candidate sets, one hourglass.
    """

    def __init__(self, config: FlowNet) -> None:
        super().__init__()
        self.scale, part = config.scale, config.parts
        self.held, self.part_scale = part.regions, part.scale
        candidates = config.regions + 1

        def predictor(regions: int, width: int, blocks: int) -> RegionPredictor:
            return RegionPredictor(regions, width, config.max_width, blocks, config.temperature)

        self.regions = predictor(config.regions - part.regions, config.width // 2, config.blocks)
        self.parts = predictor(part.regions, part.width, part.blocks) if part.regions else None
        self.body = Hourglass(2 * candidates * 4, config.width, config.max_width, config.blocks)
        self.mask_head = nn.Conv2d(self.body.channels, candidates, 7, padding=3)
        self.mask_reference = nn.Conv2d(self.body.channels, candidates, 7, padding=3)
        self.attention = nn.Conv2d(self.body.channels, 3, 7, padding=3)

    @full_precision
    def _candidates(self, images: Tensor, sources: Regions, driving: Regions) -> tuple[Tensor, Tensor, Tensor | None]:
        """Candidate motions of both sources, and what they look like.

        Args:
            images: x_hat_dri and s_ref, `(B, 2, 3, h, w)`.
            sources: Their regions, `(B, 2, K, ...)`.
            driving: Regions of s_dri.

        Returns:
            Grids, `(B, 2, K + 1, h, w, 2)`; heat and colours of each, `(B, 2 (K + 1) 4, h, w)`; what their logits lose
            for being out of reach, `(B, 1, K + 1, h, w)`, None where no region is held.
        """
        height, width = images.shape[-2:]
        regions = (torch.cat([of, new[:, None]], 1) for of, new in zip(sources, driving, strict=True))
        unit = _unit(Regions(*regions), height, width)
        grids, heat = _grids(sources, unit[:, 2:]), _gaussian(unit)
        heat = heat[:, 2:] - heat[:, :2]
        heat = torch.cat([torch.zeros_like(heat[:, :, :1]), heat], dim=2)
        # One tall grid for each image: it need not be repeated for its candidates.
        tall = grids.flatten(0, 1).flatten(1, 2)
        moved = F.grid_sample(images.flatten(0, 1), tall, padding_mode="zeros", align_corners=True)
        moved = moved.view(-1, 2, 3, heat.shape[2], height, width).transpose(2, 3)
        features = torch.cat([heat[:, :, :, None], moved], dim=3).flatten(1, 3)
        return grids, features, _out_of_reach(unit[:, 2:], self.held) if self.held else None

    def see(self, images: Sequence[Tensor], moved: Callable[[Tensor], Tensor] | None = None) -> Looked:
        """Regions of several batches, each network in one pass, so that a batch norm sees what it sees in use.

        Args:
            images: `(B, 3, H, W)` each.
            moved: For the equivariance loss: the last, at Phi's scale, to a transformed one.

        Returns:
            What is known of them.
        """
        small = [_shrunk(image, self.scale) for image in images]
        watched = [*small, moved(small[-1])] if moved is not None else small
        free, logits = self.regions(torch.cat(watched))
        found = _apart(free, len(watched))
        regions, of_moved = found[: len(small)], found[-1] if moved is not None else None
        if self.parts is not None:
            pairs = zip(self.find_parts(images), regions, strict=True)
            regions = [Regions(*(torch.cat(both, 1) for both in zip(*pair, strict=True))) for pair in pairs]
        return Looked([Seen(*pair) for pair in zip(small, regions, strict=True)], of_moved, free, logits)

    def find_parts(self, images: Sequence[Tensor]) -> list[Regions]:
        """The held regions alone, of images `(B, 3, H, W)`."""
        assert self.parts is not None
        return _apart(self.parts(torch.cat([_shrunk(image, self.part_scale) for image in images]))[0], len(images))

    def mix(self, head: Seen, reference: Seen, driving: Regions) -> FusionMaps:
        """Flows and attention from regions.

        Args:
            head: x_hat_dri, from `see`.
            reference: s_ref.
            driving: Regions of s_dri (of x_hat_dri once more for a novel view, Sec. 3.4).

        Returns:
            Pixel maps and attention at `scale` of the size.
        """
        of_head, of_reference, of_driving = (one.held(self.held) for one in (head.regions, reference.regions, driving))
        sources = Regions(*(torch.stack(pair, 1) for pair in zip(of_head, of_reference, strict=True)))
        grids, features, lost = self._candidates(torch.stack([head.small, reference.small], 1), sources, of_driving)
        x = self.body(features)
        height, width = x.shape[-2:]
        logits = scores((self.mask_head, self.mask_reference, self.attention), x)
        shares = logits[:, :-3].unflatten(1, (2, -1))
        shares = (shares if lost is None else shares + lost).softmax(2)
        flows = (shares[..., None] * grids).sum(2)
        if height == width:
            pixels = (flows + 1) * ((width - 1) / 2)
        else:
            across, down = flows.unbind(-1)
            pixels = torch.stack([(across + 1) * ((width - 1) / 2), (down + 1) * ((height - 1) / 2)], dim=-1)
        attention = logits[:, -3:]
        return FusionMaps(pixels[:, 0], pixels[:, 1], attention.softmax(1), shares, attention)
