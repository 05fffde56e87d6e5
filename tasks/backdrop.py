"""Novel views without a second head: the subject's frame with its own head painted out, and the turned head on it.

Sec. 3.4 gives Phi x_hat_dri in place of a driving frame. That is a head on black, which training never shows: dark
smears came beside the hair. And s_ref keeps its own head, so that a head moved away was seen twice. Both are mended
here, without training anew (our choice; figures at `draw_views`).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.canonical import CanonicalHead, render_layer
from models.geometry import intrinsics
from models.head3d import Head3D, Output, Subject
from models.pose_net import HeadPose
from tasks.frames import to_uint8

AROUND_SHARE = 0.03
"""The mask grows by this share of the frame's width before it is painted out: hair fades into the background."""
BRUSH_SHARE = 0.05
"""Reach of the inpainting, share of the width."""
RIM_SHARE = 1 / 64
"""So much of the head's edge is cut off, share of the width."""
MOVED_SHARE = (0.03, 0.09)
"""Where the head's centre is moved by less than the first share of the width, s_ref is taken with its own head; beyond
the second, without. Training shows shifts of up to about 0.05."""


def backdrop(reference: Tensor, mask: Tensor) -> Tensor:
    """s_ref without its head: what lies around it is continued inwards (Telea's inpainting).

    Source: our choice.

    Args:
        reference: s_ref, `(1, 3, H, W)`, in [0, 1].
        mask: Its head mask, `(1, 1, H, W)`.

    Returns:
        `(1, 3, H, W)`; as s_ref off the mask, which grows by `AROUND_SHARE` of the width.
    """
    width = reference.shape[-1]
    reach = max(1, round(AROUND_SHARE * width))
    hole = (mask[0, 0] > 0).byte().cpu().numpy()
    hole = cv2.dilate(hole, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    picture = np.ascontiguousarray(to_uint8(reference)[0])
    painted = cv2.inpaint(picture, hole, max(2.0, BRUSH_SHARE * width), cv2.INPAINT_TELEA)
    filled = torch.from_numpy(painted).to(reference).permute(2, 0, 1)[None] / 255
    return torch.where(torch.from_numpy(hole).to(reference.device) > 0, filled, reference)


def without_rim(head: CanonicalHead) -> CanonicalHead:
    """The head less the outermost `RIM_SHARE` of the width, where its colours fade into the black around them.

    Source: our choice. In a frame that moves as the head does, s_ref covers the rim; in a view it was a dark line.

    Args:
        head: x_hat^c, `(B, 3, H, W)`, and its mask.
    """
    reach = round(RIM_SHARE * head.mask.shape[-1])
    kept = -F.max_pool2d(-head.mask, 2 * reach + 1, stride=1, padding=reach)
    return CanonicalHead(head.image * (kept / head.mask.clamp(min=1e-2)), kept, head.depth)


@torch.no_grad()
def draw_views(model: Head3D, subject: Subject, behind: Tensor, pose: HeadPose) -> Output:
    """The subject at poses given by hand, on its backdrop.

    Source: our choice in place of Sec. 3.4's x_hat_dri as driving frame. Phi gets the turned head on the backdrop as
    s_dri; where the head's centre moves away (`MOVED_SHARE`), that picture takes s_ref's place, too. Mean absolute
    error on rendered views of six test people of the demo (64 px): 0.0187 to 0.0174 at 15 degrees of yaw, 0.0239 to
    0.0234 at 30, 0.0318 to 0.0182 at 0.02 m to the side, 0.0564 to 0.0242 at 0.06 m (before the rim was
    cut, and while Phi still moved the head).

    Args:
        model: The trained model.
        subject: From `Head3D.subject`.
        behind: From `backdrop`.
        pose: The wanted poses, B of them.

    Returns:
        The new frames.
    """
    batch, (height, width) = len(pose.angles_deg), subject.reference.shape[-2:]
    K = intrinsics(height, width, model.camera.fov_deg, device=subject.reference.device)
    head = render_layer(without_rim(subject.head).repeated(batch), pose.pose(), K)
    composite = behind * (1 - head.alpha) + head.image
    shift = (pose.translation_m - subject.reference_pose.translation_m)[:, :2] * K[0, 0] / width
    first, last = MOVED_SHARE
    moved = ((shift.norm(dim=1) - first) / (last - first)).clamp(0, 1)[:, None, None, None]
    reference = subject.reference * (1 - moved) + composite * moved
    fused = model.fusion(head, reference, composite, head_first=True)
    return Output(fused.image, head.image, fused.maps)
