"""Where every stage reads and writes: one place, so that dvc.yaml, the tasks and the tests agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WITHOUT_HEAD = "without_head"
"""Folder below checkpoints/fusion: the fusion network that is never shown x_hat_dri (Table 3)."""


@dataclass(frozen=True)
class Paths:
    """The files below one data folder (`data/` in a project)."""

    data: Path

    @property
    def raw(self) -> Path:
        """Folder of the videos the demo renders; other sources stay where they are."""
        return self.data / "raw"

    @property
    def manifest(self) -> Path:
        """CSV of the source videos with SHA-256; what DVC tracks of them."""
        return self.raw / "manifest.csv"

    @property
    def clips(self) -> Path:
        """Zarr: cropped frames, landmarks and face boxes."""
        return self.data / "clips.zarr"

    @property
    def clip_table(self) -> Path:
        """Parquet: one row per clip, and one per video that gave none."""
        return self.data / "clips.parquet"

    @property
    def masks(self) -> Path:
        """Zarr: class labels and head masks."""
        return self.data / "masks.zarr"

    @property
    def mask_table(self) -> Path:
        """Parquet: one row per parsed clip with status, reason, head area and flicker."""
        return self.data / "masks.parquet"

    @property
    def geometry(self) -> Path:
        """Zarr: depth and pose of every frame, from the trained stage 1."""
        return self.data / "geometry.zarr"

    def checkpoint(self, stage: str) -> Path:
        """Folder of a training stage's weights and its resumable state."""
        return self.data / "checkpoints" / stage

    @property
    def generated(self) -> Path:
        """Generated frames (Zarr), videos and canonical heads."""
        return self.data / "generated"

    @property
    def metrics(self) -> Path:
        """Tables, figures and loss curves."""
        return self.data / "metrics"

    @property
    def study(self) -> Path:
        """User-study sheets."""
        return self.data / "study"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.data / "report"
