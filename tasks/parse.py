"""Stage `parse`: class labels of every pixel of every clip, and the head masks made from them.

Clips are segmented in worker processes, one job a clip. A finished clip waits in a spool folder until all clips of its
shard are there; the shard is then written as a whole by this process, so that kill -9 costs the clips at work only. The
store carries two fingerprints: the stage's, and one of the labels alone, which leaves `parse.head_labels` out. Where
only that setting changed, the masks are made again from the labels and no frame is parsed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from models.config import Params, Parse
from tasks.clip_table import ok_clips, read_table
from tasks.errors import StageError
from tasks.labels import NAMES, head_mask
from tasks.parse_clip import ParseJob, parse_clip
from tasks.paths import Paths
from tasks.progress import progress
from tasks.stores import NO_LABEL, array, mask_arrays, open_or_create, open_store, read_fingerprint, write_rows
from tasks.workers import Outcome, run_jobs

CODE = ("segment.py", "head_prior.py", "labels.py", "parse_clip.py")
"""Files beside this one whose content decides about the labels."""
REASONS = {"failed": "crashed", "crashed": "crashed", "deadline": "deadline"}
"""Reason code of a job that gave no labels, by `Outcome.kind`."""


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """Parse every clip, or go on with that.

    Args:
        params: All settings; `parse`, `crop` (sizes) and `runtime` are used.
        paths: The data folder.
        fingerprint: Hash of the settings, code and inputs of this stage.

    Returns:
        Counts by status and reason, mean head area, flicker, and clips and frames parsed in this run.

    Raises:
        StageError: There are no clips, a head label is no class, or not a single clip could be parsed.
    """
    _check_head_labels(params.parse)
    clips = _clip_store(paths)
    names = _names(paths, np.flatnonzero(np.asarray(array(clips, "done")[:])))
    mark = labels_fingerprint(params.parse, paths)
    group = _open(params, paths, fingerprint, mark, array(clips, "done").shape[0])
    if group.attrs.get("complete") and paths.mask_table.is_file():
        return {**summary(pd.read_parquet(paths.mask_table)), "clips_parsed_now": 0}
    start, shards = time.monotonic(), _Shards(paths, group, params, set(names))
    todo = shards.missing()

    def keep(position: int, outcome: Outcome) -> None:
        record = outcome.value if outcome.kind == "ok" else {"code": REASONS[outcome.kind], "text": outcome.detail}
        shards.add(todo[position], record["code"], record["text"])

    run_jobs(
        parse_clip,
        [ParseJob(paths.clips, shards.file(row), row, params.parse, params.runtime.device) for row in todo],
        workers=params.runtime.workers,
        deadline_s=params.runtime.video_deadline_s,
        label="parse",
        on_result=keep,
        unit="clip",
        initial=len(names) - len(todo),
    )
    table = _table(group, names)
    _write_table(table, paths.mask_table)
    figures = summary(table)
    if not figures["clips"]:
        shutil.rmtree(paths.masks)  # the next run tries all of them again
        raise StageError(
            f"none of the {len(names)} clips could be parsed ({table['reason'].value_counts().to_dict()}); "
            f"see {paths.mask_table} and look at one with `head3d inspect CLIP -o sheet.png`"
        )
    shutil.rmtree(shards.folder, ignore_errors=True)
    group.attrs["complete"] = True
    rate = len(todo) * params.crop.clip_frames / max(time.monotonic() - start, 1e-9)
    return {**figures, "clips_parsed_now": len(todo), "frames_per_s": round(rate, 1)}


def labels_fingerprint(settings: Parse, paths: Paths) -> str:
    """Hash of all that decides about the labels: settings without `head_labels`, code, and which clips there are."""
    values = settings.model_dump()
    del values["head_labels"]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name in CODE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    digest.update(str(read_fingerprint(paths.clips)).encode())
    digest.update(np.asarray(array(open_store(paths.clips), "done")[:]).tobytes())
    return digest.hexdigest()


def flicker(head: np.ndarray) -> float:
    """How much a mask jumps: 1 - mean intersection over union of successive frames (0: it stands still).

    Args:
        head: `(T, H, W)` 0/1.
    """
    if len(head) < 2:
        return 0.0
    both = np.logical_and(head[1:], head[:-1]).sum(axis=(1, 2))
    either = np.logical_or(head[1:], head[:-1]).sum(axis=(1, 2))
    return float(1 - np.mean(both / np.maximum(either, 1)))


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Counts and means of the mask table (`data/masks.parquet`)."""
    good = table[table["status"] == "ok"]
    figures: dict[str, Any] = {"clips": len(good), "clips_failed": len(table) - len(good)}
    counts = table.loc[table["status"] != "ok", "reason"].value_counts()
    figures |= {f"reason_{reason}": int(counts[reason]) for reason in sorted(counts.index)}
    if len(good):
        figures["head_area_mean"] = round(float(good["head_area"].mean()), 4)
        figures["flicker_mean"] = round(float(good["flicker"].mean()), 4)
    return figures


# -- the store --------------------------------------------------------------------------------------------------------


