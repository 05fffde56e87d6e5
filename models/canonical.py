"""The canonical head: the mean of the warped references (stage 1) and the recurrent one (stage 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.coder import ConvLSTM, ImageDecoder, ImageEncoder
from models.config import CoderNet
from models.geometry import Pose
from models.warp import (
    Warp,
    pixels_from_canonical,
    sample,
    sample_head,
    warp_canonical_from_frame,
    warp_frame_from_canonical,
)

SMOOTH_SHARE = 1 / 64
"""Of the width: so far in each direction the depth of a canonical head is averaged."""
MOST_RELIEF_M = 0.03
"""How far Omega_H may move the surface that the references' depths tell."""


class CanonicalHead(NamedTuple):
    """A 3D head in the canonical frame.

    Attributes:
        image: `(B, 3, H, W)`, in [0, 1], black outside the head.
        mask: `(B, 1, H, W)`, in [0, 1]; where the head is known.
        depth: d^c, `(B, H, W)`, metres; the nominal 1 m where nothing is known.
    """

    image: Tensor
    mask: Tensor
    depth: Tensor

    def repeated(self, batch: int) -> CanonicalHead:
        """One head (B = 1) for each of so many poses."""
        return CanonicalHead(*(part.expand(batch, *part.shape[1:]) for part in self))


def warp_references(heads: Tensor, masks: Tensor, depth: Tensor, pose: Pose, K: Tensor) -> tuple[Tensor, Warp]:
    """x_i^c: every reference head in the canonical frame (Eq. 1).

    Args:
        heads: x_i, head on black, `(B, N, 3, H, W)`.
        masks: `(B, N, 1, H, W)`.
        depth: d_i, `(B, N, H, W)`, metres.
        pose: P_i, rotation `(B * N, 3, 3)`, translation `(B * N, 3)`.
        K: `(3, 3)`.

    Returns:
        x_i^c `(B, N, 3, H, W)`, and the warp, whose tensors have B * N rows.
    """
    batch, count = heads.shape[:2]
    warp = warp_canonical_from_frame(depth.flatten(0, 1), masks.flatten(0, 1), pose, K)
    sampled, _ = sample_head(heads.flatten(0, 1), masks.flatten(0, 1), warp.pixels)
    warped = sampled * (warp.visibility > 0)
    return warped.view(batch, count, *heads.shape[2:]), warp


def mean_canonical(warped: Tensor, warp: Warp) -> CanonicalHead:
    """x_bar^c and d_bar^c: the average of the warped references, and of their depths, over those that see a pixel.

    Source: Sec. 3.1. Averaging by visibility is our choice: a plain mean darkens what only some references see. So is
    the depth, which the paper has F_D tell from x_bar^c: what it tells of real frames, carried here with them by the
    splat and averaged, fits driving frames better and costs nothing (`.readme/results.md`, stage 1).

    Args:
        warped: x_i^c from `warp_references`, `(B, N, 3, H, W)`.
        warp: From `warp_references`; B * N rows.

    Returns:
        The mean head; its mask is the best visibility of any reference.
    """
    batch, count = warped.shape[:2]
    weight = warp.visibility.view(batch, count, 1, *warp.visibility.shape[-2:])
    mask, total = weight.amax(dim=1), weight.sum(1)
    image = (warped * weight).sum(1) / total.clamp(min=1e-3)
    relief = (warp.depth.view(batch, count, 1, *mask.shape[-2:]) - 1) * weight
    return CanonicalHead(image * mask, mask, 1 + _smooth_ratio(relief.sum(1), total)[:, 0])


def _smooth_ratio(summed: Tensor, total: Tensor) -> Tensor:
    """summed / total over a small square: where few references see a surface from its side, their depths jump from
    pixel to pixel, and a head turned by them was torn there."""
    reach = max(1, round(SMOOTH_SHARE * total.shape[-1]))
    summed, total = F.avg_pool2d(torch.cat([summed, total], 1), 2 * reach + 1, stride=1, padding=reach).chunk(2, 1)
    return summed / total.clamp(min=1e-3)


