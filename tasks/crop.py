"""Stage `crop`: the videos of the manifest -> square face clips (clips.zarr) and the clip table (clips.parquet).

Workers leave finished videos in a spool inside the store; this process alone writes the shards, each as a whole and
once, when all its videos are in. Everything appears by renaming, so a run that is killed at any moment goes on where it
was and ends with the same bytes; it loses the videos that were being worked on.

A finished store is finished, but for what may go better another time: run again
(`dvc repro --force --single-item crop`), the stage
tries the videos anew that were missing, timed out or crashed their worker, and makes the clips of damaged shards again.
Where only the list of videos changed, the clips of those that stayed are copied from the store that was there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import zarr

from models.config import Crop, Params
from tasks.clip_table import ok_clips, read_table, write_table
from tasks.crop_video import CropJob, crop_video, refusal
from tasks.disk import check_room, check_writable, storage_errors
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.source_code import code_hash
from tasks.spool import FOLDER, Item, Kept, Spool, remove_spool
from tasks.store_location import remove_store
from tasks.store_reuse import make_room, older
from tasks.stores import array, attribute, clip_arrays, damaged, finish_store, open_or_create, open_store
from tasks.workers import Outcome, run_jobs

REASONS = {"failed": "crashed", "crashed": "crashed", "deadline": "deadline"}
AGAIN = frozenset({"missing", "deadline", "crashed"})
"""Reasons that may be gone another time: such a video is tried again whenever the stage runs."""
STORED_SHARE = 0.8
"""Of the frames' bytes at most so many remain after compression (0.61 on real clips at 128 px)."""


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """Crop every video of the manifest, or go on with that.

    Args:
        params: All settings; `crop` and `runtime` are used.
        paths: The data folder.
        fingerprint: Hash of the settings, code and inputs; a store of another one is thrown away.

    Returns:
        Counts by status and reason, clips, and, for a run that worked, seconds and videos per second.

    Raises:
        StageError: There is no manifest, the disk is full or read-only, the cluster or the store's address cannot be
            used, or not a single clip came out.
    """
    jobs = _jobs(params.crop, paths)
    check_writable(paths.data)
    with storage_errors(paths.data, _clip_bytes(params.crop) * len(jobs) * params.crop.clips_per_video):
        return _Run(params, paths, fingerprint, jobs).work()


