"""One pass over a video for cropping: decoded frames with their times, turned into pictures only where needed.

PyAV reads here and not decord (tasks/video_read.py): it tells every frame's time (sections, variable frame rates), does
not hang, and its frames stay in the codec's own layout, half the memory of RGB, until a picture of them is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from tasks.video_read import VideoError, VideoInfo, decoded_frames, existing_file, video_stream

EARLY_S = 1.0
"""A seek may land on the key frame before; one that lands later than this after the wanted time is not trusted."""

THUMBNAIL_PX = 16


@dataclass(frozen=True)
class StreamFrame:
    """A decoded frame.

    Attributes:
        index: Which frame of the video, from 0; after a seek worked out from its time.
        time_s: When it is shown, seconds from the start of the video.
        raw: As the codec left it.
        info: Of its video.
    """

    index: int
    time_s: float
    raw: av.VideoFrame
    info: VideoInfo

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return sum(plane.buffer_size for plane in self.raw.planes)

    def thumbnail(self) -> np.ndarray:
        """Brightness of the stored frame (not turned) in `THUMBNAIL_PX` rows and columns, u1: to compare frames by."""
        form, size = self.raw.format, (THUMBNAIL_PX, THUMBNAIL_PX)
        if form.name.startswith(("yuv4", "yuvj4", "nv", "gray")) and form.components[0].bits == 8:
            plane = self.raw.planes[0]  # the brightness itself, a row in `line_size` bytes
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            rows = rows[: plane.height, : plane.width]
            step = max(1, min(rows.shape) // (4 * THUMBNAIL_PX))
            return cv2.resize(np.ascontiguousarray(rows[::step, ::step]), size, interpolation=cv2.INTER_AREA)
        return self.raw.reformat(width=size[0], height=size[1], format="gray", interpolation="AREA").to_ndarray()

    def picture(self, long_side_px: int | None = None) -> np.ndarray:
        """The frame as shown: rotated, with square pixels, one field only if it is interlaced.

        Args:
            long_side_px: Shrink to this longest side, quickly; None, or a smaller video: as it is.

        Returns:
            `(H, W, 3)` uint8 RGB.
        """
        width, height = self.info.width, self.info.height
        if long_side_px is not None and max(width, height) > long_side_px:
            scale = long_side_px / max(width, height)
            width, height = max(1, round(width * scale)), max(1, round(height * scale))
            stored = (height, width) if self.info.rotation_deg in (90, 270) else (width, height)
            raw = self.raw.reformat(width=stored[0], height=stored[1], format="rgb24", interpolation="AREA")
            return self._turned(raw.to_ndarray())
        image = self.raw.to_ndarray(format="rgb24")
        if self.raw.interlaced_frame and image.shape[0] > 1:
            lines = (image.shape[1], image.shape[0])
            image = cv2.resize(np.ascontiguousarray(image[::2]), lines, interpolation=cv2.INTER_LINEAR)
        image = self._turned(image)
        if image.shape[1::-1] != (width, height):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return image

    def _turned(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(image, -self.info.rotation_deg // 90))


def stream_frames(
    path: str | Path, info: VideoInfo, start_s: float = 0.0, stop_s: float | None = None
) -> Iterator[StreamFrame]:
    """Frames of a video in order, decoded once, one at a time.

    A video that ends early or cannot be decoded to its end gives what there is.

    Args:
        path: The file.
        info: What `probe` says about it.
        start_s: Seconds from the video's start; earlier frames are left out (by a seek, where the file allows it).
        stop_s: Frames from here on are left out; None: to the end.

    Yields:
        The frames; `index` counts on without gaps.

    Raises:
        VideoError: The file is missing or cannot be opened.
    """
    path = existing_file(path)
    late = start_s - 0.5 / info.fps
    if start_s > 0:
        first = next(_timed(path, info, start_s), None)
        # Some files have no index, and a seek ends somewhere: then all of the video is decoded from its start.
        seek_s = start_s if first is not None and first[0] <= max(late, 0.0) + EARLY_S else 0.0
    else:
        seek_s = 0.0
    index: int | None = None
    for position, (time_s, frame) in enumerate(_timed(path, info, seek_s)):
        if time_s < late:
            continue
        if stop_s is not None and time_s >= stop_s - 0.5 / info.fps:
            return
        if index is None:
            index = round(time_s * info.fps) if seek_s > 0 else position
        yield StreamFrame(index, time_s, frame, info)
        index += 1


def _timed(path: Path, info: VideoInfo, seek_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Times in seconds from the video's start, and frames."""
    try:
        with av.open(str(path)) as container:
            stream = video_stream(container, path)
            base = stream.time_base
            origin = float(stream.start_time * base) if stream.start_time is not None and base is not None else 0.0
            if seek_s > 0 and base is not None:
                container.seek(int((seek_s + origin) / base), stream=stream)
            for count, frame in enumerate(decoded_frames(container, stream)):
                time_s = frame.time
                yield (count / info.fps if time_s is None else time_s - origin), frame
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise VideoError("missing", f"{path.name} is not there any more") from None
        return
