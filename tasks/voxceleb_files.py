"""VoxCeleb files that somebody already has, told by their names: whole videos, cut sections, official crops.

| name, in any folder | what it is |
|---|---|
| `<video>.mp4`, `Title [<video>].mp4`, one file in a folder `<video>/` | the whole video |
| `<video>+003657-003994.mp4` | a section of it, as this project's download cuts it |
| `<person>#<video>#003657#003994.mp4` | the crop that the list's public preprocessing writes |
| `<person>#<video>#<utterance>.txt#000.mp4` | the crop of its other script |
| `<person>/<video>/00012.mp4` | an utterance as VoxCeleb ships it, cropped |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.source_files import VIDEO_SUFFIXES
from tasks.voxceleb_list import Clip
from tasks.voxceleb_status import FileKind

_ID = r"(?P<video>[A-Za-z0-9_-]{11})"
_PERSON = r"(?P<person>[A-Za-z0-9][A-Za-z0-9_-]{0,39})"
_CROP = re.compile(rf"{_PERSON}#{_ID}#(?P<start>[0-9]{{1,9}})#(?P<end>[0-9]{{1,9}})")
_UTTERANCE = re.compile(rf"{_PERSON}#{_ID}#(?P<part>[A-Za-z0-9_-]{{1,20}})(\.txt)?#(?P<count>[0-9]{{1,6}})")
_CUT = re.compile(rf"{_ID}\+(?P<start>[0-9]{{1,9}})-(?P<end>[0-9]{{1,9}})")
_WHOLE = re.compile(rf"{_ID}|.*\[(?P<titled>[A-Za-z0-9_-]{{11}})\]")
_PLACE = re.compile(rf"(?:.*/)?(?P<person>id[0-9]{{1,8}})/{_ID}/(?P<part>[0-9]{{1,9}})")
_IN_FOLDER = re.compile(rf"(?:.*/)?{_ID}/[^/]*")

SUFFIXES = (*VIDEO_SUFFIXES, ".flv", ".3gp", ".ts", ".wmv")


@dataclass(frozen=True)
class Held:
    """A clip and the file that has it."""

    clip: Clip
    path: Path
    kind: FileKind


def match_files(folder: Path, files: Sequence[Path], listed: Sequence[Clip]) -> tuple[list[Held], int]:
    """Bring files and rows of the list together.

    Args:
        folder: Where the files are.
        files: Paths below it.
        listed: The list's clips; may be empty, then only crops can be used: their names say who they show.

    Returns:
        Every clip once (a whole video before a section before a crop), sorted by name; and how many files say nothing.
    """
    known = {clip.key: clip for clip in listed}
    of_video: dict[str, list[Clip]] = {}
    for clip in listed:
        of_video.setdefault(clip.video_id, []).append(clip)
    best: dict[str, Held] = {}
    unknown = 0
    for path in files:
        held = _held(path.relative_to(folder), path, known, of_video)
        unknown += not held
        for item in held:
            before = best.get(item.clip.key)
            if before is None or _RANK[item.kind] < _RANK[before.kind]:
                best[item.clip.key] = item
    return sorted(best.values(), key=lambda item: item.clip.name), unknown


_RANK: dict[FileKind, int] = {"whole": 0, "cut": 1, "crop": 2}


def _held(relative: Path, path: Path, known: dict[str, Clip], of_video: dict[str, list[Clip]]) -> list[Held]:
    stem, place = path.stem, relative.with_suffix("").as_posix()
    if match := _CROP.fullmatch(stem):
        crop = _named(match["person"], match["video"], relative, start=int(match["start"]), end=int(match["end"]))
        return [Held(known.get(crop.key, crop), path, "crop")] if crop.end > crop.start else []
    if match := _UTTERANCE.fullmatch(stem):
        part = f"{match['part']}-{match['count']}"
        return [Held(_named(match["person"], match["video"], relative, part=part), path, "crop")]
    if match := _CUT.fullmatch(stem):
        clip = known.get(stem)
        return [Held(clip, path, "cut")] if clip else []
    whole = _WHOLE.fullmatch(stem)
    video = (whole["video"] or whole["titled"]) if whole else ""
    if video in of_video:
        return [Held(clip, path, "whole") for clip in of_video[video]]
    if match := _PLACE.fullmatch(place):
        return [Held(_named(match["person"], match["video"], relative, part=match["part"]), path, "crop")]
    match = _IN_FOLDER.fullmatch(place)
    if match and match["video"] in of_video:
        return [Held(clip, path, "whole") for clip in of_video[match["video"]]]
    return []


def _named(person: str, video: str, relative: Path, start: int = 0, end: int = 0, part: str = "") -> Clip:
    """A clip of which only the name is known; folders `train`, `dev` and `test` above it say its side."""
    said = {"train": "train", "dev": "train", "test": "test"}
    partition = next((said[name] for name in relative.parts[:-1] if name in said), "")
    return Clip(video, start, end, 25.0, None, 0, 0, person, partition, part)
