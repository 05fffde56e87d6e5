"""F_D, the depth network (Sec. 4.2): encoder-decoder after Khan et al. [20] with instance norm in the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from models.config import Camera, DepthNet
from models.geometry import NOMINAL_DISTANCE_M
from models.layout import joined
from models.normalised import Normalised
from models.norms import BatchNorm2d, InstanceNorm2d
from models.resize import bilinear_x2

BORDER_PX = 2
"""Columns left and right that are pinned to `camera.border_depth_m`, so that the depth's level cannot drift."""


class SlimEncoder(nn.Module):
    """A few strided convolutions for small frames on a CPU; same interface as `MobileNetEncoder`."""

    channels = (16, 32, 64, 96, 128)

    def __init__(self) -> None:
        super().__init__()
        blocks, last = [], 3
        for channels in self.channels:
            conv = nn.Conv2d(last, channels, 3, stride=2, padding=1, bias=False)
            blocks.append(nn.Sequential(conv, InstanceNorm2d(channels, affine=True), nn.LeakyReLU(0.2)))
            last = channels
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size of `x (B, 3, H, W)` in [0, 1]."""
        features, x = [], x * 2 - 1
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return features


class MobileNetEncoder(nn.Module):
    """MobileNetV2's features at five scales (the encoder of Khan et al., reference [20] of the paper)."""

    channels = (16, 24, 32, 96, 1280)
    _taps = (1, 3, 6, 13, 18)

    def __init__(self) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None, norm_layer=BatchNorm2d).features
        for layer in self.features.modules():
            if isinstance(layer, nn.ReLU6):  # in place, its gradient would need a copy of what it wrote over
                layer.inplace = False
        self.normal = Normalised()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size of `x (B, 3, H, W)` in [0, 1]."""
        features, x = [], self.normal(x)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taps:
                features.append(x)
        return features


class UpBlock(nn.Module):
    """Bilinear x2, skip connection, two 3x3 convolutions with instance norm and LeakyReLU 0.2."""

    def __init__(self, channels_in: int, skip: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in + skip, channels_out, 3, padding=1, bias=False),
            InstanceNorm2d(channels_out, affine=True),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            InstanceNorm2d(channels_out, affine=True),
            nn.LeakyReLU(0.2),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """`x (B, C, h, w)` doubled (cut where an odd size was rounded up) and merged with `skip (B, S, H, W)`."""
        x = bilinear_x2(x)[:, :, : skip.shape[2], : skip.shape[3]]
        first, *rest = self.body
        x = joined(first, (x, skip))  # type: ignore[arg-type]
        for layer in rest:
            x = layer(x)
        return x


class DepthNetwork(nn.Module):
    """F_D: depth of a head image.

    Source: Sec. 4.2; the mapping d = 1 + s tanh(raw - mean(raw)) and the pinned border are our choice after [49].
    """

    def __init__(self, config: DepthNet, camera: Camera) -> None:
        super().__init__()
        self.camera = camera
        self.encoder = MobileNetEncoder() if config.encoder == "mobilenet_v2" else SlimEncoder()
        skips = self.encoder.channels
        width = config.width
        self.bottom = nn.Conv2d(skips[-1], width, 1)
        blocks = []
        for skip in (*skips[-2::-1], 3):  # the last skip is the image itself: output at full resolution
            blocks.append(UpBlock(width, skip, max(width // 2, 16)))
            width = max(width // 2, 16)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Depth of head images.

        Args:
            image: Head on black, `(B, 3, H, W)`, in [0, 1].

        Returns:
            `(B, H, W)`, metres, in [depth_min_m, depth_max_m].
        """
        features = self.encoder(image)
        skips = [*features[-2::-1], image]
        x = self.bottom(features[-1])
        for block, skip in zip(self.blocks, skips, strict=True):
            x = block(x, skip)
        raw = self.head(x).float()[:, 0]
        unit = torch.tanh(raw - raw.mean(dim=(1, 2), keepdim=True))
        near, far = NOMINAL_DISTANCE_M - self.camera.depth_min_m, self.camera.depth_max_m - NOMINAL_DISTANCE_M
        depth = NOMINAL_DISTANCE_M + torch.where(unit < 0, unit * near, unit * far)
        columns = torch.arange(depth.shape[2], device=depth.device)
        border = (columns < BORDER_PX) | (columns >= depth.shape[2] - BORDER_PX)
        return torch.where(border, self.camera.border_depth_m, depth)
