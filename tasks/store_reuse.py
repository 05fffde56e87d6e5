"""What a new run may take over from the finished store of an older one, so that ten new videos do not cost 22,500.

A stage's store has two marks: its fingerprint (settings, code and inputs) and `made_by`, which leaves the inputs out.
Where only the inputs changed, the finished store is set aside as `NAME.zarr.old` with its table inside; the new run
copies from it what it would make again just the same, and deletes it when it is finished itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.disk import whole_file
from tasks.store_location import remove_store
from tasks.stores import attributes

TABLE = "table.parquet"


def older(path: Path) -> Path:
    """Where the finished store of an older run waits."""
    return path.with_name(path.name + ".old")


def make_room(path: Path, table: Path, fingerprint: str, made_by: str) -> None:
    """Remove or set aside a store of another run; bring one that was set aside back if it is just what is wanted.

    Args:
        path: The store.
        table: The stage's table; it stays where it is.
        fingerprint: Of the run that begins.
        made_by: Its settings and code.
    """
    for stray in table.parent.glob(f".{table.name}*.partial"):  # kill -9 while a table was written
        stray.unlink()
    found, old = attributes(path), attributes(older(path))
    if found.get("fingerprint") != fingerprint:
        if found.get("complete") and found.get("made_by") == made_by and table.is_file():
            _copy(table, path / TABLE)
            remove_store(older(path))
            path.rename(older(path))
            old = found
        else:
            remove_store(path)
        if old.get("fingerprint") == fingerprint and (older(path) / TABLE).is_file():
            _copy(older(path) / TABLE, table)
            older(path).rename(path)
    (path / TABLE).unlink(missing_ok=True)
    if older(path).exists() and old.get("made_by") != made_by:
        remove_store(older(path))


def _copy(source: Path, target: Path) -> None:
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)
