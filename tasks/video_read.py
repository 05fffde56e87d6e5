"""Video files -> RGB frames, as they are meant to be shown: rotated, with square pixels.

decord reads first (sequentially, one thread: the faster one); where it gives up, PyAV goes on from the same frame.
decord can hang for ever on some H.264 files, so whoever reads videos of unknown origin does it in a process of its own
with a deadline (tasks/workers.py).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import decord
import numpy as np
from decord._ffi.base import DECORDError

BATCH_FRAMES = 16
FALLBACK_FPS = 25.0
"""For the rare container that names no frame rate."""

decord.logging.set_level(decord.logging.QUIET)
av.logging.set_level(av.logging.PANIC)


class VideoError(RuntimeError):
    """A video cannot be read; `reason` is the code for the clip table (`missing`, `empty_file` or `unreadable`)."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class VideoInfo:
    """What a video is.

    Attributes:
        frames: How many its header promises (estimated from the duration where it names none).
        fps: Mean frames per second.
        duration_s: Seconds, 0 where unknown.
        width: Pixels as shown: after rotation, and with square pixels.
        height: The same.
        rotation_deg: Clockwise turn the player has to apply: 0, 90, 180 or 270.
        codec: Name of the decoder.
        indexed: The header counts the frames (mp4, mov, avi), so a wrong count can be noticed.
    """

    frames: int
    fps: float
    duration_s: float
    width: int
    height: int
    rotation_deg: int
    codec: str
    indexed: bool


def probe(path: str | Path) -> VideoInfo:
    """What the file says about its first video stream; one frame is decoded to be sure that there is one.

    Raises:
        VideoError: The file is missing, empty, no video, or its first frame cannot be decoded.
    """
    path = existing_file(path)
    try:
        with av.open(str(path)) as container:
            stream = video_stream(container, path)
            frame = next(decoded_frames(container, stream), None)
            if frame is None:
                raise VideoError("unreadable", f"{path.name}: no frame of it can be decoded")
            rate = stream.average_rate or stream.guessed_rate
            fps = float(rate) if rate else FALLBACK_FPS
            duration_s = 0.0
            if stream.duration is not None and stream.time_base is not None:
                duration_s = float(stream.duration * stream.time_base)
            elif container.duration is not None:
                duration_s = container.duration / av.time_base
            rotation = round(-frame.rotation / 90) % 4 * 90
            width, height = round(frame.width * _pixel_aspect(stream)), frame.height
            if rotation in (90, 270):
                width, height = height, width
            return VideoInfo(
                frames=stream.frames or round(duration_s * fps),
                fps=fps,
                duration_s=duration_s,
                width=max(1, width),
                height=max(1, height),
                rotation_deg=rotation,
                codec=stream.codec_context.name,
                indexed=stream.frames > 0,
            )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError("unreadable", f"{path.name} cannot be opened as a video ({_short(error)})") from None


def iterate_frames(
    path: str | Path, start: int = 0, stop: int | None = None, long_side_px: int | None = None, every: int = 1
) -> Iterator[np.ndarray]:
    """Frames in order, in batches, never more than one batch in memory.

    A video that ends early or cannot be decoded to its end gives what there is.

    Args:
        path: A video file of any kind that FFmpeg knows (mp4, mov, avi, mkv, mpg, webm, gif).
        start: Index of the first frame.
        stop: Index after the last; None: to the end.
        long_side_px: Shrink to this longest side (area filter); None, or a smaller video: as it is.
        every: Only each n-th frame, counted from `start`.

    Yields:
        `(n, H, W, 3)` uint8 RGB, n <= 16.

    Raises:
        VideoError: The file is missing, empty, no video, or not a single frame of it can be decoded.
    """
    info = probe(path)
    size = (info.width, info.height)
    if long_side_px is not None and max(size) > long_side_px:
        scale = long_side_px / max(size)
        size = (max(1, round(info.width * scale)), max(1, round(info.height * scale)))
    batch: list[np.ndarray] = []
    for frame in _frames(existing_file(path), info, start, stop, every):
        batch.append(_resized(frame, size))
        if len(batch) == BATCH_FRAMES:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def read_frames(
    path: str | Path, start: int = 0, stop: int | None = None, long_side_px: int | None = None
) -> np.ndarray:
    """The frames `start` to `stop` (exclusive) at once; for short pieces, as all of them are held in memory.

    Args:
        path: A video file.
        start: Index of the first frame.
        stop: Index after the last; None: to the end.
        long_side_px: Shrink to this longest side.

    Returns:
        `(T, H, W, 3)` uint8 RGB; T is smaller than asked where the video ends earlier.

    Raises:
        VideoError: Nothing can be read there.
    """
    batches = list(iterate_frames(path, start, stop, long_side_px))
    if not batches:
        raise VideoError("unreadable", f"{Path(path).name}: there is no frame {start}")
    return np.concatenate(batches)


