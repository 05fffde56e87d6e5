"""Frames -> H.264 video that plays everywhere and whose bytes do not depend on the machine's cores."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TIME_BASE_HZ = 90_000
"""Clock of the written files: 25, 30 and 60 fps are whole ticks of it, 23.976 nearly."""


def write_video(path: str | Path, frames: np.ndarray, fps: float, crf: float = 18) -> None:
    """Write an H.264/yuv420p mp4 that starts playing before it is loaded (faststart), without sound.

    One encoder thread and bit-exact flags make the bytes the same on every run. yuv420p needs even sizes: an odd width
    or height gets its last column or row twice. The file appears under its name only when it is complete.

    Args:
        path: The file to write; its folder is made when it is missing.
        frames: `(T, H, W, 3)` uint8 RGB, T >= 1.
        fps: Frames per second.
        crf: x264's constant rate factor: 0 loses nothing but chroma resolution, 18 looks the same, 51 is the worst.

    Raises:
        ValueError: The frames have another shape or type, or there is none.
    """
    path = Path(path)
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"frames must be (T, H, W, 3) uint8 with T >= 1, got {frames.shape} {frames.dtype}")
    if not fps > 0:
        raise ValueError(f"fps = {fps} must be above 0")
    odd_h, odd_w = frames.shape[1] % 2, frames.shape[2] % 2
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as out:
            stream = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = frames.shape[1] + odd_h, frames.shape[2] + odd_w
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, TIME_BASE_HZ)
            stream.codec_context.thread_count = 1
            # Without x264's macroblock tree: with it, equal frames gave different files on a processor with AVX-512.
            stream.options = {
                "crf": str(crf),
                "preset": "medium",
                "flags": "+bitexact",
                "threads": "1",
                "x264-params": "mbtree=0",
            }
            for index, image in enumerate(frames):
                even = np.pad(image, ((0, odd_h), (0, odd_w), (0, 0)), mode="edge")
                picture = av.VideoFrame.from_ndarray(even, format="rgb24")
                picture.pts = round(index * TIME_BASE_HZ / fps)
                picture.time_base = Fraction(1, TIME_BASE_HZ)
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
