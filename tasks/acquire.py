"""Stage `acquire`: where the videos come from -> data/raw/manifest.csv with checksum, identity and split.

A source is a function that lists its videos; SOURCES has one for every entry of `acquire.sources`.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.config import Acquire, Params
from tasks.demo import demo_jobs, render_set
from tasks.disk import storage_errors, whole_file
from tasks.errors import StageError
from tasks.faceforensics import faceforensics_source
from tasks.paths import Paths
from tasks.progress import progress
from tasks.source_files import (
    VIDEO_SUFFIXES,
    Listing,
    SourceVideo,
    checksum,
    find_videos,
    project_path,
    safe_ids,
    write_text,
)
from tasks.voxceleb import voxceleb_source

COLUMNS = ("video", "path", "dataset", "identity", "split", "sha256", "bytes", "section", "box")

log = logging.getLogger(__name__)


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """List (or render) the videos and write the manifest.

    Args:
        params: Uses `acquire`, and `runtime` for the renderer's workers.
        paths: Writes `paths.manifest`; the demo's videos go beside it.
        fingerprint: Of settings and code; what another one wrote is thrown away.

    Returns:
        videos, identities, train_identities, test_identities, bytes, render_seconds, duplicates; of the sources
        voxceleb and faceforensics a group of figures each.

    Raises:
        StageError: The source has no video, or cannot be used; the text says what to do.
    """
    with storage_errors(paths.raw):
        return _run(params, paths, fingerprint)


def _run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    note = paths.raw / ".acquire.json"
    before = _read_note(note)
    sources = params.acquire.sources
    demo = demo_jobs(params.acquire, paths.raw / "demo") if "demo" in sources else []
    if before.get("fingerprint") != fingerprint:
        paths.manifest.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        if demo:
            shutil.rmtree(paths.raw / "demo", ignore_errors=True)
    elif (
        set(sources) == {"demo"}
        and paths.manifest.is_file()
        and "summary" in before
        and all(job.finished() for job in demo)
    ):
        # A folder is listed anew each time: DVC asks only when somebody wants that, and it may have changed.
        return dict(before["summary"])
    paths.raw.mkdir(parents=True, exist_ok=True)
    # from here on the folder holds this fingerprint's work, also if the run is killed
    write_text(note, json.dumps({"fingerprint": fingerprint}) + "\n")
    # downloads last: that another source's folder is missing is said before they take days
    order = sorted(dict.fromkeys(sources), key=lambda name: name == "voxceleb")
    listings = [SOURCES[source](params, paths) for source in order]
    videos = _with_splits(merged([video for one in listings for video in one.videos]), params.acquire)
    _write_manifest(paths.manifest, [_row(video, paths) for video in videos])
    sides = Counter({video.identity: video.split for video in videos}.values())
    summary = {
        "videos": len(videos),
        "identities": sides.total(),
        "train_identities": sides["train"],
        "test_identities": sides["test"],
        "bytes": sum({video.path: video.bytes for video in videos}.values()),
        "render_seconds": round(sum(one.render_seconds for one in listings), 3),
        "duplicates": sum(one.duplicates for one in listings),
        **{name: figures for one in listings for name, figures in one.figures.items()},
    }
    write_text(note, json.dumps({"fingerprint": fingerprint, "summary": summary}) + "\n")
    return summary


def merged(videos: Iterable[SourceVideo]) -> list[SourceVideo]:
    """Videos of several sources in one list, sorted by id.

    Args:
        videos: Of all sources; within one source ids are unique.

    Returns:
        The same with the source's name before ids and identities that several sources use: a number in one set is not
        the person with that number in another.
    """
    videos = list(videos)
    ids, people = _shared((v.video, v.dataset) for v in videos), _shared((v.identity, v.dataset) for v in videos)
    return sorted(
        (
            replace(
                v,
                video=f"{v.dataset}-{v.video}" if v.video.lower() in ids else v.video,
                identity=f"{v.dataset}-{v.identity}" if v.identity.lower() in people else v.identity,
            )
            for v in videos
        ),
        key=lambda v: v.video,
    )


def split_identities(identities: Iterable[str], acquire: Acquire) -> dict[str, str]:
    """Put every identity into `train` or `test`, seeded: two clips of one person never stand on both sides.

    Args:
        identities: Of the videos; repeats count once.
        acquire: `test_fraction` and `seed`.

    Returns:
        Identity -> train or test. Of four or more at least two are for testing, so that a cross-identity pair exists;
        of two or three one; a single one is for training.
    """
    names = sorted(set(identities))
    count = len(names)
    testing = min(count // 2, 1) if count < 4 else max(2, round(acquire.test_fraction * count))
    testing = min(testing, max(count - 1, 0))
    order = np.random.default_rng(acquire.seed).permutation(count)
    chosen = {names[index] for index in order[:testing]}
    return {name: "test" if name in chosen else "train" for name in names}


# -- sources -----------------------------------------------------------------------------------------------------------


def demo_source(params: Params, paths: Paths) -> Listing:
    """Render the demo set (what is there already stays) and list it."""
    jobs = demo_jobs(params.acquire, paths.raw / "demo")
    seconds = render_set(jobs, params.runtime)
    videos = []
    for job in jobs:
        sha256, size = checksum(job.path)
        videos.append(SourceVideo(job.path, job.video, "demo", job.video, sha256, size))
    return Listing(videos, render_seconds=seconds)


def folder_source(params: Params, paths: Paths) -> Listing:
    """List the videos of a directory tree, the same content once."""
    settings = params.acquire.folder
    pattern = _identity_pattern(settings.identity_pattern)
    folder = project_path(settings.path, paths.data)
    if not folder.is_dir():
        raise StageError(
            f"acquire.folder.path = {settings.path!r} is not a directory ({folder}); "
            "`head3d preset local --folder DIR` sets it"
        )
    found = find_videos(folder)
    if not found:
        raise StageError(
            f"{folder} holds no video ({', '.join(suffix[1:] for suffix in VIDEO_SUFFIXES)}); put videos there or "
            "set acquire.folder.path to another directory"
        )
    if settings.limit:
        order = np.random.default_rng(params.acquire.seed).permutation(len(found))
        found = [found[index] for index in order]
    chosen, duplicates = _without_duplicates(found, settings.limit)
    chosen.sort(key=lambda item: item[0].as_posix())
    ids = safe_ids([path.relative_to(folder) for path, _, _ in chosen])
    videos = [
        SourceVideo(path, video, "folder", identity_of(path.relative_to(folder), pattern), sha256, size)
        for (path, sha256, size), video in zip(chosen, ids, strict=True)
    ]
    return Listing(videos, duplicates=duplicates)


SOURCES: dict[str, Callable[[Params, Paths], Listing]] = {
    "demo": demo_source,
    "folder": folder_source,
    "voxceleb": voxceleb_source,
    "faceforensics": faceforensics_source,
}
"""Entry of `acquire.sources` -> what lists its videos."""


def identity_of(relative: Path, pattern: re.Pattern[str]) -> str:
    """Who is in a video, judged by its name.

    Args:
        relative: Path below the source folder.
        pattern: Its first group, searched in the file name, is the identity.

    Returns:
        The group; where it does not match, the parent folder's name, or the stem if the file is in the folder itself.
    """
    match = pattern.search(relative.name)
    if match and match.group(1):
        return match.group(1)
    return relative.parent.name or relative.stem


# -- details -----------------------------------------------------------------------------------------------------------


def _shared(names: Iterable[tuple[str, str]]) -> set[str]:
    """Names (in lower case) that more than one dataset uses."""
    pairs = {(name.lower(), dataset) for name, dataset in names}
    counts = Counter(name for name, _ in pairs)
    return {name for name, count in counts.items() if count > 1}


def _with_splits(videos: list[SourceVideo], acquire: Acquire) -> list[SourceVideo]:
    """Every video with a side; the source's own counts."""
    split = split_identities([video.identity for video in videos if not video.split], acquire)
    return [video if video.split else replace(video, split=split[video.identity]) for video in videos]


