"""Head pose and a rough depth without any trained network: what stage 1 starts from.

The paper starts F_D and F_P from published weights, and its loss alone does not find the pose from nothing (design:
measured). Five face landmarks and the head mask give a start that needs no download: a weak-perspective fit of a mean
face gives rotation and translation, and an ellipsoid that fills the mask gives depth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.geometry import NOMINAL_DISTANCE_M, rotation_from_euler

MEAN_FACE = (
    (-0.34, -0.16, -0.79),
    (0.34, -0.16, -0.79),
    (0.0, 0.20, -1.10),
    (-0.26, 0.52, -0.8),
    (0.26, 0.52, -0.8),
)
"""Image-left eye, image-right eye, nose tip, mouth corners of a frontal face, about the head's centre; the eyes are
0.68 units apart. Rounded adult proportions; how far the face lies before the centre is chosen so that it agrees with
`ellipsoid_depth` (measured on the demo: with 0.62 or 0.95 the fitted centre swings with yaw by 8 mm and more)."""


def fit_landmarks(landmarks: Tensor, max_angle_deg: float, iterations: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Weak-perspective pose of faces from five landmarks, by damped Gauss-Newton on six parameters.

    Args:
        landmarks: Eyes, nose tip, mouth corners, image-left first, `(B, 5, 2)`, pixels.
        max_angle_deg: Angles are kept within this bound.
        iterations: Gauss-Newton steps.

    Returns:
        Angles (yaw, pitch, roll) `(B, 3)` in degrees, pixels per face unit `(B,)`, and the pixel of the head's centre
        `(B, 2)`; NaN in a row whose landmarks are NaN.
    """
    points = landmarks.double()
    face = points.new_tensor(MEAN_FACE)

    def predict(p: Tensor) -> Tensor:
        turned = torch.einsum("bij,kj->bki", rotation_from_euler(p[:, 0], p[:, 1], p[:, 2]), face)
        return (turned[..., :2] * p[:, 3, None, None] + p[:, None, 4:]).flatten(1)

    eyes = points[:, 1] - points[:, 0]
    height = (points[:, 3:].mean(1) - points[:, :2].mean(1)).norm(dim=-1)
    scale = torch.maximum(eyes.norm(dim=-1) / 0.68, height / 0.68).clamp(min=1e-3)
    roll = torch.rad2deg(torch.atan2(eyes[:, 1], eyes[:, 0]))
    zero = torch.zeros_like(roll)
    p = torch.stack([zero, zero, roll, scale, *points.mean(1).unbind(-1)], dim=-1)
    target = points.flatten(1)
    steps = torch.stack([zero + 1e-3, zero + 1e-3, zero + 1e-3, scale * 1e-5, scale * 1e-5, scale * 1e-5], dim=-1)
    # A weak pull of the angles towards zero: five points fix them badly where the face is nearly flat to the camera.
    pull = torch.tensor([5e-4, 1e-3, 0.0, 0.0, 0.0, 0.0], dtype=points.dtype, device=points.device).diag()
    for _ in range(iterations):
        here = predict(p)
        moved = (predict((p[:, None] + torch.diag_embed(steps)).flatten(0, 1))).view(len(p), 6, 10)
        jacobian = ((moved - here[:, None]) / steps[..., None]).transpose(1, 2) / scale[:, None, None]
        residual = (target - here) / scale[:, None]
        normal = jacobian.transpose(1, 2) @ jacobian + pull**2
        right = jacobian.transpose(1, 2) @ residual[..., None] - (pull**2 @ p[..., None])
        damping = 1e-9 * torch.eye(6, dtype=points.dtype, device=points.device)
        update = torch.linalg.solve(torch.nan_to_num(normal) + damping, torch.nan_to_num(right))[..., 0]
        update[:, :3] = update[:, :3].clamp(-15, 15)
        p = p + update
        p[:, :3] = p[:, :3].clamp(-max_angle_deg, max_angle_deg)
    bad = ~torch.isfinite(landmarks).flatten(1).all(1)
    p = torch.where(bad[:, None], torch.nan, p)
    return p[:, :3], p[:, 3], p[:, 4:]


def poses_from_landmarks(
    landmarks: Tensor, K: Tensor, max_angle_deg: float, max_translation_m: float
) -> tuple[Tensor, Tensor]:
    """Pose labels of one video's frames.

    A person's true size is unknown, so the video's median scale is taken as the nominal distance: the canonical head is
    as large as in the video, and the z translation says by how much a frame is nearer or farther than that.

    Args:
        landmarks: `(T, 5, 2)`, pixels of the frame.
        K: `(3, 3)`.
        max_angle_deg: Bound of the angles.
        max_translation_m: Bound of each component of the translation.

    Returns:
        Angles (yaw, pitch, roll) `(T, 3)` in degrees and t_pred `(T, 3)` in metres, float32; NaN where unknown.
    """
    one = torch.zeros(len(landmarks), dtype=torch.long)
    return poses_of_videos(landmarks, one, K, max_angle_deg, max_translation_m)


