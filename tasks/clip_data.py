"""Clips for training: the whole store as uint8 (`tasks.room` says where), batches drawn, flipped and jittered on the
device.

What reads stores is imported where it is used: benches train on a machine that has torch and little else.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from models.config import Camera, ClipsOnGpu, Optim, Quality
from models.geometry import Pose, intrinsics
from models.landmark_pose import poses_of_videos, smoothed
from models.pose_net import HeadPose
from tasks.clip_table import ok_clips, read_table
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.room import Room, Rows


@dataclass
class ClipSet:
    """Clips of one split.

    Attributes:
        table: Their rows of the clip table, in the same order.
        frames: `(n, T, 3, H, W)` uint8.
        head: Head masks, `(n, T, 1, H, W)` uint8, 0/1.
        landmarks: `(n, T, 5, 2)` float32, pixels; on the device where steps are computed.
        depth: `(n, T, H, W)` float16, metres; only once stage 1 is trained.
        angles_deg: `(n, T, 3)`, likewise; on the device.
        translation_m: `(n, T, 3)`, likewise; on the device.
        parts: `(n, T, P, 5)` from `tasks.face_parts`; only where stage 3 is held to them; on the device.
        streamed: Frames, heads and depth lie in the host's memory, or in a file; what a step needs of them is brought.
        room: Where other large tensors of the same training go; None: on the device.
    """

    table: pd.DataFrame
    frames: Tensor
    head: Tensor
    landmarks: Tensor
    depth: Tensor | None = None
    angles_deg: Tensor | None = None
    translation_m: Tensor | None = None
    parts: Tensor | None = None
    streamed: bool = False
    room: Room | None = None

    @cached_property
    def siblings(self) -> list[Tensor]:
        """For every clip, the positions of all clips of its video."""
        groups = self.table.groupby("video").indices
        return [torch.from_numpy(groups[video]) for video in self.table["video"]]

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.frames)

    @property
    def device(self) -> torch.device:
        """Where steps are computed, and everything that a method returns lies."""
        return self.landmarks.device

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
        angles, translation = (smoothed(part.view(count, length, 3)).to(self.device) for part in found)
        return angles, translation

    def images(self, clip: int | Tensor, frames: Tensor | slice = slice(None)) -> Tensor:
        """Frames of a clip (or one of each of n clips) as float, `(n, 3, H, W)` in [0, 1]."""
        return self._at(self.frames, clip, frames).float() / 255

    def heads(self, clip: int | Tensor, frames: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Head on black `(n, 3, H, W)` and head mask `(n, 1, H, W)` of a clip's frames."""
        mask = self._at(self.head, clip, frames).float()
        return self.images(clip, frames) * mask, mask

    def poses(self, clip: int | Tensor, frames: Tensor | slice = slice(None)) -> Pose:
        """Poses of a clip's frames, from the trained stage 1."""
        assert self.angles_deg is not None
        assert self.translation_m is not None
        return HeadPose(self._at(self.angles_deg, clip, frames), self._at(self.translation_m, clip, frames)).pose()

    def depths(self, clip: int | Tensor, frames: Tensor | slice = slice(None)) -> Tensor:
        """Depth of a clip's frames, `(n, H, W)`, metres."""
        assert self.depth is not None
        return self._at(self.depth, clip, frames).float()

    def rows(self, drawn: Drawn, *names: str) -> dict[str, Rows]:
        """What `drawn_part` needs on the device if the clips are streamed; nothing if they lie there.

        Args:
            drawn: From `draw`, on the CPU.
            names: Of `frames`, `head` and `depth`.
        """
        place = drawn["clip"] * self.frames.shape[1] + drawn["frame"]
        return {f"clips_{name}": Rows(getattr(self, name).flatten(0, 1), place) for name in names if self.streamed}

    def drawn_part(self, name: str, drawn: Drawn) -> Tensor:
        """What `frames`, `head` or `depth` holds for the frames of a batch, `(B, N + 1, ...)`, on the device."""
        if f"clips_{name}" in drawn:
            return drawn[f"clips_{name}"]
        return self._at(getattr(self, name), drawn["clip"], drawn["frame"])

    def _at(self, values: Tensor, *where: int | Tensor | slice) -> Tensor:
        """Some of the values, on the device, wherever they and their places lie."""
        place = tuple(part.to(values.device) if isinstance(part, Tensor) else part for part in where)
        return values[place].to(self.device)


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
    paths: Paths,
    split: str | None,
    device: torch.device,
    with_geometry: bool,
    quality: Quality | None = None,
    on_gpu: ClipsOnGpu = "always",
    only: Collection[str] | None = None,
) -> ClipSet:
    """Read the stores into memory, clip by clip.

    Args:
        paths: The data folder.
        split: `train`, `test`, or None for all clips.
        device: Where the clips are used.
        with_geometry: Also read depth and pose (after stage 1).
        quality: Leave training clips out that these limits flag (test clips always stay); None: keep all.
        on_gpu: `runtime.clips_on_gpu`: whether they lie there, too.
        only: Names of the clips that are needed; the others are not read. None: all of the split.

    Returns:
        The clips.

    Raises:
        StageError: The split has no usable clip, `quality` leaves none, or there is too little memory and disk.
    """
    from tasks.stores import open_store, read_rows

    table = usable_clips(paths)
    if split is not None:
        table = table[table["split"] == split].reset_index(drop=True)
    if only is not None:
        table = table[table["clip"].isin(list(only))].reset_index(drop=True)
    if table.empty:
        raise StageError(f"no usable {split or ''} clip; `head3d inspect --store` shows what was refused and why")
    if quality is not None:
        table = _without_flagged(table, paths, quality)
    rows = table["row"].to_numpy()

    def small(store: str, name: str) -> Tensor:
        return torch.from_numpy(read_rows(open_store(getattr(paths, store)), name, rows)).to(device)

    room = Room(device, on_gpu, paths.data)
    tensors, streamed = _read_large(paths, rows, room, with_geometry)
    clips = ClipSet(table, tensors["frames"], tensors["head"], small("clips", "landmarks"))
    clips.streamed, clips.room = streamed, room
    if with_geometry:
        clips.depth = tensors["depth"]
        clips.angles_deg, clips.translation_m = small("geometry", "angles_deg"), small("geometry", "translation_m")
    return clips


