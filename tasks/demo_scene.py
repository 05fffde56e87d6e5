"""What stands behind the demo head: a background per person, and neck and clothes that hardly move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from tasks.demo_paint import periodic_noise
from tasks.demo_person import Person, generator
from tasks.demo_shape import Axes, _cone, _ellipsoid, _join, smoothstep

_SUPERSAMPLING = 2
_FAR_M = 10.0  # behind every head, also one that is drawn from afar (tasks/rendered_heads.py)


@dataclass(frozen=True)
class Plate:
    """The still parts of a person's video at frame size."""

    background: Tensor  # (3, H, W)
    body: Tensor  # (4, H - top, W) colour, times its coverage, and coverage
    body_z: Tensor  # (H, W) metres from the camera; far away where there is no body
    top: int  # first row that the body can reach

    def shifted(self, dx: float, dy: float) -> tuple[Tensor, Tensor]:
        """Background with the body moved by (dx, dy) pixels.

        Returns:
            Picture `(3, H, W)` and body depth `(H, W)`, the latter moved by whole pixels.
        """
        body = _shift(_shift(self.body, dy, 1), dx, 2)
        image = self.background.clone()
        image[:, self.top :] = image[:, self.top :] * (1 - body[3]) + body[:3]
        return image, torch.roll(self.body_z, (round(dy), round(dx)), (0, 1))


def _shift(image: Tensor, amount: float, axis: int) -> Tensor:
    """Move along an axis by a fractional number of pixels; the border repeats."""
    whole = int(np.floor(amount))
    share = amount - whole
    index = torch.arange(image.shape[axis])
    first = image.index_select(axis, (index - whole).clamp(0, image.shape[axis] - 1))
    if share < 1e-3:
        return first
    return torch.lerp(first, image.index_select(axis, (index - whole - 1).clamp(0, image.shape[axis] - 1)), share)


def _background(person: Person, size_px: int) -> Tensor:
    rng = generator(person.seed, person.index, 3)
    first, second, third = (np.array(rgb, np.float32) for rgb in person.look.background_rgb)
    y, x = np.mgrid[0:size_px, 0:size_px].astype(np.float32) / size_px
    tilt = rng.uniform(-0.6, 0.6)
    ramp = np.clip(y * (1 - abs(tilt)) + tilt * (x - 0.5) + 0.1, 0, 1)[..., None]
    image = first + (second - first) * ramp
    kind = person.look.background
    if kind == "bokeh":
        for _ in range(14):
            cx, cy, r = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.03, 0.11)
            disc = expit((r - np.hypot(x - cx, y - cy)) / 0.012)
            image = image + (disc * rng.uniform(0.15, 0.45))[..., None] * (third - image)
    elif kind == "panels":
        edges = np.sort(rng.uniform(0, 1, 5))
        for index, edge in enumerate(edges):
            step = expit((x - edge) / 0.008)
            target = (third, second, first)[index % 3] * rng.uniform(0.6, 1.1)
            image = image + (0.55 * step)[..., None] * (target - image)
        shelf = np.exp(-(((y - rng.uniform(0.25, 0.6)) / 0.012) ** 2))
        image = image * (1 - 0.35 * shelf)[..., None]
    elif kind == "clouds":
        cloud = periodic_noise(rng, (256, 256), (90, 90)) + 0.5 * periodic_noise(rng, (256, 256), (30, 30))
        pick = np.arange(size_px) * 256 // size_px
        image = image + (0.5 * expit(1.5 * cloud[pick][:, pick]))[..., None] * (third - image)
    far = periodic_noise(rng, (256, 256), (50, 50))
    pick = np.arange(size_px) * 256 // size_px
    image = image * (1 + 0.04 * far[pick][:, pick])[..., None]
    vignette = 1 - 0.25 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    return torch.from_numpy(np.clip(image * vignette[..., None], 0, 1).astype(np.float32)).permute(2, 0, 1).contiguous()


def _solids(place: Axes) -> tuple[Tensor, Tensor]:
    """Distances to the neck and to the trunk, in the frame of the nominal head centre."""
    x, y, z = place
    neck = _cone(place, (0, 0.028, 0.0150), (0, 0.110, 0.0200), (0.0190, 0.0225))
    trunk = _join(
        _ellipsoid(place, (0, 0.1430, 0.0220), (0.0950, 0.0700, 0.0420)),
        _ellipsoid((x.abs(), y, z), (0.0250, 0.0780, 0.0260), (0.0320, 0.0120, 0.0160)),
        0.020,
    )
    return neck, trunk


