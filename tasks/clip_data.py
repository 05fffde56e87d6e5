"""Clips for training: the whole store in memory as uint8, batches drawn, flipped and jittered on the device.

What reads stores is imported where it is used: benches train on a machine that has torch and little else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from models.config import Camera, Optim, Quality
from models.geometry import Pose, intrinsics
from models.landmark_pose import poses_of_videos
from models.pose_net import HeadPose
from tasks.clip_table import ok_clips, read_table
from tasks.errors import StageError
from tasks.paths import Paths


@dataclass
class ClipSet:
    """Clips of one split, on one device.

    Attributes:
        table: Their rows of the clip table, in the same order.
        frames: `(n, T, 3, H, W)` uint8.
        head: Head masks, `(n, T, 1, H, W)` uint8, 0/1.
        landmarks: `(n, T, 5, 2)` float32, pixels.
        depth: `(n, T, H, W)` float16, metres; only once stage 1 is trained.
        angles_deg: `(n, T, 3)`, likewise.
        translation_m: `(n, T, 3)`, likewise.
        parts: `(n, T, P, 5)` from `tasks.face_parts`; only where stage 3 is held to them.
    """

    table: pd.DataFrame
    frames: Tensor
    head: Tensor
    landmarks: Tensor
    depth: Tensor | None = None
    angles_deg: Tensor | None = None
    translation_m: Tensor | None = None
    parts: Tensor | None = None

    @cached_property
    def siblings(self) -> list[Tensor]:
        """For every clip, the positions of all clips of its video."""
        groups = self.table.groupby("video").indices
        return [torch.from_numpy(groups[video]) for video in self.table["video"]]

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.frames)

    @property
    def size_px(self) -> int:
        """Side of a frame."""
        return self.frames.shape[-1]

    def index_of(self, clip: str) -> int:
        """Position of a clip by its name."""
        return int(np.flatnonzero(self.table["clip"].to_numpy() == clip)[0])

    def landmark_poses(self, camera: Camera) -> tuple[Tensor, Tensor]:
        """Pose of every frame by its landmarks: angles and translation, `(n, T, 3)` each; NaN where unknown.

        Five points jitter by a degree or two from frame to frame and heads do not: the poses are smoothed over five
        frames.
        """
        count, length = self.landmarks.shape[:2]
        K = intrinsics(self.size_px, self.size_px, camera.fov_deg)
        video = torch.from_numpy(self.table["video"].factorize()[0]).repeat_interleave(length)
        points = self.landmarks.cpu().flatten(0, 1)
        found = poses_of_videos(points, video, K, camera.max_angle_deg, camera.max_translation_m)
        angles, translation = (smoothed(part.view(count, length, 3)).to(self.frames.device) for part in found)
        return angles, translation

    def images(self, clip: int | Tensor, frames: Tensor | slice = slice(None)) -> Tensor:
        """Frames of a clip (or one of each of n clips) as float, `(n, 3, H, W)` in [0, 1]."""
        return self.frames[clip, frames].float() / 255

    def heads(self, clip: int | Tensor, frames: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Head on black `(n, 3, H, W)` and head mask `(n, 1, H, W)` of a clip's frames."""
        mask = self.head[clip, frames].float()
        return self.images(clip, frames) * mask, mask

    def poses(self, clip: int | Tensor, frames: Tensor | slice = slice(None)) -> Pose:
        """Poses of a clip's frames, from the trained stage 1."""
        assert self.angles_deg is not None
        assert self.translation_m is not None
        return HeadPose(self.angles_deg[clip, frames], self.translation_m[clip, frames]).pose()

    def depths(self, clip: int | Tensor, frames: Tensor | slice = slice(None)) -> Tensor:
        """Depth of a clip's frames, `(n, H, W)`, metres."""
        assert self.depth is not None
        return self.depth[clip, frames].float()


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


def usable_clips(paths: Paths) -> pd.DataFrame:
    """Rows of the clip table that have frames and masks."""
    from tasks.stores import array, open_store

    table = ok_clips(read_table(paths.clip_table))
    parsed = np.asarray(array(open_store(paths.masks), "done")[:])
    return table[parsed[table["row"].to_numpy()] == 1].reset_index(drop=True)


