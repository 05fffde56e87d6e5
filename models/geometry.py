"""The camera and the rigid head: Eq. 1, 2 and 3 as maps from pixels to pixels.

Coordinates: x right, y down, z away from the camera, in metres; pixel centres are integers. The canonical head faces
the camera with its centre c at (0, 0, 1 m). Predicted rotations turn it about c, not about the camera, so that
t = (I - R) c + t_pred and Eq. 1 and 3 hold as printed (taken about the camera, 10 degrees of yaw would move the head by
a whole frame width).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from models.kept import constant

NOMINAL_DISTANCE_M = 1.0
"""Distance of the head's centre from the camera in the canonical frame (Sec. 3.1)."""


class Pose(NamedTuple):
    """Rigid pose P = {R, t} of Eq. 1 and 3: a canonical point X lies at R X + t in the frame.

    Attributes:
        rotation: R, `(B, 3, 3)`.
        translation: t, `(B, 3)`, metres; includes the shift (I - R) c that turns the head about its centre.
    """

    rotation: Tensor
    translation: Tensor


def intrinsics(
    height: int, width: int, fov_deg: float, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Camera matrix K of Eq. 2.

    Args:
        height: Frame height in pixels.
        width: Frame width in pixels.
        fov_deg: Horizontal field of view in degrees, in (0, 180).
        dtype: Type of the result.
        device: Device of the result.

    Returns:
        K, `(3, 3)`.

    Raises:
        ValueError: The field of view is outside (0, 180) degrees.
    """
    if not 0 < fov_deg < 180:
        raise ValueError(f"fov_deg = {fov_deg} must lie between 0 and 180 degrees")
    focal = (width - 1) / (2 * math.tan(math.radians(fov_deg) / 2))
    rows = [[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, dtype=dtype, device=device)


def rotation_from_euler(yaw_deg: Tensor, pitch_deg: Tensor, roll_deg: Tensor) -> Tensor:
    """R = Rz(roll) Ry(yaw) Rx(pitch), right-handed about x (right), y (down), z (away).

    Positive yaw turns the nose towards the left of the image, positive pitch lowers it, positive roll turns the head
    clockwise on the image.

    Args:
        yaw_deg: `(B,)`, degrees.
        pitch_deg: `(B,)`, degrees.
        roll_deg: `(B,)`, degrees.

    Returns:
        `(B, 3, 3)`.
    """
    return rotation_from_angles(torch.stack([yaw_deg, pitch_deg, roll_deg], dim=-1))


def rotation_from_angles(angles_deg: Tensor) -> Tensor:
    """`rotation_from_euler` of angles that lie together, in few steps.

    Args:
        angles_deg: (yaw, pitch, roll), `(B, 3)`, degrees.

    Returns:
        `(B, 3, 3)`.
    """
    still, across, along = _axes(angles_deg).unbind(0)
    angles = torch.deg2rad(angles_deg)[..., None, None]
    # Rodrigues' formula about y, x and z at once: e e^T + cos(a) (I - e e^T) + sin(a) [e]x
    turns = torch.addcmul(torch.addcmul(still, angles.cos(), across), angles.sin(), along)
    about_y, about_x, about_z = turns.unbind(-3)
    return _product(_product(about_z, about_y), about_x)


def _axes(like: Tensor) -> Tensor:
    """e e^T, I - e e^T and [e]x of the axes e = y, x, z, `(3, 3, 3, 3)`; no numbers are copied from the host."""

    def make() -> Tensor:
        eye = torch.eye(3, dtype=like.dtype, device=like.device)
        axes = torch.stack([eye[1], eye[0], eye[2]])
        still = axes[:, :, None] * axes[:, None]
        across_axes = torch.linalg.cross(axes[:, None].expand(3, 3, 3), eye.expand(3, 3, 3))  # e x (each column of I)
        return torch.stack([still, eye - still, across_axes.mT])

    return constant("axes", (), like, make)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of small matrices by sums: a GPU's own may round the factors to 11 bits (TF32)."""
    return (a[..., None] * b[..., None, :, :]).sum(-2)


def pose_from_euler(yaw_deg: Tensor, pitch_deg: Tensor, roll_deg: Tensor, translation_m: Tensor) -> Pose:
    """Pose of a head turned about its centre and then shifted.

    Source: our choice (the paper leaves the centre of rotation open): t = (I - R) c + t_pred, c = (0, 0, 1 m).

    Args:
        yaw_deg: `(B,)`, degrees.
        pitch_deg: `(B,)`, degrees.
        roll_deg: `(B,)`, degrees.
        translation_m: t_pred, `(B, 3)`, metres.

    Returns:
        The pose to use in `to_canonical` and `to_frame`.
    """
    return pose_from_angles(torch.stack([yaw_deg, pitch_deg, roll_deg], dim=-1), translation_m)


def pose_from_angles(angles_deg: Tensor, translation_m: Tensor) -> Pose:
    """`pose_from_euler` of angles that lie together.

    Args:
        angles_deg: (yaw, pitch, roll), `(B, 3)`, degrees.
        translation_m: t_pred, `(B, 3)`, metres.
    """
    rotation = rotation_from_angles(angles_deg)
    # (I - R) c for c on the view axis; no tensor is made from numbers here, which a CUDA graph could not record.
    forward = _axes(angles_deg)[0, 2, 2]
    return Pose(rotation, torch.add(translation_m, forward - rotation[..., 2], alpha=NOMINAL_DISTANCE_M))


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Pixel coordinates (x, y) of a frame, `(H, W, 2)`, with the type and device of `like`; not to be changed."""

    def make() -> Tensor:
        ys = torch.arange(height, dtype=like.dtype, device=like.device)
        xs = torch.arange(width, dtype=like.dtype, device=like.device)
        return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)

    return constant("pixel_grid", (height, width), like, make)


def rays(height: int, width: int, K: Tensor) -> Tensor:
    """K^-1 q of every pixel, `(H, W, 3)`: the point it shows at a depth of 1 m."""

    def make() -> Tensor:
        # K is upper triangular with a unit last row: its inverse is written out, which is exact and needs no solver.
        xy = (pixel_grid(height, width, K) - K[:2, 2]) / K.diagonal()[:2]
        return torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1)

    return constant("rays", (height, width), K, make)


def back_project(depth: Tensor, K: Tensor) -> Tensor:
    """d K^-1 q: the point that every pixel shows.

    Args:
        depth: `(B, H, W)` or `(B, 1, H, W)`, metres.
        K: `(3, 3)`.

    Returns:
        `(B, H, W, 3)`, metres.
    """
    depth = _depth_3d(depth)
    return rays(depth.shape[1], depth.shape[2], K) * depth[..., None]


def project(points: Tensor, K: Tensor) -> Tensor:
    """Pixel coordinates of points, K X up to scale.

    Args:
        points: `(..., 3)`, metres, z > 0.
        K: `(3, 3)`.

    Returns:
        `(..., 2)`, pixels (x, y).
    """
    return points[..., :2] / points[..., 2:] * K.diagonal()[:2] + K[:2, 2]


def points_to_canonical(depth: Tensor, pose: Pose, K: Tensor) -> Tensor:
    """R^T (d K^-1 q - t): the canonical point that each pixel of a frame shows (Eq. 1 before projection).

    Args:
        depth: Depth of the frame, `(B, H, W)` or `(B, 1, H, W)`, metres.
        pose: Pose of the head in the frame.
        K: `(3, 3)`.

    Returns:
        `(B, H, W, 3)`, metres.
    """
    away = back_project(depth, K) - pose.translation[:, None, None]
    return _turned(away, pose.rotation)


def points_to_frame(depth: Tensor, pose: Pose, K: Tensor) -> Tensor:
    """R d^c K^-1 q^c + t: where the point of each canonical pixel lies in the frame (Eq. 3 before projection).

    Args:
        depth: Depth of the canonical frame, `(B, H, W)` or `(B, 1, H, W)`, metres.
        pose: Pose of the head in the frame.
        K: `(3, 3)`.

    Returns:
        `(B, H, W, 3)`, metres.
    """
    points = back_project(depth, K)
    return _turned(points, pose.rotation.mT) + pose.translation[:, None, None]


def _turned(points: Tensor, matrix: Tensor) -> Tensor:
    """Points `(B, H, W, 3)` as rows times matrices `(B, 3, 3)`.

    Compiled, by sums: as a product, the gradient of the matrix is one long sum that few units of the GPU work on (two
    of them took 0.6 ms of a step), and TF32 would round its factors. A matrix for every row makes it a sum over the
    columns of each row and then one over the rows.
    """
    if not torch.compiler.is_dynamo_compiling():
        return (points.flatten(1, 2) @ matrix).view_as(points)
    rows = matrix[:, None].expand(-1, points.shape[1], -1, -1)
    return (points[..., None] * rows[:, :, None]).sum(-2)


def to_canonical(depth: Tensor, pose: Pose, K: Tensor) -> Tensor:
    """Eq. 1: for each pixel q of a frame, its pixel q^c in the canonical frame.

    Args:
        depth: Depth of the frame, `(B, H, W)` or `(B, 1, H, W)`, metres.
        pose: Pose of the head in the frame.
        K: `(3, 3)`.

    Returns:
        `(B, H, W, 2)`, pixels (x, y).
    """
    return project(points_to_canonical(depth, pose, K), K)


def to_frame(depth: Tensor, pose: Pose, K: Tensor) -> Tensor:
    """Eq. 3: for each canonical pixel q^c, its pixel q in the frame with this pose.

    Args:
        depth: Depth of the canonical frame, `(B, H, W)` or `(B, 1, H, W)`, metres.
        pose: Pose of the head in the frame.
        K: `(3, 3)`.

    Returns:
        `(B, H, W, 2)`, pixels (x, y).
    """
    return project(points_to_frame(depth, pose, K), K)


def _depth_3d(depth: Tensor) -> Tensor:
    if depth.dim() == 4 and depth.shape[1] == 1:
        return depth[:, 0]
    if depth.dim() != 3:
        raise ValueError(f"depth has shape {tuple(depth.shape)}; expected (B, H, W) or (B, 1, H, W)")
    return depth
