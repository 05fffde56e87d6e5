"""The demo head as a volume: signed distance to skin and hair, with normals, for one seeded person.

Skin is a smooth union of ellipsoids and round cones (skull, jaw, chin, cheeks, brow ridge, nose, lips, ears) with eye
sockets cut out; hair is a second solid. Both are sampled once on a grid, so a ray costs table look-ups only. A second
volume has the jaw dropped; a frame blends the two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.demo_person import FaceShape, Person

BOX_LOW = (-0.056, -0.070, -0.056)
BOX_HIGH = (0.056, 0.072, 0.062)
VOXEL_M = 0.0014
EYE_Y_M = -0.0050
MOUTH_Y_M = 0.0240
JAW_DROP_M = 0.0070
_JAW_ROW = round((0.014 - BOX_LOW[1]) / VOXEL_M)
_JAW_DEPTH = round((0.030 - BOX_LOW[2]) / VOXEL_M)
"""Above this row and behind this slice of the volume nothing moves when the jaw drops."""
_HAIR_CHANNEL_MAX_M = 0.02

Axes = tuple[Tensor, Tensor, Tensor]


class HeadVolume:
    """What a ray needs to know about a head, on a grid over the box (axes z, y, x).

    Attributes:
        distance: `(1, 1, D, H, W)` signed distance in metres, negative inside.
        surface: `(1, 5, D, H, W)` normal x, y, z (not unit), openness 0-1 (ambient light that reaches the place), and
            hair distance minus skin distance (metres; negative: hair).
    """

    def __init__(self, closed: Tensor, jaw_open: Tensor) -> None:
        """Keep both volumes.

        Args:
            closed: `(6, D, H, W)` distance, normal, openness and hair of the closed mouth.
            jaw_open: `(5, D', H', W)` the same without hair for the wide open mouth, only the part that moves.
        """
        self.distance = closed[None, :1].clone()
        self.surface = closed[None, 1:].clone()
        self._part = (..., slice(0, _JAW_DEPTH), slice(_JAW_ROW, None), slice(None))
        self._shut = closed[None, :5][self._part].clone()
        self._open = jaw_open[None].clone()

    def set_jaw(self, mouth: float) -> None:
        """Blend the two volumes in place: 0 is closed, 1 wide open."""
        torch.lerp(self._shut[:, :1], self._open[:, :1], mouth, out=self.distance[self._part])
        torch.lerp(self._shut[:, 1:], self._open[:, 1:], mouth, out=self.surface[:, :4][self._part])


def _ellipsoid(axes: Axes, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Tensor:
    """Distance to an ellipsoid, exact at the surface to first order."""
    scaled = [((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)]
    steep = [s / r**2 for s, r in zip(scaled, radii, strict=True)]
    k0 = (scaled[0] + scaled[1] + scaled[2]).sqrt()
    k1 = (steep[0] + steep[1] + steep[2]).sqrt()
    return k0 * (k0 - 1) / k1.clamp_min(1e-6)


def _sphere(axes: Axes, centre: tuple[float, float, float], radius: float) -> Tensor:
    x, y, z = axes
    return ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2).sqrt() - radius


def _cone(
    axes: Axes, start: tuple[float, float, float], end: tuple[float, float, float], radius: tuple[float, float]
) -> Tensor:
    """Distance to a segment whose thickness goes from radius[0] to radius[1]."""
    along = [e - s for s, e in zip(start, end, strict=True)]
    length2 = sum(a * a for a in along)
    offset = [a - s for a, s in zip(axes, start, strict=True)]
    share = ((offset[0] * along[0] + offset[1] * along[1] + offset[2] * along[2]) / length2).clamp(0, 1)
    gap2 = sum((o - share * a) ** 2 for o, a in zip(offset, along, strict=True))
    assert isinstance(gap2, Tensor)
    return gap2.sqrt() - (radius[0] + share * (radius[1] - radius[0]))


def _join(first: Tensor, second: Tensor, blend_m: float) -> Tensor:
    """Smooth union over `blend_m` (polynomial smooth minimum)."""
    share = (0.5 + 0.5 * (second - first) / blend_m).clamp(0, 1)
    return torch.lerp(second, first, share) - blend_m * share * (1 - share)


def _cut(solid: Tensor, tool: Tensor, blend_m: float) -> Tensor:
    """`solid` without `tool`, with a rounded edge."""
    return -_join(-solid, tool, blend_m)


def smoothstep(low: float, high: float, value: Tensor) -> Tensor:
    """0 below `low`, 1 above `high` (or the other way round), cubic between."""
    share = ((value - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def _skin(axes: Axes, shape: FaceShape, jaw: float) -> Tensor:
    """Distance to the skin with the jaw dropped by `jaw` (0-1)."""
    x, y, z = axes
    side = x.abs()
    if jaw > 0:
        y = y - jaw * JAW_DROP_M * smoothstep(0.020, 0.036, y) * smoothstep(0.020, -0.010, z)
    low: Axes = (x, y, z)
    mirror: Axes = (side, y, z)
    w, j, chin = shape.head_width, shape.jaw_width, shape.chin_m
    d = _join(
        _ellipsoid(low, (0, -0.0130, 0.0050), (0.0365 * w, 0.0370, 0.0425)),
        _ellipsoid(low, (0, 0.0115 + chin / 2, -0.0085), (0.0305 * w, 0.0365 + chin / 2, 0.0290)),
        0.008,
    )
    d = _join(d, _sphere(mirror, (0.0185 * j, 0.0245, -0.0050), 0.0110), 0.010)
    d = _join(d, _ellipsoid(low, (0, 0.0410 + chin, -0.0245), (0.0115 * j, 0.0090, 0.0090)), 0.010)
    d = _join(d, _sphere(mirror, (0.0185 * w, 0.0100, -0.0245), 0.0110 * shape.cheek), 0.010)
    d = _join(d, _ellipsoid(low, (0, -0.0140, -0.0335), (0.0230, 0.0050, 0.0055)), 0.007)
    d = _cut(d, _sphere(mirror, (shape.eye_x_m, EYE_Y_M, -0.0405), 0.0080), 0.006)
    d = _join(d, _sphere(mirror, (shape.eye_x_m, EYE_Y_M + 0.0003, -0.0262), 0.0078), 0.0015)
    tip = 0.0100 + shape.nose_length
    n = shape.nose_width
    nose = _cone(low, (0, -0.0100, -0.0365), (0, tip - 0.001, -0.0445), (0.0033, 0.0044 * n))
    nose = _join(nose, _sphere(low, (0, tip, -0.0455), 0.0049), 0.003)
    nose = _join(nose, _sphere(mirror, (0.0056 * n, tip + 0.0018, -0.0405), 0.0038 * n), 0.003)
    d = _join(d, nose, 0.0035)
    lips, half = shape.lips, shape.mouth_width_m * 0.88
    # the lips themselves follow the jaw at once, not over the soft zone of the cheeks
    rest: Axes = (x, axes[1], z)
    d = _join(d, _ellipsoid(rest, (0, MOUTH_Y_M - 0.0018, -0.0370), (half, 0.0025 * lips, 0.0032)), 0.004)
    lower_y = MOUTH_Y_M + 0.0022 + jaw * JAW_DROP_M * 0.8
    d = _join(d, _ellipsoid(rest, (0, lower_y, -0.0365), (half * 0.85, 0.0028 * lips, 0.0034)), 0.004)
    if jaw > 0:
        opening = (half * 0.8, JAW_DROP_M * 0.40 * jaw, 0.0075)
        d = _cut(d, _ellipsoid(rest, (0, MOUTH_Y_M + JAW_DROP_M * 0.38 * jaw, -0.0400), opening), 0.002)
    e = shape.ear
    ear = _ellipsoid(mirror, (0.0375 * w, -0.0010, 0.0075), (0.0040 * e, 0.0115 * e, 0.0072 * e))
    ear = _cut(ear, _ellipsoid(mirror, (0.0425 * w, -0.0020, 0.0050), (0.0035, 0.0070 * e, 0.0040)), 0.002)
    return _join(d, ear, 0.003)


def _hair(axes: Axes, person: Person) -> Tensor:
    """Distance to the hair of the person's style."""
    x, y, z = axes
    side = x.abs()
    style, w = person.look.hair_style, person.shape.head_width
    mirror: Axes = (side, y, z)
    thick = {"buzz": 0.0024, "short": 0.0034, "quiff": 0.0026, "bun": 0.0028, "side_part": 0.0036, "fringe": 0.0044}
    t = thick.get(style, 0.0050)
    hair = _ellipsoid(axes, (0, -0.0135, 0.0055), (0.0365 * w + t, 0.0370 + t, 0.0425 + t))
    hair = torch.maximum(hair, y - (0.011 + 0.35 * z))  # the nape's line, lower at the back than at the temples
    if style in ("long", "wavy"):
        reach = 0.042 if style == "long" else 0.038
        wave = 0.0018 * torch.sin(y * 480 + z * 160) if style == "wavy" else 0.0
        hair = _join(hair, _ellipsoid(mirror, (0.0365 * w, 0.0190, 0.0080), (0.0085, reach, 0.0210)) + wave, 0.008)
        hair = _join(hair, _ellipsoid(axes, (0, 0.0180, 0.0290), (0.0360 * w, reach, 0.0200)) + wave, 0.008)
    elif style == "bob":
        hair = _join(hair, _ellipsoid(mirror, (0.0345 * w, 0.0080, 0.0060), (0.0100, 0.0300, 0.0250)), 0.008)
        hair = _join(hair, _ellipsoid(axes, (0, 0.0050, 0.0270), (0.0370 * w, 0.0330, 0.0240)), 0.008)
        hair = torch.maximum(hair, y - 0.0300)
    elif style == "curly":
        hair = _join(hair, _ellipsoid(axes, (0, -0.0180, 0.0090), (0.0450 * w, 0.0415, 0.0450)), 0.006)
        curls = torch.sin(x * 620) * torch.sin(y * 620 + 1.0) * torch.sin(z * 620 + 2.0)
        hair = torch.maximum(hair, y - (0.014 + 0.30 * z)) + 0.0022 * curls
    # the face's opening; its height sets the hairline
    high = {"bob": 0.038, "fringe": 0.040, "buzz": 0.053, "quiff": 0.053}.get(style, 0.0500)
    wide = {"long": 0.0295, "wavy": 0.0300, "bob": 0.0285}.get(style, 0.0315)
    hair = _cut(hair, _ellipsoid(axes, (0, 0.0160, -0.0560), (wide * w, high, 0.0480)), 0.0025)
    if style == "side_part":
        sweep = _ellipsoid(axes, (0.0090, -0.0430, -0.0150), (0.0280 * w, 0.0110, 0.0260))
        hair = _join(hair, sweep, 0.004)
    elif style == "quiff":
        hair = _join(hair, _ellipsoid(axes, (0, -0.0455, -0.0150), (0.0250 * w, 0.0110, 0.0250)), 0.005)
    elif style == "bun":
        hair = _join(hair, _sphere(axes, (0, -0.0505, 0.0260), 0.0130), 0.003)
    elif style in ("fringe", "bob"):
        band = _ellipsoid(axes, (0, -0.0335, -0.0090), (0.0350 * w, 0.0140, 0.0310))
        hair = _join(hair, band, 0.004)
    angle = torch.atan2(x, -z)
    strands = torch.sin(angle * 46 + 2 * torch.sin(y * 130)) + 0.6 * torch.sin(angle * 83 + y * 90)
    hair = hair + (0.0 if style in ("buzz", "curly") else 0.00035) * strands
    # bumps make the distance too long; a shorter step never runs through them
    return hair * (0.6 if style == "curly" else 0.9)


