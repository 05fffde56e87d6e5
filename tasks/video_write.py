"""Frames -> H.264 video that plays everywhere and whose bytes do not depend on the machine's cores."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from tasks.video_sound import Sound

TIME_BASE_HZ = 90_000
"""Clock of the written files: 25, 30 and 60 fps are whole ticks of it, 23.976 nearly."""

DISORDER = 8
"""Damaged files have some frames in disorder; more than so many one after another behind the latest one mean that the
source's clock began anew (joined recordings), and the file's goes on."""


def write_video(path: str | Path, frames: np.ndarray, fps: float, crf: float = 18) -> None:
    """Write all frames of a video at once, without sound; see `VideoWriter`.

    Args:
        path: The file to write; its folder is made when it is missing.
        frames: `(T, H, W, 3)` uint8 RGB, T >= 1.
        fps: Frames per second.
        crf: See `VideoWriter`.

    Raises:
        ValueError: The frames have another shape or type, or there is none.
    """
    with VideoWriter(path, fps, crf) as out:
        out.add(frames)


class VideoWriter:
    """Writes an H.264/yuv420p mp4 that starts playing before it is loaded (faststart), some frames at a time.

    One encoder thread and bit-exact flags make the bytes the same on every run. yuv420p needs even sizes: an odd width
    or height gets its last column or row twice. The file appears under its name only when its `with` block has ended
    well, or when `finish` was called; any other end leaves nothing.

    Attributes:
        frames: How many were written.
    """

    def __init__(self, path: str | Path, fps: float, crf: float = 18, sound: Sound | None = None) -> None:
        """Prepare; nothing is written before the first frame.

        Args:
            path: The file to write; its folder is made when it is missing.
            fps: Frames per second; with times of their own (`add`) the mean.
            crf: x264's constant rate factor: 0 loses nothing but chroma resolution, 18 looks the same, 51 is the worst.
            sound: What is heard with it; None: nothing.

        Raises:
            ValueError: `fps` is not above 0.
        """
        if not fps > 0:
            raise ValueError(f"fps = {fps} must be above 0")
        self.path, self.fps, self.frames = Path(path), fps, 0
        self._crf, self._sound = crf, sound
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._first_s: float | None = None
        self._tick, self._behind = -1, 0
        self._out: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> VideoWriter:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish, or leave nothing if something went wrong."""
        try:
            if kind is None:
                self.finish()
        finally:
            self._close()
            self._partial.unlink(missing_ok=True)

    def add(self, frames: np.ndarray, times_s: np.ndarray | None = None) -> None:
        """Write the next frames.

        Args:
            frames: `(T, H, W, 3)` uint8 RGB, T >= 1, always of the same size.
            times_s: When each is shown, `(T,)`, seconds; the file begins with the first of all. None: at an even rate.
                Either with every call or with none.

        Raises:
            ValueError: The frames have another shape or type, or there is none.
        """
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise ValueError(f"frames must be (T, H, W, 3) uint8 with T >= 1, got {frames.shape} {frames.dtype}")
        odd_h, odd_w = frames.shape[1] % 2, frames.shape[2] % 2
        if self._out is None:
            self._open(frames.shape[1] + odd_h, frames.shape[2] + odd_w)
        assert self._out is not None
        assert self._stream is not None
        for image, time_s in zip(frames, [None] * len(frames) if times_s is None else times_s.tolist(), strict=True):
            even = np.pad(image, ((0, odd_h), (0, odd_w), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(even, format="rgb24")
            picture.pts = self._tick = self._next_tick(time_s)
            picture.time_base = Fraction(1, TIME_BASE_HZ)
            self._out.mux(self._stream.encode(picture))
            self.frames += 1
        if self._sound is not None:  # beside the pictures: apart, the file's writer would keep all of one in memory
            self._sound.write_until(self._out, self._end_s())

    def finish(self) -> None:
        """End the file after the frames so far and give it its name; calling it again does nothing.

        Raises:
            ValueError: No frame was written.
        """
        if self._out is None or self._stream is None:
            if not self.frames:
                raise ValueError("a video needs a frame at least")
            return
        self._out.mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.finish(self._out, self._end_s())
        self._close()
        self._partial.replace(self.path)

    def _next_tick(self, time_s: float | None) -> int:
        """When the next frame is shown; always later than the last, as mp4 wants it."""
        period = TIME_BASE_HZ / self.fps
        if time_s is None:
            return round(self.frames * period)
        if self._first_s is None:
            self._first_s = time_s
        tick = round((time_s - self._first_s) * TIME_BASE_HZ)
        self._behind = 0 if tick > self._tick else self._behind + 1
        if self._behind > DISORDER:
            tick = self._tick + round(period)
            self._first_s = time_s - tick / TIME_BASE_HZ
        return max(tick, self._tick + 1)

    def _end_s(self) -> float:
        """When the last frame so far is over: it is shown as long as the mean one."""
        return self._tick / TIME_BASE_HZ + 1 / self.fps

    def _open(self, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        self._out = av.open(str(self._partial), "w", format="mp4", options=options)
        stream = self._out.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(1001))
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TIME_BASE_HZ)
        stream.codec_context.thread_count = 1
        # Without x264's macroblock tree: with it, equal frames gave different files on a processor with AVX-512.
        stream.options = {
            "crf": str(self._crf),
            "preset": "medium",
            "flags": "+bitexact",
            "threads": "1",
            "x264-params": "mbtree=0",
        }
        self._stream = stream
        if self._sound is not None:
            self._sound.open_in(self._out)

    def _close(self) -> None:
        if self._out is not None:
            self._out.close()
        if self._sound is not None:
            self._sound.close()
        self._out = self._stream = None
