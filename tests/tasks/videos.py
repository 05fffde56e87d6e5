"""Videos for the tests: made here, so that the tests need no data; faces come from the demo's renderer."""

from __future__ import annotations

import functools
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from models.config import Demo
from tasks.demo import DemoJob, render

torch.set_num_threads(1)  # as in the workers: the last bit of a detection depends on it


def corners(count: int = 30, height: int = 96, width: int = 128) -> np.ndarray:
    """Frames with a red corner at the top left, a blue one at the bottom right, and a green square that moves right."""
    frames = np.full((count, height, width, 3), 40, np.uint8)
    frames[:, : height // 4, : width // 4] = (230, 30, 30)
    frames[:, -(height // 4) :, -(width // 4) :] = (30, 30, 230)
    for index in range(count):
        x = green_x(index, count, width)
        frames[index, height // 2 - 8 : height // 2 + 8, x : x + 16] = (30, 230, 30)
    return frames


def green_x(index: int, count: int = 30, width: int = 128) -> int:
    """Left edge of the green square of `corners`."""
    return index * (width - 16) // count


@functools.cache
def face(frames: int = 40, size_px: int = 128, person: int = 1) -> np.ndarray:
    """A demo head `(T, S, S, 3)`, forwards and backwards; do not change it."""
    demo = Demo(people=3, frames=-(-frames // 2), size_px=size_px, fps=25, max_yaw_deg=20.0)
    shown = render(DemoJob(person, 0, demo, Path())).frames
    both = np.concatenate([shown, shown[::-1]])[:frames]
    both.flags.writeable = False
    return both


def set_rotation(source: Path, target: Path, clockwise_deg: int) -> None:
    """A copy of an mp4 whose header tells the player to turn it."""
    data = bytearray(source.read_bytes())
    one = 1 << 16
    a, b, c, d = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[clockwise_deg]
    matrix = data.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", data, matrix, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)


def set_edit_list(source: Path, target: Path, skip_s: float, show_s: float) -> None:
    """A copy of an mp4 whose header shows only `show_s` seconds from `skip_s` on (what phones write after trimming)."""
    data = bytearray(source.read_bytes())
    entry = data.index(b"elst") + 4 + 8
    movie_hz = struct.unpack_from(">I", data, data.index(b"mvhd") + 4 + 12)[0]
    media_hz = struct.unpack_from(">I", data, data.index(b"mdhd") + 4 + 12)[0]
    start = struct.unpack_from(">Ii", data, entry)[1]
    struct.pack_into(">Ii", data, entry, round(show_s * movie_hz), start + round(skip_s * media_hz))
    target.write_bytes(data)


def write_gif(path: Path, frames: np.ndarray, fps: int) -> None:
    """An animated gif."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("gif", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8"
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="rgb8")))
        out.mux(stream.encode(None))


def write_interlaced(path: Path, frames: np.ndarray) -> None:
    """An mp4 at 25 frames a second whose rows are two fields, as cameras for television give them."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"x264-params": "interlaced=1:tff=1", "crf": "5"}
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))


def write_wide_pixels(path: Path, frames: np.ndarray, aspect: Fraction) -> None:
    """An mp4 whose pixels are `aspect` times as wide as high."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
