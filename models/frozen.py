"""Frozen networks in the form that a GPU runs fastest: convolution, bias, sum and ReLU in one kernel, channels last.

A network is first changed in its structure (`fuse_convolutions`), which leaves its numbers as they are. A part then
runs as it did until `FusedConv.fast` is set, for a GPU and precisions that its matrix units know.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.coder import ImageDecoder, ReflectConv2d, mirrored

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class FusedConv(nn.Module):
    """A convolution with what comes before it (nearest enlargement, mirrored border) and after (sum, ReLU).

    Attributes:
        fast: Whether cuDNN's fused operations are asked for; it is unset where they fail.
        notes: Where that is told.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool = True, enlarge: int = 1) -> None:
        super().__init__()
        self.conv, self.relu, self.enlarge = conv, relu, enlarge
        self.fast, self.notes = False, list[str]()

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """`(B, C, H, W)`; `added` is of the result's shape and added before the ReLU."""
        if self.fast and not torch.compiler.is_compiling():
            try:
                return self._fused(x, added)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.fast = False
                first = (str(error).splitlines() or [type(error).__name__])[0][:200]
                note = f"cuDNN does not fuse every convolution ({first}); the others run in parts"
                if note not in self.notes:
                    self.notes.append(note)
        if self.enlarge > 1:
            x = F.interpolate(x, scale_factor=self.enlarge, mode="nearest")
        made = self.conv(x)
        if added is not None:
            made = made + added
        return F.relu(made) if self.relu else made

    def _fused(self, x: Tensor, added: Tensor | None) -> Tensor:
        conv = self.conv
        x = x.to(conv.weight.dtype, memory_format=torch.channels_last)
        border = conv.border if isinstance(conv, ReflectConv2d) else 0
        if border or self.enlarge > 1:
            x = mirrored(x, border, self.enlarge)
        assert not isinstance(conv.padding, str)
        how = (conv.stride, conv.padding, conv.dilation, conv.groups)
        if not self.relu:
            made = F.conv2d(x, conv.weight, conv.bias, *how)
            return made if added is None else made + added
        if added is None:
            return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *how)
        added = added.to(x.dtype, memory_format=torch.channels_last)
        return torch.cudnn_convolution_add_relu(x, conv.weight, added, 1.0, conv.bias, *how)


class FusedResidual(nn.Module):
    """torchvision's residual blocks, batch norms folded: convolutions with ReLU, then relu(convolution + x)."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        convs = [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]
        self.body = nn.Sequential(*(FusedConv(conv) for conv in convs[:-1]))
        self.last = FusedConv(convs[-1])
        self.shortcut: nn.Module = nn.Identity() if block.downsample is None else block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H', W')`."""
        return self.last(self.body(x), self.shortcut(x))


class AsStored(nn.Module):
    """Features in the type and layout of a convolution that is fast, so that a residual stream stays in them."""

    def __init__(self, conv: FusedConv) -> None:
        super().__init__()
        self._conv = [conv]  # not a part of this one

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same."""
        conv = self._conv[0]
        if not conv.fast or torch.compiler.is_compiling():
            return x
        return x.to(conv.conv.weight.dtype, memory_format=torch.channels_last)


def fuse_convolutions(module: ModuleT) -> ModuleT:
    """Join convolutions with what follows them: the same numbers, and one part where `FusedConv.fast` is set.

    Args:
        module: Frozen, batch norms folded (`fold_batch_norms`); changed in place.

    Returns:
        The module.
    """
    for part in list(module.modules()):
        if isinstance(part, nn.Sequential):
            _fuse_sequence(part)
        for name, child in list(part.named_children()):
            if isinstance(child, BasicBlock | Bottleneck):
                setattr(part, name, FusedResidual(child))
    for part in list(module.modules()):
        if isinstance(part, ImageDecoder):
            _fuse_decoder(part)
    return module


def _fuse_sequence(part: nn.Sequential) -> None:
    """Convolution, nothing (once a batch norm) and ReLU; a mirrored convolution also without ReLU."""
    names = [name for name, child in part.named_children() if not isinstance(child, nn.Identity)]
    for name, after in zip(names, [*names[1:], ""], strict=True):
        conv, relu = getattr(part, name), bool(after) and isinstance(getattr(part, after), nn.ReLU)
        if isinstance(conv, nn.Conv2d) and (relu or isinstance(conv, ReflectConv2d)):
            setattr(part, name, FusedConv(conv, relu))
            if relu:
                setattr(part, after, nn.Identity())


def _fuse_decoder(decoder: ImageDecoder) -> None:
    """The enlargement before a mirrored convolution is read together with its border."""
    decoder.larger = nn.Identity()
    for up in decoder.ups:
        first = up[0]  # type: ignore[index]
        assert isinstance(first, FusedConv)
        first.enlarge = 2
    out = FusedConv(decoder.out, relu=False)
    decoder.residual.insert(0, AsStored(out))
    decoder.out = out  # type: ignore[assignment]
