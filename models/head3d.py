"""The trained model at work (Sec. 3.4): a subject's canonical head once, then one frame out per driving frame.

Written as the paper has it; `models/engine.py` gives the same frames fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from models.canonical import (
    CanonicalHead,
    RecurrentCanonical,
    mean_canonical,
    render_layer,
    warp_references,
)
from models.config import Camera
from models.depth_net import DepthNetwork
from models.fusion import FusionNetwork
from models.geometry import intrinsics
from models.motion import FusionMaps
from models.pose_net import HeadPose, PoseNetwork


class Subject(NamedTuple):
    """What is computed once per subject.

    Attributes:
        head: x_hat^c (or x_bar^c for the ablation) and d^c, one row.
        reference: s_ref, `(1, 3, H, W)`.
        reference_pose: Pose of s_ref.
    """

    head: CanonicalHead
    reference: Tensor
    reference_pose: HeadPose


class Output(NamedTuple):
    """What is made per driving frame.

    Attributes:
        image: s_hat, `(B, 3, H, W)`, in [0, 1].
        head: x_hat_dri, `(B, 3, H, W)`.
        maps: Flows and attention of Phi.
    """

    image: Tensor
    head: Tensor
    maps: FusionMaps


@dataclass
class Head3D:
    """The five trained parts, frozen.

    Attributes:
        depth: F_D.
        pose: F_P.
        canonical: E_H, Lambda, Omega_H.
        fusion: E_F, Phi, Omega_F.
        camera: The camera they were trained with.
        size_px: The frame size they were trained at.
    """

    depth: DepthNetwork
    pose: PoseNetwork
    canonical: RecurrentCanonical
    fusion: FusionNetwork
    camera: Camera
    size_px: int

    @property
    def device(self) -> torch.device:
        """Where the networks lie."""
        return next(self.fusion.parameters()).device

    @torch.no_grad()
    def subject(self, images: Tensor, masks: Tensor, reference: int, use_mean: bool = False) -> Subject:
        """Build the canonical head of a subject.

        Args:
            images: The N reference frames, `(N, 3, H, W)`, in [0, 1].
            masks: Their head masks, `(N, 1, H, W)`.
            reference: Which of them is s_ref.
            use_mean: Take x_bar^c instead of x_hat^c (the ablation of Table 3).

        Returns:
            The subject's state, for `drive`.
        """
        heads = images * masks
        K = intrinsics(images.shape[-2], images.shape[-1], self.camera.fov_deg, device=images.device)
        pose, depth = self.pose(heads), self.depth(heads)
        warped, warp = warp_references(heads[None], masks[None], depth[None], pose.pose(), K)
        head = mean_canonical(warped, warp)
        if not use_mean:
            head = self.canonical(heads[None], head, warp)
        one = slice(reference, reference + 1)
        own = HeadPose(pose.angles_deg[one], pose.translation_m[one])
        return Subject(head, images[one], own)

    @torch.no_grad()
    def drive(self, subject: Subject, images: Tensor, masks: Tensor, first: HeadPose | None = None) -> Output:
        """Animate the subject by driving frames.

        Args:
            subject: From `subject`.
            images: Driving frames, `(B, 3, H, W)`, in [0, 1].
            masks: Their head masks, `(B, 1, H, W)`.
            first: For the relative mode: the pose of the first driving frame. The head then moves from the reference's
            own
                pose by what the driving head has moved since. None is the absolute mode, the paper's.

        Returns:
            The new frames.
        """
        pose = self.pose(images * masks)
        if first is not None:
            limit, reach = self.camera.max_angle_deg, self.camera.max_translation_m
            own = subject.reference_pose
            angles = own.angles_deg + pose.angles_deg - first.angles_deg
            shift = own.translation_m + pose.translation_m - first.translation_m
            pose = HeadPose(angles.clamp(-limit, limit), shift.clamp(-reach, reach))
        return self._fuse(subject, pose, images)

    @torch.no_grad()
    def view(self, subject: Subject, pose: HeadPose) -> Output:
        """The subject at poses given by hand: x_hat_dri takes the place of s_dri in Phi (Sec. 3.4).

        Args:
            subject: From `subject`.
            pose: The wanted poses, B of them.

        Returns:
            The new frames.
        """
        return self._fuse(subject, pose, None)

    def _fuse(self, subject: Subject, pose: HeadPose, driving: Tensor | None) -> Output:
        """x_hat_dri at these poses, and s_hat by stage 3; without driving frames, Phi looks at x_hat_dri instead."""
        batch = len(pose.angles_deg)
        height, width = subject.reference.shape[-2:]
        K = intrinsics(height, width, self.camera.fov_deg, device=subject.reference.device)
        head = render_layer(subject.head.repeated(batch), pose.pose(), K)
        reference = subject.reference.expand(batch, -1, -1, -1)
        fused = self.fusion(head, reference, head.image if driving is None else driving)
        return Output(fused.image, head.image, fused.maps)
