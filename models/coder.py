"""The image encoder and decoder of stages 2 and 3 (Sec. 4.2, after Johnson et al. [17]), two downsampling blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import CoderNet
from models.kept import constant
from models.layout import channels_last
from models.precision import as_read
from models.resize import NearestX2


def reflect_pad(x: Tensor, width: int) -> Tensor:
    """`F.pad(x, [width] * 4, mode="reflect")`.

    Compiled, it is written as joined slices: torch.compile turns the gradient of the library's into atomic additions,
    which took a tenth of a training step.

    Args:
        x: `(B, C, H, W)`.
        width: Of the border, pixels.
    """
    if not torch.compiler.is_dynamo_compiling():
        if not torch.is_grad_enabled() and x.is_cuda and x.is_contiguous(memory_format=torch.channels_last):
            return mirrored(x, width)
        return F.pad(x, [width] * 4, mode="reflect")
    for dim in (2, 3):
        length = x.shape[dim]
        before, after = x.narrow(dim, 1, width).flip(dim), x.narrow(dim, length - 1 - width, width).flip(dim)
        x = torch.cat([before, x, after], dim)
    return channels_last(x)


def mirrored(x: Tensor, width: int, enlarge: int = 1) -> Tensor:
    """`reflect_pad` of `x` after a nearest enlargement, in one reading; the channels stay last in memory.

    The library's own brings them to the front first, and the convolution that follows takes them back: three passes.

    Args:
        x: `(B, C, H, W)`, channels last.
        width: Of the border, pixels.
        enlarge: Every pixel becomes so many in both directions.
    """
    batch, channels, height, length = x.shape

    def reflected(count: int) -> Tensor:
        """Which of `count` rows each row shows; numbers are made on the device, as a CUDA graph needs it."""
        last = count * enlarge - 1
        place = (torch.arange(-width, last + width + 1, device=x.device)).abs()
        return (last - (last - place).abs()) // enlarge

    def make() -> Tensor:
        rows = torch.arange(batch, device=x.device)[:, None, None] * height + reflected(height)[:, None]
        return rows * length + reflected(length)

    index = constant("mirrored", (batch, height, length, width, enlarge), x, make)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    return pixels.index_select(0, index.flatten()).view(*index.shape, channels).permute(0, 3, 1, 2)


class ReflectConv2d(nn.Conv2d):
    """Convolution of odd size whose border mirrors the image."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel, stride)
        self.border = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels_in, H, W)` to `(B, channels_out, H / stride, W / stride)`."""
        return F.conv2d(reflect_pad(as_read(x), self.border), self.weight, self.bias, self.stride)


def conv_block(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm (as in Johnson et al.; instance norm would take the head's colour away), ReLU."""
    return nn.Sequential(
        ReflectConv2d(channels_in, channels_out, kernel, stride),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(x)))) at constant size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_block(channels, channels, 3),
            ReflectConv2d(channels, channels, 3),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same."""
        return x + self.body(x)


class ImageEncoder(nn.Module):
    """E_H and E_F: image to features at its size, a half and a quarter of it."""

    def __init__(self, config: CoderNet) -> None:
        super().__init__()
        w = config.width
        self.levels = nn.ModuleList(
            [conv_block(3, w, 7), conv_block(w, 2 * w, 3, stride=2), conv_block(2 * w, 4 * w, 3, stride=2)]
        )
        self.channels = 4 * w

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of `image (B, 3, H, W)` in [0, 1].

        Returns:
            `(B, width, H, W)`, `(B, 2 width, H / 2, W / 2)` and, the bottleneck, `(B, 4 width, H / 4, W / 4)`.
        """
        x, features = torch.rsub(image, -1, alpha=-2), []  # 2 image - 1 in one kernel
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class ImageDecoder(nn.Module):
    """Omega_H and Omega_F: features at a quarter of the size to an image (Omega_H: with opacity and depth).

    At every size, `merge` may mix what the decoder has with something else: stage 3 does that by Eq. 7, where the
    decoder's own feature is e_dec.
    """

    def __init__(self, config: CoderNet, channels: int = 3) -> None:
        super().__init__()
        w = config.width
        self.residual = nn.Sequential(*(ResidualBlock(4 * w) for _ in range(config.residual_blocks)))
        self.ups = nn.ModuleList([conv_block(4 * w, 2 * w, 3), conv_block(2 * w, w, 3)])
        self.larger: nn.Module = NearestX2()
        self.out = ReflectConv2d(w, channels, 7)
        # Both stages add the logits to an image that is known: training starts from that image as it is.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, feature: Tensor, merge: Callable[[Tensor, int], Tensor] = lambda x, _: x) -> Tensor:
        """Decode.

        Args:
            feature: `(B, 4 width, H / 4, W / 4)`.
            merge: (feature, level) to feature; level 2 is a quarter of the size, 0 the full size.

        Returns:
            Logits of the image, `(B, channels, H, W)`; their sigmoid is in [0, 1].
        """
        x = merge(self.residual(feature), 2)
        for level, up in zip((1, 0), self.ups, strict=True):
            x = merge(up(self.larger(x)), level)
        return self.out(x)


class ConvLSTM(nn.Module):
    """Lambda: one layer of convolutional LSTM that gathers features over the references (Sec. 3.2, [34])."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1)
        with torch.no_grad():  # an open forget gate at the start: the first references are not lost
            self.gates.bias[channels : 2 * channels] = 1.0  # type: ignore[index]

    def forward(self, features: Tensor) -> Tensor:
        """Gather a sequence of any length.

        Args:
            features: h_i^c in order, `(B, N, C, h, w)`.

        Returns:
            h^c, `(B, C, h, w)`.
        """
        hidden = cell = torch.zeros_like(features[:, 0])
        for feature in features.unbind(1):
            gates = self.gates(channels_last(torch.cat([as_read(feature), as_read(hidden)], dim=1)))
            take, keep, show, new = gates.chunk(4, dim=1)
            cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
            hidden = show.sigmoid() * cell.tanh()
        return hidden
