"""The metadata list of VoxCeleb's preprocessing: read strictly, row by row, from a file or a URL.

The list is a CSV with a row for every clip: `video_id,start,end,bbox,fps,width,height,partition,person_id`. `start` and
`end` count frames at `fps` (25) from the video's beginning, `bbox` is `left-top-right-bottom` in pixels of a frame of
`width` x `height`. Nothing of it is trusted: a row that does not fit costs itself only.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from tasks.disk import whole_file
from tasks.errors import StageError
from tasks.source_files import project_path, write_text

COLUMNS = ("video_id", "start", "end", "bbox", "fps", "width", "height", "person_id")
"""What a list must have; `partition` (train or test) may be missing."""
MAX_BYTES = 64 << 20
MAX_SECONDS = 600.0
"""A longer clip is no clip: the longest of the real list has 41 s."""
MAX_SIDE_PX = 16384
LEAST_INSIDE = 0.5
"""Of a box's area; what sticks out of the frame is cut off. In the real list 4% stick out, at most by a sixth."""
TIMEOUT_S = 20.0

_VIDEO = re.compile(r"[A-Za-z0-9_-]{11}")
_PERSON = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_WHOLE = re.compile(r"[0-9]{1,9}")
_RATE = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?")
_BOX = re.compile(r"(-?[0-9]{1,6})-(-?[0-9]{1,6})-(-?[0-9]{1,6})-(-?[0-9]{1,6})")

WHERE_FROM = (
    "the list comes with the public preprocessing of the First Order Motion Model (file vox-metadata.csv of the GitHub "
    "repository AliaksandrSiarohin/video-preprocessing); set acquire.voxceleb.metadata to its path or to the URL of "
    "the raw file, for example by `head3d preset paper --voxceleb-list PATH_OR_URL --faceforensics FOLDER`"
)


@dataclass(frozen=True)
class Clip:
    """A usable row of the list, or a file that only its name describes (then `end` is 0 and there is no box)."""

    video_id: str
    start: int  # frames at `fps`
    end: int  # exclusive
    fps: float
    box: tuple[int, int, int, int] | None  # left, top, right, bottom, inside the frame
    width: int
    height: int
    person: str
    partition: str  # train, test or empty
    part: str = ""  # tells files apart that have no frame numbers

    @property
    def key(self) -> str:
        """What it is, whoever the person may be; also the name of its file when only the section was downloaded."""
        return f"{self.video_id}+{self.part or f'{self.start:06d}-{self.end:06d}'}"

    @property
    def name(self) -> str:
        """Its id in the manifest."""
        return f"{self.person}-{self.video_id}-{self.part or f'{self.start:06d}-{self.end:06d}'}"

    @property
    def start_s(self) -> float:
        """Seconds from the video's beginning."""
        return self.start / self.fps

    @property
    def end_s(self) -> float:
        """Seconds from the video's beginning."""
        return self.end / self.fps

    @property
    def section(self) -> str:
        """As the manifest has it."""
        return f"{self.start_s:.3f}-{self.end_s:.3f}"

    @property
    def box_fractions(self) -> str:
        """As the manifest has it; empty without a box."""
        if self.box is None:
            return ""
        sides = (self.width, self.height, self.width, self.height)
        return " ".join(f"{value / side:.5f}" for value, side in zip(self.box, sides, strict=True))


@dataclass(frozen=True)
class Metadata:
    """A list that was read: its usable clips, sorted, and what was wrong with the other rows."""

    clips: list[Clip]
    rows: int
    refused: dict[str, int]  # reason -> rows
    refusals: list[tuple[int, str, str]]  # line, reason, the row's beginning
    sha256: str


class _RowError(ValueError):
    """Why a row cannot be used, as one word."""


def load_metadata(place: str, data: Path, folder: Path) -> Metadata:
    """Read the list.

    Args:
        place: Path (absolute, with `~` or below the project) or URL.
        data: The data folder.
        folder: Where a downloaded list is kept; the same URL is not fetched twice.

    Returns:
        Its clips.

    Raises:
        StageError: It is not set, cannot be read or fetched, or is no such list.
    """
    if not place.strip():
        raise StageError(f"acquire.voxceleb.metadata is empty: {WHERE_FROM}")
    if re.match(r"https?://", place):
        return parse_metadata(_fetched(place, folder), place)
    path = project_path(place, data)
    if not path.is_file():
        raise StageError(f"acquire.voxceleb.metadata = {place!r} is not a file ({path}); {WHERE_FROM}")
    if path.stat().st_size > MAX_BYTES:
        raise StageError(f"{path} has {path.stat().st_size >> 20} MB: that is no list of VoxCeleb; {WHERE_FROM}")
    return parse_metadata(path.read_bytes(), str(path))


