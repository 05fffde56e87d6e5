"""Video files -> RGB frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class VideoError(RuntimeError):
    """A video cannot be read; `reason` is the code for the clip table (`missing`, `empty_file` or `unreadable`)."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, as it is meant to be shown (rotated, with square pixels)."""

    frames: int
    fps: float
    duration_s: float
    width: int
    height: int
    rotation_deg: int
    codec: str


def probe(path: str | Path) -> VideoInfo:
    """What the file says about its first video stream."""
    raise NotImplementedError


def iterate_frames(
    path: str | Path, start: int = 0, stop: int | None = None, long_side_px: int | None = None
) -> Iterator[np.ndarray]:
    """Batches `(n <= 16, H, W, 3)` uint8 RGB of the frames `start` to `stop` (exclusive), in order."""
    raise NotImplementedError


def read_frames(
    path: str | Path, start: int = 0, stop: int | None = None, long_side_px: int | None = None
) -> np.ndarray:
    """The frames `start` to `stop` (exclusive) at once, `(T, H, W, 3)` uint8 RGB."""
    raise NotImplementedError