def _openness(distance: Tensor) -> Tensor:
    """How little solid there is around each place, 0-1: cheap ambient occlusion."""
    solid = torch.sigmoid(distance * (-1 / 0.0008))[None, None]
    near = F.avg_pool3d(solid, 5, 1, 2, count_include_pad=False)
    # the wide look is made at half resolution, where it costs an eighth
    half = F.avg_pool3d(solid, 2, 2, ceil_mode=True)
    far = F.avg_pool3d(half, 9, 1, 4, count_include_pad=False)
    far = F.interpolate(far, size=solid.shape[-3:], mode="trilinear", align_corners=False)
    crowded = 1.1 * (near - 0.5).clamp_min(0) + 1.6 * (far - 0.46).clamp_min(0)
    return (1 - crowded).clamp(0.15, 1)[0, 0]


def _normal(distance: Tensor) -> Tensor:
    gz, gy, gx = torch.gradient(distance, spacing=VOXEL_M)
    return torch.stack([gx, gy, gz])


def _axes() -> Axes:
    x, y, z = (
        torch.linspace(low, high, round((high - low) / VOXEL_M) + 1)
        for low, high in zip(BOX_LOW, BOX_HIGH, strict=True)
    )
    return x.view(1, 1, -1), y.view(1, -1, 1), z.view(-1, 1, 1)


def build_volume(person: Person) -> HeadVolume:
    """Sample a person's head on the grid.

    Args:
        person: Whose.

    Returns:
        Its volume with the jaw closed, and the part that changes with the jaw open.
    """
    axes = _axes()
    hair = _hair(axes, person)
    skin = _skin(axes, person.shape, 0.0)
    distance = torch.minimum(skin, hair)
    which = (hair - skin).clamp(-_HAIR_CHANNEL_MAX_M, _HAIR_CHANNEL_MAX_M)
    closed = torch.cat([distance[None], _normal(distance), _openness(distance)[None], which[None]])
    # the part that moves, with a rim for the normals and the openness at its border
    rim = 8
    block: Axes = (axes[0], axes[1][:, _JAW_ROW - rim :], axes[2][: _JAW_DEPTH + rim])
    opened = torch.minimum(_skin(block, person.shape, 1.0), hair[: _JAW_DEPTH + rim, _JAW_ROW - rim :])
    jaw_open = torch.cat([opened[None], _normal(opened), _openness(opened)[None]])
    return HeadVolume(closed, jaw_open[:, :_JAW_DEPTH, rim:])