def poses_of_videos(
    landmarks: Tensor, video: Tensor, K: Tensor, max_angle_deg: float, max_translation_m: float
) -> tuple[Tensor, Tensor]:
    """`poses_from_landmarks` for the frames of many videos, all fitted at once.

    Args:
        landmarks: `(T, 5, 2)`, pixels of the frame.
        video: Which video each frame is of, `(T,)`, counted from 0.
        K: `(3, 3)`.
        max_angle_deg: As there.
        max_translation_m: As there.

    Returns:
        As there.
    """
    angles, scale, centre = fit_landmarks(landmarks, max_angle_deg)
    medians = torch.stack([torch.nanmedian(scale[video == i]) for i in range(int(video.max()) + 1)])
    distance = NOMINAL_DISTANCE_M * medians[video] / scale
    focal = K[0, 0].double()
    shift = (centre - torch.stack([K[0, 2], K[1, 2]]).double()) / focal * distance[:, None]
    translation = torch.cat([shift, distance[:, None] - NOMINAL_DISTANCE_M], dim=-1)
    return angles.float(), translation.clamp(-max_translation_m, max_translation_m).float()


class InPlane(NamedTuple):
    """A turn, scale and shift in the image plane, per image; what it does to a pose is known exactly.

    Attributes:
        turn_deg: `(B,)`, degrees, clockwise.
        scale: `(B,)`.
        shift_px: `(B, 2)`, pixels, xy.
    """

    turn_deg: Tensor
    scale: Tensor
    shift_px: Tensor

    @staticmethod
    def draw(count: int, generator: torch.Generator) -> Tensor:
        """What `of` takes: `(count, 4)` numbers in [-1, 1]."""
        return torch.rand(count, 4, generator=generator) * 2 - 1

    @classmethod
    def of(cls, unit: Tensor, size_px: int) -> InPlane:
        """Turns within 20 degrees, scales within 8 percent, shifts within 5 percent of the frame."""
        return cls(unit[:, 0] * 20, 1 + unit[:, 1] * 0.08, unit[:, 2:] * 0.05 * size_px)

    def apply(self, image: Tensor) -> Tensor:
        """The image moved about the frame's middle, zero outside; `(B, C, H, W)`, square."""
        size = (image.shape[-1] - 1) / 2
        angle = torch.deg2rad(self.turn_deg)
        cos, sin = angle.cos() / self.scale, angle.sin() / self.scale
        x, y = (self.shift_px / size).unbind(-1)
        # affine_grid maps output to input: the inverse of "turn, scale, then shift".
        theta = torch.stack(
            [torch.stack([cos, sin, -cos * x - sin * y], -1), torch.stack([-sin, cos, sin * x - cos * y], -1)], -2
        )
        grid = F.affine_grid(theta, list(image.shape), align_corners=True)
        return F.grid_sample(image, grid, align_corners=True)

    def move(self, angles_deg: Tensor, translation_m: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        """The pose of the head in the moved image; `(B, 3)` each, degrees and metres."""
        distance = NOMINAL_DISTANCE_M + translation_m[:, 2]
        offset = translation_m[:, :2] / distance[:, None] * K[0, 0]
        angle = torch.deg2rad(self.turn_deg)
        cos, sin = angle.cos() * self.scale, angle.sin() * self.scale
        turned = torch.stack([cos * offset[:, 0] - sin * offset[:, 1], sin * offset[:, 0] + cos * offset[:, 1]], -1)
        nearer = distance / self.scale
        shift = (turned + self.shift_px) / K[0, 0] * nearer[:, None]
        roll = angles_deg[:, 2] + self.turn_deg
        return (
            torch.stack([angles_deg[:, 0], angles_deg[:, 1], roll], -1),
            torch.cat([shift, nearer[:, None] - NOMINAL_DISTANCE_M], -1),
        )


def smoothed(values: Tensor) -> Tensor:
    """Values `(n, T, C)` averaged over time with weights 1 2 3 2 1; unknown ones (NaN) have no weight and stay NaN."""
    known = torch.isfinite(values)
    filled = torch.where(known, values, torch.zeros_like(values))
    total, weight = 3 * filled, 3.0 * known
    for shift, share in ((1, 2.0), (2, 1.0)):
        for target, source in ((total, filled), (weight, known.to(values.dtype))):
            target[:, shift:] += share * source[:, :-shift]
            target[:, :-shift] += share * source[:, shift:]
    return torch.where(known, total / weight.clamp(min=1), torch.nan)


def ellipsoid_depth(mask: Tensor, K: Tensor) -> Tensor:
    """Depth of an ellipsoid that fills each head mask: its centre at 1 m, a fifth deeper than it is wide (faces
    protrude).

    Args:
        mask: `(B, H, W)`, in [0, 1].
        K: `(3, 3)`.

    Returns:
        `(B, H, W)`, metres; 1 m outside the ellipse.
    """
    height, width = mask.shape[1:]
    ys = torch.arange(height, dtype=mask.dtype, device=mask.device)[None, :, None]
    xs = torch.arange(width, dtype=mask.dtype, device=mask.device)[None, None, :]
    area = mask.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    x0, y0 = (mask * xs).sum((1, 2), keepdim=True) / area, (mask * ys).sum((1, 2), keepdim=True) / area
    # A filled ellipse with half axis a has variance a^2 / 4 along it.
    a = 2 * ((mask * (xs - x0) ** 2).sum((1, 2), keepdim=True) / area).sqrt().clamp(min=1)
    b = 2 * ((mask * (ys - y0) ** 2).sum((1, 2), keepdim=True) / area).sqrt().clamp(min=1)
    inside = 1 - ((xs - x0) / a) ** 2 - ((ys - y0) / b) ** 2
    return NOMINAL_DISTANCE_M - a / K[0, 0] * inside.clamp(min=0).sqrt()
