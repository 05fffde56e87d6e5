"""What every source of the stage `acquire` has in common: the videos it lists, finding files, checksums, ids."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.disk import whole_file

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".mpg", ".mpeg", ".webm", ".gif", ".m4v")
_MAX_ID_LENGTH = 60

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceVideo:
    """A video (or a section of one) that a source lists."""

    path: Path  # absolute
    video: str  # id
    dataset: str
    identity: str
    sha256: str  # "" if it cannot be read
    bytes: int
    split: str = ""  # train or test; empty: by acquire.test_fraction
    section: str = ""  # "146.280-159.760", seconds; empty: the whole file
    box: str = ""  # "x0 y0 x1 y1", fractions of the frame; empty: none


@dataclass(frozen=True)
class Listing:
    """What a source found, and figures about it."""

    videos: list[SourceVideo]
    render_seconds: float = 0.0
    duplicates: int = 0
    figures: dict[str, Any] = field(default_factory=dict)  # name of the source -> what it has to say


def find_videos(
    folder: Path, suffixes: Sequence[str] = VIDEO_SUFFIXES, skip: frozenset[str] = frozenset()
) -> list[Path]:
    """Every video file below a folder, sorted; hidden files and folders are left out.

    Links to folders are followed, each folder once, so that a loop ends.

    Args:
        folder: Where to look.
        suffixes: What a video's name ends in, in lower case.
        skip: Names of folders, in lower case, into which nobody looks.

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
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in skip)
        for name in files:
            path = Path(place) / name
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            if not is_text(str(path)):
                log.warning("%r is left out: its name is not valid UTF-8; rename it", str(path))
            elif not path.is_file():
                log.warning("%s is left out: it is no file (a link that leads nowhere?)", path)
            else:
                found.append(path)
    return sorted(found, key=lambda path: path.as_posix())


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


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears only when it is complete."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def is_text(name: str) -> bool:
    """Whether a file name is valid UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def project_path(text: str, data: Path) -> Path:
    """A path of the settings: absolute, with `~`, or below the project's root."""
    return (data.resolve().parent / Path(text).expanduser()).resolve()


def _path_hash(path: Path) -> str:
    return hashlib.sha256(path.as_posix().encode()).hexdigest()[:8]
