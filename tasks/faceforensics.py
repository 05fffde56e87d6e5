"""Source `faceforensics`: the original (not manipulated) videos of FaceForensics or FaceForensics++, from a folder.

Nothing is downloaded: the authors hand out their script by a form. Layouts, also when the setting points further in:

- FaceForensics++: `original_sequences/youtube/<raw|c0|c23|c40>/videos/*.mp4` (early copies have no `youtube`);
- FaceForensics: `<FaceForensics_compressed|...>/<train|val|test>/original/*.avi` (only `test` where it is there);
- flat copies: `original/000.mp4`, `000.mp4`.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.config import Params
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.progress import progress
from tasks.source_files import Listing, SourceVideo, checksum, find_videos, project_path, safe_ids

METHODS = frozenset(
    {"deepfakes", "deepfakedetection", "face2face", "faceswap", "faceshifter", "neuraltextures", "altered", "mask"}
    | {"masks", "actors", "downloaded_videos"}
)
"""Folders of manipulated videos, masks, the paid actors of another set, and uncut videos."""
NOT_VIDEOS = frozenset({"images", "frames", "manipulated_sequences", "downloaded_videos"})
"""Folders that may hold millions of pictures, or nothing of use."""
_MARKS = ("original_sequences", "manipulated_sequences", "original")
BEST_FIRST = ("raw", "c23", "c40")
_LEVEL = re.compile(r"(?:.*[_-])?(raw|c0|c23|hq|c40|lq|compressed)")
_SAME = {"c0": "raw", "hq": "c23", "lq": "c40", "compressed": "raw"}  # the first set's "compressed" is lossless H.264
STEPS = """FaceForensics is handed out by its authors only:
  1. fill in the form that https://github.com/ondyari/FaceForensics links under "Access"; the answer brings the link to
     the script download-FaceForensics.py (it may take a week);
  2. python download-FaceForensics.py FOLDER -d original -c c23 -t videos
     (the originals alone, lightly compressed; add --server EU2 if the first server does not answer);
  3. set acquire.faceforensics.path: FOLDER in params.yaml, or write it together with the rest:
     head3d preset paper --voxceleb-list LIST --faceforensics FOLDER
Without it: take faceforensics out of acquire.sources."""


@dataclass(frozen=True)
class Original:
    """A video that is not manipulated."""

    path: Path
    level: str  # raw, c23, c40 or empty: not told by its folders
    part: str  # train, val, test or empty
    name: str


def faceforensics_source(params: Params, paths: Paths) -> Listing:
    """Choose test videos among the originals of a folder.

    Args:
        params: Uses `acquire.faceforensics` and `acquire.seed`.
        paths: A relative folder is below the project.

    Returns:
        The videos, all for testing, each an identity of its own.

    Raises:
        StageError: There is no such folder or no original in it; the text has the steps.
    """
    settings = params.acquire.faceforensics
    originals = check_folder(settings.path, settings.compression, paths)
    chosen = sorted(originals, key=lambda item: _random(params.acquire.seed, item.name))[: settings.test_videos or None]
    chosen.sort(key=lambda item: item.name)
    if settings.test_videos > len(originals):
        sys.stdout.write(f"faceforensics: {settings.test_videos} videos are wanted, {len(originals)} are there\n")
    ids = safe_ids([Path(f"ff-{item.name}.mp4") for item in chosen])
    videos = []
    with progress("acquire: faceforensics", len(chosen), "video") as bar:
        for item, video in zip(chosen, ids, strict=True):
            sha256, size = checksum(item.path)
            videos.append(SourceVideo(item.path, video, "faceforensics", video, sha256, size, "test"))
            bar.update(1)
    levels = dict(sorted(Counter(item.level or "unknown" for item in chosen).items()))
    figures = {"originals": len(originals), "chosen": len(chosen), "compression": levels}
    return Listing(videos, figures={"faceforensics": figures})


def check_folder(text: str, compression: str, paths: Paths) -> list[Original]:
    """The originals below a folder, one of each name.

    Args:
        text: `acquire.faceforensics.path`.
        compression: `acquire.faceforensics.compression`; `any`: the best there is of each video.
        paths: See above.

    Returns:
        Sorted by name; if the folder has the parts of FaceForensics, those of `test` only.

    Raises:
        StageError: Nothing there can be used.
    """
    if not text.strip():
        raise StageError(f"acquire.faceforensics.path is empty. {STEPS}")
    folder = project_path(text, paths.data)
    if not folder.is_dir():
        raise StageError(f"acquire.faceforensics.path = {text!r} is not a directory ({folder}). {STEPS}")
    files = find_videos(folder, skip=NOT_VIDEOS)
    found = [item for item in (_original(path, folder) for path in files) if item]
    if not found:
        kinds = f"it holds {len(files)} videos, none of them an original" if files else "it holds no video"
        raise StageError(
            f"{folder}: {kinds}; looked for original_sequences/youtube/*/videos/*.mp4 and */original/*.avi. {STEPS}"
        )
    wanted = "raw" if compression == "c0" else compression
    levels = Counter(item.level for item in found)
    if wanted != "any":
        found = [item for item in found if item.level == wanted]
        if not found:
            there = ", ".join(level or "unknown" for level in levels)
            raise StageError(
                f"{folder} has no originals of compression {compression} (there: {there}); set "
                "acquire.faceforensics.compression: any"
            )
    if any(item.part == "test" for item in found):
        found = [item for item in found if item.part in ("test", "")]
    best: dict[str, list[Original]] = defaultdict(list)
    for item in found:
        best[item.name].append(item)
    return [min(best[name], key=_preference) for name in sorted(best)]


def _original(path: Path, folder: Path) -> Original | None:
    """What a file is; None if it is no original.

    Folders above `folder` count too: somebody may point inside the tree.
    """
    parts = [part.lower() for part in path.parts[:-1]]
    places = {name: len(parts) - 1 - parts[::-1].index(name) for name in _MARKS if name in parts}
    mark = max(places, key=lambda name: places[name], default="")
    inside = parts[places[mark] + 1 :] if mark else [part.lower() for part in path.relative_to(folder).parts[:-1]]
    if mark == "manipulated_sequences" or METHODS.intersection(inside):
        return None
    numbered = re.fullmatch(r"[0-9]{3}", path.stem)
    if mark == "original_sequences" or (not mark and numbered):
        good = numbered is not None
    else:  # both sets' copies: 000.mp4, or <youtube id>_<number>_<youtube id>_<number>.avi
        good = mark == "original" and not re.fullmatch(r"[0-9]{3}_[0-9]{3}|[0-9]{2}_.*", path.stem)
    if not good:
        return None
    before = parts[places[mark] - 1] if mark == "original" and places[mark] else ""
    return Original(path, _level(parts), before if before in ("train", "val", "test") else "", path.stem)


def _level(parts: Sequence[str]) -> str:
    """The compression that the innermost telling folder names."""
    for part in reversed(parts):
        if match := _LEVEL.fullmatch(part):
            return _SAME.get(match[1], match[1])
    return ""


def _preference(item: Original) -> tuple[int, str]:
    return (BEST_FIRST.index(item.level) if item.level in BEST_FIRST else len(BEST_FIRST), item.path.as_posix())


def _random(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} faceforensics {name}".encode()).hexdigest()