def _row(v: SourceVideo, paths: Paths) -> tuple[str, ...]:
    path = _stored_path(v.path, paths)
    return v.video, path, v.dataset, v.identity, v.split, v.sha256, str(v.bytes), v.section, v.box


def _identity_pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise StageError(f"acquire.folder.identity_pattern = {text!r} is no regular expression: {error}") from None
    if pattern.groups < 1:
        raise StageError(
            f"acquire.folder.identity_pattern = {text!r} has no group; put the part that names the person in ( )"
        )
    return pattern


def _without_duplicates(found: Sequence[Path], limit: int) -> tuple[list[tuple[Path, str, int]], int]:
    """Path, checksum and size of each content once, at most `limit` (0: all); and how many were left out.

    Empty and unreadable files are no duplicates of each other: each is listed, so that the clip table can say why.
    """
    first: dict[str, Path] = {}
    kept: list[tuple[Path, str, int]] = []
    duplicates = 0
    with progress("acquire", min(limit, len(found)) if limit else len(found), "video") as bar:
        for path in found:
            if limit and len(kept) == limit:
                break
            sha256, size = checksum(path)
            if sha256 and size and sha256 in first:
                log.warning("%s is left out: it has the same content as %s", path, first[sha256])
                duplicates += 1
                continue
            first.setdefault(sha256, path)
            kept.append((path, sha256, size))
            bar.update(1)
    return kept, duplicates


def _stored_path(path: Path, paths: Paths) -> str:
    """Relative to the project's root if it lies below it, so that the manifest is the same in every clone."""
    root = paths.data.resolve().parent
    absolute = path.absolute()
    try:
        return absolute.relative_to(root).as_posix()
    except ValueError:
        pass
    try:
        return (absolute.parent.resolve() / absolute.name).relative_to(root).as_posix()
    except ValueError:
        return absolute.as_posix()


def _write_manifest(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _read_note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
