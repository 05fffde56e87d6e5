"""What stage 3 did inside, as pictures: warped head and reference, their flows, the three attention maps (Fig. 6)."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.head3d import Head3D, Subject
from models.warp import flow_from_pixels, full_size, sample
from tasks.frames import to_uint8
from tasks.sheets import PAPER_RGB, draw_outline, enlarge

COLUMNS = (
    ("subject", "s_ref"),
    ("driving", "s_dri"),
    ("transformed", "x_hat_dri"),
    ("head, warped", "by its flow"),
    ("deformed", "s_ref, its flow"),
    ("head's flow", "to x_hat_dri"),
    ("subject's flow", "to s_ref"),
    ("attention", "a_head"),
    ("attention", "a_ref"),
    ("attention", "a_dec"),
    ("output", "s_hat_dri"),
)
"""What stands in each column, in words and in the paper's signs."""
MAPS = ("a_head", "a_ref", "a_dec")
TILE_PX, LARGEST_TILE_PX = 128, 160
OUTLINE_RGB = (0, 235, 235)
"""Cyan: seen on every colour of the maps."""
LEAST_FLOW_PX = 1.0
"""Flows shorter than this in the whole sheet are noise: the colours then do not spread any further."""
FLOW_SHARE = 0.99
"""The colours reach as far as this share of all flow vectors."""


class Inside(NamedTuple):
    """What stage 3 made of B driving frames; pictures are u1 RGB.

    Attributes:
        reference: s_ref, `(H, W, 3)`.
        driving: s_dri, `(B, H, W, 3)`.
        driving_mask: Head mask of s_dri, `(B, H, W)` u1, 0/1.
        head: x_hat_dri ("transformed"), `(B, H, W, 3)`.
        moved_head: x_hat_dri warped by its flow, the same.
        deformed: s_ref warped by its flow ("deformed"), the same.
        flow_head: Flow x_hat_dri <- s_dri, `(B, 2, H, W)` f4, pixels, xy; 0 where it leads to no head.
        flow_reference: Flow s_ref <- s_dri, the same.
        attention: a_head, a_ref, a_dec, `(B, 3, H, W)` f4; they sum to 1.
        output: s_hat_dri, `(B, H, W, 3)`.
        turn_deg: Angle of the rotation between the heads of s_ref and s_dri, `(B,)`, degrees.
        yaw_deg: Yaw of s_dri less that of s_ref, `(B,)`, degrees.
        share: Mean of each attention map inside the driving head mask, `(B, 3)`; NaN where that is empty.
    """

    reference: np.ndarray
    driving: np.ndarray
    driving_mask: np.ndarray
    head: np.ndarray
    moved_head: np.ndarray
    deformed: np.ndarray
    flow_head: np.ndarray
    flow_reference: np.ndarray
    attention: np.ndarray
    output: np.ndarray
    turn_deg: np.ndarray
    yaw_deg: np.ndarray
    share: np.ndarray

    def describe(self, row: int) -> str:
        """The figures of one driving frame, in words."""
        parts = ", ".join(f"{name} {value:.2f}" for name, value in zip(MAPS, self.share[row], strict=True))
        yaw = round(float(self.yaw_deg[row])) + 0  # never "-0"
        return f"pose differs by {self.turn_deg[row]:.0f} deg (yaw {yaw:+d}); in the head: {parts}"


@torch.no_grad()
def look_inside(model: Head3D, subject: Subject, images: Tensor, masks: Tensor) -> Inside:
    """Drive a subject and keep what stage 3 did on the way (Sec. 3.3, Fig. 6).

    Args:
        model: The trained model.
        subject: From `Head3D.subject`.
        images: Driving frames, `(B, 3, H, W)`, in [0, 1].
        masks: Their head masks, `(B, 1, H, W)`.

    Returns:
        Pictures, flows, maps and figures, on the CPU.
    """
    made = model.drive(subject, images, masks)
    size = images.shape[-2:]
    reference = subject.reference.expand(len(images), -1, -1, -1)
    attention = F.interpolate(made.maps.attention, size, mode="bilinear", align_corners=True)
    moved_head = sample(made.head, made.maps.pixels_head)
    seen = moved_head.amax(dim=1, keepdim=True) > 0
    driving, own = model.pose(images * masks), subject.reference_pose
    turn = torch.einsum("bij,kij->bk", driving.pose().rotation, own.pose().rotation)[:, 0]  # trace of R_dri R_ref^T
    inside = (attention * masks).sum((2, 3)) / masks.sum((2, 3))
    return Inside(
        to_uint8(subject.reference)[0],
        to_uint8(images),
        (masks[:, 0] > 0).byte().cpu().numpy(),
        to_uint8(made.head),
        to_uint8(moved_head),
        to_uint8(sample(reference, made.maps.pixels_reference, "border")),
        (flow_from_pixels(full_size(made.maps.pixels_head, *size)) * seen).cpu().numpy(),
        flow_from_pixels(full_size(made.maps.pixels_reference, *size)).cpu().numpy(),
        attention.cpu().numpy(),
        to_uint8(made.image),
        torch.rad2deg(((turn - 1) / 2).clamp(-1, 1).acos()).cpu().numpy(),
        (driving.angles_deg - own.angles_deg)[:, 0].cpu().numpy(),
        inside.cpu().numpy(),
    )


