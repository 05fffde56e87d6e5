"""What became of every VoxCeleb clip: kept in status.csv while the downloads run, summed up as coverage."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import av

from tasks.source_files import write_text
from tasks.video import VideoError, probe
from tasks.voxceleb_list import Clip
from tasks.voxceleb_select import SIDES, Chosen

STATUSES = {
    "ok": "here",
    "dead": "removed, or its channel is gone",
    "private": "there, but not for us: private, members, age or country",
    "throttled": "the site asked for a pause; asked again",
    "bad_video": "fetched, but it cannot be decoded or is too short",
    "failed": "no verdict after several tries; asked again",
    "not_tried": "not asked for yet (or no file in the folder)",
}
SETTLED = ("ok", "dead", "private", "bad_video")
"""Not asked for again; who wants that deletes the rows in status.csv (or the file)."""
TOLERANCE_S = 0.5
"""A video may end so much before its last section does."""


@dataclass(frozen=True)
class Entry:
    """A row of status.csv."""

    clip: str  # Clip.key
    video_id: str
    status: str
    file: str = ""  # name in the folder of videos; empty unless ok
    bytes: str = ""
    sha256: str = ""
    max_height_px: str = ""  # of the setting under which it was fetched
    detail: str = ""


_FIELDS = [field.name for field in fields(Entry)]
_values = attrgetter(*_FIELDS)


class StatusFile:
    """status.csv in memory; every change is written at once and appears as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                for row in csv.DictReader(file):
                    known = {name: row.get(name) or "" for name in _FIELDS}
                    if known["clip"] and known["status"] in STATUSES:
                        self.entries[known["clip"]] = Entry(**known)

    def set(self, entries: Iterable[Entry]) -> None:
        """Take rows over and write the file."""
        self.entries.update({entry.clip: entry for entry in entries})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_FIELDS)
        writer.writerows(_values(self.entries[key]) for key in sorted(self.entries))
        write_text(self._path, text.getvalue())

    def gone(self) -> dict[str, Entry]:
        """Video -> a row that says that it is gone or private: that holds for all of its clips."""
        return {entry.video_id: entry for entry in self.entries.values() if entry.status in ("dead", "private")}


FileKind = Literal["whole", "cut", "crop"]
"""A whole video; a section of it, cut out; somebody's crop of a face."""


def trouble_with(path: Path, clip: Clip, kind: FileKind) -> str:
    """Why a file does not serve a clip, as a sentence; empty if it does."""
    try:
        info = probe(path)
        if kind == "crop" or info.duration_s <= 0:
            return ""
        if kind == "whole" and info.duration_s < clip.end_s - TOLERANCE_S:
            return f"the video has {info.duration_s:.1f} s, the clip ends at {clip.end_s:.1f} s"
        length_s = clip.end_s - clip.start_s
        if kind == "cut" and abs(info.duration_s - length_s) > max(TOLERANCE_S, 0.1 * length_s):
            return f"the section has {info.duration_s:.1f} s instead of {length_s:.1f} s"
        if kind == "whole" and not _decodes_at(path, clip.start_s):
            return f"no frame can be decoded at {clip.start_s:.1f} s"
    except VideoError as error:
        return str(error)
    return ""


def _decodes_at(path: Path, second: float) -> bool:
    try:
        with av.open(str(path)) as container:
            container.seek(int(second * av.time_base))
            return next(container.decode(video=0), None) is not None
    except (av.FFmpegError, OSError, IndexError):
        return False


def coverage(chosen: Sequence[Chosen], status_of: dict[str, str]) -> dict[str, Any]:
    """Counts of the chosen clips.

    Args:
        chosen: All that are wanted.
        status_of: Clip.key -> status; a missing one was not tried.

    Returns:
        side -> {"clips", "people", "videos", and for every status that occurs its count; "people_ok", "videos_ok"}.
    """
    result: dict[str, Any] = {}
    for side in SIDES:
        clips = [item.clip for item in chosen if item.side == side]
        have = [clip for clip in clips if status_of.get(clip.key) == "ok"]
        figures: dict[str, int] = {"clips": len(clips)}
        for status in STATUSES:
            count = sum(status_of.get(clip.key, "not_tried") == status for clip in clips)
            if count or status == "ok":
                figures[status] = count
        for name, group in (("", clips), ("_ok", have)):
            figures[f"people{name}"] = len({clip.person for clip in group})
            figures[f"videos{name}"] = len({clip.video_id for clip in group})
        result[side] = figures
    return result


def coverage_table(figures: dict[str, Any]) -> str:
    """The counts as a Markdown table that also reads well on a terminal."""
    rows: list[tuple[str, ...]] = [("", *SIDES, "what it means")]
    rows.append(("chosen", *(str(figures[side]["clips"]) for side in SIDES), "clips of the list"))
    for status, meaning in STATUSES.items():
        counts = [figures[side].get(status, 0) for side in SIDES]
        if any(counts) or status == "ok":
            rows.append((status, *(str(count) for count in counts), meaning))
    for name in ("people", "videos"):
        counts_of = (f"{figures[side][f'{name}_ok']} of {figures[side][name]}" for side in SIDES)
        rows.append((name, *counts_of, "with at least one clip here"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"