class _Run:
    """One run of the stage."""

    def __init__(self, params: Params, paths: Paths, fingerprint: str, jobs: list[CropJob]) -> None:
        self._params, self._paths, self._jobs = params, paths, jobs
        made_by = _made_by(params.crop)
        make_room(paths.clips, paths.clip_table, fingerprint, made_by)
        self._group = self._open(fingerprint)
        if attribute(self._group, "complete", False) and not paths.clip_table.is_file():  # deleted: make both again
            remove_store(paths.clips)
            self._group = self._open(fingerprint)
        if not attribute(self._group, "made_by", ""):
            self._group.attrs["made_by"] = made_by

    def _open(self, fingerprint: str) -> zarr.Group:
        crop = self._params.crop
        arrays = clip_arrays(crop.clip_frames, crop.size_px)
        rows = len(self._jobs) * crop.clips_per_video
        stores = self._params.runtime.stores
        return open_or_create(self._paths.clips, arrays, rows, crop.shard_clips, fingerprint, stores)

    def work(self) -> dict[str, Any]:
        """Do what is to be done; the stage's figures."""
        start, paths = time.monotonic(), self._paths
        finished = bool(attribute(self._group, "complete", False))
        spool = self._resumed() if not finished else self._reopened()
        if spool is None:
            finish_store(paths.clips, self._group)
            remove_store(older(paths.clips))
            return summary(read_table(paths.clip_table))
        spool.write_all()
        todo = [job for job in self._jobs if job.index not in spool.items]
        self._crop(spool, todo)
        write_table(paths.clip_table, self._table(spool))
        figures = summary(read_table(paths.clip_table))
        if not figures["clips"]:
            spool.remove()  # the next run tries all of them again
            raise StageError(
                f"not one clip came out of {len(self._jobs)} videos ({_reasons(figures)}); see {paths.clip_table}"
            )
        finish_store(paths.clips, self._group)
        spool.remove()
        remove_store(older(paths.clips))
        if finished:
            return figures
        seconds = time.monotonic() - start
        return {**figures, "seconds": round(seconds, 2), "videos_per_s": round(len(todo) / max(seconds, 1e-9), 3)}

    def _crop(self, spool: Spool, todo: list[CropJob]) -> None:
        crop, runtime = self._params.crop, self._params.runtime
        clip_bytes = _clip_bytes(crop)
        warning = check_room(
            self._paths.data,
            least_bytes=2 * clip_bytes * min(crop.shard_clips, max(len(todo), 1) * crop.clips_per_video),
            about_bytes=clip_bytes * len(todo) * crop.clips_per_video,
        )
        if warning:
            print(f"crop: {warning}", file=sys.stderr, flush=True)  # noqa: T201

        def keep(position: int, outcome: Outcome) -> None:
            job = todo[position]
            if outcome.kind == "ok":
                record = outcome.value
            else:
                record = [refusal(job, "error", REASONS[outcome.kind], f"{job.path.name}: {outcome.detail}")]
            spool.add(job.index, Item(record, _rows(job, record)))

        run_jobs(
            crop_video,
            todo,
            workers=runtime.workers,
            deadline_s=runtime.video_deadline_s,
            label="crop",
            on_result=keep,
            initial=len(self._jobs) - len(todo),
            scheduler=runtime.scheduler,
            shared=self._paths.data,
        )

    def _table(self, spool: Spool) -> list[dict[str, Any]]:
        """Rows of the clip table in the manifest's order."""
        rows = []
        for job in self._jobs:
            item = spool.items[job.index]
            here = iter(item.rows)
            for record in item.record:
                row = next(here) if record["status"] == "ok" else -1
                rows.append({**record, "row": row, "key": _key(job), "digest": spool.digests.get(row, "")})
        return rows

    # -- what was done before -----------------------------------------------------------------------------------------

    def _spool(self) -> Spool:
        crop = self._params.crop
        count = crop.clips_per_video
        spans = {job.index: range(job.index * count, (job.index + 1) * count) for job in self._jobs}
        return Spool(_spool(self._paths), self._group, clip_arrays(crop.clip_frames, crop.size_px), spans)

    def _resumed(self) -> Spool:
        """Go on with an unfinished store; damaged shards of it are made again."""
        spool = self._spool()
        broken = damaged(self._group)
        if broken:
            spool.forget(broken)
        old = older(self._paths.clips)
        if old.exists():
            from tasks.store_reuse import TABLE

            spool.keep(self._kept(read_table(old / TABLE), open_store(old)))
        return spool

    def _reopened(self) -> Spool | None:
        """A finished store, opened again for what is damaged or worth another try; None: nothing is."""
        remove_spool(_spool(self._paths))
        table = read_table(self._paths.clip_table)
        broken = damaged(self._group)
        again = set(table.loc[table["reason"].isin(AGAIN), "video"].astype(str))
        if not broken and not again:
            return None
        kept = self._kept(table, self._group, own=True)
        spool, size = self._spool(), array(self._group, "done").shards
        count = self._params.crop.clips_per_video
        touched = {
            row // size * size
            for job in self._jobs
            if job.index not in kept
            for row in range(job.index * count, (job.index + 1) * count)
        }
        digests = dict(zip(table["row"].astype(int), table["digest"].astype(str), strict=True))
        spool.note_written({index: found.item for index, found in kept.items()}, digests, touched | set(broken))
        self._group.attrs["complete"] = False
        spool.forget(broken)
        lost = {row for first in broken for row in range(first, first + size)}
        spool.keep({index: found for index, found in kept.items() if not lost.intersection(found.old_rows)})
        print(  # noqa: T201
            f"crop: {len(broken)} damaged shards and {len(again)} videos that were missing or failed are made again",
            file=sys.stderr,
            flush=True,
        )
        return spool

    def _kept(self, table: pd.DataFrame, group: zarr.Group, own: bool = False) -> dict[int, Kept]:
        """Videos whose clips are rows of a finished store.

        Args:
            table: That store's.
            group: The store.
            own: It is this run's own: the list of videos is the same.
        """
        if "key" not in table.columns:
            return {}
        by_key = {str(key): rows for key, rows in table.groupby("key", sort=False)}
        kept = {}
        for job in self._jobs:
            rows = by_key.get(_key(job))
            if rows is None or (not own and not job.manifest["sha256"]) or rows["reason"].isin(AGAIN).any():
                continue
            manifest = refusal(job, "", "", "")
            taken = {name: manifest[name] for name in ("video", "dataset", "identity", "split", "source", "sha256")}
            record = [{**_plain(row), **taken} for row in rows.to_dict("records")]
            old_rows = tuple(int(row) for row in rows["row"] if row >= 0)
            kept[job.index] = Kept(Item(record, _rows(job, record)), group, old_rows)
        return kept


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Counts of a clip table.

    Args:
        table: As `read_table` gives it.

    Returns:
        `videos`, `clips`, `clips_train`, `clips_test`, `videos_ok`, `videos_rejected`, `videos_error` and, for each
        reason that occurs, `reason_<code>`.
    """
    videos = table.drop_duplicates("video")
    clips = ok_clips(table)
    figures: dict[str, Any] = {
        "videos": len(videos),
        "clips": len(clips),
        "clips_train": int((clips["split"] == "train").sum()),
        "clips_test": int((clips["split"] == "test").sum()),
    }
    for status in ("ok", "rejected", "error"):
        figures[f"videos_{status}"] = int((videos["status"] == status).sum())
    counts = videos.loc[videos["status"] != "ok", "reason"].value_counts()
    return {**figures, **{f"reason_{reason}": int(counts[reason]) for reason in sorted(counts.index)}}


def _spool(paths: Paths) -> Path:
    return paths.clips / FOLDER


def _rows(job: CropJob, record: list[dict[str, Any]]) -> tuple[int, ...]:
    """Rows of the store that a video's clips fill."""
    first = job.index * job.crop.clips_per_video
    return tuple(first + row["segment"] for row in record if row["status"] == "ok")


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """A row of the table as a worker gives it."""
    return {str(name): value for name, value in row.items() if name not in ("row", "key", "digest")}


