"""Ray-cast picture of a demo head with its true depth: perspective camera of Eq. 2, pose about the head's centre.

A frame is drawn in three passes: cones of 4 x 4 pixels find where to start, one ray per pixel centre gives depth, mask
and colour, and three more rays smooth the pixels at an edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.demo_motion import Tracks, rotation
from tasks.demo_paint import Expression, Paint, mouth_shape
from tasks.demo_person import Person
from tasks.demo_scene import make_plate
from tasks.demo_shape import BOX_HIGH, BOX_LOW, EYE_Y_M, MOUTH_Y_M, build_volume

# The camera that films the demo. It is a fact about the data, as a real video's camera is, and no setting: what the
# networks assume stands in params.geometry.camera.
FOV_DEG = 10.0
DISTANCE_M = 1.0

_REACH_M = 0.077  # no part of a head is farther from its centre
_HIT_M = 1.5e-4
_STOP_M = 1.2e-4
_RELAX, _PUSH_M = 1.15, 8e-5  # longer steps keep grazing rays going; one that lands inside (distance < 0) steps back
_STEPS = 30
_SUB_PIXELS = ((-1 / 3, 0.0), (0.0, 1 / 3), (1 / 3, -1 / 3))  # distinct columns and rows, mean 0
_EDGE_DEPTH_M = 0.0045
_EDGE_COLOUR = 0.18
_GLASSES_Z_M = -0.0455
_GLASSES_Y_M = EYE_Y_M + 0.0010


def focal_px(size_px: int) -> float:
    """f of Eq. 2 for a square frame."""
    return float((size_px - 1) / (2 * np.tan(np.deg2rad(FOV_DEG) / 2)))


def project(points: np.ndarray, size_px: int) -> np.ndarray:
    """Pixels (x, y) of camera points, K of Eq. 2.

    Args:
        points: `(..., 3)` metres in the camera frame.
        size_px: Frame side.

    Returns:
        `(..., 2)`; pixel centres are integers.
    """
    return points[..., :2] / points[..., 2:] * focal_px(size_px) + (size_px - 1) / 2


def pose_points(points: np.ndarray, turn: np.ndarray, translation_m: np.ndarray) -> np.ndarray:
    """Head points (relative to the head's centre c) into the camera frame: R X + c + t_pred, Eq. 3 about the centre."""
    return points @ turn.T + np.array([0.0, 0.0, DISTANCE_M]) + translation_m


@dataclass(frozen=True)
class Frame:
    """One rendered frame and its truth."""

    image: np.ndarray  # (H, W, 3) uint8
    depth: np.ndarray  # (H, W) float32 metres along the optical axis, 0 where there is no head
    landmarks: np.ndarray  # (5, 2) float32 pixels: eye at the left of the picture, other eye, nose tip, mouth corners


@dataclass(frozen=True)
class _View:
    """A frame's camera seen from the head: a ray at depth z meets `origin + z * direction`."""

    origin: Tensor  # (3, 1)
    turn: Tensor  # (3, 3) head from camera
    near: float
    far: float


class HeadRenderer:
    """Draws one person's frames."""

    def __init__(self, person: Person, size_px: int, centre_m: np.ndarray) -> None:
        """Build volume, textures and the still parts.

        Args:
            person: Whose.
            size_px: Frame side.
            centre_m: `(3,)` mean translation; the body stands under it.
        """
        self._person, self._size = person, size_px
        self._focal = focal_px(size_px)
        self._volume = build_volume(person)
        self._paint = Paint(person)
        self._centre = centre_m
        self._plate = make_plate(person, size_px, self._focal, centre_m + np.array([0.0, 0.0, DISTANCE_M]))
        low, high = torch.tensor(BOX_LOW), torch.tensor(BOX_HIGH)
        self._middle, self._half = ((low + high) / 2)[:, None], ((high - low) / 2)[:, None]
        self._light = torch.tensor(person.look.light)
        self._anchors = self._surface_points()

    # -- rays ---------------------------------------------------------------------------------------------------------

    def _rays(self, view: _View, u: Tensor, v: Tensor) -> Tensor:
        """Directions `(3, N)` in the head's frame of the rays through pixels (u, v)."""
        middle = (self._size - 1) / 2
        camera = torch.stack([(u - middle) / self._focal, (v - middle) / self._focal, torch.ones_like(u)])
        return view.turn @ camera

    def _sample(self, volume: Tensor, grid: Tensor) -> Tensor:
        """Channels `(C, N)` of a volume at `grid (3, N)` in [-1, 1]."""
        return F.grid_sample(volume, grid.T[None, None, None], padding_mode="border", align_corners=True)[0, :, 0, 0]

    def _distance(self, grid: Tensor) -> Tensor:
        return self._sample(self._volume.distance, grid)[0]

    def _march(self, view: _View, rays: Tensor, start: Tensor, stop_m: float, steps: int) -> tuple[Tensor, Tensor]:
        """Walk along rays until the surface is nearer than `stop_m`.

        Returns:
            Depth `(N,)` and the distance to the surface that is left there.
        """
        origin, ray = (view.origin - self._middle) / self._half, rays / self._half
        z, left = start.clone(), torch.full_like(start, 1.0)
        active, depth = torch.arange(len(start)), start.clone()
        for step in range(1, steps + 1):
            push = _PUSH_M * (1 + step / 6)
            d = self._distance(torch.addcmul(origin, ray, depth))
            if step % 2 and step < steps:
                depth.add_(d, alpha=_RELAX).add_(push)
                continue
            z[active], left[active] = depth, d
            keep = torch.nonzero((d.abs() > stop_m) & (depth < view.far)).flatten()
            if not len(keep):
                break
            active, ray = active[keep], ray[:, keep]
            depth = depth[keep].add_(d[keep], alpha=_RELAX).add_(push)
        return z, left

    def _starts(self, view: _View) -> tuple[Tensor, Tensor, Tensor, int]:
        """Cones of 4 x 4 pixels: the pixels worth a ray (u, v), the depth from which on, and the cone's pixels."""
        size, block = self._size, max(1, min(4, self._size // 32))
        count = -(-size // block)
        index = torch.arange(count) * block + (block - 1) / 2
        v, u = torch.meshgrid(index, index, indexing="ij")
        rays = self._rays(view, u.flatten(), v.flatten())
        # a pixel in the cone's corner, plus the half pixel that its sub-samples reach
        radius = (block / 2 + 0.5) * 2**0.5 * view.far / self._focal
        ahead = (view.near + view.far) / 2
        offset2 = ((view.origin + ahead * rays) ** 2).sum(dim=0)
        near = torch.nonzero(offset2 < _REACH_M**2).flatten()
        z = torch.full((count * count,), view.far)
        first = ahead - (_REACH_M**2 - offset2[near]).sqrt()
        z[near], _ = self._march(view, rays[:, near], first, radius, 12)
        if self._person.look.glasses:
            # glasses are no part of the volume: keep the cones near the eyes alive
            z = torch.where(self._near_glasses(view, rays), z.clamp_max(view.far - 1e-3), z)
        alive, start = (z < view.far).view(count, count), z.view(count, count)
        start = start.repeat_interleave(block, 0).repeat_interleave(block, 1)[:size, :size]
        alive = alive.repeat_interleave(block, 0).repeat_interleave(block, 1)[:size, :size]
        rows, columns = torch.nonzero(alive, as_tuple=True)
        return rows, columns, start[rows, columns], block

    # -- glasses ------------------------------------------------------------------------------------------------------

    def _near_glasses(self, view: _View, rays: Tensor) -> Tensor:
        depth = (_GLASSES_Z_M - view.origin[2]) / rays[2]
        x, y, _ = view.origin + depth * rays
        return (x.abs() < 0.040) & ((y - _GLASSES_Y_M).abs() < 0.016)

    def _glasses(self, view: _View, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frame of the glasses along rays: depth, coverage 0-1, and share of a lens."""
        origin, look, shape = view.origin, self._person.look, self._person.shape
        depth = (_GLASSES_Z_M - origin[2]) / rays[2]
        x, y, _ = origin + depth * rays
        side, y = x.abs(), y - _GLASSES_Y_M
        du, dv = side - shape.eye_x_m - 0.0005, y
        if look.glasses == "round":
            rim = (du**2 + dv**2).sqrt() - 0.0112
        else:
            qx, qy = du.abs() - 0.0085, dv.abs() - 0.0052
            rim = (qx.clamp_min(0) ** 2 + qy.clamp_min(0) ** 2).sqrt() + torch.maximum(qx, qy).clamp_max(0) - 0.0030
        soft = 0.0006
        cover = ((0.0007 - rim.abs()) / soft + 0.5).clamp(0, 1)
        bridge = ((0.0007 - (y + 0.0030 - 12 * x**2).abs()) / soft + 0.5).clamp(0, 1) * (side < shape.eye_x_m - 0.010)
        cover = torch.maximum(cover, bridge)
        lens = (-rim / soft).clamp(0, 1)
        # the arms, from the rims back to the ears, each in an upright plane of its own
        hinge, ear_z = shape.eye_x_m + 0.0130, 0.004
        slope = (0.0392 * shape.head_width - hinge) / (ear_z - _GLASSES_Z_M)
        for sign in (-1.0, 1.0):
            across = sign * rays[0] - slope * rays[2]
            reach = hinge + slope * (origin[2] - _GLASSES_Z_M) - sign * origin[0]
            along = reach / torch.where(across.abs() < 1e-4, 1e-4, across)
            _, ay, az = origin + along * rays
            arm = ((0.0007 - (ay - _GLASSES_Y_M + 0.0030).abs()) / soft + 0.5).clamp(0, 1)
            arm = arm * ((az > _GLASSES_Z_M) & (az < ear_z))
            first = (arm > 0.3) & ((cover < 0.3) | (along < depth))
            depth, cover = torch.where(first, along, depth), torch.where(first, arm, cover)
        tip = (side > hinge - 0.0030) & (side < hinge) & ((y + 0.0030).abs() < 0.0009)  # from the rim to the hinge
        front = (_GLASSES_Z_M - origin[2]) / rays[2]
        return torch.where(tip, front, depth), torch.where(tip, 1.0, cover), lens

    # -- colour -------------------------------------------------------------------------------------------------------

    def _shade(self, view: _View, place: Tensor, face: Expression) -> Tensor:
        """Colour `(3, N)` of places `(3, N)` on the surface."""
        surface = self._sample(self._volume.surface, (place - self._middle) / self._half)
        normal, openness = surface[:3], surface[3]
        normal = normal * (normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2).clamp_min(1e-8).rsqrt()
        albedo, hair, gloss = self._paint.albedo(place, surface[4], face)
        light = view.turn @ self._light
        up = view.turn @ torch.tensor([0.0, -1.0, 0.0])
        eye = view.turn @ torch.tensor([0.0, 0.0, -1.0])
        facing = light @ normal
        key = ((facing + 0.25) / 1.25).clamp_min(0) * (0.35 + 0.65 * openness)
        ambient = (0.30 + 0.10 * (up @ normal)) * openness
        fill = 0.16 * (eye @ normal).clamp_min(0)
        middle = light + eye
        shine = ((middle / middle.norm()) @ normal).clamp_min(0) ** 14 * gloss * openness
        # squares and roots stand for the display's gamma: light adds up in linear values
        bright = albedo**2 * (ambient + fill + 0.68 * key) + shine * (0.35 + 0.25 * hair)
        return bright.clamp(0, 1).sqrt()

    def _look_along(
        self, view: _View, rays: Tensor, start: Tensor, limit: Tensor, face: Expression
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Follow rays to the first thing that is nearer than `limit` (the body).

        Returns:
            Colour `(3, N)`, opacity `(N,)` and depth `(N,)`, 0 where the ray misses the head.
        """
        z, left = self._march(view, rays, start, _STOP_M, _STEPS)
        hit = (left < _HIT_M) & (z < limit)
        depth = torch.where(hit, z, 0.0)
        colour = torch.zeros_like(rays)
        found = torch.nonzero(hit).flatten()
        colour[:, found] = self._shade(view, view.origin + z[found] * rays[:, found], face)
        opacity = hit.float()
        if self._person.look.glasses:
            at, cover, lens = self._glasses(view, rays)
            seen = (at < torch.where(hit, z, torch.inf)) & (at < limit)
            cover, lens = cover * seen, lens * seen * hit
            colour = colour + (1 - colour) * (0.06 * lens)
            colour = colour + (torch.tensor(self._person.look.glasses_rgb)[:, None] - colour) * cover
            opacity = torch.maximum(opacity, cover)
            depth = torch.where(cover > 0.5, at, depth)
        return colour, opacity, depth

    @staticmethod
    def _edges(colour: Tensor, depth: Tensor) -> Tensor:
        """Pixels `(H, W)` bool that stand beside another material, depth or background."""
        bright = colour.mean(dim=0)
        edge = torch.zeros(depth.shape, dtype=torch.bool)
        for axis in (0, 1):
            step = (bright.diff(dim=axis).abs() > _EDGE_COLOUR) | (depth.diff(dim=axis).abs() > _EDGE_DEPTH_M)
            edge.narrow(axis, 0, step.shape[axis]).logical_or_(step)
            edge.narrow(axis, 1, step.shape[axis]).logical_or_(step)
        return edge

    # -- frames -------------------------------------------------------------------------------------------------------

    def _view(self, turn: np.ndarray, translation_m: np.ndarray) -> _View:
        inverse = torch.tensor(turn.T, dtype=torch.float32)
        centre = torch.tensor(translation_m + np.array([0.0, 0.0, DISTANCE_M]), dtype=torch.float32)
        return _View(-(inverse @ centre)[:, None], inverse, float(centre[2]) - _REACH_M, float(centre[2]) + _REACH_M)

    def frame(self, tracks: Tracks, index: int) -> Frame:
        """Draw frame `index` of the tracks with depth and landmarks."""
        size = self._size
        turn = rotation(tracks.yaw_deg[index], tracks.pitch_deg[index], tracks.roll_deg[index])
        translation = tracks.translation_m[index]
        face = Expression(
            *(float(t[index]) for t in (tracks.mouth, tracks.smile, tracks.blink, tracks.brow)),
            *(float(g) for g in tracks.gaze[index]),
        )
        view = self._view(turn, translation)
        self._volume.set_jaw(face.mouth)
        sway = (translation - self._centre)[:2] * self._focal * 0.15
        behind, body_z = self._plate.shifted(float(sway[0]), float(sway[1]))
        rows, columns, start, _ = self._starts(view)
        rays = self._rays(view, columns.float(), rows.float())
        colour, opacity, depth = self._look_along(view, rays, start, body_z[rows, columns], face)
        image = behind.clone()
        image[:, rows, columns] = colour + (1 - opacity) * behind[:, rows, columns]
        depths = torch.zeros(size, size)
        depths[rows, columns] = depth
        edge = torch.nonzero(self._edges(image, depths)[rows, columns]).flatten()
        # a neighbour's depth is where the surface can be: nearer than the cone's, and not behind it
        near = -F.max_pool2d(-torch.where(depths > 0, depths, view.far)[None], 3, 1, 1)[0]
        rows, columns, start = rows[edge], columns[edge], start[edge]
        start = torch.maximum(start, near[rows, columns] - 0.0015)
        u = torch.cat([columns + dx for dx, _ in _SUB_PIXELS])
        v = torch.cat([rows + dy for _, dy in _SUB_PIXELS])
        count = len(_SUB_PIXELS)
        limit = body_z[rows, columns].repeat(count)
        colour, opacity, _ = self._look_along(view, self._rays(view, u, v), start.repeat(count), limit, face)
        mixed = colour + (1 - opacity) * behind[:, rows, columns].repeat(1, count)
        image[:, rows, columns] = mixed.view(3, count, -1).mean(dim=1)
        pixels = (image.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        points = pose_points(self._landmark_points(face), turn, translation)
        return Frame(pixels, depths.numpy(), project(points, size).astype(np.float32))

    def _surface_points(self) -> np.ndarray:
        """Eyes, nose tip and mouth corners of the closed face, `(5, 3)` metres from the head's centre."""
        shape = self._person.shape
        x = torch.tensor([-shape.eye_x_m, shape.eye_x_m, 0.0, -shape.mouth_width_m, shape.mouth_width_m])
        y = torch.tensor([EYE_Y_M, EYE_Y_M, 0.0100 + shape.nose_length, MOUTH_Y_M, MOUTH_Y_M])
        z = torch.full((5,), -_REACH_M)
        for _ in range(40):
            z = z + self._distance((torch.stack([x, y, z]) - self._middle) / self._half)
        return torch.stack([x, y, z], dim=1).double().numpy()

    def _landmark_points(self, face: Expression) -> np.ndarray:
        half, gap, lift = mouth_shape(self._person, face)
        points = self._anchors.copy()
        points[3:, 0] = np.sign(points[3:, 0]) * half
        points[3:, 1] = MOUTH_Y_M - 0.7 * lift + 0.25 * gap
        return points
