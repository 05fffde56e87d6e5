"""The losses of stage 1: Eq. 4, and the start without which it finds nothing (design section 8)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from models.canonical import mean_canonical, render_head, warp_references
from models.config import Geometry
from models.depth_net import DepthNetwork
from models.geometry import Pose, intrinsics
from models.landmark_pose import InPlane, ellipsoid_depth
from models.losses import depth_smoothness, head_reconstruction, symmetry
from models.pose_net import HeadPose, PoseNetwork
from models.precision import mixed
from tasks.clip_data import Batch, ClipSet, Drawn, draw, gather, step_generator
from tasks.device import beside
from tasks.ranks import batch_mean
from tasks.rendered_heads import RenderedHeads

MAX_ZOOM = 1.7
"""Rendered heads fill less of the frame than those of crops do: they are enlarged by 1 to this."""


ANGLE_NOISE_DEG, SHIFT_NOISE_M = (3.0, 3.0, 1.0), 0.004
"""How far a landmark's pose may be off (in depth ten times as far): beside Eq. 4 this much costs nothing. Roll, which
the line between the eyes shows, is the surest."""


class Known(NamedTuple):
    """Head images and what is known of their pose and depth.

    Attributes:
        heads: `(n, 3, H, W)`, head on black.
        masks: `(n, 1, H, W)`.
        angles_deg: `(n, 3)`; NaN where unknown.
        translation_m: `(n, 3)`; NaN where unknown.
        depth: `(n, H, W)`, metres.
    """

    heads: Tensor
    masks: Tensor
    angles_deg: Tensor
    translation_m: Tensor
    depth: Tensor

    def references(self, count: int) -> Known:
        """Without the last of every `count`, the driving frames."""
        return Known(*(part.unflatten(0, (-1, count))[:, :-1].flatten(0, 1) for part in self))


class GeometryLoss:
    """Eq. 4 on a batch; before and beside it, what landmarks and rendered heads tell about pose and depth."""

    def __init__(
        self,
        config: Geometry,
        networks: dict[str, torch.nn.Module],
        clips: ClipSet,
        rendered: RenderedHeads | None = None,
    ) -> None:
        """Prepare the labels.

        Args:
            config: The section `geometry`.
            networks: `depth` and `pose`.
            clips: The training clips.
            rendered: Needed unless `config.bootstrap` is `landmarks`.
        """
        depth, pose = networks["depth"], networks["pose"]
        assert isinstance(depth, DepthNetwork)
        assert isinstance(pose, PoseNetwork)
        self.config, self.depth, self.pose, self.clips = config, depth, pose, clips
        self.K = intrinsics(clips.size_px, clips.size_px, config.camera.fov_deg, device=clips.device)
        self.mean = batch_mean()
        self.angle_noise_deg = torch.tensor(ANGLE_NOISE_DEG, device=clips.device)
        self.angles, self.translation = clips.landmark_poses(config.camera)
        # Disabled here, not where it is defined: that would load the compiler, a second, with every command.
        self._beside = torch.compiler.disable(beside, recursive=False)
        self.rendered = rendered.to(clips.device) if rendered is not None else None
        if (self.rendered is None) != (config.bootstrap == "landmarks"):
            raise ValueError(f"geometry.bootstrap is {config.bootstrap}, rendered heads: {rendered is not None}")

    def phase(self, step: int) -> str:
        """The first `bootstrap_steps` are on the labels alone, the others on Eq. 4."""
        return "bootstrap" if step < self.config.bootstrap_steps else "eq4"

    def draw(self, step: int) -> Drawn:
        """A batch, how its images are moved in their plane, and the rendered heads beside it."""
        config = self.config
        generator = step_generator(config.train, step)
        drawn = draw(self.clips, config.train, generator)
        drawn["move"] = InPlane.draw(config.train.batch_videos * (config.train.references + 1), generator)
        if self.rendered is not None:
            count = config.rendered_batch if self.phase(step) == "bootstrap" else config.rendered_beside
            drawn["rendered"] = torch.randint(len(self.rendered), (count,), generator=generator)
            drawn["rendered_move"] = InPlane.draw(count, generator)
            drawn["rendered_flip"] = torch.rand(count, generator=generator) < 0.5
        return drawn

    def __call__(self, phase: str, drawn: Drawn) -> dict[str, Tensor]:
        """Losses of a training step."""
        config = self.config
        batch = gather(self.clips, drawn)
        known = [self._from_clips(batch, drawn["move"])]
        if self.rendered is not None:
            known.append(self._from_renderer(self.rendered, drawn))
        count, start = batch.frame.shape[1], phase == "bootstrap"
        # Eq. 4 asks for the pose of the driving frame and not for its depth.
        deep = known if start else [known[0].references(count), *known[1:]]
        heads, shown = (torch.cat([part.heads for part in parts]) for parts in (known, deep))
        (found, logits), depth = self._beside(heads.device, partial(self.pose_of, heads), partial(self.depth_of, shown))
        total, losses = torch.zeros((), device=heads.device), {}
        if not start:
            poses, depths = (slice(0, len(parts[0].heads)) for parts in (known, deep))
            losses = self._eq4(known[0], count, depth[depths], Pose(*(part[poses] for part in found.pose())))
            total = losses["head"] + config.lambda_sym * losses["symmetry"]
            total = total + config.lambda_depth * losses["smoothness"]
        size = [len(part.heads) for part in known]
        for name, part, angles, shift, bins, deep_part, d in zip(
            ("", "rendered_"),
            known,
            found.angles_deg.split(size),
            found.translation_m.split(size),
            logits.split(size) if logits is not None else [None, None],
            deep,
            depth.split([len(part.heads) for part in deep]),
            strict=False,
        ):
            pose_loss = self._pose_prior(HeadPose(angles, shift), bins if start else None, part, 0.0 if start else 1.0)
            depth_loss = self._depth_prior(d, deep_part)
            losses |= {f"{name}pose": pose_loss, f"{name}depth": depth_loss}
            of_pose, of_depth = self._weights(phase, drawn_by_hand=name == "rendered_")
            total = total + of_pose * pose_loss + of_depth * depth_loss
        return {**losses, "total": total}

    def _weights(self, phase: str, drawn_by_hand: bool) -> tuple[float, float]:
        """Weights of pose and depth labels: of the landmarks and the ellipsoid, or of rendered heads."""
        config = self.config
        if phase == "bootstrap":
            # The ellipsoid is a crude guess: where true depth is at hand, it only says how large real heads are.
            of_pose = float(drawn_by_hand or config.bootstrap != "rendered")
            return of_pose, 1.0 if drawn_by_hand or config.bootstrap == "landmarks" else config.ellipsoid_share
        if drawn_by_hand:
            return config.lambda_pose_prior, config.lambda_depth_prior
        keep = config.bootstrap != "rendered"
        share = 1.0 if config.bootstrap == "landmarks" else config.ellipsoid_share
        return config.lambda_pose_prior * keep, config.lambda_depth_prior * share

    def depth_of(self, heads: Tensor) -> Tensor:
        """F_D, in the networks' precision."""
        with mixed(self.clips.device, self.config.train.precision):
            return self.depth(heads)

    def pose_of(self, heads: Tensor) -> tuple[HeadPose, Tensor | None]:
        """F_P and the scores of its bins."""
        with mixed(self.clips.device, self.config.train.precision):
            return self.pose.predict(heads)

    # -- labels -------------------------------------------------------------------------------------------------------

    def _from_clips(self, batch: Batch, unit: Tensor) -> Known:
        """The batch's frames, each moved in its plane, with the landmarks' poses.

        Moving an image changes roll and translation by a known amount: labels for nothing, and Eq. 4 holds for the
        moved frames as well.
        """
        labels = batch.mirrored_pose(batch.of(self.angles), batch.of(self.translation))
        angles, translation = (label.flatten(0, 1) for label in labels)
        move = InPlane.of(unit, self.clips.size_px)
        heads, masks = move.apply(torch.cat([batch.heads, batch.masks], dim=2).flatten(0, 1)).split([3, 1], dim=1)
        return Known(heads, masks, *move.move(angles, translation, self.K), ellipsoid_depth(masks[:, 0], self.K))

    def _from_renderer(self, rendered: RenderedHeads, drawn: Drawn) -> Known:
        """Rendered heads, mirrored at random, enlarged and moved in their plane, with their truth."""
        index, unit, flip = drawn["rendered"], drawn["rendered_move"], drawn["rendered_flip"]
        masks = rendered.masks[index].float()
        heads = rendered.images[index].float() / 255 * masks
        # A head that appears larger counts as larger, not as nearer (see `poses_from_landmarks`): its distance is
        # taken out of depth and shift and put into the size, like the zoom.
        away = 1 + rendered.translation_m[index, 2]
        relief = (rendered.depth[index].float() / away[:, None, None] - 1)[:, None] * masks
        picture = torch.cat([heads, masks, relief], dim=1)
        picture = torch.where(flip[:, None, None, None], picture.flip(-1), picture)
        sign = torch.where(flip, -1.0, 1.0)
        keep = torch.ones_like(sign)
        angles = rendered.angles_deg[index] * torch.stack([sign, keep, sign], -1)
        shift = rendered.translation_m[index] / away[:, None]
        translation = torch.stack([shift[:, 0] * sign, shift[:, 1], torch.zeros_like(sign)], -1)
        move = InPlane.of(unit, self.clips.size_px)
        zoom = 1 + (MAX_ZOOM - 1) * (unit[:, 1] + 1) / 2
        move = InPlane(move.turn_deg, zoom, move.shift_px)
        heads, masks, relief = move.apply(picture).split([3, 1, 1], dim=1)
        moved = InPlane(move.turn_deg, torch.ones_like(zoom), move.shift_px)
        angles, translation = moved.move(angles, zoom[:, None] * translation, self.K)
        depth = 1 + zoom[:, None, None] * (relief / masks.clamp(min=0.1))[:, 0]
        return Known(heads, (masks > 0.95).float(), angles, translation, depth)

    # -- losses -------------------------------------------------------------------------------------------------------

    def _pose_prior(self, found: HeadPose, bins: Tensor | None, label: Known, slack: float) -> Tensor:
        """Distance to known poses, in units of what a landmark fit can tell.

        These are 10 degrees, 5 mm across and 5 cm along the view: five points say little about the distance. Beside
        Eq. 4, differences within the labels' noise cost nothing, so that there the pixels decide.

        Args:
            found: Of F_P.
            bins: Its logits; None: their cross-entropy is left out.
            label: What is known.
            slack: Of the labels' noise, the share that costs nothing.
        """
        known = torch.isfinite(label.angles_deg).all(-1, keepdim=True)
        angles = torch.nan_to_num(label.angles_deg)
        error = ((found.angles_deg - angles).abs() - slack * self.angle_noise_deg).clamp(min=0) / 10
        off = (found.translation_m - torch.nan_to_num(label.translation_m)).abs()
        off = torch.cat([off[:, :2], off[:, 2:] / 10], dim=-1)
        error = error + (off - slack * SHIFT_NOISE_M).clamp(min=0) / 0.005
        if bins is not None:
            error = error + self.config.bin_weight * self.pose.bin_loss(bins, angles)
        return self.mean((error * known).sum(), 3 * known.sum())

    @staticmethod
    def _depth_prior(depth: Tensor, label: Known) -> Tensor:
        """Distance to the known depth inside the head: of the relief in units of 5 mm, of its level in units of 5 cm.

        They are told apart because one picture hardly shows how far away a head is: in one distance, the level's noise
        would hide the relief (measured on rendered heads: correlation of depth 0.79 so, 0.89 apart).
        """
        mask = label.masks[:, 0]
        area = mask.sum((1, 2)).clamp(min=1)
        off = (depth - label.depth) * mask
        level = off.sum((1, 2)) / area
        relief = (off - level[:, None, None] * mask).abs().sum((1, 2)) / area
        return relief.mean() / 0.005 + level.abs().mean() / 0.05

    def _eq4(self, frames: Known, count: int, depth: Tensor, pose: Pose) -> dict[str, Tensor]:
        """The three terms of Eq. 4: N references to the canonical frame, their mean to the driving pose.

        Args:
            frames: References and driving frame of every sample.
            count: N + 1.
            depth: Of the references, `(B N, H, W)`.
            pose: Of all frames.
        """

        def grouped(values: Tensor) -> Tensor:
            return values.view(-1, count, *values.shape[1:])

        heads, masks, rotation, translation = map(grouped, (frames.heads, frames.masks, *pose))
        depth = depth.unflatten(0, (-1, count - 1))
        of_references = Pose(rotation[:, :-1].flatten(0, 1), translation[:, :-1].flatten(0, 1))
        warped, warp = warp_references(heads[:, :-1], masks[:, :-1], depth, of_references, self.K)
        mean = mean_canonical(warped, warp)
        rendered, _ = render_head(mean, Pose(rotation[:, -1], translation[:, -1]), self.K)
        return {
            "head": head_reconstruction(rendered, heads[:, -1]).mean(),
            "symmetry": symmetry(mean.image).mean(),
            "smoothness": depth_smoothness(mean.depth, mean.image).mean(),
        }
