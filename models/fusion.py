"""Stage 3, the attention-based fusion (Sec. 3.3): head, reference and decoder features mixed by Eq. 7."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.coder import ImageDecoder, ImageEncoder
from models.config import CoderNet, FlowNet
from models.motion import FlowPredictor, FusionMaps, warp_feature


class Fused(NamedTuple):
    """Output of stage 3.

    Attributes:
        image: s_hat_dri, `(B, 3, H, W)`, in [0, 1].
        maps: Flows and attention that made it.
    """

    image: Tensor
    maps: FusionMaps


class FusionNetwork(nn.Module):
    """E_F, Phi and Omega_F."""

    def __init__(self, net: CoderNet, flow_net: FlowNet) -> None:
        super().__init__()
        self.encoder, self.decoder = ImageEncoder(net), ImageDecoder(net)
        self.flow = FlowPredictor(flow_net)

    def forward(self, head: Tensor, reference: Tensor, driving: Tensor) -> Fused:
        """Eq. 7 and Omega_F.

        e_dec is what the decoder's residual blocks make of the two warped features (our choice: the paper calls it "the
        intermediate feature from decoder"); it can fill what neither source shows.

        Args:
            head: x_hat_dri, `(B, 3, H, W)`, in [0, 1].
            reference: s_ref, the same.
            driving: s_dri, the same.

        Returns:
            The frame s_hat_dri and the maps.
        """
        maps = self.flow(head, reference, driving)
        e_head = warp_feature(self.encoder(head), maps.pixels_head)
        e_reference = warp_feature(self.encoder(reference), maps.pixels_reference)
        attention = F.interpolate(maps.attention, e_head.shape[-2:], mode="bilinear", align_corners=True)
        a_head, a_reference, a_decoder = attention.split(1, dim=1)
        known = a_head * e_head + a_reference * e_reference
        e_out = known + a_decoder * self.decoder.refine(known)
        return Fused(self.decoder.paint(e_out), maps)
