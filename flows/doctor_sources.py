"""What `head3d doctor` says about the sources of videos; nothing here asks the network."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from flows.doctor import Check
from models.config import Params, VoxCeleb
from tasks.errors import StageError
from tasks.faceforensics import check_folder
from tasks.paths import Paths
from tasks.source_files import find_videos, project_path
from tasks.voxceleb_list import WHERE_FROM, load_metadata
from tasks.voxceleb_status import STATUSES, StatusFile

JS_RUNTIMES = ("deno", "node", "bun", "qjs")
"""What yt-dlp can run YouTube's scripts with."""


def check_source(root: Path, params: Params) -> Iterable[Check]:
    """Whether the sources can be used, and whether the videos are those of the manifest (DVC looks at neither)."""
    import pandas as pd

    sources = params.acquire.sources
    manifest = root / "data" / "raw" / "manifest.csv"
    folder = root / params.acquire.folder.path
    if "voxceleb" in sources:
        yield from check_voxceleb(root, params.acquire.voxceleb)
    if "faceforensics" in sources:
        yield from check_faceforensics(root, params)
    if "folder" in sources and not folder.is_dir():
        yield Check("problem", "source", f"acquire.folder.path = {folder} is not a directory")
        return
    if not manifest.is_file():
        yield Check("ok", "source", f"{', '.join(sources)}: not listed yet, `dvc repro` does it")
        return
    listed = pd.read_csv(manifest, dtype={"video": str, "path": str, "identity": str})
    if not set(listed["dataset"]) <= set(sources):
        yield Check(
            "note", "source", f"the manifest has other sources than {', '.join(sources)}: `dvc repro` lists anew"
        )
        return
    gone = [path for path, size in zip(listed["path"], listed["bytes"], strict=True) if not _same(root / path, size)]
    new = _not_listed(root, params, set(listed["path"]))
    if gone or new:
        text = f"{len(gone)} videos of the manifest are gone or changed, {len(new)} are not in it"
        yield Check("note", "source", f"{text}: `dvc repro --force --single-item acquire` lists them again")
    else:
        yield Check("ok", "source", f"{', '.join(sources)}: {len(listed)} videos, as in the manifest")


def check_voxceleb(root: Path, settings: VoxCeleb) -> Iterable[Check]:
    """The list, the folder of videos, and what a download needs."""
    kept = root / "data" / "raw" / "voxceleb"
    yield _check_list(root, settings, kept)
    if settings.videos:
        folder = project_path(settings.videos, root / "data")
        if folder.is_dir():
            yield Check("ok", "VoxCeleb videos", f"{folder}: nothing is downloaded")
        else:
            yield Check("problem", "VoxCeleb videos", f"acquire.voxceleb.videos = {folder} is not a directory")
        return
    if settings.cookies and not project_path(settings.cookies, root / "data").is_file():
        yield Check("problem", "VoxCeleb cookies", f"acquire.voxceleb.cookies = {settings.cookies} is not a file")
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg:
        yield Check("ok", "ffmpeg", f"{ffmpeg}: only the needed sections are downloaded")
    else:
        text = "not found: whole videos are downloaded instead of the needed sections, many times the bytes"
        yield Check("note", "ffmpeg", text)
    runtime = next(filter(None, map(shutil.which, JS_RUNTIMES)), None)
    missing = [] if runtime else [f"one of {', '.join(JS_RUNTIMES)}"]
    missing += [] if importlib.util.find_spec("yt_dlp_ejs") else ["`pip install yt-dlp-ejs`"]
    if missing:
        text = f"yt-dlp may not get YouTube's streams without a JavaScript runtime: install {' and '.join(missing)}"
        yield Check("note", "JavaScript", text)
    status = StatusFile(kept / "status.csv")
    if status.entries:
        counts = Counter(entry.status for entry in status.entries.values())
        text = ", ".join(f"{counts[name]} {name}" for name in STATUSES if counts[name])
        yield Check("ok", "VoxCeleb clips", f"so far: {text} ({kept / 'status.csv'})")


def _check_list(root: Path, settings: VoxCeleb, kept: Path) -> Check:
    place = settings.metadata.strip()
    if not place and settings.videos:
        return Check("ok", "VoxCeleb list", "none: crops are told by their names")
    if not place:
        return Check("problem", "VoxCeleb list", f"acquire.voxceleb.metadata is empty: {WHERE_FROM}")
    if place.startswith(("http://", "https://")):
        here = (kept / "metadata.csv").is_file()
        return Check("ok" if here else "note", "VoxCeleb list", f"{place}{'' if here else ': acquire fetches it'}")
    try:
        metadata = load_metadata(place, root / "data", kept)
    except StageError as error:
        return Check("problem", "VoxCeleb list", str(error))
    people = len({clip.person for clip in metadata.clips})
    text = f"{len(metadata.clips)} of {metadata.rows} rows can be used, {people} people"
    return Check("ok", "VoxCeleb list", text)


def check_faceforensics(root: Path, params: Params) -> Iterable[Check]:
    """The folder and how many originals it has."""
    settings = params.acquire.faceforensics
    try:
        originals = check_folder(settings.path, settings.compression, Paths(root / "data"))
    except StageError as error:
        yield Check("problem", "FaceForensics", str(error))
        return
    enough = len(originals) >= settings.test_videos
    text = f"{len(originals)} originals, {settings.test_videos} are wanted"
    yield Check("ok" if enough else "note", "FaceForensics", text)


def _same(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _not_listed(root: Path, params: Params, listed: set[str]) -> list[str]:
    """Videos of the source folder that the manifest does not have; none when it was limited."""
    if "folder" not in params.acquire.sources or params.acquire.folder.limit:
        return []
    known = {(root / path).resolve() for path in listed}
    return [str(path) for path in find_videos(root / params.acquire.folder.path) if path.resolve() not in known]