def parse_metadata(content: bytes, place: str) -> Metadata:
    """Check every row.

    Lines are read one by one, so that an open quote cannot swallow the rows after it.

    Args:
        content: The file.
        place: What to call it in errors.

    Returns:
        The clips in an order that does not depend on the rows' order.

    Raises:
        StageError: Its header is not that of such a list, or no row can be used.
    """
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    header = _header(lines[0], place)
    refusals: list[tuple[int, str, str]] = []
    found: list[tuple[Clip, int]] = []
    rows = 0
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        rows += 1
        try:
            found.append((_clip(line, header), number))
        except _RowError as error:
            refusals.append((number, str(error), line[:120].decode("utf-8", "backslashreplace").strip()))
    clips: dict[str, Clip] = {}
    for clip, number in sorted(found, key=lambda item: (_order(item[0]), item[1])):
        if clip.key in clips:
            refusals.append((number, "duplicate", clip.key))
        else:
            clips[clip.key] = clip
    refusals.sort()
    refused = dict(sorted(Counter(reason for _, reason, _ in refusals).items()))
    if not clips:
        reasons = ", ".join(f"{count} {reason}" for reason, count in refused.items()) or "it has no rows"
        raise StageError(f"{place}: not one row can be used ({reasons}); {WHERE_FROM}")
    return Metadata(list(clips.values()), rows, refused, refusals, hashlib.sha256(content).hexdigest())


def _order(clip: Clip) -> tuple[object, ...]:
    return (clip.video_id, clip.start, clip.end, clip.box, clip.person, clip.partition, clip.width, clip.height)


def _header(line: bytes, place: str) -> dict[str, int]:
    try:
        names = [name.strip() for name in next(csv.reader([line.decode("utf-8").rstrip("\r")]), [])]
    except (UnicodeDecodeError, csv.Error):
        names = []
    missing = [name for name in COLUMNS if name not in names]
    if missing or len(set(names)) != len(names):
        seen = line[:80].decode("utf-8", "backslashreplace").strip()
        html = " (a web page: use the link of the raw file)" if b"<" in line[:20] else ""
        raise StageError(
            f"{place} is no VoxCeleb list: its first line is {seen!r}{html}, it needs the columns {', '.join(COLUMNS)}"
        )
    return {name: index for index, name in enumerate(names)}


def _clip(line: bytes, header: dict[str, int]) -> Clip:
    """One row.

    Raises:
        _RowError: It cannot be used.
    """
    if b"\0" in line:
        raise _RowError("nul")
    try:
        values = next(csv.reader([line.decode("utf-8").rstrip("\r")], strict=True))
    except UnicodeDecodeError:
        raise _RowError("encoding") from None
    except (csv.Error, StopIteration):
        raise _RowError("quotes") from None
    if len(values) != len(header):
        raise _RowError("columns")
    row = {name: values[index] for name, index in header.items()}
    video = row["video_id"]
    if not _VIDEO.fullmatch(video):
        raise _RowError("video_id")
    if not _PERSON.fullmatch(row["person_id"]):
        raise _RowError("person_id")
    partition = row.get("partition", "")
    if partition not in ("train", "test", ""):
        raise _RowError("partition")
    start, end = _whole(row["start"], "frames"), _whole(row["end"], "frames")
    if not _RATE.fullmatch(row["fps"]) or not 1 <= float(row["fps"]) <= 240:
        raise _RowError("fps")
    fps = float(row["fps"])
    if not 0 < (end - start) / fps <= MAX_SECONDS:
        raise _RowError("frames")
    width, height = _whole(row["width"], "size"), _whole(row["height"], "size")
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise _RowError("size")
    clip = Clip(video, start, end, fps, None, width, height, row["person_id"], partition)
    return replace(clip, box=_inside(row["bbox"], width, height))


def _whole(text: str, reason: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise _RowError(reason)
    return int(text)


def _inside(text: str, width: int, height: int) -> tuple[int, int, int, int]:
    """The box, cut at the frame's edges if at least half of it is inside."""
    match = _BOX.fullmatch(text)
    if not match:
        raise _RowError("box")
    left, top, right, bottom = (int(group) for group in match.groups())
    if right <= left or bottom <= top:
        raise _RowError("box")
    cut = (max(0, left), max(0, top), min(width, right), min(height, bottom))
    area = max(0, cut[2] - cut[0]) * max(0, cut[3] - cut[1])
    if area < LEAST_INSIDE * (right - left) * (bottom - top):
        raise _RowError("box_outside")
    return cut


def _fetched(url: str, folder: Path) -> bytes:
    """The list behind a URL; kept beside a note of the URL and its checksum."""
    kept, note = folder / "metadata.csv", folder / "metadata.json"
    if kept.is_file() and note.is_file():
        content = kept.read_bytes()
        try:
            known = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
        if known == {"url": url, "sha256": hashlib.sha256(content).hexdigest()}:
            return content
    content = _get(url)
    parse_metadata(content, url)  # a page of HTML is not kept
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(kept) as partial:
        partial.write_bytes(content)
    write_text(note, json.dumps({"url": url, "sha256": hashlib.sha256(content).hexdigest()}) + "\n")
    return content


def _get(url: str) -> bytes:
    parts, size = [], 0
    try:
        with httpx.stream("GET", url, timeout=TIMEOUT_S, follow_redirects=True) as answer:
            if not answer.is_success:
                raise StageError(f"{url} answers {answer.status_code} {answer.reason_phrase}; {WHERE_FROM}")
            for part in answer.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > MAX_BYTES:
                    raise StageError(f"{url} has more than {MAX_BYTES >> 20} MB: that is no list of VoxCeleb")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise StageError(
            f"{url} cannot be fetched ({error or type(error).__name__}); is there a network? {WHERE_FROM}"
        ) from None
    return b"".join(parts)
