"""The canonical head: the mean of the warped references (stage 1) and the recurrent one (stage 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.coder import ConvLSTM, ImageDecoder, ImageEncoder
from models.config import CoderNet
from models.geometry import Pose
from models.warp import Warp, pixels_from_canonical, sample, warp_canonical_from_frame, warp_frame_from_canonical


class CanonicalHead(NamedTuple):
    """A head in the canonical frame.

    Attributes:
        image: `(B, 3, H, W)`, in [0, 1], black outside the head.
        mask: `(B, 1, H, W)`, in [0, 1]; where the head is known.
    """

    image: Tensor
    mask: Tensor


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
    warped = sample(heads.flatten(0, 1), warp.pixels) * (warp.visibility > 0)
    return warped.view(batch, count, *heads.shape[2:]), warp


def mean_canonical(warped: Tensor, visibility: Tensor) -> CanonicalHead:
    """x_bar^c: the average of the warped references over those that see a pixel.

    Source: Sec. 3.1. Averaging by visibility is our choice: a plain mean darkens what only some references see.

    Args:
        warped: x_i^c, `(B, N, 3, H, W)`.
        visibility: `(B * N, 1, H, W)`.

    Returns:
        The mean head; its mask is the best visibility of any reference.
    """
    batch, count = warped.shape[:2]
    weight = visibility.view(batch, count, 1, *visibility.shape[-2:])
    mask = weight.amax(dim=1)
    image = (warped * weight).sum(1) / weight.sum(1).clamp(min=1e-3)
    return CanonicalHead(image * mask, mask)


def render_head(head: CanonicalHead, depth: Tensor, pose: Pose, K: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a canonical head to a pose (Eq. 3).

    Args:
        head: The canonical head.
        depth: Its depth d^c, `(B, H, W)`, metres.
        pose: The pose it shall have.
        K: `(3, 3)`.

    Returns:
        Head on black `(B, 3, H, W)`, and its visibility `(B, 1, H, W)`.
    """
    warp = warp_frame_from_canonical(depth, head.mask, pose, K)
    # The image is already black outside its mask: where the surface is seen, only the splat's support fades it.
    return sample(head.image, warp.pixels) * (warp.visibility > 0), warp.visibility


class HeadLayer(NamedTuple):
    """x_hat_dri with its opacity, as stage 3 lays it over the reference.

    Attributes:
        image: `(B, 3, H, W)`, in [0, 1]; colour times opacity.
        alpha: Opacity, `(B, 1, H, W)`, in [0, 1]; 0 where the canonical head shows nothing.
    """

    image: Tensor
    alpha: Tensor


def render_layer(head: CanonicalHead, depth: Tensor, pose: Pose, K: Tensor) -> HeadLayer:
    """`render_head` for stage 3: with the head's edge soft, and known to be soft.

    Source: our choice. A head's edge fades to black; taken for its colour, that drew dark rims around heads.

    Args:
        head: The canonical head.
        depth: Its depth d^c, `(B, H, W)`, metres.
        pose: The pose it shall have.
        K: `(3, 3)`.

    Returns:
        The layer.
    """
    pixels, splat = pixels_from_canonical(depth, head.mask, pose, K)
    image, mask = sample(torch.cat([head.image, head.mask], 1), pixels).split([3, 1], 1)
    visibility = splat.support[:, None] * mask
    # `head.image` holds colour times mask, and visibility is support times mask.
    return HeadLayer(image * (visibility / mask.clamp(min=1e-2)), visibility)


class RecurrentCanonical(nn.Module):
    """E_H, Lambda and Omega_H: the canonical head x_hat^c from any number of references (Sec. 3.2).

    Our choice: Omega_H corrects the mean head x_bar^c (it adds to its logits, and starts by adding nothing), so that
    training starts from x_bar^c instead of learning to paint faces first.
    """

    def __init__(self, config: CoderNet) -> None:
        super().__init__()
        self.encoder, self.decoder = ImageEncoder(config), ImageDecoder(config)
        self.memory = ConvLSTM(self.encoder.channels)

    def forward(self, heads: Tensor, warped: Tensor, warp: Warp) -> CanonicalHead:
        """Encode the references, warp their features to the canonical frame (Eq. 5), gather and decode them.

        Args:
            heads: x_i, `(B, N, 3, H, W)`, in [0, 1].
            warped: x_i^c from `warp_references`, `(B, N, 3, H, W)`.
            warp: From `warp_references`; B * N rows.

        Returns:
            x_hat^c, black where no reference sees the head.
        """
        batch, count = heads.shape[:2]
        feature = self.encoder(heads.flatten(0, 1))[-1]
        seen = F.interpolate(warp.visibility, feature.shape[-2:], mode="bilinear", align_corners=True)
        feature = sample(feature, warp.pixels) * seen
        gathered = self.memory(feature.view(batch, count, *feature.shape[1:]))
        mean = mean_canonical(warped, warp.visibility)
        known = (mean.image / mean.mask.clamp(min=1e-3)).clamp(0.01, 0.99)
        return CanonicalHead(torch.sigmoid(known.logit() + self.decoder(gathered).float()) * mean.mask, mean.mask)
