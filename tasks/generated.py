"""What `generate` leaves beside the frames: the table of pairs, and how long every video took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import zarr

from tasks.disk import whole_file
from tasks.errors import StageError
from tasks.methods import METHODS
from tasks.paths import Paths
from tasks.stores import array


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as dicts, column name -> value."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def read_pairs(paths: Paths) -> pd.DataFrame:
    """The table of generated pairs.

    Raises:
        StageError: There is none.
    """
    path = paths.generated / "pairs.csv"
    if not path.is_file():
        raise StageError(f"{path} does not exist; `dvc repro generate` makes it")
    names = ("pair", "dataset", "subject_clip", "driving_clip", "subject_identity", "driving_identity")
    return pd.read_csv(path, dtype=dict.fromkeys(names, str), keep_default_na=False)


def read_output(generated: zarr.Group, method: str, pair: dict[str, Any]) -> np.ndarray:
    """The lossless frames of a generated video, `(T, H, W, 3)` uint8.

    Args:
        generated: The store `generated/frames.zarr`.
        method: Its method.
        pair: Its row of the table of pairs.

    Raises:
        StageError: The store has no such method.
    """
    name = f"{method}/{pair['setting']}"
    if name not in generated:
        raise StageError(f"generated/frames.zarr has no array {name}; run `dvc repro --force --single-item generate`")
    return np.asarray(array(generated, name)[int(pair["index"])])


EXTERNAL = "external.csv"
"""Below generated/: every video of the methods of `generate.external`, whether it was taken in, and if not, why."""
EXTERNAL_COLUMNS = ("method", "pair", "status", "reason", "sha256")


def read_external(folder: Path) -> pd.DataFrame:
    """The table `EXTERNAL` of the folder `generated`; without rows where there is none."""
    path = folder / EXTERNAL
    if not path.is_file():
        return pd.DataFrame(columns=list(EXTERNAL_COLUMNS), dtype=str)
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def missing_videos(paths: Paths) -> set[tuple[str, str]]:
    """(method, pair) of the videos made elsewhere that are not there or could not be used."""
    table = read_external(paths.generated)
    bad = table[table["status"] != "ok"]
    return set(zip(bad["method"], bad["pair"], strict=True))


def made_by(methods: Sequence[str], pair: dict[str, Any], missing: set[tuple[str, str]]) -> list[str]:
    """Of some methods, those that a pair was made with.

    Args:
        methods: Their names.
        pair: Its row of the table of pairs.
        missing: From `missing_videos`.
    """
    return [one for one in methods if pair["setting"] in METHODS[one].settings and (one, pair["pair"]) not in missing]


SECONDS = "generate_seconds.csv"
"""Below metrics/: seconds per generated frame of every video, its share of building the canonical head included."""
SECONDS_COLUMNS: dict[str, Any] = {"method": str, "pair": str, "seconds_per_frame": float}


class Seconds:
    """The table `SECONDS`, kept over the runs of one fingerprint.

    It is written when the `with` block ends, also by an error or a stop: only kill -9 loses what a run measured, and
    then the medians are over the other videos.
    """

    def __init__(self, path: Path, methods: Sequence[str]) -> None:
        """Read what earlier runs measured for these methods."""
        self.path = path
        table = read_seconds(path)
        table = table[table["method"].isin(methods)]
        self.rows: dict[tuple[str, str], float] = dict(
            zip(zip(table["method"], table["pair"], strict=True), table["seconds_per_frame"], strict=True)
        )

    def __enter__(self) -> Seconds:
        """Begin to measure."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the table, atomically."""
        rows = [(method, pair, seconds) for (method, pair), seconds in sorted(self.rows.items())]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as partial:
            pd.DataFrame(rows, columns=list(SECONDS_COLUMNS)).to_csv(partial, index=False, float_format="%.6g")

    def add(self, method: str, pair: str, seconds_per_frame: float) -> None:
        """Note a video."""
        self.rows[method, pair] = seconds_per_frame

    def median(self, method: str) -> float | None:
        """Over all pairs; None where nothing was measured. The first video of a run is slow: no mean."""
        found = [seconds for (other, _), seconds in self.rows.items() if other == method]
        return median(found) if found else None


def read_seconds(path: Path) -> pd.DataFrame:
    """The table `SECONDS`; without rows where there is none."""
    if not path.is_file():
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in SECONDS_COLUMNS.items()})
    return pd.read_csv(path, dtype=SECONDS_COLUMNS)
