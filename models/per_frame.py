"""What is computed for every driving frame, apart from what is known once per subject (Sec. 3.4).

A module of tensors in and tensors out, so that it can be recorded as a CUDA graph, compiled and exported.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.canonical import CanonicalHead, HeadLayer, render_layer
from models.frozen import fuse_convolutions
from models.fusion import FusionNetwork, ReferenceLook, to_be_sampled
from models.geometry import intrinsics
from models.head3d import Head3D, Subject
from models.kept import Kept, keeping
from models.motion import Regions
from models.pose_net import HeadPose, PoseNetwork

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class SubjectState(NamedTuple):
    """Everything of the subject that a frame needs, one row each; plain tensors, so that it can be an exported input.

    Attributes:
        canonical_image: x_hat^c, `(1, 3, H, W)`.
        canonical_mask: `(1, 1, H, W)`.
        canonical_depth: d^c, `(1, H, W)`, metres.
        reference: s_ref, `(1, 3, H, W)`.
        reference_small: s_ref at Phi's scale.
        region_centre: Its regions' centres, `(1, K, 2)`.
        region_frame: Their frames, `(1, K, 2, 2)`.
        feature_full: E_F's features of s_ref, `(1, C, H, W)`.
        feature_half: `(1, 2 C, H / 2, W / 2)`.
        feature_quarter: `(1, 4 C, H / 4, W / 4)`.
        offset_deg: Added to the driving head's angles, `(1, 3)`, degrees: 0 in the absolute mode.
        offset_m: Added to its translation, `(1, 3)`, metres.
    """

    canonical_image: Tensor
    canonical_mask: Tensor
    canonical_depth: Tensor
    reference: Tensor
    reference_small: Tensor
    region_centre: Tensor
    region_frame: Tensor
    feature_full: Tensor
    feature_half: Tensor
    feature_quarter: Tensor
    offset_deg: Tensor
    offset_m: Tensor

    def look(self) -> ReferenceLook:
        """What stage 3 knows of s_ref."""
        features = (self.feature_full, self.feature_half, self.feature_quarter)
        return ReferenceLook(self.reference, self.reference_small, Regions(*self[5:7]), features)


class PerFrame(nn.Module):
    """F_P, the head's rendering and stage 3 for driving frames; copies of the networks, with batch norms folded in.

    Attributes:
        pose: F_P.
        fusion: E_F, Phi, Omega_F.
        K: Camera matrix, `(3, 3)`.
    """

    K: Tensor

    def __init__(self, model: Head3D, height: int, width: int) -> None:
        """Copy what is needed of a trained model.

        Args:
            model: In eval mode; stays as it is.
            height: Of the frames.
            width: Of the frames.
        """
        super().__init__()
        self.limit_deg, self.reach_m = model.camera.max_angle_deg, model.camera.max_translation_m
        self.pose: PoseNetwork = fuse_convolutions(fold_batch_norms(copy.deepcopy(model.pose)))
        self.fusion: FusionNetwork = fuse_convolutions(fold_batch_norms(copy.deepcopy(model.fusion)))
        # A matrix made in every call would be a copy from the host, which a CUDA graph cannot hold.
        self.register_buffer("K", intrinsics(height, width, model.camera.fov_deg, device=model.device))
        self._kept: Kept = {}
        self.eval().requires_grad_(False)

    def state(self, subject: Subject, first: HeadPose | None) -> SubjectState:
        """What `forward` needs of a subject.

        Args:
            subject: From `Head3D.subject`.
            first: Relative mode: the pose of the first driving frame. None: the absolute mode.
        """
        look, own = self.fusion.look(subject.reference), subject.reference_pose
        still = torch.zeros_like(own.angles_deg), torch.zeros_like(own.translation_m)
        offset = (
            still if first is None else (own.angles_deg - first.angles_deg, own.translation_m - first.translation_m)
        )
        # They are sampled in float32, whatever they were computed in: once here, not in every frame.
        features = (to_be_sampled(feature) for feature in look.features)
        known = (*subject.head, subject.reference, look.small, *look.regions, *features)
        return SubjectState._make((*known, *offset))

    def forward(self, driving: Tensor, mask: Tensor, state: SubjectState) -> tuple[Tensor, Tensor, Tensor]:
        """`Head3D.drive` with what is known of the subject.

        Args:
            driving: Driving frames, `(B, 3, H, W)`, in [0, 1].
            mask: Their head masks, `(B, 1, H, W)`.
            state: From `state`.

        Returns:
            The new frames, `(B, 3, H, W)`, in [0, 1]; the head's (yaw, pitch, roll) in them, `(B, 3)`, degrees, and its
            translation, `(B, 3)`, metres.
        """
        if torch.compiler.is_compiling():
            return self._made(driving, mask, state)
        with keeping(self._kept):
            return self._made(driving, mask, state)

    def _made(self, driving: Tensor, mask: Tensor, state: SubjectState) -> tuple[Tensor, Tensor, Tensor]:
        batch = driving.shape[0]
        seen = self.pose(driving * mask)
        # F_P's poses are within the bounds, so that in the absolute mode clamping changes nothing.
        angles = (seen.angles_deg + state.offset_deg).clamp(-self.limit_deg, self.limit_deg)
        shift = (seen.translation_m + state.offset_m).clamp(-self.reach_m, self.reach_m)
        if self.fusion.with_head:
            known = CanonicalHead._make(state[:3])
            head = render_layer(known.repeated(batch), HeadPose(angles, shift).pose(), self.K)
        else:
            head = HeadLayer(driving, mask)  # is not looked at
        return self.fusion.fuse(head, state.look().repeat(batch), driving).image, angles, shift


def fold_batch_norms(module: ModuleT) -> ModuleT:
    """Put every batch norm that follows a convolution into its weights: the same numbers in eval mode, fewer steps.

    Args:
        module: In eval mode; changed in place.

    Returns:
        The module.
    """
    for part in module.modules():
        names = [name for name, _ in part.named_children()]
        if isinstance(part, nn.Sequential):
            pairs = list(pairwise(names))
        else:  # torchvision's residual blocks: conv1, bn1, conv2, ...
            pairs = [(name, name.replace("conv", "bn")) for name in names if name.startswith("conv")]
        for first, second in pairs:
            conv, norm = getattr(part, first), getattr(part, second, None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(part, first, fuse_conv_bn_eval(conv, norm))
                setattr(part, second, nn.Identity())
    return module
