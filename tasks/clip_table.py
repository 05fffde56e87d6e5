"""The clip table: one row per clip, and one per video that gave none, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.disk import whole_file
from tasks.errors import StageError

SCHEMA = pa.schema(
    [
        ("clip", pa.string()),  # `{video}_{segment}`; `{video}` for a video without a clip
        ("video", pa.string()),
        ("dataset", pa.string()),
        ("identity", pa.string()),
        ("split", pa.string()),  # train | test
        ("source", pa.string()),  # path as in the manifest
        ("sha256", pa.string()),
        ("row", pa.int64()),  # of the stores; -1: none
        ("segment", pa.int64()),  # 0, 1, ... within the video; -1: none
        ("start_frame", pa.int64()),  # -1: none
        ("end_frame", pa.int64()),  # exclusive
        ("fps", pa.float64()),
        ("source_width", pa.int64()),  # as shown: rotated, square pixels; 0: unknown
        ("source_height", pa.int64()),
        ("box_x0", pa.float64()),  # the square crop in source pixels: x in [x0, x1)
        ("box_y0", pa.float64()),
        ("box_x1", pa.float64()),
        ("box_y1", pa.float64()),
        ("face_px", pa.float64()),  # median side of the face box in the source
        ("status", pa.string()),  # ok | rejected | error
        ("reason", pa.string()),  # empty, or a code
        ("detail", pa.string()),  # a sentence
        ("key", pa.string()),  # what the video's clips follow from, settings and code left out
        ("digest", pa.string()),  # of the clip's arrays in the store; empty: none
    ]
)
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("row", "segment", "start_frame", "end_frame"), -1),
    **dict.fromkeys(("source_width", "source_height"), 0),
    **dict.fromkeys(("fps", "box_x0", "box_y0", "box_x1", "box_y1", "face_px"), float("nan")),
    **dict.fromkeys(("status", "reason", "detail", "key", "digest"), ""),
}
"""What a row says where there is nothing to say."""


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table; it appears under its name only when it is complete.

    Args:
        path: The Parquet file.
        rows: Dicts with exactly the columns of `SCHEMA`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), partial)


def read_table(path: Path) -> pd.DataFrame:
    """Read the table.

    Raises:
        StageError: There is none yet.
    """
    if not path.is_file():
        raise StageError(f"{path} does not exist; `dvc repro crop` makes it (or `dvc pull`, if someone pushed it)")
    return pd.read_parquet(path)


def ok_clips(table: pd.DataFrame, split: str | None = None) -> pd.DataFrame:
    """Rows that are clips, in the order of the stores.

    Args:
        table: As `read_table` gives it.
        split: Only `train` or `test`; None: both.

    Returns:
        The rows with a fresh index.
    """
    chosen = table[(table["status"] == "ok") & ((table["split"] == split) if split else True)]
    return chosen.sort_values("row").reset_index(drop=True)
