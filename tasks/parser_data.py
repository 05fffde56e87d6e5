"""Images and label maps for training the head parser, and the augmentation that makes portraits into video frames.

The portraits of CelebAMask-HQ are centred, sharp and fill the frame; a clip's head may be small, cut off, blurred,
compressed, dark. All is done in batches on the device where the pictures lie.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks import labels
from tasks.errors import StageError

SIDE_PX = 256
IMAGE_SUFFIXES = (".webp", ".png", ".jpg", ".jpeg")
UNKNOWN = labels.UNKNOWN


@dataclass(frozen=True)
class LabelledImages:
    """Pictures with their labels, on one device.

    Attributes:
        images: `(n, 3, 256, 256)` u1 RGB.
        class_ids: `(n, 256, 256)` u1.
    """

    images: Tensor
    class_ids: Tensor

    def __len__(self) -> int:
        return len(self.images)


def read_labelled(folder: Path, side_px: int = SIDE_PX) -> tuple[LabelledImages, list[str]]:
    """Read `folder/images/NAME.*` with `folder/masks/NAME.png`.

    Args:
        folder: With the two folders; masks are class ids, 0-18.
        side_px: Pictures of another size are resized to this square.

    Returns:
        The pictures (on the CPU), sorted by name, and a sentence for each file that was left out.

    Raises:
        StageError: Nothing can be read there.
    """
    masks = {path.stem: path for path in sorted((folder / "masks").glob("*.png"))}
    images = {p.stem: p for p in sorted((folder / "images").glob("*")) if p.suffix.lower() in IMAGE_SUFFIXES}
    names = sorted(masks.keys() & images.keys())
    if not names:
        raise StageError(
            f"{folder} has no pairs images/NAME.(png|jpg|webp) + masks/NAME.png (class ids 0-18); "
            "CelebAMask-HQ's per-class masks must be merged into one map per picture first"
        )
    refused = [f"{name}: image or mask is missing" for name in sorted(masks.keys() ^ images.keys())]

    def read(name: str) -> tuple[np.ndarray, np.ndarray] | str:
        image, mask = cv2.imread(str(images[name])), cv2.imread(str(masks[name]), cv2.IMREAD_UNCHANGED)
        if image is None or mask is None:
            return f"{name}: cannot be decoded"
        if mask.ndim != 2 or mask.max() >= len(labels.NAMES):
            return f"{name}: the mask must be one channel of class ids 0-18"
        size = (side_px, side_px)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        return np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)), mask

    with ThreadPoolExecutor() as pool:
        read_all = list(pool.map(read, names))
    good = [item for item in read_all if not isinstance(item, str)]
    refused += [item for item in read_all if isinstance(item, str)]
    if not good:
        raise StageError(f"none of the {len(names)} pairs in {folder} can be used; the first: {refused[0]}")
    pictures = torch.from_numpy(np.stack([image for image, _ in good]))
    return LabelledImages(pictures, torch.from_numpy(np.stack([mask for _, mask in good]))), refused


def repair_sides(class_ids: Tensor) -> tuple[Tensor, int]:
    """Exchange left and right where the labels are the wrong way round (about 7% of CelebAMask-HQ's).

    The person's left brow and eye lie further right in the picture than the right ones.

    Args:
        class_ids: `(n, H, W)` u1.

    Returns:
        The repaired labels and how many maps were changed.
    """
    column = torch.arange(class_ids.shape[-1], device=class_ids.device, dtype=torch.float32)
    votes = torch.zeros(len(class_ids), device=class_ids.device)
    for left, right in labels.MIRRORED[:2]:
        counts = [(class_ids == side).sum(dim=1).float() for side in (left, right)]
        sums = [count.sum(dim=1) for count in counts]
        centres = [(count @ column) / total.clamp(min=1) for count, total in zip(counts, sums, strict=True)]
        both = (sums[0] > 0) & (sums[1] > 0)
        votes += torch.where(both, torch.sign(centres[0] - centres[1]), torch.zeros_like(votes))
    wrong = votes < 0
    repaired = class_ids.clone()
    repaired[wrong] = mirror_labels(class_ids[wrong])
    return repaired, int(wrong.sum())


def mirror_labels(class_ids: Tensor) -> Tensor:
    """Left and right classes exchanged (the pixels stay where they are)."""
    table = torch.arange(256, dtype=class_ids.dtype, device=class_ids.device)
    table[: len(labels.MIRRORED_IDS)] = torch.tensor(labels.MIRRORED_IDS, dtype=class_ids.dtype)
    return table[class_ids.long()]


class Augment:
    """Random views of labelled pictures at a given size; a step's views depend on the seed and the step alone."""

    def __init__(self, data: LabelledImages, seed: int, zoomed_out: float) -> None:
        self._data, self._seed, self._zoomed_out = data, seed, zoomed_out
        device = data.images.device
        self._random = torch.Generator(device=device)
        self._host = random.Random()  # for sizes: one drawn on the GPU would make it wait
        self._backdrops = _backdrops(data)

    def batch(self, step: int, count: int, size_px: int) -> tuple[Tensor, Tensor]:
        """The views of a step.

        Args:
            step: Of the training.
            count: How many.
            size_px: Their side; a multiple of 8.

        Returns:
            Images `(count, 3, S, S)` in [0, 1] and labels `(count, S, S)` int64; 255 where nothing is known.
        """
        self._random.manual_seed((self._seed << 32) + step)
        self._host.seed((self._seed << 32) + step)
        pick = torch.randint(len(self._data), (count,), generator=self._random, device=self._data.images.device)
        image, class_ids = self._data.images[pick].float() / 255, self._data.class_ids[pick]
        flip = self._uniform(count) < 0.5
        image[flip] = image[flip].flip(-1)
        class_ids[flip] = mirror_labels(class_ids[flip].flip(-1))
        image, class_ids = self._move(image, class_ids, size_px)
        return self._degrade(self._recolour(image)), class_ids

    def _uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        device = self._data.images.device
        return torch.rand(count, generator=self._random, device=device) * (high - low) + low

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random, device=self._data.images.device)

    def _move(self, image: Tensor, class_ids: Tensor, size_px: int) -> tuple[Tensor, Tensor]:
        """Zoom, turn, shear and shift; what comes into view is another background, or unknown."""
        count = len(image)
        wide = (
            self._uniform(count) < self._zoomed_out
        )  # zoomed out like a video frame; the others near the portrait's own size
        zoom = torch.where(
            wide,
            torch.exp(self._uniform(count, math.log(0.33), math.log(1.0))),
            torch.exp(self._uniform(count, math.log(0.85), math.log(1.8))),
        )
        angle = self._normal(count) * math.radians(14)
        stretch = torch.exp(self._normal(count) * 0.06)
        shear = self._normal(count) * 0.08
        slack = (zoom.clamp(max=1.0) - 1).abs() + 0.12
        shift = torch.stack([self._uniform(count, -1, 1) * slack, self._uniform(count, -1, 1) * slack], dim=1)
        seated = (self._uniform(count) < 0.4) & (zoom < 1)  # the picture's lower edge stays at the frame's
        shift[:, 1] = torch.where(seated, 1 - zoom, shift[:, 1])
        cos, sin = torch.cos(angle), torch.sin(angle)
        turn = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
        scale = torch.zeros_like(turn)
        scale[:, 0, 0], scale[:, 1, 1], scale[:, 0, 1] = zoom * stretch, zoom / stretch, shear * zoom
        inverse = torch.linalg.inv(turn @ scale)  # output position -> position in the picture
        theta = torch.cat([inverse, -inverse @ shift[:, :, None]], dim=2)
        grid = F.affine_grid(theta, [count, 3, size_px, size_px], align_corners=False)
        moved = _sample_filtered(image, grid, image.shape[-1] / size_px / zoom)
        ids = F.grid_sample(
            class_ids[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
        )
        ids = ids[:, 0].long()
        outside = (grid.abs() > 1).any(dim=-1)
        extend = (self._uniform(count) < 0.2)[:, None, None]  # the border goes on, and nobody says what it is
        ids = torch.where(outside, torch.where(extend, UNKNOWN, labels.BACKGROUND), ids)
        behind = self._backdrop(count, size_px)
        return torch.where((outside & ~extend)[:, None], behind, moved), ids

    def _backdrop(self, count: int, size_px: int) -> Tensor:
        """Backgrounds: blurred ones of other pictures or colour fields, with some structure."""
        device = self._data.images.device
        pick = torch.randint(len(self._backdrops), (count,), generator=self._random, device=device)
        theta = torch.zeros(count, 2, 3, device=device)
        zoom = self._uniform(count, 0.2, 1.0)
        theta[:, 0, 0], theta[:, 1, 1] = zoom, zoom
        theta[:, :, 2] = (
            torch.stack([self._uniform(count, -1, 1), self._uniform(count, -1, 1)], 1) * (1 - zoom)[:, None]
        )
        grid = F.affine_grid(theta, [count, 3, size_px, size_px], align_corners=False)
        scene = F.grid_sample(self._backdrops[pick].float() / 255, grid, align_corners=False)
        field = self._uniform(count)[:, None, None, None] + self._octaves(count, size_px, 3, 0.35)
        plain = (self._uniform(count) < 0.35)[:, None, None, None]
        strength = (self._uniform(count) ** 2 * 0.25)[:, None, None, None]
        return (torch.where(plain, field, scene) + self._octaves(count, size_px, 1, 1.0) * strength).clamp(0, 1)

    def _octaves(self, count: int, size_px: int, channels: int, amplitude: float) -> Tensor:
        """Smooth noise of several sizes with edges between its patches."""
        total = torch.zeros(count, channels, size_px, size_px, device=self._data.images.device)
        for cells, share in ((2, 0.6), (6, 0.3), (20, 0.2), (64, 0.1)):
            mode = "nearest" if cells in (6, 20) else "bilinear"
            noise = self._normal(count, channels, cells, cells)
            options = {} if mode == "nearest" else {"align_corners": False}
            total += share * F.interpolate(noise, size=(size_px, size_px), mode=mode, **options)
        return amplitude * total

    def _recolour(self, image: Tensor) -> Tensor:
        """Exposure, white balance, contrast, saturation; now and then black and white."""
        count = len(image)

        def each(values: Tensor) -> Tensor:
            return values[:, None, None, None]

        grey = image.mean(dim=1, keepdim=True)
        saturation = self._uniform(count, 0.5, 1.5) * (self._uniform(count) > 0.06)
        image = grey + (image - grey) * each(saturation)
        image = image * torch.exp(self._normal(count, 3, 1, 1) * 0.08)
        mean = image.mean(dim=(1, 2, 3), keepdim=True)
        image = mean + (image - mean) * each(torch.exp(self._normal(count) * 0.25))
        image = image * each(torch.exp(self._normal(count) * 0.25))
        return image.clamp(1e-4, 1) ** each(torch.exp(self._normal(count) * 0.25))

    def _degrade(self, image: Tensor) -> Tensor:
        """What cameras and codecs do: low resolution, compression in blocks, noise. A third stays as it is."""
        count, size = len(image), image.shape[-1]
        fate = self._uniform(count)
        cells = int(self._host.uniform(0.3, 0.9) * size)
        small = F.interpolate(image, size=(cells, cells), mode="bilinear", antialias=True, align_corners=False)
        low = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
        image = torch.where((fate < 0.35)[:, None, None, None], low, image)
        blocky = (self._uniform(count) < 0.35)[:, None, None, None]
        image = torch.where(blocky, _quantise_blocks(image, self._uniform(count, 0.01, 0.12)), image)
        noise = (self._uniform(count) ** 3 * 0.08)[:, None, None, None]
        return (image + self._normal(*image.shape) * noise).clamp(0, 1)


def _sample_filtered(image: Tensor, grid: Tensor, shrink: Tensor) -> Tensor:
    """Bilinear sampling of the pyramid level that fits how much each picture shrinks (no aliasing)."""
    level = torch.log2(shrink.clamp(min=1.0))
    out = torch.zeros(len(image), image.shape[1], *grid.shape[1:3], device=image.device)
    deepest = 3
    for step in range(deepest + 1):
        weight = (1 - (level.clamp(max=deepest) - step).abs()).clamp(min=0)
        out += weight[:, None, None, None] * F.grid_sample(image, grid, padding_mode="border", align_corners=False)
        image = F.avg_pool2d(image, 2)
    return out


_BASIS = torch.tensor(
    [
        [0.5 * math.cos((2 * n + 1) * k * math.pi / 16) / (math.sqrt(2) if k == 0 else 1) for n in range(8)]
        for k in range(8)
    ]
)
"""Cosine transform of 8 values."""


def _quantise_blocks(image: Tensor, step: Tensor) -> Tensor:
    """Coarser steps for the higher frequencies of 8 x 8 blocks, as JPEG and H.264 do."""
    b, c, h, w = image.shape
    basis = _BASIS.to(image)
    blocks = image.reshape(b, c, h // 8, 8, w // 8, 8).permute(0, 1, 2, 4, 3, 5)
    spectrum = basis @ blocks @ basis.T
    index = torch.arange(8, device=image.device)
    steps = step.view(-1, 1, 1, 1, 1, 1) * (1 + 0.6 * (index[:, None] + index[None]))
    coarse = basis.T @ (torch.round(spectrum / steps) * steps) @ basis
    return coarse.permute(0, 1, 2, 4, 3, 5).reshape(b, c, h, w)


def _backdrops(data: LabelledImages, size_px: int = 64) -> Tensor:
    """Each picture's background, filled in where the person stands: `(n, 3, 64, 64)` u1."""
    return torch.cat([_fill(data.images[rows], data.class_ids[rows], size_px) for rows in _pieces(len(data), 256)])


def _fill(images: Tensor, class_ids: Tensor, size_px: int) -> Tensor:
    """Push-pull: known pixels are averaged over ever larger cells, unknown ones take the finest cell that knows."""
    known = (class_ids == labels.BACKGROUND).float()[:, None]
    colour = F.adaptive_avg_pool2d(images.float() * known, size_px)
    weight = F.adaptive_avg_pool2d(known, size_px)
    levels = [(colour, weight)]
    while levels[-1][0].shape[-1] > 1:
        levels.append((F.avg_pool2d(levels[-1][0], 2), F.avg_pool2d(levels[-1][1], 2)))
    filled = torch.full_like(levels[-1][0], 128.0)
    for level_colour, level_weight in reversed(levels):
        size = level_colour.shape[-1]
        coarse = F.interpolate(filled, size=(size, size), mode="bilinear", align_corners=False)
        sure = (level_weight * 4).clamp(max=1)
        filled = sure * level_colour / level_weight.clamp(min=1e-6) + (1 - sure) * coarse
    return filled.round().clamp(0, 255).byte()


def _pieces(count: int, length: int) -> Iterable[slice]:
    return (slice(start, start + length) for start in range(0, count, length))
