"""A seeded person of the demo set: the numbers that decide what a rendered talking head looks like.

Lengths are metres in the head's own frame (origin: the head's centre; x right, y down, z away from the camera), at the
scale of Eq. 2: a frame is 0.175 m wide at 1 m, so a head is about 0.105 m high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Rgb = tuple[float, float, float]

HAIR_STYLES = ("short", "long", "bob", "curly", "side_part", "bun", "quiff", "fringe", "buzz", "wavy")
"""Every style, in the order in which people get them."""

GLASSES = ("round", "square")
PATTERNS = ("plain", "stripes", "checks", "dots")
NECKLINES = ("crew", "vee", "collar")
BACKGROUNDS = ("gradient", "bokeh", "panels", "clouds")

_SKINS: tuple[Rgb, ...] = (
    (0.95, 0.79, 0.69),
    (0.58, 0.39, 0.28),
    (0.86, 0.66, 0.52),
    (0.43, 0.28, 0.20),
    (0.92, 0.73, 0.60),
    (0.75, 0.54, 0.40),
    (0.97, 0.83, 0.75),
)
_HAIRS: tuple[Rgb, ...] = (
    (0.13, 0.09, 0.07),
    (0.36, 0.22, 0.13),
    (0.80, 0.63, 0.36),
    (0.08, 0.08, 0.09),
    (0.58, 0.25, 0.12),
    (0.62, 0.60, 0.58),
    (0.50, 0.35, 0.20),
    (0.23, 0.12, 0.09),
)
_IRISES: tuple[Rgb, ...] = ((0.25, 0.14, 0.07), (0.30, 0.45, 0.62), (0.33, 0.45, 0.26), (0.40, 0.28, 0.14))
_CLOTHES: tuple[Rgb, ...] = (
    (0.16, 0.22, 0.38),
    (0.70, 0.20, 0.20),
    (0.88, 0.86, 0.82),
    (0.18, 0.42, 0.34),
    (0.20, 0.20, 0.22),
    (0.82, 0.62, 0.24),
    (0.45, 0.30, 0.52),
    (0.35, 0.58, 0.72),
    (0.78, 0.48, 0.42),
)


@dataclass(frozen=True)
class FaceShape:
    """Sizes of the head's parts; plain factors are relative to the average head."""

    head_width: float
    jaw_width: float
    chin_m: float  # how much lower the chin stands
    cheek: float
    nose_length: float
    nose_width: float
    ear: float
    eye_x_m: float  # distance of an eye's centre from the middle
    eye_width_m: float  # half
    eye_height_m: float  # half
    mouth_width_m: float  # half
    lips: float
    brow_m: float  # thickness
    brow_tilt: float


@dataclass(frozen=True)
class Look:
    """Colours (sRGB, 0-1) and what is worn."""

    skin: Rgb
    lips: Rgb
    hair: Rgb
    brow: Rgb
    iris: Rgb
    blush: float
    freckles: float
    stubble: float
    hair_style: str
    glasses: str  # "" or one of GLASSES
    glasses_rgb: Rgb
    clothes: Rgb
    clothes_second: Rgb
    pattern: str
    neckline: str
    background: str
    background_rgb: tuple[Rgb, Rgb, Rgb]
    light: Rgb  # direction towards the key light, camera frame


@dataclass(frozen=True)
class Person:
    """One person: shape, look, and the seed of the textures."""

    index: int
    seed: int
    shape: FaceShape
    look: Look


def generator(seed: int, index: int, purpose: int) -> np.random.Generator:
    """Random numbers of one person for one purpose, so that a change in one part leaves the others as they were.

    Args:
        seed: The data set's seed.
        index: The person.
        purpose: 0 look and shape, 1 motion, 2 textures, 3 scene.
    """
    return np.random.default_rng([seed, index, purpose])


def _near(rng: np.random.Generator, rgb: Rgb, spread: float) -> Rgb:
    values = np.clip(np.asarray(rgb) * (1 + rng.uniform(-spread, spread)) + rng.uniform(-0.02, 0.02, 3), 0.02, 0.98)
    return (float(values[0]), float(values[1]), float(values[2]))