def _clothes(person: Person, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Cloth colour `(N, 3)` and share of cloth against skin `(N,)`."""
    look = person.look
    first, second = torch.tensor(look.clothes), torch.tensor(look.clothes_second)
    around = x.abs()
    mark = torch.zeros_like(x)
    if look.pattern == "stripes":
        mark = smoothstep(-0.15, 0.15, torch.sin(y * 1400 - around * 300) - 0.2)
    elif look.pattern == "checks":
        mark = 0.5 * ((torch.sin(x * 800) > 0.35).float() + (torch.sin(y * 800) > 0.35).float())
    elif look.pattern == "dots":
        mark = smoothstep(0.55, 0.75, torch.sin(x * 1000) * torch.sin(y * 1000))
    colour = first + (second - first) * (0.8 * mark)[:, None]
    if look.neckline == "vee":
        line = 0.0910 - 0.95 * around
    elif look.neckline == "collar":
        line = 0.0755 - 0.25 * around
        flap = smoothstep(0.0012, 0.0, (y - line - 0.010 + 0.45 * around).abs() - 0.004) * (around < 0.030)
        colour = colour + (torch.clamp(second * 0.4 + 0.6, 0, 1) - colour) * flap[:, None]
    else:
        line = 0.0830 - 9.0 * around**2
        colour = colour * (1 - 0.25 * torch.exp(-(((y - line - 0.0015) / 0.0009) ** 2)))[:, None]
    return colour, smoothstep(-0.0004, 0.0004, y - line)


def make_plate(person: Person, size_px: int, focal_px: float, centre: np.ndarray) -> Plate:
    """Render background, neck and clothes once for a person's video.

    Args:
        person: Whose.
        size_px: Frame side.
        focal_px: f of Eq. 2.
        centre: `(3,)` mean position of the head's centre in the camera frame, metres; the body stands under it.

    Returns:
        The plate.
    """
    s = _SUPERSAMPLING
    offset = (torch.arange(size_px * s) + 0.5) / s - 0.5
    v, u = torch.meshgrid(offset, offset, indexing="ij")
    middle = (size_px - 1) / 2
    ray = torch.stack([(u - middle) / focal_px, (v - middle) / focal_px, torch.ones_like(u)], dim=-1).reshape(-1, 3)
    # only the rays under the nose can meet the body; the others need no marching
    rows = torch.nonzero(ray[:, 1] > float(centre[1]) + 0.010).flatten()
    direction = ray[rows]
    origin = torch.tensor(-centre, dtype=torch.float32)
    depth = torch.full((len(rows),), float(centre[2]) - 0.08)
    for _ in range(32):
        x, y, z = (origin + depth[:, None] * direction).unbind(1)
        neck, trunk = _solids((x, y, z))
        depth = depth + _join(neck, trunk, 0.010)
    hit = (depth < float(centre[2]) + 0.08) & (_join(neck, trunk, 0.010).abs() < 5e-4)
    x, y, z = (origin + depth[:, None] * direction).unbind(1)
    place = torch.stack([x, y, z], dim=1).requires_grad_()
    (gradient,) = torch.autograd.grad(_join(*_solids((place[:, 0], place[:, 1], place[:, 2])), 0.010).sum(), place)
    normal = gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-6)
    cloth, share = _clothes(person, x, y, z)
    skin = torch.tensor(person.look.skin) * 0.94
    # the chin's shadow on the neck
    shadow = 1 - 0.5 * smoothstep(0.078, 0.048, y) * smoothstep(0.030, 0.015, x.abs())
    colour = torch.lerp(skin.expand_as(cloth) * shadow[:, None], cloth, share[:, None])
    light = (normal @ torch.tensor(person.look.light)).clamp_min(0)
    colour = (colour**2 * (0.38 + 0.72 * light)[:, None]).clamp(0, 1).sqrt()
    samples = torch.zeros(size_px * s * size_px * s, 5)
    samples[:, 4] = _FAR_M
    samples[rows[hit]] = torch.cat([colour, torch.ones(len(rows), 1), depth[:, None]], dim=1)[hit]
    blocks = samples.view(size_px, s, size_px, s, 5)
    body = blocks[..., :4].mean(dim=(1, 3)).permute(2, 0, 1)
    covered = torch.nonzero(body[3].amax(dim=1) > 0).flatten()
    top = max(0, int(covered[0]) - 1 - size_px // 16) if len(covered) else size_px - 1
    return Plate(_background(person, size_px), body[:, top:].contiguous(), blocks[..., 4].amin(dim=(1, 3)), top)
