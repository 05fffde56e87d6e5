"""A video prepared as the pipeline prepares it: the main face followed, every frame of it cropped and parsed.

A driving video is prepared piece by piece (`pieces`), so that its length does not matter; a subject's frames are held
as a whole (`prepare`), as its references are chosen among them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from models.config import Crop, Parse
from tasks.crop_plan import Refused, Square, plan_clips, square_around
from tasks.errors import StageError
from tasks.face_search import look_at
from tasks.faces import FrameTrack, Looks, overlap
from tasks.labels import HEAD_AND_HAT, head_mask
from tasks.notices import loose_share
from tasks.progress import progress
from tasks.quality import SHARPNESS_FRAMES, border_share, least_yaw, mask_jump, sharpness
from tasks.segment import SegmentationError, segment
from tasks.video import VideoError, VideoInfo, probe
from tasks.video_read import BATCH_FRAMES
from tasks.video_stream import stream_frames

PIECE = 64
"""Frames that are cropped, segmented and animated at a time."""


class HeadVideo(NamedTuple):
    """A video prepared as the pipeline prepares it, whole.

    Attributes:
        frames: `(T, S, S, 3)` uint8, cropped.
        head: Head masks, `(T, S, S)` uint8, 0/1.
        fps: Frames per second, the mean.
        measures: Those of `Measured.figures`.
        first: Which frame of the file the first one is: the face may come late.
        times_s: When each is shown, `(T,)`, seconds from the file's start.
        left_out: Which parts of the file are not used, in words; empty if all of it is.
    """

    frames: np.ndarray
    head: np.ndarray
    fps: float
    measures: dict[str, float]
    first: int
    times_s: np.ndarray
    left_out: str = ""

    def tensors(self, index: torch.Tensor | slice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Some frames as the networks take them.

        Args:
            index: Which ones.
            device: Where they shall lie.

        Returns:
            Frames `(n, 3, S, S)` in [0, 1] and their head masks `(n, 1, S, S)`.
        """
        where = index.numpy() if isinstance(index, torch.Tensor) else index
        images = torch.from_numpy(self.frames[where]).to(device).permute(0, 3, 1, 2).float() / 255
        return images, torch.from_numpy(self.head[where]).to(device)[:, None].float()


class Piece(NamedTuple):
    """Successive frames of a video, prepared.

    Attributes:
        frames: `(n, S, S, 3)` uint8.
        class_ids: `(n, S, S)` uint8, CelebAMask-HQ.
        head: Head masks, `(n, S, S)` uint8, 0/1.
        times_s: When each is shown, `(n,)`, seconds from the file's start.
    """

    frames: np.ndarray
    class_ids: np.ndarray
    head: np.ndarray
    times_s: np.ndarray


class FaceVideo(NamedTuple):
    """A video in which the main face was found.

    Attributes:
        path: The file.
        info: What it is.
        track: The face; its frames are those that are used.
        square: What is cut out of them.
        lost_share: Of the looks at the video, those without that face.
        times_s: When each frame of the file is shown, followed or not, seconds from its start.
    """

    path: Path
    info: VideoInfo
    track: FrameTrack
    square: Square
    lost_share: float
    times_s: np.ndarray

    @property
    def frames(self) -> int:
        """Frames in which the face is followed; a damaged video may have fewer."""
        return self.track.stop - self.track.first

    @property
    def start_s(self) -> float:
        """When the first of them is shown, seconds from the video's start."""
        return float(self.times_s[self.track.first])

    @property
    def left_out(self) -> str:
        """Which parts of the video are not used, in words; empty if all of it is.

        The header's duration is not asked: it may be that of the sound.
        """
        stop, frame_s = self.track.stop, 1 / self.info.fps
        before = self.start_s - float(self.times_s[0])
        after = float(self.times_s[-1] - self.times_s[stop]) + frame_s if stop < len(self.times_s) else 0.0
        parts = [f"the {end} {seconds:.2f} s" for end, seconds in (("first", before), ("last", after)) if seconds > 0]
        return f"{' and '.join(parts)}: the face could not be followed there" if parts else ""


def find_face(path: Path, crop: Crop, max_seconds: float | None) -> FaceVideo:
    """Follow the main face through a video.

    Args:
        path: The video.
        crop: How the model's training videos were cropped.
        max_seconds: Only so much of the start is read; None: all of it.

    Returns:
        The face; the frames are still to be read.

    Raises:
        StageError: The video cannot be read, or shows no face to work with.
    """
    try:
        info, every = probe(path), crop.detect_every_frames
        promised = info.frames if max_seconds is None else min(info.frames, round(max_seconds * info.fps))
        times_s = array("d")  # of every frame: hours of video may come
        with progress(f"face in {path.name}", promised, "frame") as bar:

            def shown() -> Iterator[np.ndarray]:
                batch: list[np.ndarray] = []
                for frame in stream_frames(path, info, stop_s=max_seconds):
                    if len(times_s) % every == 0:
                        batch.append(frame.picture(crop.detect_long_side_px))
                    times_s.append(frame.time_s)
                    bar.update(bar.n < promised)
                    if len(batch) == BATCH_FRAMES:
                        yield np.stack(batch)
                        batch = []
                if batch:
                    yield np.stack(batch)

            looks = look_at(shown(), info.width, every, crop.min_confidence)
        looks.frames = len(times_s)
        one = crop.model_copy(update={"clip_frames": 1, "clips_per_video": 1})
        track = plan_clips(looks, info.fps, info.width, info.height, one).track
    except (VideoError, Refused) as error:
        raise StageError(f"{path.name}: {error}") from None
    square = square_around(track.boxes, info.width, info.height, crop.margin)
    return FaceVideo(path, info, track, square, lost_share(looks, track), np.array(times_s))