def training_flags(paths: Paths, quality: Quality) -> pd.Series:
    """The flags of every usable training clip.

    Args:
        paths: The data folder.
        quality: The limits.

    Returns:
        Comma-joined flags by clip name, empty for a clip that training uses.

    Raises:
        StageError: There is no mask table.
    """
    from tasks.quality import flags

    if not paths.mask_table.is_file():
        raise StageError(f"{paths.mask_table} does not exist; `dvc repro parse` makes it (or `dvc pull`)")
    table = usable_clips(paths)
    masks = pd.read_parquet(paths.mask_table).set_index("clip")
    names = table.loc[table["split"] == "train", "clip"]
    return flags(masks.reindex(names), quality)


def left_out(paths: Paths, quality: Quality) -> dict[str, int]:
    """How many training clips their quality keeps out of training, for a stage's figures.

    Args:
        paths: The data folder.
        quality: The limits.

    Returns:
        `clips_train`, `clips_left_out` and, for each flag that occurs, `left_out_<flag>` (a clip may have several).
    """
    found = training_flags(paths, quality)
    marked = found[found != ""]
    counts = marked.str.split(",").explode().value_counts()
    figures = {"clips_train": len(found) - len(marked), "clips_left_out": len(marked)}
    return {**figures, **{f"left_out_{name}": int(counts[name]) for name in sorted(counts.index)}}


def _without_flagged(table: pd.DataFrame, paths: Paths, quality: Quality) -> pd.DataFrame:
    found = training_flags(paths, quality)
    bad = table["clip"].isin(found.index[found != ""])
    if len(table) and bad.all():
        counts = {name[9:]: n for name, n in left_out(paths, quality).items() if name.startswith("left_out_")}
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise StageError(
            f"every one of the {len(table)} training clips is flagged ({listed}): look at them with `head3d inspect "
            "--worst 12 -o worst.png`, then loosen the limits of the section `quality` in params.yaml"
        )
    return table[~bad].reset_index(drop=True)


def load_clips(
    paths: Paths, split: str | None, device: torch.device, with_geometry: bool, quality: Quality | None = None
) -> ClipSet:
    """Read the stores into memory.

    Args:
        paths: The data folder.
        split: `train`, `test`, or None for all clips.
        device: Where the clips shall lie.
        with_geometry: Also read depth and pose (after stage 1).
        quality: Leave training clips out that these limits flag (test clips always stay); None: keep all.

    Returns:
        The clips.

    Raises:
        StageError: The split has no usable clip, or `quality` leaves none.
    """
    from tasks.stores import open_store, read_rows

    table = usable_clips(paths)
    if split is not None:
        table = table[table["split"] == split].reset_index(drop=True)
    if table.empty:
        raise StageError(f"no usable {split or ''} clip; `head3d inspect --store` shows what was refused and why")
    if quality is not None:
        table = _without_flagged(table, paths, quality)
    rows = table["row"].to_numpy()

    def read(store: str, name: str) -> Tensor:
        return torch.from_numpy(read_rows(open_store(getattr(paths, store)), name, rows))

    clips = ClipSet(
        table,
        read("clips", "frames").permute(0, 1, 4, 2, 3).contiguous().to(device),
        read("masks", "head")[:, :, None].to(device),
        read("clips", "landmarks").to(device),
    )
    if with_geometry:
        clips.depth = read("geometry", "depth").to(device)
        clips.angles_deg = read("geometry", "angles_deg").to(device)
        clips.translation_m = read("geometry", "translation_m").to(device)
    return clips


class Recolour(NamedTuple):
    """Change of brightness, contrast and saturation that all images of a sample share.

    Attributes:
        jitter: The three factors, `(B, 3)`.
        level: Mean grey of each sample, about which the contrast changes, `(B,)`.
    """

    jitter: Tensor
    level: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Images `(B, ..., 3, H, W)` in [0, 1] to the same."""
        one = (-1, *[1] * (images.dim() - 1))
        brightness, contrast, saturation = (value.view(one) for value in self.jitter.unbind(1))
        level, grey = self.level.view(one), images.mean(-3, keepdim=True)
        images = grey + (images - grey) * saturation
        return ((images - level) * contrast + level * brightness).clamp(0, 1)


class Batch(NamedTuple):
    """N references and, last, the driving frame of each of B samples.

    Attributes:
        images: `(B, N + 1, 3, H, W)`, in [0, 1].
        masks: Head masks, `(B, N + 1, 1, H, W)`, 0/1.
        clip: Position of each frame's clip in the set, `(B, N + 1)`.
        frame: Its place in the clip, `(B, N + 1)`.
        flip: `(B,)` bool; these samples are mirrored.
        recolour: How their colours were changed.
    """

    images: Tensor
    masks: Tensor
    clip: Tensor
    frame: Tensor
    flip: Tensor
    recolour: Recolour

    @property
    def heads(self) -> Tensor:
        """x: head on black."""
        return self.images * self.masks

    def of(self, values: Tensor) -> Tensor:
        """What a `(clips, T, ...)` tensor holds for the batch's frames, `(B, N + 1, ...)`; not mirrored."""
        return values[self.clip, self.frame]

    def mirrored(self, values: Tensor) -> Tensor:
        """Mirror `(B, N + 1, ..., W)` values of the flipped samples."""
        return torch.where(self.flip.view(-1, *([1] * (values.dim() - 1))), values.flip(-1), values)

    def mirrored_pose(self, angles_deg: Tensor, translation_m: Tensor) -> tuple[Tensor, Tensor]:
        """Yaw, roll and x change sign in a mirror; `(B, N + 1, 3)` each."""
        sign = torch.where(self.flip, -1.0, 1.0)[:, None, None]
        keep = torch.ones_like(sign)
        return angles_deg * torch.cat([sign, keep, sign], -1), translation_m * torch.cat([sign, keep, keep], -1)


