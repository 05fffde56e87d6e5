"""BiSeNet (Yu et al. 2018) as the public face parser has it: a head of 19 classes on the context path of a ResNet-18.

The layers carry the names of the public checkpoint `79999_iter.pth` (zllrunning/face-parsing.PyTorch, MIT), so that the
file loads strictly, and compute what that code computes: the spatial path is the ResNet's own feature at 1/8, sums of
scales are enlarged with nearest neighbours, logits bilinearly with aligned corners. Its class ids are those of
CelebAMask-HQ, as ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from models.normalised import Normalised

CLASSES = 19
MULTIPLE_PX = 32
"""The ResNet halves five times."""


class BiSeNetLogits(NamedTuple):
    """Logits `(B, 19, H, W)` of the three heads; training sums their losses, `main` is the answer."""

    main: Tensor
    at_8: Tensor
    at_16: Tensor


class BiSeNet(nn.Module):
    """Face parser with the layers of the public checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.cp = _ContextPath()
        self.ffm = _FeatureFusion(256, 256)
        self.conv_out = _Output(256, 256)
        self.conv_out16 = _Output(128, 64)
        self.conv_out32 = _Output(128, 64)
        self.normal = Normalised()

    def forward(self, image: Tensor) -> Tensor:
        """Class logits.

        Args:
            image: `(B, 3, H, W)` RGB in [0, 1]; sides of `MULTIPLE_PX` keep the grid.

        Returns:
            `(B, 19, H, W)`.
        """
        feature_8, context_8, _ = self.cp(self.normal(image))
        return _enlarged(self.conv_out(self.ffm(feature_8, context_8)), image)

    def heads(self, image: Tensor) -> BiSeNetLogits:
        """The logits of all three heads, as training needs them; `image` as in `forward`."""
        feature_8, context_8, context_16 = self.cp(self.normal(image))
        return BiSeNetLogits(
            _enlarged(self.conv_out(self.ffm(feature_8, context_8)), image),
            _enlarged(self.conv_out16(context_8), image),
            _enlarged(self.conv_out32(context_16), image),
        )


def _enlarged(logits: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=True)


def _nearest(feature: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(feature, like.shape[-2:], mode="nearest")


class _ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU; the size stays."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Output(nn.Module):
    """Feature -> class logits at the same size."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = _ConvNorm(channels, width, 3)
        self.conv_out = nn.Conv2d(width, CLASSES, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class _AttentionRefinement(nn.Module):
    """Channels weighed by what the whole picture shows."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = _ConvNorm(channels_in, channels_out, 3)
        self.conv_atten = nn.Conv2d(channels_out, channels_out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        feature = self.conv(x)
        pooled = F.adaptive_avg_pool2d(feature, 1)
        return feature * torch.sigmoid(self.bn_atten(self.conv_atten(pooled)))


class _FeatureFusion(nn.Module):
    """Two features of one size joined, and their channels weighed again."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.convblk = _ConvNorm(channels_in, channels_out, 1)
        self.conv1 = nn.Conv2d(channels_out, channels_out // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels_out // 4, channels_out, 1, bias=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        feature = self.convblk(torch.cat([spatial, context], dim=1))
        weight = torch.sigmoid(self.conv2(F.relu(self.conv1(F.adaptive_avg_pool2d(feature, 1)))))
        return feature * weight + feature


class _Backbone(nn.Module):
    """A ResNet-18 without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        network = resnet18(weights=None)
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at 1/8 (128 channels), 1/16 (256) and 1/32 (512)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(image))))
        feature_8 = self.layer2(self.layer1(x))
        feature_16 = self.layer3(feature_8)
        return feature_8, feature_16, self.layer4(feature_16)


class _ContextPath(nn.Module):
    """From the coarsest feature back to 1/8, each scale refined by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = _Backbone()
        self.arm16 = _AttentionRefinement(256, 128)
        self.arm32 = _AttentionRefinement(512, 128)
        self.conv_head32 = _ConvNorm(128, 128, 3)
        self.conv_head16 = _ConvNorm(128, 128, 3)
        self.conv_avg = _ConvNorm(512, 128, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ResNet's feature at 1/8, the context at 1/8 and at 1/16 (128 channels each)."""
        feature_8, feature_16, feature_32 = self.resnet(image)
        whole = self.conv_avg(F.adaptive_avg_pool2d(feature_32, 1))  # one value a channel: broadcast
        context_16 = self.conv_head32(_nearest(self.arm32(feature_32) + whole, feature_16))
        context_8 = self.conv_head16(_nearest(self.arm16(feature_16) + context_16, feature_8))
        return feature_8, context_8, context_16
