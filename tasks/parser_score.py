"""How good a head parser is: overlap with labelled pictures, as they are and shrunk onto a background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import labels
from tasks.parser_data import LabelledImages

SHRUNK = 0.45
SIZES_PX = (128, 192, 256)


def score(network: Callable[[Tensor], Tensor], val: LabelledImages) -> dict[str, Any]:
    """Figures on labelled pictures, at each size the network may work at, and shrunk to 0.45 of theirs.

    Args:
        network: `(B, 3, S, S)` in [0, 1] to logits `(B, 19, S, S)`, in eval mode.
        val: Pictures and labels.

    Returns:
        `val_<S>` and `val_shrunk_<S>` -> head_iou, hair_iou, mean_f1, f1 (per class name; classes that do not occur
        are left out). Pixels of all pictures are counted together, at the labels' own size (256 px).
    """
    figures: dict[str, Any] = {}
    shrunk = shrink(val, SHRUNK, seed=0)
    for size in SIZES_PX:
        figures[f"val_{size}"] = overlap(confusion(network, val, size))
        figures[f"val_shrunk_{size}"] = overlap(confusion(network, shrunk, size))
    return figures


@torch.no_grad()
def confusion(network: Callable[[Tensor], Tensor], data: LabelledImages, size_px: int) -> Tensor:
    """Pixels by true (row) and predicted (column) class, `(19, 19)`; the network sees the pictures at `size_px`."""
    count = len(labels.NAMES)
    total = torch.zeros(count * count, dtype=torch.int64, device=data.images.device)
    for start in range(0, len(data), 25):
        image = data.images[start : start + 25].float() / 255
        truth = data.class_ids[start : start + 25].long()
        full = image.shape[-2:]
        if full[0] != size_px:
            image = F.interpolate(image, size=(size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
        share = network(image).float().softmax(dim=1)
        if full[0] != size_px:
            share = F.interpolate(share, size=full, mode="bilinear", align_corners=False)
        total += torch.bincount((truth * count + share.argmax(dim=1)).flatten(), minlength=count * count)
    return total.view(count, count)


def overlap(counts: Tensor) -> dict[str, Any]:
    """Head and hair intersection over union, F1 of each class that occurs, and their mean.

    Args:
        counts: `(19, 19)` as `confusion` gives them.
    """
    counts = counts.double().cpu()
    right, truth, said = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    f1 = 2 * right / (truth + said).clamp(min=1)
    head = torch.zeros(len(counts), dtype=torch.bool)
    head[list(labels.HEAD)] = True
    both = counts[head][:, head].sum()
    either = truth[head].sum() + said[head].sum() - both
    hair = labels.HAIR
    occurs = truth > 0
    return {
        "head_iou": round(float(both / either), 4),
        "hair_iou": round(float(right[hair] / (truth[hair] + said[hair] - right[hair])), 4),
        "mean_f1": round(float(f1[occurs].mean()), 4),
        "f1": {name: round(float(f1[i]), 4) for i, name in enumerate(labels.NAMES) if occurs[i]},
    }


def shrink(data: LabelledImages, scale: float, seed: int) -> LabelledImages:
    """Every picture at `scale` of its size on a background: half of them on colour fields with noise, half on a blurred
    other picture; where it stands is drawn by `seed`."""
    random = torch.Generator().manual_seed(seed)
    count, side = len(data), data.images.shape[-1]
    device = data.images.device
    inner = round(side * scale)
    images = data.images.float() / 255
    small = F.interpolate(images, size=(inner, inner), mode="bilinear", antialias=True, align_corners=False)
    rows = ((torch.arange(inner) + 0.5) / inner * side).long().to(device)
    small_ids = data.class_ids[:, rows][:, :, rows]
    order = torch.randperm(count, generator=random)
    blurred = F.interpolate(F.adaptive_avg_pool2d(images[order.to(device)], 6), size=(side, side), mode="bilinear")
    colour = torch.rand(count, 3, 4, 4, generator=random).to(device)
    field = F.interpolate(colour, size=(side, side), mode="bilinear")
    out = torch.where((torch.arange(count, device=device) % 2 == 0)[:, None, None, None], blurred, field)
    out = out + 0.04 * torch.randn(count, 1, side, side, generator=random).to(device)
    ids = torch.zeros_like(data.class_ids)
    corners = torch.randint(0, side - inner + 1, (count, 2), generator=random).tolist()
    for i, (y, x) in enumerate(corners):
        out[i, :, y : y + inner, x : x + inner] = small[i]
        ids[i, y : y + inner, x : x + inner] = small_ids[i]
    return LabelledImages((out.clamp(0, 1) * 255).round().byte(), ids)
