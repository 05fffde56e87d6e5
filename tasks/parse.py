"""Stage `parse`: class labels of every pixel of every clip, and the head masks made from them.

Clips are segmented in worker processes, one job a clip. A finished clip waits in a spool folder until all clips of its
shard are there; the shard is then written as a whole by this process, so that kill -9 costs the clips at work only. The
store carries three marks: the stage's fingerprint; one of the labels, which leaves `parse.head_labels` out (where only
that setting changed, the masks are made again from the labels); and one of the parser alone (where only the list of
clips changed, the labels of clips with the same pixels are copied from the store that was there).

A finished store is finished, but for what may go better another time: run again
(`dvc repro --force --single-item parse`), the stage
tries the clips anew that timed out or crashed their worker, and makes the masks of damaged shards again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from models.config import Params, Parse, Runtime
from tasks.clip_table import ok_clips, read_table
from tasks.device import choose_device
from tasks.disk import check_room, check_writable, storage_errors, whole_file
from tasks.errors import StageError
from tasks.labels import NAMES, head_mask
from tasks.parse_clip import ParseJob, parse_clip
from tasks.parser_network import NETWORKS
from tasks.paths import Paths
from tasks.progress import progress
from tasks.segment import check_parser
from tasks.source_code import code_hash
from tasks.spool import FOLDER, Item, Kept, Spool, remove_spool
from tasks.store_location import remove_store
from tasks.store_reuse import TABLE, make_room, older
from tasks.stores import (
    array,
    attribute,
    attributes,
    damaged,
    finish_store,
    mask_arrays,
    open_for_writing,
    open_or_create,
    open_store,
    read_fingerprint,
    write_rows,
)
from tasks.workers import Outcome, run_jobs

REASONS = {"failed": "crashed", "crashed": "crashed", "deadline": "deadline"}
"""Reason code of a job that gave no labels, by `Outcome.kind`."""
AGAIN = frozenset({"deadline", "crashed"})
"""Reasons that may be gone another time: such a clip is tried again whenever the stage runs."""
STORED_SHARE = 0.05
"""Of the labels' and masks' bytes at most so many remain after compression (0.03 on real clips at 128 px)."""
GPU_WORKERS = 4
"""Processes that share a GPU: each holds a context and a batch there, and a few keep it busy."""
OWN_COLUMNS = ("row", "clip", "status", "reason", "detail", "head_area", "flicker")


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """Parse every clip, or go on with that.

    Args:
        params: All settings; `parse`, `crop` (sizes) and `runtime` are used.
        paths: The data folder.
        fingerprint: Hash of the settings, code and inputs of this stage.

    Returns:
        Counts by status and reason, mean head area, flicker, and clips and frames parsed in this run.

    Raises:
        StageError: There are no clips, a head label is no class, the parser's weights are missing, the disk is full or
            read-only, the cluster or the store's address cannot be used, or not a single clip could be parsed.
    """
    _check_head_labels(params.parse)
    clips = _clip_store(paths)
    check_parser(params.parse)
    check_writable(paths.data)
    names = _names(paths, np.flatnonzero(array(clips, "done")[:]))
    with storage_errors(paths.data, _clip_bytes(params) * len(names)):
        return _Run(params, paths, fingerprint, names, len(array(clips, "done"))).work()


def labels_fingerprint(settings: Parse, paths: Paths) -> str:
    """Hash of all that decides about the labels: settings without `head_labels`, code, and which clips there are."""
    digest = hashlib.sha256(_made_by(settings).encode())
    digest.update(str(read_fingerprint(paths.clips)).encode())
    digest.update(array(open_store(paths.clips), "done")[:].tobytes())
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


# -- one run ----------------------------------------------------------------------------------------------------------


class _Run:
    """One run of the stage."""

    def __init__(self, params: Params, paths: Paths, fingerprint: str, names: dict[int, str], rows: int) -> None:
        self._params, self._paths, self._names = params, paths, names
        mark, made_by = labels_fingerprint(params.parse, paths), _made_by(params.parse)
        found = attributes(paths.masks)
        if found.get("complete") and not paths.mask_table.is_file():  # someone deleted the table: make both again
            remove_store(paths.masks)
        elif found.get("labels_fingerprint") == mark and found.get("fingerprint") != fingerprint:
            _remake_heads(paths.masks, params, fingerprint)
        make_room(paths.masks, paths.mask_table, fingerprint, made_by)
        arrays = mask_arrays(params.crop.clip_frames, params.crop.size_px)
        stores = params.runtime.stores
        self._group = open_or_create(paths.masks, arrays, rows, params.crop.shard_clips, fingerprint, stores)
        if attribute(self._group, "labels_fingerprint", "") != mark:
            self._group.attrs.update({"labels_fingerprint": mark, "made_by": made_by})
        table = ok_clips(read_table(paths.clip_table))
        digests = table["digest"] if "digest" in table.columns else [""] * len(table)
        self._digest = dict(zip(table["row"].astype(int), digests, strict=True))

    def work(self) -> dict[str, Any]:
        """Do what is to be done; the stage's figures."""
        paths, start = self._paths, time.monotonic()
        finished = bool(attribute(self._group, "complete", False))
        spool = self._reopened() if finished else self._resumed()
        if spool is None:
            if attribute(self._group, "heads", None) != self._params.parse.head_labels:
                self._write_table(_records(pd.read_parquet(paths.mask_table)))
                self._group.attrs["heads"] = self._params.parse.head_labels
            finish_store(paths.masks, self._group)
            remove_store(older(paths.masks))
            return {**summary(pd.read_parquet(paths.mask_table)), "clips_parsed_now": 0}
        spool.write_all()
        todo = [row for row in sorted(self._names) if row not in spool.items]
        self._parse(spool, todo)
        table = self._write_table({row: item.record for row, item in spool.items.items()})
        figures = summary(table)
        if not figures["clips"]:
            remove_store(paths.masks)  # the next run tries all of them again
            raise StageError(
                f"none of the {len(self._names)} clips could be parsed ({table['reason'].value_counts().to_dict()}); "
                f"see {paths.mask_table} and look at one with `head3d inspect CLIP -o sheet.png`"
            )
        self._group.attrs["heads"] = self._params.parse.head_labels
        finish_store(paths.masks, self._group)
        spool.remove()
        remove_store(older(paths.masks))
        rate = len(todo) * self._params.crop.clip_frames / max(time.monotonic() - start, 1e-9)
        return {**figures, "clips_parsed_now": len(todo), "frames_per_s": round(rate, 1)}

    def _parse(self, spool: Spool, todo: list[int]) -> None:
        settings, runtime = self._params.parse, self._params.runtime
        clip_bytes = _clip_bytes(self._params)
        warning = check_room(
            self._paths.data,
            least_bytes=clip_bytes * min(len(todo), self._params.crop.shard_clips),
            about_bytes=clip_bytes * len(todo),
        )
        if warning:
            print(f"parse: {warning}", file=sys.stderr, flush=True)  # noqa: T201

        def keep(position: int, outcome: Outcome) -> None:
            row = todo[position]
            failed = {"code": REASONS.get(outcome.kind, ""), "text": outcome.detail, "measures": {}}
            record = outcome.value if outcome.kind == "ok" else failed
            spool.add(row, Item(record, () if record["code"] else (row,)))

        run_jobs(
            parse_clip,
            [ParseJob(self._paths.clips.resolve(), spool.file(row), row, settings, runtime.device) for row in todo],
            workers=_workers(settings, runtime),
            deadline_s=runtime.video_deadline_s,
            label="parse",
            on_result=keep,
            unit="clip",
            initial=len(self._names) - len(todo),
            scheduler=runtime.scheduler,
            shared=self._paths.data,
        )

    # -- what was done before -----------------------------------------------------------------------------------------

    def _spool(self) -> Spool:
        labels = {"labels": mask_arrays(self._params.crop.clip_frames, self._params.crop.size_px)["labels"]}
        spans = {row: range(row, row + 1) for row in self._names}
        folder = (self._paths.masks / FOLDER).resolve()

        def with_heads(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {**values, "head": head_mask(values["labels"], self._params.parse.head_labels)}

        return Spool(folder, self._group, labels, spans, with_heads)

    def _resumed(self) -> Spool:
        """Go on with an unfinished store; damaged shards of it are made again."""
        spool = self._spool()
        broken = damaged(self._group)
        if broken:
            spool.forget(broken)
        old = older(self._paths.masks)
        if old.exists():
            group, table = open_store(old), pd.read_parquet(old / TABLE)
            records, by_digest = _records(table), {}
            if "digest" in table.columns:
                by_digest = {text: int(row) for text, row in zip(table["digest"], table["row"], strict=True) if text}
            same = {row: by_digest[self._digest[row]] for row in self._names if self._digest.get(row) in by_digest}
            spool.keep(_kept({row: records[before] for row, before in same.items()}, group, same))
        return spool

    def _reopened(self) -> Spool | None:
        """A finished store, opened again for what is damaged or worth another try; None: nothing is."""
        remove_spool(self._paths.masks / FOLDER)
        records = _records(pd.read_parquet(self._paths.mask_table))
        broken = damaged(self._group)
        again = {row for row, record in records.items() if record["code"] in AGAIN}
        if not broken and not again:
            return None
        size = array(self._group, "done").shards
        kept = _kept({row: record for row, record in records.items() if row not in again}, self._group)
        spool = self._spool()
        items = {row: found.item for row, found in kept.items()}
        spool.note_written(items, {}, {row // size * size for row in again} | set(broken))
        self._group.attrs["complete"] = False
        spool.forget(broken)
        spool.keep({row: found for row, found in kept.items() if row // size * size not in broken})
        print(  # noqa: T201
            f"parse: {len(broken)} damaged shards and {len(again)} clips that failed are made again",
            file=sys.stderr,
            flush=True,
        )
        return spool

    # -- the table ----------------------------------------------------------------------------------------------------

    def _write_table(self, records: dict[int, dict[str, Any]]) -> pd.DataFrame:
        """One row per clip: row, clip, status, reason, detail, head_area (mean share of the frame), flicker, the other
        measures of `tasks.quality`, and the digest of the clip's pixels."""
        done, head = array(self._group, "done")[:], array(self._group, "head")
        nothing = {"head_area": float("nan"), "flicker": float("nan")}
        rows: list[dict[str, Any]] = []
        for row, clip in self._names.items():
            record = records[row]
            shown: dict[str, Any] = {"row": row, "clip": clip, "status": "ok", "reason": "", "detail": ""}
            if done[row]:
                mask = head[row]
                shown |= {**record["measures"], "head_area": float(mask.mean()), "flicker": flicker(mask)}
            else:
                shown |= {"status": "error", "reason": record["code"], "detail": record["text"], **nothing}
            rows.append({**shown, "digest": self._digest.get(row, "")})
        table = pd.DataFrame(rows)
        others = sorted(set(table.columns) - {*OWN_COLUMNS, "digest"})
        table = table[[*OWN_COLUMNS, *others, "digest"]]
        with whole_file(self._paths.mask_table) as partial:
            table.to_parquet(partial, index=False)
        return table


def _records(table: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """Row -> what the worker said of the clip, from the table."""
    measures = [str(name) for name in table.columns if name not in (*OWN_COLUMNS, "digest")]
    return {
        int(row["row"]): {
            "code": row["reason"],
            "text": row["detail"],
            "measures": {} if row["reason"] else {name: float(row[name]) for name in measures},
        }
        for row in table.to_dict("records")
    }


def _kept(
    records: dict[int, dict[str, Any]], group: zarr.Group, before: dict[int, int] | None = None
) -> dict[int, Kept]:
    """Clips whose labels are rows of a finished store: the same ones, or `before` (row -> row of that store)."""
    kept = {}
    for row, record in records.items():
        if record["code"] not in AGAIN:
            filled, old = ((), ()) if record["code"] else ((row,), (before[row] if before else row,))
            kept[row] = Kept(Item(record, filled), group, old)
    return kept


def _made_by(settings: Parse) -> str:
    """Hash of the settings, code and weights that decide about the labels of a clip."""
    values = settings.model_dump(exclude={"head_labels"})
    weights = tuple(Path(__file__).with_name("weights").glob("*.safetensors"))
    code = code_hash("tasks.parse_clip", files=weights)
    return hashlib.sha256(json.dumps([values, code], sort_keys=True).encode()).hexdigest()


def _clip_bytes(params: Params) -> int:
    """About what a clip's labels and masks take on the disk, and its labels in the spool for a while."""
    specs = mask_arrays(params.crop.clip_frames, params.crop.size_px)
    return specs["labels"].clip_bytes + int(STORED_SHARE * sum(spec.clip_bytes for spec in specs.values()))


def _remake_heads(path: Path, params: Params, fingerprint: str) -> None:
    """Masks from the labels that are there, for another `head_labels`. Killed half-way, the next run does it again."""
    group = open_for_writing(path)
    group.attrs.update({"fingerprint": ""})
    done, labels = array(group, "done"), array(group, "labels")
    written = [int(first) for first in attribute(group, "digests", {})]
    with progress("head masks from labels", len(written), "shard") as bar:
        for first in written:
            rows = slice(first, first + done.shards)
            with contextlib.suppress(StageError):  # a damaged shard: noticed, and made again, a little later
                write_rows(group, first, {"head": head_mask(labels[rows], params.parse.head_labels)}, done[rows])
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


def _names(paths: Paths, rows: np.ndarray) -> dict[int, str]:
    """Clip names of the rows that hold frames."""
    table = ok_clips(read_table(paths.clip_table))
    known = dict(zip(table["row"].astype(int), table["clip"].astype(str), strict=True))
    return {int(row): known[int(row)] for row in rows if int(row) in known}


def _workers(settings: Parse, runtime: Runtime) -> int:
    """How many processes parse: fewer where they share a GPU."""
    on_gpu = settings.parser in NETWORKS and choose_device(runtime.device).type == "cuda"
    return min(runtime.workers, GPU_WORKERS) if on_gpu else runtime.workers
