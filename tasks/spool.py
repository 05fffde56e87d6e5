"""Finished items (videos, clips) that wait until their shard of a store can be written as a whole, once.

Workers leave an item's arrays in the spool; the process that runs the stage takes note of it and is the only one that
writes to the store. In the spool folder lie, each of them made by renaming:

    <item>.npz          its arrays, one entry per row it fills
    <item>.json         its record and which rows; only then it counts as finished
    shard_<n>.json      this shard is written; the records of its items and the digest of each row

So kill -9 at any moment loses the items that were being worked on, and what the next run writes is the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tasks.disk import whole_file
from tasks.progress import progress
from tasks.stores import ArraySpec, array, attribute, digest_of, write_rows

FOLDER = ".spool"


@dataclass(frozen=True)
class Item:
    """A finished item.

    Attributes:
        record: What the stage wants to know of it later; JSON.
        rows: The store's rows that it fills, as many as its arrays have entries.
    """

    record: Any
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """An item that an earlier run finished: its arrays are rows of a store (this one or an older one)."""

    item: Item
    group: zarr.Group
    old_rows: tuple[int, ...]


class Spool:
    """The spool of one store.

    Attributes:
        items: What is finished, by its number.
        digests: Of each row that a written shard holds.
    """

    def __init__(
        self,
        folder: Path,
        group: zarr.Group,
        specs: Mapping[str, ArraySpec],
        spans: Mapping[int, range],
        complete: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda values: values,
    ) -> None:
        """Open it, and take note of what is there.

        Args:
            folder: Made if it is missing.
            group: The store, open for writing.
            specs: The arrays that items bring.
            spans: Number of every item -> the rows it may fill; together they cover a shard or leave it partly empty.
            complete: Makes, of a shard's arrays, all that is stored.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._group, self._specs, self._spans, self._complete = folder, group, specs, spans, complete
        done = array(group, "done")
        self._rows, self._size = len(done), done.shards
        self._items_of: dict[int, list[int]] = {}
        for number in spans:
            for shard in self._shards_of(number):
                self._items_of.setdefault(shard, []).append(number)
        self._kept: dict[int, Kept] = {}
        self.items: dict[int, Item] = {}
        self.digests: dict[int, str] = {}
        self._written: set[int] = set()
        for path in folder.glob("*.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            if path.stem.startswith("shard_"):
                self._note_written(int(path.stem[6:]), content)
            else:
                self.items[int(path.stem)] = _item(content)
        self._drop_homeless()

    @property
    def written(self) -> set[int]:
        """First rows of the shards that are written."""
        return {shard * self._size for shard in self._written}

    def file(self, number: int) -> Path:
        """Where the worker puts the item's arrays."""
        return self._folder / f"{number}.npz"

    def add(self, number: int, item: Item) -> None:
        """Take note of a finished item, and write the shards it was the last for."""
        _write_json(self._folder / f"{number}.json", {"record": item.record, "rows": list(item.rows)})
        self.items[number] = item
        for shard in self._shards_of(number):
            self._write_if_complete(shard)

    def keep(self, kept: Mapping[int, Kept]) -> None:
        """Take over items from a store; finished ones of this spool go first. Call `write_all` afterwards."""
        for number, found in kept.items():
            if number not in self.items:
                self._kept[number] = found
                self.items[number] = found.item

    def forget(self, first_rows: Iterable[int]) -> None:
        """Shards that are damaged are to be written again, from items that are to be made again."""
        for shard in (first // self._size for first in first_rows):
            (self._folder / f"shard_{shard}.json").unlink(missing_ok=True)
            self._written.discard(shard)
            for name in attribute(self._group, "digests", {}).get(str(shard * self._size), {}):
                array(self._group, name).drop_shard(shard * self._size)
        self._drop_homeless()

    def note_written(self, items: Mapping[int, Item], digests: Mapping[int, str], without: set[int]) -> None:
        """Describe the shards of a finished store again, as if it had just been written.

        Args:
            items: All its items.
            digests: Of its rows.
            without: First rows of shards that are to be written anew.
        """
        for shard, numbers in self._items_of.items():
            first = shard * self._size
            if first in without or any(number not in items for number in numbers):
                continue
            content = {
                "items": {
                    str(number): {"record": items[number].record, "rows": items[number].rows} for number in numbers
                },
                "digests": {str(row): digests[row] for row in range(first, first + self._size) if row in digests},
            }
            _write_json(self._folder / f"shard_{shard}.json", content)
            self._note_written(shard, content)

    def write_all(self) -> None:
        """Write every shard whose items are all there."""
        if not self._kept:
            for shard in self._items_of:
                self._write_if_complete(shard)
            return
        with progress("clips of an earlier run", len(self._items_of), "shard") as bar:
            for shard in self._items_of:
                self._write_if_complete(shard)
                bar.update(1)

    def remove(self) -> None:
        """Delete the folder: the store is finished."""
        remove_spool(self._folder)

    # -- shards -------------------------------------------------------------------------------------------------------

    def _shards_of(self, number: int) -> range:
        span = self._spans[number]
        return range(span.start // self._size, (span.stop - 1) // self._size + 1)

    def _drop_homeless(self) -> None:
        """Items that a shard still needs but whose arrays are gone (with a shard they shared) are to be made again."""
        for shard, numbers in self._items_of.items():
            if shard in self._written:
                continue
            for number in numbers:
                if number in self.items and self.items[number].rows and not self.file(number).is_file():
                    del self.items[number]
                    (self._folder / f"{number}.json").unlink(missing_ok=True)

    def _note_written(self, shard: int, content: dict[str, Any]) -> None:
        self._written.add(shard)
        self.digests |= {int(row): digest for row, digest in content["digests"].items()}
        for number, found in content["items"].items():
            self.items.setdefault(int(number), _item(found))

    def _write_if_complete(self, shard: int) -> None:
        numbers = self._items_of[shard]
        if any(number not in self.items for number in numbers):
            return
        if shard not in self._written:
            self._write(shard, numbers)
        for number in numbers:
            if all(other in self._written for other in self._shards_of(number)):
                self.file(number).unlink(missing_ok=True)
                (self._folder / f"{number}.json").unlink(missing_ok=True)

    def _write(self, shard: int, numbers: list[int]) -> None:
        first = shard * self._size
        count = min(self._size, self._rows - first)
        values = {name: np.full((count, *spec.shape), spec.fill, spec.dtype) for name, spec in self._specs.items()}
        done = np.zeros(count, np.uint8)
        for number in numbers:
            inside = [place for place, row in enumerate(self.items[number].rows) if 0 <= row - first < count]
            if inside:
                rows = [self.items[number].rows[place] - first for place in inside]
                for name, found in self._arrays(number, inside).items():
                    values[name][rows] = found
                done[rows] = 1
        filled = [int(row) for row in np.flatnonzero(done)]
        digests = {str(first + row): digest_of(*(values[name][row] for name in sorted(values))) for row in filled}
        if filled:
            write_rows(self._group, first, self._complete(values), done)
        items = {str(n): {"record": self.items[n].record, "rows": list(self.items[n].rows)} for n in numbers}
        content = {"items": items, "digests": digests}
        _write_json(self._folder / f"shard_{shard}.json", content)
        self._note_written(shard, content)

    def _arrays(self, number: int, places: list[int]) -> dict[str, np.ndarray]:
        """Some entries of an item's arrays."""
        if number in self._kept:
            kept = self._kept[number]
            rows = [kept.old_rows[place] for place in places]
            return {name: array(kept.group, name)[rows] for name in self._specs}
        with np.load(self.file(number)) as stored:
            return {name: stored[name][places] for name in self._specs}


def remove_spool(folder: Path) -> None:
    """Delete a spool, if there is one."""
    if folder.exists():
        shutil.rmtree(folder)


def _item(content: dict[str, Any]) -> Item:
    return Item(content["record"], tuple(content["rows"]))


def _write_json(path: Path, content: Any) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content), encoding="utf-8")