def _hue(rng: np.random.Generator, low: float, high: float) -> Rgb:
    """A muted colour of random hue and a brightness between `low` and `high`."""
    phase = rng.uniform(0, 2 * np.pi)
    wave = 0.5 + 0.5 * np.cos(phase + np.array([0.0, 2.1, 4.2]))
    values = rng.uniform(low, high) * (0.55 + 0.45 * wave)
    return (float(values[0]), float(values[1]), float(values[2]))


def _shape(rng: np.random.Generator) -> FaceShape:
    def spread(middle: float, share: float) -> float:
        return float(middle * rng.uniform(1 - share, 1 + share))

    return FaceShape(
        head_width=spread(1.0, 0.06),
        jaw_width=spread(1.0, 0.10),
        chin_m=float(rng.uniform(-0.0025, 0.0025)),
        cheek=spread(1.0, 0.10),
        nose_length=float(rng.uniform(-0.0012, 0.0012)),
        nose_width=spread(1.0, 0.15),
        ear=spread(1.0, 0.15),
        eye_x_m=spread(0.0160, 0.05),
        eye_width_m=spread(0.0070, 0.08),
        eye_height_m=spread(0.0034, 0.15),
        mouth_width_m=spread(0.0122, 0.10),
        lips=spread(1.0, 0.25),
        brow_m=spread(0.0017, 0.30),
        brow_tilt=float(rng.uniform(-0.12, 0.12)),
    )


def _look(rng: np.random.Generator, seed: int, index: int) -> Look:
    # Colours and styles are dealt out in turn, not drawn, so that a small set has all of them and neighbours differ.
    turn = index + seed
    style = HAIR_STYLES[turn % len(HAIR_STYLES)]
    skin = _near(rng, _SKINS[turn % len(_SKINS)], 0.05)
    hair = _near(rng, _HAIRS[(turn * 3 + turn // len(_HAIRS)) % len(_HAIRS)], 0.15)
    glasses = GLASSES[turn // 4 % len(GLASSES)] if turn % 4 == 3 else ""
    dark = 0.45 + 0.4 * (sum(skin) / 3)
    redder = np.array(skin) * np.array([0.92, 0.60, 0.60]) + np.array([0.04, 0.0, 0.01]) * rng.uniform(0, 2)
    may_beard = style in ("short", "buzz", "quiff", "curly", "side_part")
    light = np.array([rng.choice([-1, 1]) * rng.uniform(0.25, 0.7), -rng.uniform(0.35, 0.7), -1.0])
    light /= np.linalg.norm(light)
    clothes = _CLOTHES[(turn * 4 + 1) % len(_CLOTHES)]
    return Look(
        skin=skin,
        lips=(float(redder[0]), float(redder[1]), float(redder[2])),
        hair=hair,
        brow=_near(rng, (hair[0] * 0.6 * dark, hair[1] * 0.55 * dark, hair[2] * 0.5 * dark), 0.1),
        iris=_near(rng, _IRISES[int(rng.integers(len(_IRISES)))], 0.15),
        blush=float(rng.uniform(0.1, 1.0)),
        freckles=float(rng.uniform(0.2, 0.8)),
        stubble=float(rng.uniform(0.35, 0.8)) if may_beard and rng.random() < 0.6 else 0.0,
        hair_style=style,
        glasses=glasses,
        glasses_rgb=_near(rng, (0.10, 0.09, 0.09) if rng.random() < 0.6 else (0.45, 0.16, 0.10), 0.2),
        clothes=_near(rng, clothes, 0.1),
        clothes_second=_hue(rng, 0.4, 0.95),
        pattern=PATTERNS[turn % len(PATTERNS)],
        neckline=NECKLINES[turn % len(NECKLINES)],
        background=BACKGROUNDS[(turn + turn // len(BACKGROUNDS)) % len(BACKGROUNDS)],
        background_rgb=(_hue(rng, 0.35, 0.9), _hue(rng, 0.25, 0.7), _hue(rng, 0.4, 1.0)),
        light=(float(light[0]), float(light[1]), float(light[2])),
    )


def make_person(seed: int, index: int) -> Person:
    """The `index`-th person of the set with this seed; the same arguments always give the same person."""
    rng = generator(seed, index, 0)
    return Person(index=index, seed=seed, shape=_shape(rng), look=_look(rng, seed, index))
