"""Image distances of Sec. 4.1 between two videos, and between two folders of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from models.config import Evaluate
from tasks.errors import StageError
from tasks.perceptual_metric import PerceptualMetric
from tasks.video import VideoError, read_frames

MAX_PSNR_DB = 100.0
"""PSNR of equal videos, so that a mean over videos stays a number."""

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".mpg", ".mpeg", ".webm", ".gif"}

DEFINITIONS = {
    "l2": "mean squared error over all frames, pixels and RGB channels in [0, 1], then over videos (lower is better)",
    "psnr_db": f"10 log10(1 / l2) of a video in dB, at most {MAX_PSNR_DB:.0f}; mean over videos (higher is better)",
}


def l2(pred: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared error over [0, 1] RGB pixels (Table 1's L2).

    Args:
        pred: `(T, H, W, 3)` uint8 RGB.
        truth: The same shape.

    Returns:
        The error, 0 to 1.

    Raises:
        ValueError: The shapes differ, are not those of a video, or the frames are not uint8.
    """
    if pred.shape != truth.shape or pred.ndim != 4 or pred.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(f"two (T, H, W, 3) uint8 videos are needed, got {_describe(pred)} and {_describe(truth)}")
    total = 0
    for one, other in zip(pred, truth, strict=True):  # frame by frame: whole numbers are exact, and memory stays small
        difference = one.astype(np.int32) - other
        total += int(np.square(difference).sum(dtype=np.int64))
    return total / (255.0**2 * pred.size)


def psnr_db(error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error over [0, 1] pixels, at most `MAX_PSNR_DB`."""
    return MAX_PSNR_DB if error <= 10 ** (-MAX_PSNR_DB / 10) else -10.0 * math.log10(error)


def measure(pred: np.ndarray, truth: np.ndarray, perceptual: PerceptualMetric) -> dict[str, float]:
    """All figures of one video: `l2`, `psnr_db` and the perceptual one under its own name.

    Args:
        pred: `(T, H, W, 3)` uint8 RGB.
        truth: The same shape.
        perceptual: The metric to use beside L2.

    Returns:
        Name -> value; the perceptual one is NaN where the frames are too small for it.
    """
    error = l2(pred, truth)
    return {"l2": error, "psnr_db": psnr_db(error), perceptual.name: perceptual.video(pred, truth)}


def definitions(perceptual: PerceptualMetric) -> dict[str, str]:
    """What each figure of `measure` is; to be printed beside them."""
    return {**DEFINITIONS, perceptual.name: perceptual.definition}


def mean_or_none(values: list[float]) -> float | None:
    """Mean of the finite values; None where there is none (JSON knows no NaN)."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def compare(pred: Path, truth: Path, evaluate: Evaluate, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Measure a video against its truth, or a folder of videos and images against another by name.

    Files belong together when their path below the folder is the same up to the suffix.

    Args:
        pred: A video or image, or a folder of them.
        truth: The same kind.
        evaluate: Backbone of LPIPS, its weights and the stride over frames.
        device: Where LPIPS runs.

    Returns:
        What JSON can hold: the mean figures, `videos`, `frames`, `items` (name and figures), `refused` (name and
        reason), `only_in_pred`, `only_in_truth` and `definitions`.

    Raises:
        StageError: A path is missing, one is a folder and the other is not, or nothing could be compared.
    """
    pairs, only_in_pred, only_in_truth, refused = _match(Path(pred), Path(truth))
    single = Path(pred).is_file()
    items: list[dict[str, Any]] = []
    perceptual = PerceptualMetric(evaluate, device)
    for name, pred_file, truth_file in pairs:
        try:
            one, other = _read(pred_file), _read(truth_file)
            _check_same(one, other)
        except (ValueError, OSError, VideoError) as error:
            if single:
                raise StageError(f"{pred} and {truth} cannot be compared: {error}") from None
            refused.append({"name": name, "reason": str(error)})
            continue
        figures = {key: mean_or_none([value]) for key, value in measure(one, other, perceptual).items()}
        items.append({"name": name, "frames": len(one), **figures})
    if not items:
        text = f"nothing in {pred} could be compared with {truth}: {len(refused)} refused"
        raise StageError(
            text
            + (f" (first: {refused[0]['name']}: {refused[0]['reason']})" if refused else "")
            + "; files need the same names on both sides"
        )
    figures = {
        key: mean_or_none([item[key] for item in items if item[key] is not None])
        for key in ("l2", "psnr_db", perceptual.name)
    }
    return {
        **figures,
        "videos": len(items),
        "frames": sum(item["frames"] for item in items),
        "items": items,
        "refused": refused,
        "only_in_pred": only_in_pred,
        "only_in_truth": only_in_truth,
        "definitions": definitions(perceptual),
    }


Pairs = list[tuple[str, Path, Path]]


def _match(pred: Path, truth: Path) -> tuple[Pairs, list[str], list[str], list[dict[str, str]]]:
    """Files that belong together, those without a partner on either side, and names that are there twice."""
    for path in (pred, truth):
        if not path.exists():
            raise StageError(f"{path} does not exist; give two videos or two folders")
    if pred.is_dir() != truth.is_dir():
        folder = pred if pred.is_dir() else truth
        raise StageError(f"{folder} is a folder and the other is a file; give two videos or two folders")
    if pred.is_file():
        return [(pred.stem, pred, truth)], [], [], []
    left, right = _files(pred), _files(truth)
    refused = [
        {"name": name, "reason": f"{len(files)} files have this name: " + ", ".join(sorted(f.name for f in files))}
        for side in (left, right)
        for name, files in side.items()
        if len(files) > 1
    ]
    both = [name for name in sorted(left) if name in right and len(left[name]) == len(right[name]) == 1]
    pairs = [(name, left[name][0], right[name][0]) for name in both]
    return pairs, sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys()), refused


def _files(folder: Path) -> dict[str, list[Path]]:
    """Path below the folder without suffix -> the videos and images of that name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and path.is_file() and not path.name.startswith("."):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def _read(path: Path) -> np.ndarray:
    """The frames of a video, or an image as a video of one frame."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return read_frames(path)
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(
                    f"{path.name} has more than 8 bits a channel (mode {image.mode}); convert it to 8-bit RGB"
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))[None]
    except UnidentifiedImageError:
        raise ValueError(f"{path.name} is not an image that can be read") from None


def _check_same(pred: np.ndarray, truth: np.ndarray) -> None:
    if pred.shape[1:] != truth.shape[1:]:
        raise ValueError(f"the sizes differ: {_size(pred)} and {_size(truth)} px; scale one of them first")
    if len(pred) != len(truth):
        raise ValueError(f"the lengths differ: {len(pred)} and {len(truth)} frames; cut them to the same frames first")


def _size(frames: np.ndarray) -> str:
    return f"{frames.shape[2]}x{frames.shape[1]}"


def _describe(frames: np.ndarray) -> str:
    return f"{frames.shape} {frames.dtype}"
