"""Picture files of any kind -> RGB as it is meant to be shown."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
_WHITE = 255


class ImageError(ValueError):
    """A picture cannot be read; the text says why."""


def read_image(path: Path) -> np.ndarray:
    """The first picture in a file: turned as its EXIF orientation says, 8 bits, transparency on white.

    Args:
        path: A file of any kind that Pillow knows; palette, grey, 16-bit, CMYK and RGBA pictures are converted.

    Returns:
        `(H, W, 3)` u1 RGB.

    Raises:
        ImageError: It is missing, empty, no picture, damaged, or too large to be meant seriously.
    """
    if not path.is_file():
        raise ImageError(f"{path.name} is not there")
    if not path.stat().st_size:
        raise ImageError(f"{path.name} has zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from 89 megapixels; twice that is refused
            with Image.open(path) as image:
                return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ImageError(f"{path.name} is no picture that Pillow can read") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path.name} cannot be read: {error}") from None


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(np.asarray(image, dtype=np.float64))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (_WHITE,) * 4)
        image = Image.alpha_composite(ground, layer)
    return np.array(image.convert("RGB"))


def _from_deep(grey: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits, or floats, to 8 bits: 0-1, 0-255 or 0-65535, whichever the values fit."""
    grey = np.nan_to_num(grey)
    top = float(grey.max(initial=0.0))
    full = 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0
    small = np.clip(grey / full * 255, 0, 255).round().astype(np.uint8)
    return np.repeat(small[..., None], 3, axis=2)