class _Shards:
    """Finished clips that wait for their shard, and the shards that are written.

    `attrs["shards"]` of the store lists the written ones and `attrs["failed"]` says why a clip of theirs has no labels.
    """

    def __init__(self, paths: Paths, group: zarr.Group, params: Params, rows: set[int]) -> None:
        self.folder = paths.masks / ".spool"
        self.folder.mkdir(exist_ok=True)
        self._group, self._rows, self._settings = group, rows, params.parse
        self._size = params.crop.shard_clips
        self._total = array(group, "done").shape[0]
        self._failed: dict[int, tuple[str, str]] = {}
        self._written = set(_attribute(group, "shards", []))
        for shard in range(-(-self._total // self._size)):
            self._write_if_complete(shard)

    def file(self, row: int) -> Path:
        """Where the labels of a clip wait."""
        return self.folder / f"{row}.npy"

    def missing(self) -> list[int]:
        """Clips that are still to be parsed."""
        return [
            row for row in sorted(self._rows) if row // self._size not in self._written and not self.file(row).exists()
        ]

    def add(self, row: int, code: str, text: str) -> None:
        """Take note of a finished or failed clip, and write the shard it was the last for."""
        if code:
            self._failed[row] = (code, text)
        self._write_if_complete(row // self._size)

    def _write_if_complete(self, shard: int) -> None:
        first = shard * self._size
        wanted = [row for row in range(first, min(first + self._size, self._total)) if row in self._rows]
        if shard in self._written or any(row not in self._failed and not self.file(row).exists() for row in wanted):
            return
        count = min(self._size, self._total - first)
        done = np.zeros(count, np.uint8)
        class_ids = np.full((count, *array(self._group, "labels").shape[1:]), NO_LABEL, np.uint8)
        for row in wanted:
            if row not in self._failed:
                class_ids[row - first], done[row - first] = np.load(self.file(row)), 1
        failed = {str(row): list(self._failed[row]) for row in wanted if row in self._failed}
        self._group.attrs["failed"] = {**_attribute(self._group, "failed", {}), **failed}
        head = head_mask(class_ids, self._settings.head_labels)
        write_rows(self._group, first, {"labels": class_ids, "head": head}, done)
        self._written.add(shard)
        self._group.attrs["shards"] = sorted(self._written)
        for row in wanted:
            self.file(row).unlink(missing_ok=True)


def _attribute(group: zarr.Group, name: str, otherwise: Any) -> Any:
    return group.attrs.asdict().get(name, otherwise)


def _open(params: Params, paths: Paths, fingerprint: str, mark: str, rows: int) -> zarr.Group:
    """The store of masks: as it was left, with new masks from its labels, or empty."""
    old = _attributes(paths.masks)
    if old.get("labels_fingerprint") != mark:
        shutil.rmtree(paths.masks, ignore_errors=True)
    elif old.get("fingerprint") != fingerprint:
        _remake_heads(paths.masks, params, fingerprint)
    arrays = mask_arrays(params.crop.clip_frames, params.crop.size_px)
    group = open_or_create(paths.masks, arrays, rows, params.crop.shard_clips, fingerprint)
    group.attrs["labels_fingerprint"] = mark
    return group


def _attributes(path: Path) -> dict[str, Any]:
    try:
        return zarr.open_group(path, mode="r", zarr_format=3).attrs.asdict()
    except (OSError, ValueError, KeyError):
        return {}


def _remake_heads(path: Path, params: Params, fingerprint: str) -> None:
    """Masks from the labels that are there, for another `head_labels`. Killed half-way, the next run does it again."""
    group = zarr.open_group(path, mode="r+", zarr_format=3)
    group.attrs.update({"fingerprint": "", "complete": False})
    size, total = params.crop.shard_clips, array(group, "done").shape[0]
    shards = _attribute(group, "shards", [])
    with progress("head masks from labels", len(shards), "shard") as bar:
        for shard in shards:
            rows = slice(shard * size, min((shard + 1) * size, total))
            array(group, "head")[rows] = head_mask(np.asarray(array(group, "labels")[rows]), params.parse.head_labels)
            bar.update(1)
    group.attrs["fingerprint"] = fingerprint


def _check_head_labels(settings: Parse) -> None:
    wrong = [label for label in settings.head_labels if not 0 < label < len(NAMES)]
    if wrong or not settings.head_labels:
        known = ", ".join(f"{number} {name}" for number, name in enumerate(NAMES) if number)
        raise StageError(f"parse.head_labels = {settings.head_labels} must name classes of the head: {known}")


def _clip_store(paths: Paths) -> zarr.Group:
    try:
        return open_store(paths.clips)
    except FileNotFoundError as error:
        raise StageError(str(error)) from None


# -- the table --------------------------------------------------------------------------------------------------------


def _names(paths: Paths, rows: np.ndarray) -> dict[int, str]:
    """Clip names of the rows that hold frames."""
    table = ok_clips(read_table(paths.clip_table))
    known = dict(zip(table["row"].astype(int), table["clip"].astype(str), strict=True))
    return {int(row): known[int(row)] for row in rows if int(row) in known}


def _table(group: zarr.Group, names: dict[int, str]) -> pd.DataFrame:
    """One row per clip: row, clip, status, reason, detail, head_area (mean share of the frame), flicker."""
    done, head = np.asarray(array(group, "done")[:]), array(group, "head")
    failed = _attribute(group, "failed", {})
    records: list[dict[str, Any]] = []
    for row, clip in names.items():
        record: dict[str, Any] = {"row": row, "clip": clip, "status": "ok", "reason": "", "detail": ""}
        if done[row]:
            mask = np.asarray(head[row])
            record |= {"head_area": float(mask.mean()), "flicker": flicker(mask)}
        else:
            code, text = failed[str(row)]
            record |= {"status": "error", "reason": code, "detail": text}
            record |= {"head_area": float("nan"), "flicker": float("nan")}
        records.append(record)
    columns = ("row", "clip", "status", "reason", "detail", "head_area", "flicker")
    return pd.DataFrame(records, columns=list(columns))


def _write_table(table: pd.DataFrame, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    table.to_parquet(partial, index=False)
    partial.replace(path)
