"""What `generate` left: the methods' names and the table of pairs; read by evaluate, study and report."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tasks.errors import StageError
from tasks.paths import Paths

OURS = "head3d"
BASELINE = "copy_reference"
"""The trivial baseline: one frame of the subject, held still."""

METHOD_NAMES = {
    "head3d": "Head3D",
    "mean_canonical": "Mean canonical head",
    "copy_reference": "Copy of the reference frame",
}
"""What a person reads for a method's name in the files."""


def method_name(method: str) -> str:
    """The readable name of a method."""
    return METHOD_NAMES.get(method, method)


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