def _frames(path: Path, info: VideoInfo, start: int, stop: int | None, every: int) -> Iterator[np.ndarray]:
    """Rotated frames: from decord as far as it comes, then from PyAV."""
    position = start
    decord_frames = _decord_frames(path, info, start, stop, every)
    while True:
        try:
            frame = next(decord_frames)
        except StopIteration as end:
            if end.value:  # it came to the end
                return
            break
        yield frame
        position += every
    for frame in _pyav_frames(path, info, position, stop, every):
        yield frame
        position += every
    if position == 0:
        raise VideoError("unreadable", f"{path.name}: no frame of it can be decoded")


def _decord_frames(
    path: Path, info: VideoInfo, start: int, stop: int | None, every: int
) -> Generator[np.ndarray, None, bool]:
    """decord's frames (it applies the rotation itself); ends quietly at the first trouble, and returns False then."""
    if not info.indexed:  # seen on MPEG-1: decord starts 12 frames late and repeats the last one 12 times
        return False
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        count = len(reader)
        # With an edit list decord counts all stored frames and repeats the last one shown: PyAV honours the list.
        if info.duration_s > 0 and abs(count - info.duration_s * info.fps) > max(1.5, 0.02 * count):
            return False
        # next() and skip_frames() only: get_batch() seeks, inexactly on some files, and hides bad frames behind copies.
        if start:
            reader.skip_frames(start)
        for index in range(start, count if stop is None else min(stop, count), every):
            if index > start and every > 1:
                reader.skip_frames(every - 1)
            frame = reader.next().asnumpy()
            if frame.ndim != 3 or frame.shape[2] != 3:
                return False
            yield frame
    except (DECORDError, RuntimeError, StopIteration, AssertionError):
        return False
    return start < count


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`frame` at `size` = (width, height)."""
    if (frame.shape[1], frame.shape[0]) == size:
        return frame
    shrink = size[0] <= frame.shape[1] and size[1] <= frame.shape[0]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


def _pyav_frames(path: Path, info: VideoInfo, start: int, stop: int | None, every: int) -> Iterator[np.ndarray]:
    """PyAV's frames, rotated as decord's are."""
    if stop is not None and start >= stop:
        return
    try:
        with av.open(str(path)) as container:
            for index, frame in enumerate(decoded_frames(container, video_stream(container, path))):
                if stop is not None and index >= stop:
                    return
                if index >= start and (index - start) % every == 0:
                    image = frame.to_ndarray(format="rgb24")
                    yield np.ascontiguousarray(np.rot90(image, -info.rotation_deg // 90))
    except (av.FFmpegError, OSError):
        return


def decoded_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Every frame that can be decoded; a broken packet costs itself only, a broken container ends the video."""
    stream.codec_context.thread_count = 1
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            break
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue
    with suppress(av.FFmpegError, EOFError):  # what the decoder still holds when the container ended in an error
        yield from stream.codec_context.decode(None)


def video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The container's main video stream.

    Raises:
        VideoError: There is none.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        raise VideoError("unreadable", f"{path.name} holds no video stream")
    return stream


def _pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width of a stored pixel in units of its height; 1 where the file does not say or says nonsense."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return aspect if aspect and Fraction(1, 4) <= aspect <= 4 else Fraction(1)


def existing_file(path: str | Path) -> Path:
    """`path`, if a file with content is there.

    Raises:
        VideoError: Missing or empty.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError("missing", f"{path.name} is not there any more; put it back or run the stage `acquire` again")
    if path.stat().st_size == 0:
        raise VideoError("empty_file", f"{path.name} has zero bytes; fetch or copy it again")
    return path


def _short(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip().splitlines()[0]
