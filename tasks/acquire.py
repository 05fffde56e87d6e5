"""Stage `acquire`: where the videos come from -> data/raw/manifest.csv with checksum, identity and split.

A source is a function that lists its videos; SOURCES has one for every entry of `acquire.sources`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.config import Acquire, Params
from tasks.demo import demo_jobs, render_set
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.progress import progress

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".mpg", ".mpeg", ".webm", ".gif", ".m4v")
COLUMNS = ("video", "path", "dataset", "identity", "split", "sha256", "bytes")
_MAX_ID_LENGTH = 60

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceVideo:
    """A video that a source lists."""

    path: Path  # absolute
    video: str  # id
    dataset: str
    identity: str
    sha256: str  # "" if it cannot be read
    bytes: int


@dataclass(frozen=True)
class Listing:
    """What a source found, and figures about it."""

    videos: list[SourceVideo]
    figures: dict[str, Any]


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """List (or render) the videos and write the manifest.

    Args:
        params: Uses `acquire`, and `runtime` for the renderer's workers.
        paths: Writes `paths.manifest`; the demo's videos go beside it.
        fingerprint: Of settings and code; what another one wrote is thrown away.

    Returns:
        videos, identities, train_identities, test_identities, bytes, render_seconds, duplicates.

    Raises:
        StageError: The source has no video, or cannot be used; the text says what to do.
    """
    note = paths.raw / ".acquire.json"
    before = _read_note(note)
    demo = demo_jobs(params.acquire, paths.raw / "demo") if "demo" in params.acquire.sources else []
    if before.get("fingerprint") != fingerprint:
        paths.manifest.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        if demo:
            shutil.rmtree(paths.raw / "demo", ignore_errors=True)
    elif demo and paths.manifest.is_file() and "summary" in before and all(job.finished() for job in demo):
        # A folder is listed anew each time: DVC asks only when somebody wants that, and it may have changed.
        return dict(before["summary"])
    paths.raw.mkdir(parents=True, exist_ok=True)
    # from here on the folder holds this fingerprint's work, also if the run is killed
    _write_text(note, json.dumps({"fingerprint": fingerprint}))
    listings = [SOURCES[source](params, paths) for source in params.acquire.sources]
    listing = Listing(
        [v for one in listings for v in one.videos], {k: v for one in listings for k, v in one.figures.items()}
    )
    split = split_identities([video.identity for video in listing.videos], params.acquire)
    rows = [
        (v.video, _stored_path(v.path, paths), v.dataset, v.identity, split[v.identity], v.sha256, str(v.bytes))
        for v in sorted(listing.videos, key=lambda v: v.video)
    ]
    _write_manifest(paths.manifest, rows)
    sides = Counter(split.values())
    summary = {
        "videos": len(rows),
        "identities": len(split),
        "train_identities": sides["train"],
        "test_identities": sides["test"],
        "bytes": sum(video.bytes for video in listing.videos),
        **listing.figures,
    }
    _write_text(note, json.dumps({"fingerprint": fingerprint, "summary": summary}))
    return summary


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
    return Listing(videos, {"render_seconds": round(seconds, 3), "duplicates": 0})


def folder_source(params: Params, paths: Paths) -> Listing:
    """List the videos of a directory tree, the same content once."""
    settings = params.acquire.folder
    pattern = _identity_pattern(settings.identity_pattern)
    folder = (paths.data.resolve().parent / Path(settings.path).expanduser()).resolve()
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
    return Listing(videos, {"render_seconds": 0.0, "duplicates": duplicates})


SOURCES: dict[str, Callable[[Params, Paths], Listing]] = {"demo": demo_source, "folder": folder_source}
"""Entry of `acquire.sources` -> what lists its videos; `voxceleb` and `faceforensics` will stand here."""


def find_videos(folder: Path) -> list[Path]:
    """Every video file below a folder, sorted; hidden files and folders are left out.

    Links to folders are followed, each folder once, so that a loop ends.

    Args:
        folder: Where to look.

    Returns:
        Paths below `folder`, sorted by their text.
    """
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        key = (status.st_dev, status.st_ino)
        if key in seen:
            folders.clear()
            continue
        seen.add(key)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(place) / name
            if name.startswith(".") or path.suffix.lower() not in VIDEO_SUFFIXES:
                continue
            if not _is_text(str(path)):
                log.warning("%r is left out: its name is not valid UTF-8; rename it", str(path))
            elif not path.is_file():
                log.warning("%s is left out: it is no file (a link that leads nowhere?)", path)
            else:
                found.append(path)
    return sorted(found, key=lambda path: path.as_posix())


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


def safe_ids(relative: Sequence[Path]) -> list[str]:
    """Ids of `[A-Za-z0-9_-]`, unique also where upper and lower case are the same.

    A name that cannot stand as it is gets a hash of its path at its end. No id ends in `_` and digits: that is how the
    clips of a video are called.

    Args:
        relative: Paths below the source folder.

    Returns:
        One id each, in the same order; a path's id depends on the other paths only where two stems are equal.
    """
    stems = [re.sub(r"_(\d+)$", r"-\1", path.stem) for path in relative]
    slugs = [re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:_MAX_ID_LENGTH].strip("-_") for stem in stems]
    shared = Counter(slug.lower() for slug in slugs)
    return [
        slug if slug and slug == stem and shared[slug.lower()] == 1 else f"{slug or 'video'}-{_path_hash(path)}"
        for path, stem, slug in zip(relative, stems, slugs, strict=True)
    ]


def checksum(path: Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of a file; ("", size) if it cannot be read."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), size
    except OSError as error:
        log.warning("%s cannot be read (%s); it is listed, and the crop refuses it", path, error)
        return "", size


# -- details -----------------------------------------------------------------------------------------------------------


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


def _path_hash(path: Path) -> str:
    return hashlib.sha256(path.as_posix().encode()).hexdigest()[:8]


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _write_manifest(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    partial.replace(path)


def _read_note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
