"""The embedded head parser: a compact U-Net that names every pixel of a face crop (19 classes of CelebAMask-HQ).

Our choice; trained by `head3d train-parser` (tasks/train_parser.py). Dense 3 x 3 convolutions keep CPU cores busy where
depthwise ones would wait for memory; their widths double as the resolution halves, so every level costs about the same.
At 1/32 of the size a few tokens attend to each other: whether a dark region is hair or background, and which ear is the
left one, is decided by the whole picture.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CLASSES = 19
STRIDE = 32
WIDTHS = (24, 48, 96, 136)
"""Channels at 1/2, 1/4, 1/8 and 1/16 of the size; 1/32 has as many as 1/16."""


class ConvUnit(nn.Module):
    """Convolution, batch norm, optional ReLU; `fuse` folds the norm into the convolution for use."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels_out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C_out, H / stride, W / stride)`."""
        x = self.norm(self.conv(x))
        return F.relu(x, inplace=True) if self.relu else x

    def fuse(self) -> None:
        """One convolution in place of two layers; the results stay the same in eval mode."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval()), nn.Identity()


class Residual(nn.Module):
    """relu(x + conv(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels)
        self.second = ConvUnit(channels, channels, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same."""
        return F.relu(x + self.second(self.first(x)), inplace=True)


class Context(nn.Module):
    """Self-attention over all positions; a depthwise convolution tells them where they are, at any size."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.place = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm_attention = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same."""
        x = x + self.place(x)
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm_attention(tokens)).view(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        tokens = tokens + self.out(attended.transpose(1, 2).reshape(b, h * w, c))
        tokens = tokens + self.mlp(self.norm_mlp(tokens))
        return tokens.transpose(1, 2).reshape(b, c, h, w)


class HeadParser(nn.Module):
    """RGB crop -> logits of the 19 classes."""

    def __init__(self) -> None:
        super().__init__()
        w2, w4, w8, w16 = WIDTHS
        self.stem = nn.Sequential(ConvUnit(3, w2, stride=2), ConvUnit(w2, w2))
        self.down4 = nn.Sequential(ConvUnit(w2, w4, stride=2), Residual(w4))
        self.down8 = nn.Sequential(ConvUnit(w4, w8, stride=2), Residual(w8), Residual(w8))
        self.down16 = nn.Sequential(ConvUnit(w8, w16, stride=2), Residual(w16))
        self.down32 = nn.Sequential(ConvUnit(w16, w16, stride=2), Context(w16), Context(w16))
        self.up16 = Residual(w16)
        self.narrow8, self.up8 = ConvUnit(w16, w8, kernel=1), Residual(w8)
        self.narrow4, self.up4 = ConvUnit(w8, w4, kernel=1), Residual(w4)
        self.narrow2, self.up2 = ConvUnit(w4, w2, kernel=1), ConvUnit(w2, w2 + 8)
        self.classify = nn.Conv2d(w2 + 8, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores of every pixel.

        Args:
            image: `(B, 3, H, W)` RGB in [0, 1]; H and W multiples of 32 (made for 128 to 256).

        Returns:
            `(B, 19, H, W)` logits; class ids as in CelebAMask-HQ (tasks/labels.py).

        Raises:
            ValueError: H or W is no multiple of 32.
        """
        if image.shape[-1] % STRIDE or image.shape[-2] % STRIDE:
            raise ValueError(f"the parser takes sides that are multiples of {STRIDE}, not {tuple(image.shape[-2:])}")
        x2 = self.stem(image * 4 - 2)
        x4 = self.down4(x2)
        x8 = self.down8(x4)
        x16 = self.down16(x8)
        x = self.up16(x16 + _double(self.down32(x16)))
        x = self.up8(x8 + _double(self.narrow8(x)))
        x = self.up4(x4 + _double(self.narrow4(x)))
        x = self.up2(x2 + _double(self.narrow2(x)))
        return _double(self.classify(x))

    def fuse(self) -> HeadParser:
        """Fold every batch norm into its convolution, for use and for the weights file.

        Returns:
            This network, in eval mode.
        """
        for module in self.modules():
            if isinstance(module, ConvUnit):
                module.fuse()
        return self.eval()


def load_parser(path: str | Path, device: torch.device | str = "cpu") -> HeadParser:
    """The network with the weights of a file that `head3d train-parser` wrote (fp16, fused).

    Args:
        path: The safetensors file.
        device: Where to.

    Returns:
        The fused network in eval mode, fp32, channels last.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds another network.
    """
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; `head3d train-parser` writes one, or install Head3D again")
    weights = {name: value.float() for name, value in load_file(str(path)).items()}
    network = HeadParser().fuse()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} holds another network than models/parser.py: {error}") from None
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
