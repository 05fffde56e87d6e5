"""The report's folder: pictures, videos and heads as files beside its page, each kind within its share of the space.

Files are named after their content: the same picture is stored once, and the same inputs give the same names.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.report_media import mosaic, shrink
from tasks.video import write_video

LIMIT_MB = 50.0
"""The whole folder stays below this: it can be sent by mail or put on any page."""
SHARES_MB = {"examples": 20.0, "heads": 18.0, "pictures": 9.0}
"""What each kind may take; the rest is for the page and the viewer."""
MEDIA = "media"
_NAME = 16


@dataclass(frozen=True)
class Clip:
    """A video whose panels stand in a grid, row by row.

    Attributes:
        url: The mp4, relative to the page.
        poster: Its middle frame.
        columns: Panels of a row.
        rows: Rows.
        width: Of one panel, pixels.
        height: The same.
    """

    url: str
    poster: str
    columns: int
    rows: int
    width: int
    height: int


class Shelf:
    """Where one kind of file is put, and how much of its share is taken."""

    def __init__(self, folder: Path, limit_mb: float) -> None:
        """Begin with an empty one.

        Args:
            folder: The report's folder; files go into `media/` below.
            limit_mb: The share, 1e6 bytes.
        """
        self.folder = folder
        self.limit = int(limit_mb * 1e6)
        self.spent = 0

    @property
    def full(self) -> bool:
        """Whether the share is used up: what comes next is left out, with a note on the page."""
        return self.spent >= self.limit

    def put(self, content: bytes, ending: str) -> str:
        """Store bytes.

        Args:
            content: Of the file.
            ending: With its dot.

        Returns:
            The file's address, relative to the page.
        """
        name = f"{hashlib.sha256(content).hexdigest()[:_NAME]}{ending}"
        path = self.folder / MEDIA / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self.spent += len(content)
        return f"{MEDIA}/{name}"

    def image(self, picture: np.ndarray, quality: int = 90) -> str:
        """Store `(H, W, 3)` uint8 RGB as WebP; returns its address."""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "WEBP", quality=quality, method=4)
        return self.put(buffer.getvalue(), ".webp")

    def strip(self, frames: np.ndarray, indices: list[int]) -> str:
        """Store frames side by side.

        Args:
            frames: `(T, H, W, 3)` uint8 RGB.
            indices: Which of them.

        Returns:
            Its address.
        """
        return self.image(np.concatenate([shrink(frames[index]) for index in indices], axis=1))

    def video(self, panels: list[np.ndarray], fps: float) -> Clip:
        """Store videos of one size as one file: what is in one file is in sync in every player.

        Args:
            panels: `(T, H, W, 3)` uint8 each; the shortest decides the length.
            fps: Frames per second.

        Returns:
            Where it lies and how it is laid out.
        """
        grid = mosaic(panels)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            write_video(path, grid.frames, fps, crf=20)
            url = self.put(path.read_bytes(), ".mp4")
        poster = self.image(grid.frames[len(grid.frames) // 2], quality=80)
        return Clip(url, poster, grid.columns, grid.rows, grid.width, grid.height)

    def head(self, glb: bytes) -> str:
        """Store a .glb as a script that hands it to the page: a page opened from disk may run scripts, not read files.

        Args:
            glb: The file's bytes.

        Returns:
            The script's address.
        """
        return self.put(f'head3dHead("{base64.b64encode(glb).decode()}");\n'.encode(), ".js")


def shelves(folder: Path) -> dict[str, Shelf]:
    """An empty shelf for every kind of `SHARES_MB`."""
    return {kind: Shelf(folder, share) for kind, share in SHARES_MB.items()}


def folder_mb(folder: Path) -> float:
    """Size of a folder's files, in 1e6 bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
