"""Stage 3, the attention-based fusion (Sec. 3.3): head, reference and decoder features mixed by Eq. 7."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.canonical import HeadLayer
from models.coder import ImageDecoder, ImageEncoder
from models.config import CoderNet, FlowNet
from models.geometry import pixel_grid
from models.motion import FlowPredictor, FusionMaps, Looked, Regions, Seen
from models.warp import sample_grid, sampling_grid


class Fused(NamedTuple):
    """Output of stage 3.

    Attributes:
        image: s_hat_dri, `(B, 3, H, W)`, in [0, 1].
        maps: Flows and attention that made it.
        regions: Of s_dri.
        regions_reference: Of s_ref.
        looked: What Phi saw, `moved` included; None where s_ref had been looked at before.
        mixture: The two warped images by the attention, before the decoder's correction, as `image`.
    """

    image: Tensor
    maps: FusionMaps
    regions: Regions
    regions_reference: Regions
    looked: Looked | None
    mixture: Tensor


class ReferenceLook(NamedTuple):
    """What stage 3 needs of s_ref and nothing else: known once per subject.

    Attributes:
        image: s_ref, `(B, 3, H, W)`, in [0, 1].
        small: s_ref at Phi's scale.
        regions: Its regions.
        features: E_F's features of it, at its size, a half and a quarter.
    """

    image: Tensor
    small: Tensor
    regions: Regions
    features: tuple[Tensor, ...]

    def repeat(self, batch: int) -> ReferenceLook:
        """One row shown to `batch` driving frames; no memory is copied."""

        def wide(values: Tensor) -> Tensor:
            return values.expand(batch, *values.shape[1:])

        regions = Regions(*(wide(part) for part in self.regions))
        return ReferenceLook(wide(self.image), wide(self.small), regions, tuple(wide(one) for one in self.features))


def to_be_sampled(feature: Tensor) -> Tensor:
    """A feature as `grid_sample` takes it on a GPU, which would bring it there in two passes: float32, by channels."""
    return feature.to(torch.float32, memory_format=torch.contiguous_format)


def attend_where_seen(attention: Tensor, shown: Tensor) -> Tensor:
    """Attention that never rests on the black around x_hat_dri: what a_head has there goes to a_ref.

    Source: our choice; without it, people unlike those of the training set got black holes. The three still sum to 1.

    Args:
        attention: a_head, a_ref, a_dec, `(B, 3, h, w)`.
        shown: Opacity of the warped x_hat_dri, `(B, 1, h, w)`.

    Returns:
        The attention with a_head = 0 where the warped head shows nothing.
    """
    a_head, a_reference, a_dec = attention.split(1, dim=1)
    return torch.cat([a_head * shown, torch.addcmul(a_reference, a_head, 1 - shown), a_dec], dim=1)


def attend_without_head(maps: FusionMaps) -> FusionMaps:
    """Attention for the ablation without x_hat_dri: a_head is 0, its share goes to a_ref, and a_ref + a_dec = 1."""
    a_head, a_reference, a_dec = maps.attention.split(1, dim=1)
    attention = torch.cat([torch.zeros_like(a_head), a_reference + a_head, a_dec], dim=1)
    return maps._replace(attention=attention)


def attend_to_head(maps: FusionMaps) -> FusionMaps:
    """Maps for a novel view: where x_hat_dri is shown, s_ref is not, and x_hat_dri stays as it is.

    Source: our choice. Without a driving frame nothing tells how the face of s_ref, which looks another way, would have
    to move; mixed in, it gave a second pair of eyes. And x_hat_dri is the view that was asked for: moved once more, by
    parts of the face that are found a little elsewhere on black than in a frame, it was torn.
    """
    a_head, a_reference, a_dec = maps.attention.split(1, dim=1)
    attention = torch.cat([a_head + a_reference, torch.zeros_like(a_head), a_dec], dim=1)
    height, width = a_head.shape[-2:]
    still = pixel_grid(height, width, maps.pixels_head).expand_as(maps.pixels_head)
    return maps._replace(pixels_head=still, attention=attention)


class FusionNetwork(nn.Module):
    """E_F, Phi and Omega_F.

    With `with_head` False it is Table 3's "w/o x_hat_dri", in our reading: x_hat_dri is not looked at. Phi gets s_ref a
    second time in its place, the flow to it is not used, and Eq. 7 has only the terms of s_ref and the decoder.
    """

    def __init__(self, net: CoderNet, flow_net: FlowNet, with_head: bool = True) -> None:
        super().__init__()
        self.with_head = with_head
        self.encoder, self.decoder = ImageEncoder(net), ImageDecoder(net)
        self.flow = FlowPredictor(flow_net)

    def forward(
        self,
        head: HeadLayer,
        reference: Tensor,
        driving: Tensor,
        moved: Callable[[Tensor], Tensor] | None = None,
        head_first: bool = False,
    ) -> Fused:
        """Eq. 7 and Omega_F.

        The paper calls e_dec "the intermediate feature from decoder". Here, as in the skip connections of MRAA [38],
        Eq. 7 is applied at every size of the decoder, e_dec being the decoder's own feature there (our choice of
        reading). The image is what Eq. 7 gives of the two images without e_dec, corrected by the decoder's logits,
        which start at 0: as a third share of the mixture its picture was soon weighed with 0 and learned no more.

        Args:
            head: x_hat_dri; not looked at without `with_head`.
            reference: s_ref, `(B, 3, H, W)`, in [0, 1].
            driving: s_dri, the same.
            moved: For the equivariance loss: s_dri (at Phi's scale) to a transformed one, whose regions are found too.
            head_first: For novel views: where x_hat_dri is shown, s_ref is not (`attend_to_head`).

        Returns:
            The frame s_hat_dri, the maps and regions.
        """
        # black in the head's place would spoil the batch norms' statistics
        shown = head.image if self.with_head else reference
        looked = self.flow.see((shown, reference, driving), moved)
        of_head, of_reference, of_driving = looked.seen
        maps = self.flow.mix(of_head, of_reference, of_driving.regions)
        if head_first and self.with_head:
            maps = attend_to_head(maps)
        if self.with_head:
            # In one pass: apart, the encoder's batch norms would see other statistics in training than in use.
            both = self.encoder(torch.cat([head.image, reference]))
            features_head, features = zip(*(feature.chunk(2) for feature in both), strict=True)
        else:
            maps = attend_without_head(maps)
            features_head = features = tuple(self.encoder(reference))
        image, mixture, maps = self.compose(head, reference, maps, features_head, features)
        return Fused(image, maps, of_driving.regions, of_reference.regions, looked, mixture)

    def look(self, reference: Tensor) -> ReferenceLook:
        """What `fuse` needs of s_ref.

        Args:
            reference: s_ref, `(B, 3, H, W)`, in [0, 1].
        """
        (seen,) = self.flow.see([reference]).seen
        return ReferenceLook(reference, *seen, tuple(self.encoder(reference)))

    def fuse(self, head: HeadLayer, reference: ReferenceLook, driving: Tensor) -> Fused:
        """`forward` with what is known of s_ref beforehand; the same numbers in eval mode, and only there: in training
        the batch norms must see all images together.

        Args:
            head: x_hat_dri; not looked at without `with_head`.
            reference: From `look`, as many rows as the others.
            driving: s_dri, `(B, 3, H, W)`, in [0, 1].

        Returns:
            As `forward`.
        """
        of_reference = Seen(reference.small, reference.regions)
        if self.with_head:
            of_head, (_, of_driving) = self.flow.see([head.image, driving]).seen
            features: Sequence[Tensor] = [to_be_sampled(feature) for feature in self.encoder(head.image)]
        else:
            of_head, features = of_reference, reference.features
            ((_, of_driving),) = self.flow.see([driving]).seen
        maps = self.flow.mix(of_head, of_reference, of_driving)
        if not self.with_head:
            maps = attend_without_head(maps)
        image, mixture, maps = self.compose(head, reference.image, maps, features, reference.features)
        return Fused(image, maps, of_driving, reference.regions, None, mixture)

    def compose(
        self,
        head: HeadLayer,
        reference: Tensor,
        maps: FusionMaps,
        of_head: Sequence[Tensor],
        of_reference: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, FusionMaps]:
        """Eq. 7 at every size, and Omega_F.

        Args:
            head: x_hat_dri.
            reference: s_ref, `(B, 3, H, W)`.
            maps: Of Phi.
            of_head: E_F's features of x_hat_dri.
            of_reference: Of s_ref.

        Returns:
            The frame, the mixture that it corrects, and the maps with the attention as it was used.
        """
        resized = _Resized(maps)
        shown = sample_grid(head.alpha, resized.at(head.alpha).to_head) if self.with_head else None
        attended: dict[torch.Size, tuple[Tensor, ...]] = {}

        def attend(like: Tensor) -> tuple[Tensor, ...]:
            """The attention at the size of `like`; the head's edge is as sharp there as that size allows."""
            size = like.shape[-2:]
            if size not in attended:
                attention = resized.at(like).attention
                if shown is not None:
                    attention = attend_where_seen(attention, _resized(shown, like))
                attended[size] = (attention, *attention.split(1, dim=1))
            return attended[size]

        def mix(level: int, e_dec: Tensor | None) -> Tensor:
            """Eq. 7 on features; without e_dec, what is known before the decoder has begun."""
            size = resized.at(of_reference[level])
            _, a_head, a_reference, a_dec = attend(of_reference[level])
            # A flow that points out of the reference gets its edge: zeros came out as black holes on real people.
            known = a_reference * sample_grid(of_reference[level], size.to_reference, "border")
            if self.with_head:
                known = torch.addcmul(known, a_head, sample_grid(of_head[level], size.to_head))
            return known if e_dec is None else known + a_dec * e_dec

        # The image itself: what the two warps give, by Eq. 7 without e_dec, and the decoder's correction of it.
        size = resized.at(reference)
        _, _, a_reference, a_dec = attend(reference)
        rest = (1 - a_dec).clamp(min=0.1)  # less would blow its gradient up
        known = a_reference * sample_grid(reference, size.to_reference, "border")
        if self.with_head:  # the layer is colour times opacity, which must count once
            known = torch.addcmul(known, size.attention[:, :1], sample_grid(head.image, size.to_head))
        logits = self.decoder(mix(2, None), lambda e_dec, level: mix(level, e_dec)).float()
        mixture = (known / rest).clamp(0.01, 0.99)
        image = torch.sigmoid(mixture.logit() + logits)
        return image, mixture, maps._replace(attention=attend(maps.attention)[0])


class _Maps(NamedTuple):
    """Phi's maps at one size.

    Attributes:
        attention: As Phi gives it, `(B, 3, h, w)`.
        to_head: Sampling grid of x_hat_dri, `(B, h, w, 2)`.
        to_reference: Of s_ref.
    """

    attention: Tensor
    to_head: Tensor
    to_reference: Tensor


class _Resized:
    """Phi's maps at the sizes that are asked for, each made once and all three together."""

    def __init__(self, maps: FusionMaps) -> None:
        grids = sampling_grid(torch.stack([maps.pixels_head, maps.pixels_reference], 1)).permute(0, 1, 4, 2, 3)
        self._all = torch.cat([maps.attention, grids.flatten(1, 2)], 1)
        self._made: dict[torch.Size, _Maps] = {}

    def at(self, like: Tensor) -> _Maps:
        """The maps at the size of `like`."""
        size = like.shape[-2:]
        if size not in self._made:
            own = self._all.shape[-2:] == size
            at = self._all if own else F.interpolate(self._all, size, mode="bilinear", align_corners=True)
            attention, to_head, to_reference = at.split([3, 2, 2], 1)
            self._made[size] = _Maps(attention, to_head.permute(0, 2, 3, 1), to_reference.permute(0, 2, 3, 1))
        return self._made[size]


def _resized(values: Tensor, like: Tensor) -> Tensor:
    """`(B, C, h, w)` at the size of `like`, averaged where that is smaller."""
    if values.shape[-2:] == like.shape[-2:]:
        return values
    return F.interpolate(values, like.shape[-2:], mode="bilinear", antialias=True, align_corners=False)
