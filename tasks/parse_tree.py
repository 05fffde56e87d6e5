"""One file, or all pictures and videos below a folder, to label maps: names of the outputs, failures, the table."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tasks.disk import whole_file
from tasks.errors import StageError
from tasks.image_read import IMAGE_SUFFIXES, ImageError
from tasks.output import check_apart
from tasks.parse_media import MediaParser, Parsed, Tick
from tasks.progress import progress
from tasks.source_files import VIDEO_SUFFIXES, find_videos
from tasks.video import VideoError

TABLE = "parse.csv"
COLUMNS = ("source", "output", "status", "frames", "frames_with_face", "frames_kept", "reason")


@dataclass
class TreeReport:
    """What came out.

    Attributes:
        pictures: Pictures that have labels now.
        videos: Videos likewise.
        frames: Label maps of both.
        frames_kept: How many of them an earlier run had written.
        without_face: Label maps made in this run that show no face: the whole picture was parsed.
        refused: A sentence for each file that gave nothing.
    """

    pictures: int = 0
    videos: int = 0
    frames: int = 0
    frames_kept: int = 0
    without_face: int = 0
    refused: list[str] = field(default_factory=list)


def parse_path(parser: MediaParser, source: Path, out: Path) -> TreeReport:
    """Parse a picture, a video or a folder of both.

    Args:
        parser: The loaded parser.
        source: File or folder.
        out: A picture's PNG, or a folder. A folder's outputs mirror it: `a/b.jpg` becomes `a/b.png`, `a/c.mp4` the
            folder `a/c`; names that would meet keep their ending (`b.jpg.png`). `parse.csv` lists them all.

    Returns:
        The counts.

    Raises:
        StageError: Nothing came out, or `out` is the picture itself; the text says why.
    """
    if source.is_dir():
        return _parse_folder(parser, source, out)
    report = TreeReport()
    target = _single_target(source, out)
    check_apart(target, source)
    with _bar(source.name, "frame") as tick:
        try:
            _note(report, target, _parse_file(parser, source, target, tick))
        except (ImageError, VideoError, OSError) as error:
            raise StageError(str(error)) from None
    return report


def _single_target(source: Path, out: Path) -> Path:
    """A PNG for a picture, a folder for a video."""
    if _is_video(source):
        if out.is_file() or out.suffix.lower() == ".png":
            raise StageError(f"{source.name} is a video: -o names a folder, one PNG per frame goes there")
        return out
    if out.suffix.lower() == ".png" and not out.is_dir():
        return out
    if out.is_file():
        raise StageError(f"-o {out} is a file; name a .png or a folder")
    return out / f"{source.stem}.png"


def _is_video(source: Path) -> bool:
    return source.suffix.lower() not in IMAGE_SUFFIXES


def _parse_file(parser: MediaParser, source: Path, target: Path, tick: Tick) -> Parsed:
    if _is_video(source):
        return parser.video(source, target, tick)
    parsed = parser.picture(source, target)
    tick(1, 1)
    return parsed


def _parse_folder(parser: MediaParser, source: Path, out: Path) -> TreeReport:
    if out.is_file():
        raise StageError(f"-o {out} is a file; the labels of a folder need a folder")
    files = [
        path
        for path in find_videos(source, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        if not path.resolve().is_relative_to(out.resolve())
    ]
    if not files:
        kinds = ", ".join(suffix[1:] for suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise StageError(f"{source} holds no pictures or videos ({kinds})")
    report, rows = TreeReport(), list[dict[str, object]]()
    with progress("parse", len(files), "file") as bar:
        for path, target in zip(files, _targets(source, out, files), strict=True):
            bar.set_postfix_str(path.name)
            name = path.relative_to(source).as_posix()
            row: dict[str, object] = {"source": name, "output": target.relative_to(out).as_posix(), "status": "ok"}
            try:
                parsed = _parse_file(parser, path, target, lambda _done, _total: None)
            except (ImageError, VideoError, OSError) as error:
                report.refused.append(f"{name}: {error}")
                rows.append({**row, "output": "", "status": "error", "reason": str(error)})
            else:
                _note(report, target, parsed)
                counts = {"frames": parsed.frames, "frames_with_face": parsed.faces, "frames_kept": parsed.kept}
                rows.append({**row, **counts})
            bar.update(1)
    out.mkdir(parents=True, exist_ok=True)
    _write_table(out / TABLE, rows)
    if not report.frames:
        raise StageError(f"none of the {len(files)} files could be parsed; the first: {report.refused[0]}")
    return report


def _targets(source: Path, out: Path, files: list[Path]) -> list[Path]:
    """Where each file's labels go; two files of one name keep their endings."""
    plain = [(out / path.relative_to(source)).with_suffix(_ending(path)) for path in files]
    met = Counter(plain)
    return [
        target if met[target] == 1 else target.with_name(path.name + _ending(path))
        for path, target in zip(files, plain, strict=True)
    ]


def _ending(path: Path) -> str:
    return "" if _is_video(path) else ".png"


def _note(report: TreeReport, target: Path, parsed: Parsed) -> None:
    if target.suffix == ".png":
        report.pictures += 1
    else:
        report.videos += 1
    report.frames += parsed.frames
    report.frames_kept += parsed.kept
    report.without_face += parsed.frames - parsed.faces if parsed.kept < parsed.frames else 0


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Tick]:
    """A progress bar that learns its length on the way."""
    with progress(label, 1, unit) as bar:

        def tick(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tick


def _write_table(path: Path, rows: list[dict[str, object]]) -> None:
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
