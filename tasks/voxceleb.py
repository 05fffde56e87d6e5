"""Source `voxceleb`: clips of the public list, downloaded or taken from a folder of videos one already has.

All it keeps lies in data/raw/voxceleb: `selected.csv` (the chosen clips in their order), `refused_rows.csv`,
`status.csv` (what became of every clip), `coverage.md` and `videos/`. None of it is thrown away when settings change:
a video that is here is not fetched twice, one that is gone is not asked for again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.config import Params, VoxCeleb
from tasks.download import Pace, Result, Stopped, download
from tasks.download_ytdlp import STAGING, Source, Want
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.progress import progress
from tasks.source_files import Listing, SourceVideo, checksum, find_videos, project_path, write_text
from tasks.voxceleb_files import SUFFIXES, Held, match_files
from tasks.voxceleb_list import WHERE_FROM, Clip, Metadata, load_metadata
from tasks.voxceleb_select import Chosen, select, selected_csv
from tasks.voxceleb_status import SETTLED, Entry, FileKind, StatusFile, coverage, coverage_table, trouble_with

WATCH_URL = "https://www.youtube.com/watch?v={video_id}"
BACKOFF_S = 5.0
DEADLINE_S = 1800.0
"""For one try of one video, of which only sections or a 720p picture stream are fetched."""
SOCKET_TIMEOUT_S = 30.0


def voxceleb_source(params: Params, paths: Paths) -> Listing:
    """Choose clips, get their videos, list what is there.

    Args:
        params: Uses `acquire.voxceleb`, `acquire.seed` and `crop.clip_frames`.
        paths: Keeps its files in `paths.raw / "voxceleb"`.

    Returns:
        The clips that are here; the figures have the list's and the choice's SHA-256 and the coverage.

    Raises:
        StageError: The list or the folder cannot be used, the site blocks or is out of reach, or nothing is here.
    """
    settings = params.acquire.voxceleb
    folder = paths.raw / "voxceleb"
    folder.mkdir(parents=True, exist_ok=True)
    if settings.train_clips + settings.test_clips == 0:
        raise StageError("acquire.voxceleb: train_clips and test_clips are both 0, so nothing would be chosen")
    metadata = _metadata(settings, paths, folder)
    listed = metadata.clips if metadata else []
    held = _held(settings, paths, listed) if settings.videos else None
    available = listed if held is None else [item.clip for item in held.values()]
    chosen = select(available, settings.train_clips, settings.test_clips, params.crop.clip_frames, params.acquire.seed)
    if not chosen:
        raise StageError(
            f"acquire.voxceleb: none of the {len(available)} clips has the {params.crop.clip_frames} frames of "
            "crop.clip_frames; make that smaller or use another list"
        )
    text = selected_csv(chosen)
    write_text(folder / "selected.csv", text)
    figures = {
        **_list_figures(metadata),
        "selected_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "selected": len(chosen),
        "wanted": sum((settings.train_clips, settings.test_clips)),
        "limit": settings.limit,
    }
    chosen = chosen[: settings.limit or None]
    if held is not None:
        listing = _from_folder(chosen, held, folder, figures)
    else:
        listing = _from_downloads(chosen, params, paths, folder, figures)
    return listing


# -- from a folder -----------------------------------------------------------------------------------------------------


def _held(settings: VoxCeleb, paths: Paths, listed: Sequence[Clip]) -> dict[str, Held]:
    place = project_path(settings.videos, paths.data)
    if not place.is_dir():
        raise StageError(
            f"acquire.voxceleb.videos = {settings.videos!r} is not a directory ({place}); "
            "`head3d preset paper --voxceleb-videos DIR` sets it, and an empty one downloads"
        )
    files = find_videos(place, SUFFIXES)
    held, unknown = match_files(place, files, listed)
    if not held:
        hint = "" if listed else f" Whole videos need the list: {WHERE_FROM}."
        raise StageError(
            f"{place} holds {len(files)} videos, none with a name that says which clip it is: name whole videos "
            f"<video id>.mp4, crops <person>#<video id>#<start>#<end>.mp4.{hint}"
        )
    if unknown:
        _say(f"voxceleb: {unknown} of {len(files)} files of {place} belong to no clip and are left out")
    return {item.clip.key: item for item in held}


def _from_folder(chosen: Sequence[Chosen], held: dict[str, Held], folder: Path, figures: dict[str, Any]) -> Listing:
    """Look at the files of the chosen clips; nothing is asked of any site."""
    status_of: dict[str, str] = {}
    sums: dict[Path, tuple[str, int]] = {}
    videos = []
    with progress("acquire: voxceleb", len(chosen), "clip") as bar:
        for item in chosen:
            file = held[item.clip.key]
            trouble = trouble_with(file.path, item.clip, file.kind)
            status_of[item.clip.key] = "bad_video" if trouble else "ok"
            if trouble:
                _say(f"voxceleb: {file.path} is left out: {trouble}")
            else:
                if file.path not in sums:
                    sums[file.path] = checksum(file.path)
                videos.append(_listed(item, file.path, file.kind, *sums[file.path]))
            bar.update(1)
    return _finished(chosen, status_of, videos, folder, figures)


# -- from the network --------------------------------------------------------------------------------------------------


def _from_downloads(
    chosen: Sequence[Chosen], params: Params, paths: Paths, folder: Path, figures: dict[str, Any]
) -> Listing:
    """Fetch what is not here yet.

    Raises:
        StageError: The downloads had to stop before the end; the next run goes on.
    """
    settings = params.acquire.voxceleb
    source = _download_source(settings, folder, paths)
    status = StatusFile(folder / "status.csv")
    _reconcile(status, chosen, source)
    wants = _wants(status, chosen)
    stopped = None
    if wants:
        stopped = _download(wants, {item.clip.key: item.clip for item in chosen}, status, source, params)
    status_of = {
        item.clip.key: status.entries[item.clip.key].status for item in chosen if item.clip.key in status.entries
    }
    videos = []
    for item in chosen:
        entry = status.entries.get(item.clip.key)
        if entry is not None and entry.status == "ok":
            path = source.folder / entry.file
            kind: FileKind = "cut" if path.stem == item.clip.key else "whole"
            videos.append(_listed(item, path, kind, entry.sha256, int(entry.bytes)))
    if stopped is not None:
        _write_coverage(coverage(chosen, status_of), folder)
        raise StageError(_why_stopped(stopped, len(videos), len(chosen), params, folder))
    return _finished(chosen, status_of, videos, folder, figures)


def find_ffmpeg() -> str | None:
    """The ffmpeg that yt-dlp will find."""
    return shutil.which("ffmpeg")


def _download_source(settings: VoxCeleb, folder: Path, paths: Paths) -> Source:
    cookies = None
    if settings.cookies:
        cookies = project_path(settings.cookies, paths.data)
        if not cookies.is_file():
            raise StageError(
                f"acquire.voxceleb.cookies = {settings.cookies!r} is not a file; export a browser session in the "
                "Netscape format, or leave it empty"
            )
    videos = (folder / "videos").absolute()  # absolute: it tells our ffmpeg processes from others
    videos.mkdir(exist_ok=True)
    return Source(videos, settings.max_height_px, cookies, find_ffmpeg(), SOCKET_TIMEOUT_S)


def _reconcile(status: StatusFile, chosen: Sequence[Chosen], source: Source) -> None:
    """Bring status.csv and the files together: a run may have been killed between the two, or somebody deleted one."""
    limit = str(source.max_height_px)
    changed: dict[str, Entry] = {}
    for entry in status.entries.values():
        if entry.status == "ok":
            path = source.folder / entry.file
            same = path.is_file() and str(path.stat().st_size) == entry.bytes and entry.max_height_px == limit
            if not same:
                changed[entry.clip] = replace(entry, status="not_tried", detail="the file is gone or of another height")
    files = {path.stem: path for path in source.folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    gone = status.gone()
    for item in chosen:
        clip = item.clip
        known = changed.get(clip.key) or status.entries.get(clip.key)
        if known is not None and known.status in SETTLED:
            continue
        old = known is not None and known.max_height_px not in ("", limit)
        file = files.get(clip.key) or files.get(clip.video_id)
        if file is not None and not old:
            kind: FileKind = "cut" if file.stem == clip.key else "whole"
            changed[clip.key] = _judged(clip, file, kind, limit)
        elif clip.video_id in gone:
            other = gone[clip.video_id]
            changed[clip.key] = Entry(clip.key, clip.video_id, other.status, detail=other.detail)
    if changed:
        status.set(changed.values())


def _judged(clip: Clip, path: Path, kind: FileKind, limit: str) -> Entry:
    trouble = trouble_with(path, clip, kind)
    if trouble:
        return Entry(clip.key, clip.video_id, "bad_video", max_height_px=limit, detail=trouble)
    sha256, size = checksum(path)
    return Entry(clip.key, clip.video_id, "ok", path.name, str(size), sha256, limit)


def _wants(status: StatusFile, chosen: Sequence[Chosen]) -> list[Want]:
    """The videos to ask for, each with all its clips that are not settled.

    In the order of their first clip; those that failed in an earlier run come last.
    """
    sections: dict[str, dict[str, tuple[float, float]]] = {}
    failed = {entry.video_id for entry in status.entries.values() if entry.status == "failed"}
    for item in chosen:
        clip, entry = item.clip, status.entries.get(item.clip.key)
        if entry is None or entry.status not in SETTLED:
            sections.setdefault(clip.video_id, {})[clip.key] = (clip.start_s, clip.end_s)
    wants = [Want(video, WATCH_URL.format(video_id=video), parts, video in failed) for video, parts in sections.items()]
    return sorted(wants, key=lambda want: want.again)


def _download(
    wants: Sequence[Want], clips: dict[str, Clip], status: StatusFile, source: Source, params: Params
) -> Stopped | None:
    settings = params.acquire.voxceleb
    pace = Pace(
        settings.downloads,
        settings.requests_per_minute,
        settings.attempts,
        params.acquire.seed,
        BACKOFF_S,
        DEADLINE_S,
    )
    how = "the needed sections (ffmpeg is here)" if source.ffmpeg else "whole picture streams (there is no ffmpeg)"
    _say(
        f"voxceleb: asking for {len(wants)} videos, {how}; at most {settings.requests_per_minute:g} a minute, so about "
        f"{len(wants) / settings.requests_per_minute / 60:.1f} hours or more; stopping is safe at any time"
    )
    counts = {"ok": 0, "gone": 0}
    with progress("acquire: voxceleb", len(wants), "video") as bar:

        def keep(want: Want, result: Result | None) -> None:
            entries = _entries(want, result, clips, source)
            status.set(entries)
            if result and all(entry.status == "bad_video" for entry in entries):
                for path in result.files.values():
                    path.unlink(missing_ok=True)
            if result is None:
                counts["gone"] -= 1
                return
            counts["ok"] += result.status == "ok"
            counts["gone"] += result.status in ("dead", "private")
            bar.set_postfix_str(f"{counts['ok']} fetched, {counts['gone']} gone")
            bar.update(1)

        return download(wants, source, pace, keep)


def _entries(want: Want, result: Result | None, clips: dict[str, Clip], source: Source) -> list[Entry]:
    limit = str(source.max_height_px)
    entries = []
    for key in want.sections:
        if result is None:
            entries.append(Entry(key, want.video_id, "not_tried"))
        elif result.status != "ok":
            entries.append(Entry(key, want.video_id, result.status, max_height_px=limit, detail=result.detail))
        elif want.video_id in result.files:
            entries.append(_judged(clips[key], result.files[want.video_id], "whole", limit))
        elif key in result.files:
            entries.append(_judged(clips[key], result.files[key], "cut", limit))
        else:
            detail = "the video ends before the section"
            entries.append(Entry(key, want.video_id, "bad_video", max_height_px=limit, detail=detail))
    return entries


def _why_stopped(stopped: Stopped, here: int, chosen: int, params: Params, folder: Path) -> str:
    """What happened, that nothing is lost, and what to do."""
    settings = params.acquire.voxceleb
    what = {
        "throttled": "the site asks for a pause or takes us for a bot",
        "offline": "the site cannot be reached from here",
        "disk": "the disk is full or cannot be written",
        "suspicious": "too many failures in a row: a block in disguise, a broken network, or a yt-dlp that is too old",
    }[stopped.kind]
    todo = {
        "throttled": (
            "Wait some hours before the next run, lower acquire.voxceleb.requests_per_minute (now "
            f"{settings.requests_per_minute:g}), or name a cookie file of a browser session in acquire.voxceleb.cookies"
        ),
        "offline": "Check the network (name server, proxy, firewall)",
        "disk": f"Make room, or link {folder} to another disk",
        "suspicious": "Try one of the videos in a browser, `pip install -U yt-dlp`, wait some hours",
    }[stopped.kind]
    rest = f"{here} of {chosen} clips are here and stay; `dvc repro` goes on from there. {todo}."
    if here:
        use = os.path.relpath(folder / "videos", folder.parents[2])
        rest += f" To go on with the clips at hand: set acquire.voxceleb.videos to {use}."
    return f"voxceleb: {what} ({stopped.detail}). {rest}"


# -- both --------------------------------------------------------------------------------------------------------------


def _metadata(settings: VoxCeleb, paths: Paths, folder: Path) -> Metadata | None:
    """The list; None where only a folder of crops is given, whose names say enough."""
    if settings.videos and not settings.metadata.strip():
        return None
    metadata = load_metadata(settings.metadata, paths.data, folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("line", "reason", "row"))
    writer.writerows(metadata.refusals)
    write_text(folder / "refused_rows.csv", text.getvalue())
    if metadata.refused:
        reasons = ", ".join(f"{count} {reason}" for reason, count in metadata.refused.items())
        _say(f"voxceleb: {sum(metadata.refused.values())} of {metadata.rows} rows of the list are not used: {reasons}")
    return metadata


def _list_figures(metadata: Metadata | None) -> dict[str, Any]:
    if metadata is None:
        return {}
    return {
        "metadata_sha256": metadata.sha256,
        "rows": metadata.rows,
        "rows_usable": len(metadata.clips),
        "rows_refused": metadata.refused,
    }


def _listed(item: Chosen, path: Path, kind: FileKind, sha256: str, size: int) -> SourceVideo:
    clip = item.clip
    return SourceVideo(
        path=path,
        video=clip.name,
        dataset="voxceleb",
        identity=clip.person,
        sha256=sha256,
        bytes=size,
        split=item.side,
        section=clip.section if kind == "whole" else "",
        box="" if kind == "crop" else clip.box_fractions,
    )


def _write_coverage(figures: dict[str, Any], folder: Path) -> str:
    table = coverage_table(figures)
    write_text(folder / "coverage.md", f"# VoxCeleb: what is here\n\n{table}")
    return table


def _finished(
    chosen: Sequence[Chosen],
    status_of: dict[str, str],
    videos: list[SourceVideo],
    folder: Path,
    figures: dict[str, Any],
) -> Listing:
    counts = coverage(chosen, status_of)
    _say(_write_coverage(counts, folder))
    if figures["selected"] < figures["wanted"]:
        _say(f"voxceleb: {figures['wanted']} clips are wanted, there are {figures['selected']} to choose from")
    if not videos:
        raise StageError(f"voxceleb: none of {len(chosen)} clips is usable; {folder / 'coverage.md'} counts why")
    shutil.rmtree(folder / "videos" / STAGING, ignore_errors=True)
    return Listing(videos, figures={"voxceleb": {**figures, "coverage": counts}})


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()