def colour_flow(flow: np.ndarray, full_px: float) -> np.ndarray:
    """A flow in the colours of the wheel: its direction is the hue, its length the saturation; no flow is white.

    Args:
        flow: `(..., 2, H, W)`, pixels, xy.
        full_px: Length that gets the full colour; longer ones look the same.

    Returns:
        `(..., H, W, 3)` u1 RGB; to the right is red, down yellow-green, to the left cyan, up violet.
    """
    x, y = np.moveaxis(flow, -3, 0)
    hue = np.rad2deg(np.arctan2(y, x)) % 360
    long = np.clip(np.hypot(x, y) / full_px, 0, 1)
    flat = np.stack([hue, long, np.ones_like(long)], axis=-1).astype(np.float32).reshape(-1, 1, 3)
    rgb = cv2.cvtColor(flat, cv2.COLOR_HSV2RGB)
    return (rgb * 255).round().astype(np.uint8).reshape(*long.shape, 3)


def flow_wheel(size_px: int) -> np.ndarray:
    """The legend of `colour_flow`: each place of the disc in the colour of the flow that points there from its middle.

    Args:
        size_px: Side.

    Returns:
        `(size_px, size_px, 3)` u1 RGB.
    """
    radius = (size_px - 1) / 2
    y, x = np.mgrid[0:size_px, 0:size_px] - radius
    wheel = colour_flow(np.stack([x, y]), radius)
    wheel[np.hypot(x, y) > radius] = PAPER_RGB
    return wheel


def colour_attention(share: np.ndarray) -> np.ndarray:
    """Attention from 0 (dark blue) over red to 1 (yellow), by a map whose steps look equally large.

    Source: our choice; Fig. 6 shows the same from blue to red.

    Args:
        share: `(..., H, W)`, in [0, 1].

    Returns:
        `(..., H, W, 3)` u1 RGB.
    """
    values = (np.clip(share, 0, 1) * 255).round().astype(np.uint8)
    coloured = cv2.applyColorMap(values.reshape(-1, 1), cv2.COLORMAP_PLASMA)
    return np.ascontiguousarray(coloured[..., ::-1]).reshape(*values.shape, 3)


def flow_scale(inside: list[Inside]) -> float:
    """Flow length in pixels that gets the full colour, one for all that is shown together; two significant digits."""
    flows = [flow for one in inside for flow in (one.flow_head, one.flow_reference)]
    lengths = [np.hypot(flow[:, 0], flow[:, 1]).ravel() for flow in flows]
    return max(LEAST_FLOW_PX, float(f"{np.quantile(np.concatenate(lengths), FLOW_SHARE):.2g}"))


def row_tiles(inside: Inside, row: int, full_px: float) -> list[np.ndarray]:
    """One row of the sheet: the pictures of `COLUMNS`.

    Args:
        inside: From `look_inside`.
        row: Which driving frame.
        full_px: From `flow_scale`.

    Returns:
        Pictures of one size, `(S, S, 3)` u1 RGB; the attention maps have the driving head's outline.
    """
    flows = [colour_flow(flow[row], full_px) for flow in (inside.flow_head, inside.flow_reference)]
    warped = [part[row] for part in (inside.driving, inside.head, inside.moved_head, inside.deformed)]
    tiles = [tile(picture) for picture in (inside.reference, *warped, *flows)]
    mask = enlarge(inside.driving_mask[row], TILE_PX)
    maps = [enlarge(picture, TILE_PX) for picture in colour_attention(inside.attention[row])]
    tiles += [tile(draw_outline(picture, mask, OUTLINE_RGB)) for picture in maps]
    return [*tiles, tile(inside.output[row])]


def tile(picture: np.ndarray) -> np.ndarray:
    """A picture `(H, W, 3)` u1 at the size in which sheets show it: 128 to 160 px."""
    large = enlarge(picture, TILE_PX)
    if max(large.shape[:2]) <= LARGEST_TILE_PX:
        return large
    scale = LARGEST_TILE_PX / max(large.shape[:2])
    size = (round(large.shape[1] * scale), round(large.shape[0] * scale))
    return cv2.resize(large, size, interpolation=cv2.INTER_AREA)


def colour_bar(width: int, height: int) -> np.ndarray:
    """The legend of `colour_attention`.

    Args:
        width: Pixels, from 0 at the left to 1 at the right.
        height: Pixels.

    Returns:
        `(height, width, 3)` u1 RGB.
    """
    return colour_attention(np.linspace(0, 1, width)[None]).repeat(height, axis=0)