def _key(job: CropJob) -> str:
    """What a video's clips follow from, beside settings and code."""
    seen = {name: value for name, value in job.manifest.items() if name not in ("path", "dataset", "identity")}
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:32]


def _made_by(crop: Crop) -> str:
    """Hash of the settings and the code that decide about a clip."""
    values = crop.model_dump(exclude={"shard_clips"})
    text = json.dumps([values, code_hash("tasks.crop_video")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _clip_bytes(crop: Crop) -> int:
    """About what a clip takes on the disk."""
    specs = clip_arrays(crop.clip_frames, crop.size_px)
    return int(STORED_SHARE * sum(spec.clip_bytes for spec in specs.values()))


def _jobs(crop: Crop, paths: Paths) -> list[CropJob]:
    if not paths.manifest.is_file():
        raise StageError(f"{paths.manifest} does not exist; run the stage `acquire` first (`dvc repro` does)")
    manifest = pd.read_csv(paths.manifest, dtype=str, keep_default_na=False)
    if manifest.empty:
        raise StageError(f"{paths.manifest} lists no video; check `acquire` in params.yaml")
    root = paths.data.resolve().parent
    names = ("video", "dataset", "identity", "split", "sha256", "path", "section", "box")
    return [
        CropJob(
            index=index,
            manifest={name: row.get(name, "") for name in names},
            path=root / row["path"],
            crop=crop,
            spool=_spool(paths).resolve() / f"{index}.npz",
        )
        for index, row in enumerate(manifest.to_dict("records"))
    ]


def _reasons(figures: dict[str, Any]) -> str:
    return ", ".join(f"{count} {name[7:]}" for name, count in figures.items() if name.startswith("reason_"))
