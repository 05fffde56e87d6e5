"""Colours of the demo head: skin texture, hair strands, and eyes, brows and mouth that follow the expression.

Everything is a function of the place on the head's surface, so that it turns with the head. Features are drawn in the
front view (x, y) with edges half a millimetre soft; textures lie on a cylinder around the vertical axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor

from tasks.demo_person import Person, generator
from tasks.demo_shape import EYE_Y_M, JAW_DROP_M, MOUTH_Y_M, smoothstep

_TEXTURE_HEIGHT, _TEXTURE_WIDTH = 256, 512
_TEXTURE_HALF_M = 0.075
_SOFT_M = 0.00035
BROW_Y_M = -0.0145


@dataclass(frozen=True)
class Expression:
    """The face at one moment; see demo_motion.Tracks."""

    mouth: float
    smile: float
    blink: float
    brow: float
    gaze_x: float
    gaze_y: float


def periodic_noise(rng: np.random.Generator, shape: tuple[int, int], size_px: tuple[float, float]) -> np.ndarray:
    """Gaussian noise, smoothed over `size_px` (y, x), with mean 0 and deviation 1; it wraps at its borders."""
    fy = np.fft.fftfreq(shape[0])[:, None] * size_px[0]
    fx = np.fft.rfftfreq(shape[1])[None] * size_px[1]
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * np.exp(-8 * (fy**2 + fx**2))
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, shape)
    return np.asarray(noise / (noise.std() + 1e-9), dtype=np.float32)


def mouth_shape(person: Person, face: Expression) -> tuple[float, float, float]:
    """Half width, gap between the lips, and how much the corners stand up, in metres."""
    half = person.shape.mouth_width_m * (1 + 0.14 * face.smile - 0.12 * face.mouth)
    return half, JAW_DROP_M * 0.95 * face.mouth, 0.0022 * face.smile


def _over(base: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
    """`colour` laid over `base (3, N)` with `alpha (N,)`."""
    return base + (colour - base) * alpha


def _below(edge: Tensor | float, value: Tensor, soft: float = _SOFT_M) -> Tensor:
    """1 where `value` is under `edge`, 0 where it is over, soft between."""
    return ((edge - value) / (2 * soft) + 0.5).clamp(0, 1)


class Paint:
    """The colours of one person."""

    def __init__(self, person: Person) -> None:
        """Draw the textures."""
        self.person = person
        look = person.look
        self._skin, self._hair, self._lips, self._brow, self._iris = (
            torch.tensor(rgb)[:, None] for rgb in (look.skin, look.hair, look.lips, look.brow, look.iris)
        )
        self._texture = torch.from_numpy(self._draw())[None]

    def _draw(self) -> np.ndarray:
        """Texture `(4, 256, 512)`: factor on the skin's red, green, blue; brightness of the hair."""
        rng = generator(self.person.seed, self.person.index, 2)
        look = self.person.look
        shape = (_TEXTURE_HEIGHT, _TEXTURE_WIDTH)
        angle = np.linspace(-np.pi, np.pi, _TEXTURE_WIDTH, dtype=np.float32)[None]
        y = np.linspace(-_TEXTURE_HALF_M, _TEXTURE_HALF_M, _TEXTURE_HEIGHT, dtype=np.float32)[:, None]
        factor = np.ones((3, *shape), np.float32)
        factor *= 1 + 0.030 * periodic_noise(rng, shape, (16, 16)) + 0.018 * periodic_noise(rng, shape, (2, 2))
        spread = ((np.abs(angle) - 0.72) / 0.32) ** 2 + ((y - 0.012) / 0.009) ** 2
        factor -= (look.blush * np.exp(-spread))[None] * np.array([0.00, 0.15, 0.12], np.float32)[:, None, None]
        tip = (angle / 0.25) ** 2 + ((y - 0.011) / 0.006) ** 2
        factor -= (0.6 * np.exp(-tip))[None] * np.array([0.0, 0.10, 0.09], np.float32)[:, None, None]
        spots = [(0.9, 0.030, 0.008, 0.0009, 0.22 * look.freckles)] * int(90 * look.freckles) + [
            (1.2, 0.045, 0.010, 0.0012, 0.35)
        ] * 3
        for wide, tall, centre, radius, dark in spots:
            at_angle, at_y = rng.uniform(-wide, wide), centre + rng.uniform(-0.5, 0.5) * tall
            r = radius * rng.uniform(0.6, 1.2)
            spot = np.exp(-(((angle - at_angle) * 0.037) ** 2 + (y - at_y) ** 2) / r**2)
            factor -= dark * spot[None] * np.array([0.7, 1.0, 1.0], np.float32)[:, None, None]
        if look.stubble:
            line = 0.020 + 0.010 * np.abs(angle) ** 1.5 - 0.004 * np.exp(-((angle / 0.3) ** 2))
            low = expit((y - line) / 0.0012)
            grain = 1 + 0.06 * periodic_noise(rng, shape, (1.5, 1.5))
            beard = np.clip(low * look.stubble * grain, 0, 1)
            hair = np.array(look.brow, np.float32) / np.array(look.skin, np.float32)
            factor += beard[None] * (hair[:, None, None] - factor)
        strands = periodic_noise(rng, shape, (60, 2)) * 0.6 + periodic_noise(rng, shape, (90, 6)) * 0.6
        strands += 0.25 * periodic_noise(rng, shape, (12, 2))
        if look.hair_style in ("curly", "buzz"):
            strands = periodic_noise(rng, shape, (3, 3)) + 0.4 * periodic_noise(rng, shape, (10, 10))
        return np.concatenate([factor, strands[None]]).astype(np.float32)

    def albedo(self, place: Tensor, hair_m: Tensor, face: Expression) -> tuple[Tensor, Tensor, Tensor]:
        """Colour of places on the head's surface.

        Args:
            place: `(3, N)` metres in the head's frame.
            hair_m: `(N,)` hair distance minus skin distance.
            face: The expression.

        Returns:
            Colour `(3, N)`, share of hair `(N,)` and gloss `(N,)`.
        """
        x, y, z = place
        grid = torch.stack([torch.atan2(x, -z) / torch.pi, y / _TEXTURE_HALF_M], dim=1)[None, None]
        texture = F.grid_sample(self._texture, grid, padding_mode="border", align_corners=True)[0, :, 0]
        hair_share = smoothstep(0.0009, -0.0009, hair_m + 0.0006 * texture[3])
        colour = self._skin * texture[:3]
        gloss = torch.full_like(x, 0.10)
        front = torch.nonzero((z < -0.014) & (y > -0.024) & (y < 0.044) & (hair_share < 1)).flatten()
        if len(front):
            px, py, pz = place[:, front]
            paint, shine = self._features(px, py, pz, colour[:, front], face)
            colour = colour.index_copy(1, front, paint)
            gloss = gloss.index_copy(0, front, shine)
        hair = self._hair * (1 + 0.22 * texture[3:].clamp(-2, 2))
        return (
            _over(colour, hair, hair_share).clamp(0, 1),
            hair_share,
            torch.lerp(gloss, torch.tensor(0.22), hair_share),
        )

    def _features(self, x: Tensor, y: Tensor, z: Tensor, colour: Tensor, face: Expression) -> tuple[Tensor, Tensor]:
        shape = self.person.shape
        gloss = torch.full_like(x, 0.10)
        tip = 0.0100 + shape.nose_length
        side = x.abs()
        hole = ((side - 0.0031 * shape.nose_width) / 0.0021) ** 2 + ((y - tip - 0.0036) / 0.0013) ** 2
        colour = colour * (1 - 0.75 * torch.exp(-(hole**2)) * (z < -0.036))
        colour = self._brows(x, side, y, colour, face)
        near = torch.nonzero(((side - shape.eye_x_m).abs() < 0.0125) & ((y - EYE_Y_M).abs() < 0.0095)).flatten()
        if len(near):
            painted, shine = self._eyes(x[near], y[near], colour[:, near], face)
            colour = colour.index_copy(1, near, painted)
            gloss = gloss.index_copy(0, near, shine)
        near = torch.nonzero((side < 0.0200) & (y > MOUTH_Y_M - 0.010) & (y < MOUTH_Y_M + 0.019)).flatten()
        if len(near):
            painted, shine = self._mouth(x[near], y[near], colour[:, near], face)
            colour = colour.index_copy(1, near, painted)
            gloss = gloss.index_copy(0, near, shine)
        return colour, gloss

    def _brows(self, x: Tensor, side: Tensor, y: Tensor, colour: Tensor, face: Expression) -> Tensor:
        shape = self.person.shape
        along = (side - shape.eye_x_m) / 0.0098
        middle = BROW_Y_M - 0.0022 * face.brow + 0.0024 * (along - 0.15) ** 2 + shape.brow_tilt * 0.004 * along
        thick = shape.brow_m * (1.0 - 0.35 * along.clamp(-1, 1)).clamp_min(0.2)
        grain = 0.82 + 0.18 * torch.sin(x * 5200 + y * 2600)
        alpha = _below(thick, (y - middle).abs(), 0.0005) * _below(1.0, along.abs(), 0.10) * grain * 0.92
        return _over(colour, self._brow, alpha)

    def _eyes(self, x: Tensor, y: Tensor, colour: Tensor, face: Expression) -> tuple[Tensor, Tensor]:
        shape = self.person.shape
        half, tall = shape.eye_width_m, shape.eye_height_m
        sign = x.sign()
        u = x.abs() - shape.eye_x_m  # towards the ear, for both eyes
        v = y - EYE_Y_M + 0.05 * u  # the outer corner stands a little higher
        arch = (1 - (u / half) ** 2).clamp_min(0)
        low = tall * 0.68 * arch
        open_high = -tall * (1 + 0.12 * face.brow) * arch.sqrt() * arch.clamp_min(0.02) ** 0.15
        high = torch.lerp(open_high, low, face.blink)
        # socket and lid: a soft shade around the eye, and the crease over the lid
        socket = torch.exp(-((u / 0.0105) ** 2) - ((v + 0.0010) / 0.0058) ** 2)
        colour = colour * (1 - 0.20 * socket)
        crease = torch.exp(-(((v - open_high + 0.0020) / 0.0006) ** 2)) * (arch > 0.05)
        colour = colour * (1 - 0.30 * crease * arch)
        inside = _below(low, v) * _below(-high, -v) * (arch > 0)
        lid_shade = 0.28 * torch.exp(-(((v - high) / 0.0014) ** 2)) + 0.22 * (u / half) ** 4
        ball = torch.tensor([[0.93], [0.92], [0.90]]) * (1 - lid_shade)
        iu, iv = x - sign * shape.eye_x_m - face.gaze_x * half * 0.5, v + 0.0003 - face.gaze_y * tall * 0.5
        radius = (iu**2 + iv**2).sqrt()
        spokes = 1 + 0.12 * torch.sin(torch.atan2(iv, iu) * 14)
        rim = 1 - 0.65 * smoothstep(0.0025, 0.0032, radius)
        ring = self._iris * ((0.75 + 0.55 * (radius / 0.0031)) * spokes * rim)
        ball = _over(ball, ring, _below(0.0031, radius))
        ball = _over(ball, torch.tensor([[0.02], [0.02], [0.02]]), _below(0.00135, radius))
        glint = ((iu - 0.0010) ** 2 + (iv + 0.0011) ** 2).sqrt()
        ball = _over(ball, torch.tensor([[1.0], [1.0], [1.0]]), 0.9 * _below(0.0006, glint, 0.0003))
        colour = _over(colour, ball, inside)
        lash = torch.exp(-(((v - high) / 0.00075) ** 2)) * (arch > 0.0) * 0.9
        under = torch.exp(-(((v - low) / 0.0006) ** 2)) * (arch > 0.05) * 0.35
        colour = _over(colour, self._brow * 0.35, torch.maximum(lash, under))
        return colour, torch.where(inside > 0.5, 0.45, 0.10)

    def _mouth(self, x: Tensor, y: Tensor, colour: Tensor, face: Expression) -> tuple[Tensor, Tensor]:
        shape = self.person.shape
        half, gap, lift = mouth_shape(self.person, face)
        u = x / half
        arch = (1 - u**2).clamp_min(0)
        v = y - MOUTH_Y_M + lift * u**2 - 0.3 * lift
        upper, lower = -0.25 * gap * arch, 0.75 * gap * arch
        bow = 1 - 0.28 * torch.exp(-((x / 0.0016) ** 2)) + 0.12 * torch.exp(-(((x.abs() - 0.0032) / 0.0018) ** 2))
        top = upper - 0.0034 * shape.lips * arch**0.6 * bow
        bottom = lower + 0.0043 * shape.lips * arch**0.7
        lip = _below(bottom, v) * _below(-top, -v) * (arch > 0)
        # the light from above: the upper lip is darker, the lower one shows its fullness
        tone = torch.where(v < (upper + lower) / 2, 0.82, 1.04)
        colour = _over(colour, self._lips * tone, 0.92 * lip)
        shade = torch.exp(-(((v - bottom - 0.0016) / 0.0014) ** 2)) * arch
        colour = colour * (1 - 0.18 * shade)
        if gap > 0.0002:
            hole = _below(lower, v) * _below(-upper, -v) * (arch > 0)
            colour = _over(colour, torch.tensor([[0.16], [0.04], [0.05]]), hole)
            tongue = _below(lower, v) * _below(-(lower - 0.0022), -v, 0.0008) * _below(0.55, u.abs(), 0.15)
            colour = _over(colour, torch.tensor([[0.62], [0.26], [0.26]]), 0.8 * tongue * hole)
            teeth = _below(upper + min(0.45 * gap, 0.0024), v) * _below(0.78, u.abs(), 0.06)
            colour = _over(colour, torch.tensor([[0.90], [0.88], [0.82]]), teeth * hole)
        seam = torch.exp(-(((v - (upper + lower) / 2) / (0.0005 + 0.2 * gap)) ** 2)) * (arch > 0)
        colour = _over(colour, self._lips * 0.25, 0.75 * seam * (1 - min(gap / 0.0015, 1.0)))
        corner = torch.exp(-(((x.abs() - half) / 0.0012) ** 2) - ((v - 0.0001) / 0.0010) ** 2)
        return colour * (1 - 0.4 * corner), 0.10 + 0.14 * lip