def pieces(video: FaceVideo, crop: Crop, parse: Parse, device: str) -> Iterator[Piece]:
    """The frames of the face, cropped and parsed, a few at a time; only one piece is held here.

    Args:
        video: From `find_face`.
        crop: How the model's training videos were cropped.
        parse: How they were parsed.
        device: auto, cpu, cuda or cuda:N.

    Yields:
        Up to `PIECE` frames.

    Raises:
        StageError: A frame cannot be segmented.
    """
    track, size = video.track, crop.size_px
    landmarks = video.square.to_crop(track.landmarks, size)
    boxes = video.square.to_crop(track.boxes.reshape(-1, 2, 2), size).reshape(-1, 4)
    waiting: list[np.ndarray] = []
    first = 0

    def prepared() -> Piece:
        part = slice(first, first + len(waiting))
        frames = np.stack(waiting)
        try:
            class_ids = segment(frames, landmarks[part], boxes[part], parse, device)
        except SegmentationError as error:
            raise StageError(f"{video.path.name}: {error}") from None
        times_s = video.times_s[track.first :][part]
        return Piece(frames, class_ids, head_mask(class_ids, parse.head_labels), times_s)

    # Read as for the training's crops (tasks/footage.py), one field of interlaced frames; counted as in `find_face`.
    for frame in islice(stream_frames(video.path, video.info), track.first, track.stop):
        waiting.append(video.square.cut(frame.picture(), size))
        if len(waiting) == PIECE:
            yield prepared()
            first, waiting = first + PIECE, []
    if waiting:
        yield prepared()


@dataclass
class Measured:
    """The measures of `tasks.quality.measure` and `loose_share`, gathered piece by piece.

    Attributes:
        video: Whose.
        size_px: Side of its crops.
        seen: Frames so far.
    """

    video: FaceVideo
    size_px: int
    seen: int = 0
    _border: float = 0.0
    _area: float = 0.0
    _jump: float = 0.0
    _loose: float = 0.0
    _last: np.ndarray | None = None
    _sharp: list[float] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        """The next frames."""
        count = len(piece.frames)
        head = head_mask(piece.class_ids, list(HEAD_AND_HAT))
        self._border += count * border_share(piece.class_ids)
        self._area += float(head.mean(axis=(1, 2)).sum())
        self._jump = max(self._jump, mask_jump(head if self._last is None else np.concatenate([self._last, head])))
        self._loose = max(self._loose, loose_share(piece.head))
        total = self.video.frames
        chosen = np.linspace(0, total - 1, min(SHARPNESS_FRAMES, total)).round().astype(int) - self.seen
        here = [t for t in np.unique(chosen) if 0 <= t < count and head[t].any()]
        self._sharp += [sharpness(piece.frames[t : t + 1], head[t : t + 1]) for t in here]
        self._last, self.seen = head[-1:].copy(), self.seen + count

    def figures(self) -> dict[str, float]:
        """Those of `tasks.quality.measure`, `loose_share`, and `lost_share`: of the frames looked at, those without the
        followed face."""
        landmarks = self.video.square.to_crop(self.video.track.landmarks[: self.seen], self.size_px)
        return {
            "border_share": round(self._border / self.seen, 5),
            "head_area": round(self._area / self.seen, 5),
            "sharpness": round(float(np.median(self._sharp)) if self._sharp else 0.0, 5),
            "mask_jump": round(self._jump, 5),
            "least_yaw_deg": round(least_yaw(landmarks), 3),
            "loose_share": self._loose,
            "lost_share": self.video.lost_share,
        }


def prepare(path: Path, crop: Crop, parse: Parse, device: str) -> HeadVideo:
    """Crop and parse a whole video, up to `crop.max_seconds` of it: every frame in which the main face is tracked.

    Args:
        path: The video.
        crop: How the model's training videos were cropped.
        parse: How they were parsed.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        Cropped frames and head masks.

    Raises:
        StageError: The video cannot be read, or shows no face to work with.
    """
    video = find_face(path, crop, crop.max_seconds)
    measured = Measured(video, crop.size_px)
    frames, heads, times_s = [], [], []
    for piece in pieces(video, crop, parse, device):
        measured.add(piece)
        frames.append(piece.frames)
        heads.append(piece.head)
        times_s.append(piece.times_s)
    if not frames:
        raise StageError(f"{path.name}: no frame of it can be read a second time; copy the file anew")
    parts = np.concatenate(frames), np.concatenate(heads), video.info.fps, measured.figures()
    return HeadVideo(*parts, video.track.first, np.concatenate(times_s), video.left_out)


def lost_share(looks: Looks, track: FrameTrack) -> float:
    """Share of the looks at a video in which the followed face was not found.

    Args:
        looks: What was seen of the video.
        track: The face that is followed.

    Returns:
        In [0, 1]; a look before or after the track counts as lost.
    """
    found = 0
    for number, faces in enumerate(looks.faces):
        frame = number * looks.every
        if track.first <= frame < track.stop:
            box = track.boxes[frame - track.first]
            found += any(overlap(other, box) > 0 for other in faces.boxes)
    return 1 - found / max(len(looks.faces), 1)
