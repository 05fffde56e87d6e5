"""The study's videos and zips, made so that a file tells nothing but its pictures.

What could tell is made equal: one encoder and one container without tags; one size in bytes, by a box at the end that
players skip, whose random bytes also keep two copies of one video from being equal files; in the zip one date, one
mode, no compression, and the order of the (random) names. Frame count, frame rate and side are the driving clip's.
"""

from __future__ import annotations

import hashlib
import random
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import av

ROUND_TO = 1024
DATE = (1980, 1, 1, 0, 0, 0)
"""The first date that a zip can hold."""


def remux(source: Path, target: Path) -> str:
    """Copy the first video stream into a fresh container: same pictures, none of the old container's metadata.

    Returns:
        SHA-256 of what was written.
    """
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(source)) as inside, av.open(str(target), "w", format="mp4", options=options) as outside:
        stream = inside.streams.video[0]
        copy = outside.add_stream_from_template(stream)
        for packet in inside.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                outside.mux(packet)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def equalise(folder: Path, seed: int) -> int:
    """Bring all mp4 files of a folder to one size.

    Args:
        folder: With the videos under their blinded names.
        seed: Of the study; the bytes follow from it and the name.

    Returns:
        The size in bytes; 0 where there is no file.
    """
    files = sorted(folder.glob("*.mp4"))
    largest = max((path.stat().st_size for path in files), default=0)
    size = -(-(largest + 8) // ROUND_TO) * ROUND_TO if files else 0
    for path in files:
        missing = size - path.stat().st_size
        filling = random.Random(f"{seed}/{path.name}").randbytes(missing - 8)
        with path.open("ab") as stream:
            stream.write(struct.pack(">I4s", missing, b"free") + filling)
    return size


def write_zip(target: Path, texts: Mapping[str, bytes], videos: Iterable[Path], top: str) -> None:
    """Write a rater's zip.

    Args:
        target: The file to write.
        texts: Name -> content of the small files, in their order.
        videos: The videos; they go to `top/videos/` in the order of their names.
        top: Folder in the zip that holds everything, so that unpacking litters nothing.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in texts.items():
            archive.writestr(_entry(f"{top}/{name}"), content)
        for path in sorted(videos, key=lambda path: path.name):
            archive.writestr(_entry(f"{top}/videos/{path.name}"), path.read_bytes())


def _entry(name: str) -> zipfile.ZipInfo:
    """The same date, system and mode whatever machine writes it."""
    entry = zipfile.ZipInfo(name, DATE)
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    return entry
