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
    (sy, cy), (sp, cp), (sr, cr) = (
        (a.sin(), a.cos()) for a in (torch.deg2rad(x) for x in (yaw_deg, pitch_deg, roll_deg))
    )
    rows = [
        [cr * cy, cr * sy * sp - sr * cp, cr * sy * cp + sr * sp],
        [sr * cy, sr * sy * sp + cr * cp, sr * sy * cp - cr * sp],
        [-sy, cy * sp, cy * cp],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


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
    rotation = rotation_from_euler(yaw_deg, pitch_deg, roll_deg)
    # (I - R) c for c on the view axis; no tensor is made from numbers here, which a CUDA graph could not record.
    eye = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    return Pose(rotation, NOMINAL_DISTANCE_M * (eye - rotation)[..., 2] + translation_m)


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Pixel coordinates (x, y) of a frame, `(H, W, 2)`, with the type and device of `like`."""
    ys = torch.arange(height, dtype=like.dtype, device=like.device)
    xs = torch.arange(width, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)


def back_project(depth: Tensor, K: Tensor) -> Tensor:
    """d K^-1 q: the point that every pixel shows.

    Args:
        depth: `(B, H, W)` or `(B, 1, H, W)`, metres.
        K: `(3, 3)`.

    Returns:
        `(B, H, W, 3)`, metres.
    """
    depth = _depth_3d(depth)
    grid = pixel_grid(depth.shape[1], depth.shape[2], depth)
    # K is upper triangular with a unit last row: its inverse is written out, which is exact and needs no solver.
    rays = (grid - torch.stack([K[0, 2], K[1, 2]])) / torch.stack([K[0, 0], K[1, 1]])
    return torch.cat([rays * depth[..., None], depth[..., None]], dim=-1)


def project(points: Tensor, K: Tensor) -> Tensor:
    """Pixel coordinates of points, K X up to scale.

    Args:
        points: `(..., 3)`, metres, z > 0.
        K: `(3, 3)`.

    Returns:
        `(..., 2)`, pixels (x, y).
    """
    scale = torch.stack([K[0, 0], K[1, 1]])
    return points[..., :2] / points[..., 2:] * scale + torch.stack([K[0, 2], K[1, 2]])


def points_to_canonical(depth: Tensor, pose: Pose, K: Tensor) -> Tensor:
    """R^T (d K^-1 q - t): the canonical point that each pixel of a frame shows (Eq. 1 before projection).

    Args:
        depth: Depth of the frame, `(B, H, W)` or `(B, 1, H, W)`, metres.
        pose: Pose of the head in the frame.
        K: `(3, 3)`.

    Returns:
        `(B, H, W, 3)`, metres.
    """
    return torch.einsum("bji,bhwj->bhwi", pose.rotation, back_project(depth, K) - pose.translation[:, None, None])


def points_to_frame(depth: Tensor, pose: Pose, K: Tensor) -> Tensor:
    """R d^c K^-1 q^c + t: where the point of each canonical pixel lies in the frame (Eq. 3 before projection).

    Args:
        depth: Depth of the canonical frame, `(B, H, W)` or `(B, 1, H, W)`, metres.
        pose: Pose of the head in the frame.
        K: `(3, 3)`.

    Returns:
        `(B, H, W, 3)`, metres.
    """
    return torch.einsum("bij,bhwj->bhwi", pose.rotation, back_project(depth, K)) + pose.translation[:, None, None]


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