def render_head(head: CanonicalHead, pose: Pose, K: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a canonical head to a pose (Eq. 3).

    Args:
        head: The canonical head.
        pose: The pose it shall have.
        K: `(3, 3)`.

    Returns:
        Head on black `(B, 3, H, W)`, and its visibility `(B, 1, H, W)`.
    """
    warp = warp_frame_from_canonical(head.depth, head.mask, pose, K)
    # The image is already black outside its mask: where the surface is seen, only the splat's support fades it.
    return sample_head(head.image, head.mask, warp.pixels)[0] * (warp.visibility > 0), warp.visibility


class HeadLayer(NamedTuple):
    """x_hat_dri with its opacity, as stage 3 lays it over the reference.

    Attributes:
        image: `(B, 3, H, W)`, in [0, 1]; colour times opacity.
        alpha: Opacity, `(B, 1, H, W)`, in [0, 1]; 0 where the canonical head shows nothing.
    """

    image: Tensor
    alpha: Tensor


def render_layer(head: CanonicalHead, pose: Pose, K: Tensor) -> HeadLayer:
    """`render_head` for stage 3: with the head's edge soft, and known to be soft.

    Source: our choice. A head's edge fades to black; taken for its colour, that drew dark rims around heads.

    Args:
        head: The canonical head.
        pose: The pose it shall have.
        K: `(3, 3)`.

    Returns:
        The layer.
    """
    pixels, splat = pixels_from_canonical(head.depth, head.mask, pose, K)
    image, mask = sample_head(head.image, head.mask, pixels)
    visibility = splat.support[:, None] * mask
    # `head.image` holds colour times mask, and visibility is support times mask.
    return HeadLayer(image * (visibility / mask.clamp(min=1e-2)), visibility)


class RecurrentCanonical(nn.Module):
    """E_H, Lambda and Omega_H: the canonical head x_hat^c from any number of references (Sec. 3.2).

    Our choices: Omega_H corrects the mean head (its colours, its mask and its depth, and starts by changing nothing),
    so that training starts from x_bar^c instead of learning to paint faces first. And it sees E_H's finer features,
    too, warped by Eq. 5 and averaged like x_bar^c, as Omega_F does by Eq. 7: through a quarter of the size and the
    memory alone it sharpens nothing (`.readme/results.md`, stage 2).
    """

    def __init__(self, config: CoderNet) -> None:
        super().__init__()
        self.encoder, self.decoder = ImageEncoder(config), ImageDecoder(config, channels=5)
        self.memory = ConvLSTM(self.encoder.channels)

    def forward(self, heads: Tensor, mean: CanonicalHead, warp: Warp) -> CanonicalHead:
        """Encode the references, warp their features to the canonical frame (Eq. 5), gather and decode them.

        Args:
            heads: x_i, `(B, N, 3, H, W)`, in [0, 1].
            mean: x_bar^c, from `mean_canonical`.
            warp: From `warp_references`; B * N rows.

        Returns:
            x_hat^c and its depth, black where no reference sees the head.
        """
        batch, count = heads.shape[:2]
        details = []
        for feature in self.encoder(heads.flatten(0, 1)):
            seen = F.interpolate(warp.visibility, feature.shape[-2:], mode="bilinear", align_corners=True)
            carried = sample(feature, warp.pixels) * seen
            details.append((carried.unflatten(0, (batch, count)), seen.unflatten(0, (batch, count))))
        gathered = self.memory(details.pop()[0])

        def add_detail(x: Tensor, level: int) -> Tensor:
            if level == len(details):
                return x
            carried, seen = details[level]
            return x + carried.sum(1) / seen.sum(1).clamp(min=1e-3)

        change = self.decoder(gathered, add_detail).float()
        colour, opacity, relief = change.split([3, 1, 1], 1)
        known = (mean.image / mean.mask.clamp(min=1e-3)).clamp(0.01, 0.99)
        mask = (mean.mask * (1 + opacity.tanh())).clamp(max=1)
        image = torch.sigmoid(known.logit() + colour) * mask
        return CanonicalHead(image, mask, mean.depth + MOST_RELIEF_M * relief[:, 0].tanh())
