"""The perceptual pyramid of L_rec (Eq. 8): distances between features of a VGG19, at several image scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import Perceptual
from models.normalised import Normalised
from models.parser import HeadParser

# VGG19 up to relu5_1: the first block's second convolution and so on come before each pooling.
_VGG19 = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512)
_TAPS = (0, 2, 4, 8, 12)  # which convolutions are relu1_1 ... relu5_1
_SLIM = (16, 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M", 64)
_SLIM_TAPS = (0, 2, 4, 6, 8)
RANDOM_SEED = 19
"""Seed of the random backbones: the same features on every machine."""


class PerceptualLoss(nn.Module):
    """L_rec: weighted L1 between features of the output and of the target, and between their pixels.

    Source: Sec. 3.3 ("per [36, 38]"). Backbones: `vgg19` (ImageNet weights from the registry), `vgg19_random` (same
    network, seeded random weights: random features still compare structure), `slim_random` (a quarter of the width, for
    CPUs), `head_parser` (the embedded head parser's encoder: it knows faces and needs no download; its features have no
    common size, so each difference is taken relative to the target's).
    """

    def __init__(
        self, config: Perceptual, weights: dict[str, Tensor] | None = None, parser: HeadParser | None = None
    ) -> None:
        """Build the backbone.

        Args:
            config: The section `fusion.perceptual`.
            weights: torchvision's VGG19 state dict; needed for `vgg19` only.
            parser: The trained head parser; needed for `head_parser` only.

        Raises:
            ValueError: The backbone's weights are missing, or a list of weights has the wrong length.
        """
        super().__init__()
        if len(config.layer_weights) != 5:
            raise ValueError("fusion.perceptual.layer_weights needs five values, for relu1_1 to relu5_1")
        if config.backbone == "vgg19" and weights is None:
            raise ValueError(
                "fusion.perceptual.backbone vgg19 needs the ImageNet weights; set vgg19_random without them"
            )
        self.config = config
        self.relative = config.backbone == "head_parser"
        if config.backbone == "head_parser":
            if parser is None:
                raise ValueError("fusion.perceptual.backbone head_parser needs the parser's network")
            self.blocks = nn.ModuleList([*parser.stem, parser.down4, parser.down8, parser.down16])
        else:
            self.blocks = _build(*((_SLIM, _SLIM_TAPS) if config.backbone == "slim_random" else (_VGG19, _TAPS)))
        if weights is not None and config.backbone == "vgg19":
            _load_torchvision(self.blocks, weights)
        self.requires_grad_(False)
        # The parser takes 4 x - 2.
        self.normal = Normalised([0.5] * 3, [0.25] * 3) if self.relative else Normalised()

    def features(self, image: Tensor) -> list[Tensor]:
        """relu1_1 ... relu5_1 of `image (B, 3, H, W)` in [0, 1]."""
        x, found = self.normal(image), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar; the target is detached.

        Args:
            output: s_hat_dri, `(B, 3, H, W)`, in [0, 1].
            target: s_dri, the same.
        """
        target = target.detach()
        total = self.config.pixel_weight * (output - target).abs().mean()
        for scale in self.config.scales:
            a, b = output, target
            if scale != 1:
                a, b = (F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True) for x in (output, target))
            for weight, x, y in zip(self.config.layer_weights, self.features(a), self.features(b), strict=True):
                if weight:
                    off = (x - y).abs().mean(dtype=torch.float32)
                    total = total + weight * (off / y.abs().mean(dtype=torch.float32) if self.relative else off)
        return total


def _build(plan: tuple[int | str, ...], taps: tuple[int, ...]) -> nn.ModuleList:
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    blocks: list[nn.Sequential] = []
    layers: list[nn.Module] = []
    channels, convolutions = 3, 0
    for item in plan:
        if item == "M":
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            continue
        conv = nn.Conv2d(channels, int(item), 3, padding=1)
        with torch.no_grad():  # He's scale keeps the features' size from layer to layer
            conv.weight.normal_(0, (2 / (9 * channels)) ** 0.5, generator=generator)
            conv.bias.zero_()  # type: ignore[union-attr]
        layers += [conv, nn.ReLU()]
        channels = int(item)
        if convolutions in taps:
            blocks.append(nn.Sequential(*layers))
            layers = []
        convolutions += 1
    return nn.ModuleList(blocks)


def _load_torchvision(blocks: nn.ModuleList, weights: dict[str, Tensor]) -> None:
    convolutions = [layer for layer in blocks.modules() if isinstance(layer, nn.Conv2d)]
    keys = [key for key in weights if key.startswith("features.") and key.endswith(".weight")]
    for conv, key in zip(convolutions, keys, strict=False):
        conv.load_state_dict({"weight": weights[key], "bias": weights[key.replace("weight", "bias")]})