Drawn = dict[str, Tensor]
"""Everything random in a training step, as small tensors: drawn on the CPU, used on the device."""


def step_generator(config: Optim, step: int) -> torch.Generator:
    """The source of all that is random in a step: the seed and the step alone, so that a resumed run draws the same."""
    return torch.Generator().manual_seed(config.seed * 1_000_003 + step)


def draw_frames(clips: ClipSet, config: Optim, clip: int, count: int, generator: torch.Generator) -> Tensor:
    """Different frames of one clip, or of all clips of its video.

    Args:
        clips: The training set.
        config: `span` says which.
        clip: Position of the clip.
        count: How many.
        generator: From `step_generator`.

    Returns:
        Positions of their clips and places in them, `(2, count)`.
    """
    length = clips.frames.shape[1]
    siblings = clips.siblings[clip] if config.span == "video" else torch.tensor([clip])
    places = torch.randperm(len(siblings) * length, generator=generator)[:count]
    return torch.stack([siblings[places // length], places % length])


def draw_looks(batch: int, generator: torch.Generator) -> Drawn:
    """How samples are augmented: `flip (batch,)`, whether each is mirrored, and `jitter (batch, 3)` for `Recolour`."""
    flip = torch.rand(batch, generator=generator) < 0.5
    return {"flip": flip, "jitter": torch.rand(batch, 3, generator=generator) * 0.3 + 0.85}


def draw(clips: ClipSet, config: Optim, generator: torch.Generator) -> Drawn:
    """Which frames a step looks at, and how they are augmented.

    Args:
        clips: The training set.
        config: Batch size, N, and whether a sample's frames come from one clip or from all clips of its video.
        generator: From `step_generator`.

    Returns:
        `clip` and `frame` `(B, N + 1)`, `flip (B,)`, `jitter (B, 3)`.
    """
    batch, count = config.batch_videos, config.references + 1
    first = torch.randint(len(clips), (batch,), generator=generator).tolist()
    clip, frame = torch.stack([draw_frames(clips, config, index, count, generator) for index in first], dim=1)
    return {"clip": clip, "frame": frame, **draw_looks(batch, generator)}


def gather(clips: ClipSet, drawn: Drawn) -> Batch:
    """The frames that were drawn, on the set's device.

    Augmentation (our choice): mirror, and brightness, contrast and saturation shared by a sample's frames.

    Args:
        clips: The training set.
        drawn: From `draw`, on the set's device.

    Returns:
        The batch.
    """
    where = (drawn["clip"], drawn["frame"])
    images, masks = clips.frames[where].float() / 255, clips.head[where].float()
    recolour = Recolour(drawn["jitter"], images.mean((1, 2, 3, 4)))
    plain = Batch(recolour(images), masks, *where, drawn["flip"], recolour)
    return Batch(plain.mirrored(plain.images), plain.mirrored(masks), *where, drawn["flip"], recolour)


def batch_geometry(clips: ClipSet, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Stored depth `(B, N + 1, H, W)`, angles and translations `(B, N + 1, 3)` of a batch, mirrored like it."""
    assert clips.depth is not None
    assert clips.angles_deg is not None
    assert clips.translation_m is not None
    angles, translation = batch.mirrored_pose(batch.of(clips.angles_deg), batch.of(clips.translation_m))
    return batch.mirrored(batch.of(clips.depth).float()), angles, translation