def _read_large(paths: Paths, rows: np.ndarray, room: Room, with_geometry: bool) -> tuple[dict[str, Tensor], bool]:
    """Frames, head masks and depth of some rows as `ClipSet` has them, and whether they are streamed."""
    from tasks.stores import array, open_store

    sources = {"frames": array(open_store(paths.clips), "frames"), "head": array(open_store(paths.masks), "head")}
    if with_geometry:
        sources["depth"] = array(open_store(paths.geometry), "depth")
    length, size = sources["frames"].shape[1:3]
    front, pixels = (len(rows), length), (size, size)
    shapes = {
        "frames": ((*front, 3, *pixels), torch.uint8),
        "head": ((*front, 1, *pixels), torch.uint8),
        "depth": ((*front, *pixels), torch.float16),
    }
    space = room.space({name: shapes[name] for name in sources})
    for index in space.mine(len(rows)):
        for name, source in sources.items():
            values, target = torch.from_numpy(source[int(rows[index])]), space.tensors[name][index]
            target.copy_(values.permute(0, 3, 1, 2) if name == "frames" else values.view(target.shape))
    space.filled()
    return space.tensors, space.streamed


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
        drawn: From `draw`, on the set's device; of streamed clips with what `ClipSet.rows` names.

    Returns:
        The batch.
    """
    where = (drawn["clip"], drawn["frame"])
    images, masks = clips.drawn_part("frames", drawn).float() / 255, clips.drawn_part("head", drawn).float()
    level = images.mean((-2, -1)).mean((1, 2))  # image by image first: a GPU works on all of them at once
    recolour = Recolour(drawn["jitter"], level)
    plain = Batch(recolour(images), masks, *where, drawn["flip"], recolour)
    return Batch(plain.mirrored(plain.images), plain.mirrored(masks), *where, drawn["flip"], recolour)


def batch_depth(clips: ClipSet, batch: Batch, drawn: Drawn) -> Tensor:
    """Stored depth of a batch, `(B, N + 1, H, W)`, mirrored like it."""
    return batch.mirrored(clips.drawn_part("depth", drawn).float())


def batch_pose(clips: ClipSet, batch: Batch) -> tuple[Tensor, Tensor]:
    """Stored angles and translations of a batch, `(B, N + 1, 3)` each, mirrored like it."""
    assert clips.angles_deg is not None
    assert clips.translation_m is not None
    return batch.mirrored_pose(batch.of(clips.angles_deg), batch.of(clips.translation_m))
