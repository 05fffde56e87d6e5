"""Pictures and videos of the report, as data URIs: strips of frames, outlines, error maps, side-by-side videos."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.sheets import draw_outline
from tasks.video import write_video

TILE_PX = 160
"""A frame of a strip is at most this large."""

PANEL_PX = 192
"""A panel of a video is at least about this large: 64 px would be too small to watch."""

ERROR_FULL_SCALE = 0.3
"""Error maps are white-hot from this mean absolute difference (of [0, 1] RGB) on."""


def frame_indices(frames: int, count: int) -> list[int]:
    """`count` frame numbers spread evenly over a clip, first and last included."""
    return sorted({round(float(t)) for t in np.linspace(0, frames - 1, min(count, frames))})


def strip(frames: np.ndarray, indices: list[int]) -> str:
    """Frames side by side.

    Args:
        frames: `(T, H, W, 3)` uint8 RGB.
        indices: Which of them.

    Returns:
        A WebP data URI.
    """
    return image_uri(np.concatenate([shrink(frames[index]) for index in indices], axis=1))


def shrink(image: np.ndarray) -> np.ndarray:
    """`image` `(H, W, 3)` uint8, made smaller where it is larger than a tile."""
    longest = max(image.shape[:2])
    if longest <= TILE_PX:
        return image
    size = (round(image.shape[1] * TILE_PX / longest), round(image.shape[0] * TILE_PX / longest))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def image_uri(image: np.ndarray) -> str:
    """`(H, W, 3)` uint8 RGB as a WebP data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=92, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def outlined(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames, twice as large, with the head mask's edge drawn in and everything else dimmed.

    Args:
        frames: `(T, H, W, 3)` uint8 RGB.
        masks: `(T, H, W)` 0/1.

    Returns:
        `(T, 2H, 2W, 3)` uint8.
    """
    large = frames.repeat(2, axis=1).repeat(2, axis=2)
    inside = masks.repeat(2, axis=1).repeat(2, axis=2)
    shown = np.where(inside[..., None] > 0, large, large // 2)
    return np.stack([draw_outline(frame, mask) for frame, mask in zip(shown, inside, strict=True)])


def error_map(output: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean absolute difference over RGB in black-red-yellow-white.

    Args:
        output: `(T, H, W, 3)` uint8.
        truth: The same shape.

    Returns:
        `(T, H, W, 3)` uint8.
    """
    error = np.abs(output.astype(np.int16) - truth).mean(axis=-1) / (255 * ERROR_FULL_SCALE)
    heat = np.clip(error[..., None] * 3 - np.array([0, 1, 2]), 0, 1)
    return (255 * heat).astype(np.uint8)


def panel_scale(size_px: int) -> int:
    """By how much a video's panels are enlarged."""
    return max(1, round(PANEL_PX / size_px))


def video_uri(panels: list[np.ndarray], fps: float) -> str:
    """Videos of equal size side by side, enlarged, as an H.264 data URI.

    Args:
        panels: `(T, H, W, 3)` uint8 each; the shortest decides the length.
        fps: Frames per second.

    Returns:
        An mp4 data URI.
    """
    frames = min(len(panel) for panel in panels)
    height, width = panels[0].shape[1:3]
    scale = panel_scale(max(height, width))
    size = (width * scale, height * scale)
    wide = np.empty((frames, size[1], size[0] * len(panels), 3), np.uint8)
    for number, panel in enumerate(panels):
        for t in range(frames):
            image = Image.fromarray(panel[t]).resize(size, Image.Resampling.BICUBIC)
            wide[t, :, number * size[0] : (number + 1) * size[0]] = np.asarray(image)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, wide, fps, crf=20)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
