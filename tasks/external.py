"""Videos that were made elsewhere (`generate.external`): checked, brought to our form, and kept as one more method.

Source: Sec. 4.1 compares with other methods' videos. A folder holds `self/self_000.mp4`, `cross/cross_003.mp4` ... (or
the files alone, without the two folders), named as in generated/pairs.csv; or folders `self/self_000/` of PNG frames,
which lose nothing: for Table 1 that is fairer than a video, for ours are measured without compression. From here on
they are like any other method's: lossless frames, and an mp4 from the same encoder, so that nothing but the pictures
tells where it comes from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd
import zarr

from tasks.errors import StageError
from tasks.generated import EXTERNAL, EXTERNAL_COLUMNS, read_external
from tasks.stores import array
from tasks.video_read import decoded_frames, video_stream
from tasks.video_write import write_video

ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")


class UnusableError(ValueError):
    """An external video cannot be taken; the text says why, in a few words."""


def find_video(folder: Path, setting: str, pair: str) -> Path:
    """The file of one pair.

    Args:
        folder: What `generate.external` names.
        setting: `self` or `cross`.
        pair: Name of the pair, for example `cross_003`.

    Returns:
        `folder/setting/pair/` (frames) or `pair.*` (a video), else the same in `folder`.

    Raises:
        UnusableError: There is none.
    """
    for place in (folder / setting, folder):
        if any((place / pair).glob("*.png")):
            return place / pair
        for ending in ENDINGS:
            if (path := place / f"{pair}{ending}").is_file():
                return path
    raise UnusableError("missing")


def _natural(file: Path) -> tuple[list[str | int], str]:
    """What frames are sorted by: numbers in a name count as numbers, for 10.png comes after 2.png."""
    parts = re.split(r"([0-9]+)", file.name)  # text and numbers in turn, a text first
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], file.name


def _files(source: Path) -> list[Path]:
    """The video, or the frames of a folder in the order of their names, numbers as numbers."""
    return sorted(source.glob("*.png"), key=_natural) if source.is_dir() else [source]


def read_video(path: Path, frames: int, size_px: int) -> np.ndarray:
    """The frames of an external video in our size.

    Args:
        path: The file, or the folder of frames.
        frames: How many the driving clip has: the video must have as many.
        size_px: Side of our frames; a square video of another size is resized.

    Returns:
        `(frames, size_px, size_px, 3)` uint8 RGB.

    Raises:
        UnusableError: It cannot be read, has another number of frames, or is no square.
    """
    images = []
    if path.is_dir():
        read = [cv2.imread(str(file), cv2.IMREAD_COLOR) for file in _files(path)[: frames + 1]]
        images = [cv2.cvtColor(image, cv2.COLOR_BGR2RGB) for image in read if image is not None]
        if len({image.shape for image in images}) != 1:
            raise UnusableError("frames that cannot be read or differ in size")
    else:
        images = _decode(path, frames)
    if len(images) > frames:
        raise UnusableError(f"more than the {frames} frames of the driving clip")
    if len(images) < frames:
        raise UnusableError(f"{len(images)} frames, the driving clip has {frames}")
    height, width = images[0].shape[:2]
    if height != width:
        raise UnusableError(f"{width} x {height} pixels, which is no square")
    if height != size_px:
        method = cv2.INTER_AREA if height > size_px else cv2.INTER_LINEAR
        images = [cv2.resize(image, (size_px, size_px), interpolation=method) for image in images]
    return np.stack(images)


def _decode(path: Path, frames: int) -> list[np.ndarray]:
    """The frames of a video, not many more than `frames`."""
    images: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            # PyAV alone: decord, the usual reader, hangs for ever on some files
            for frame in decoded_frames(container, video_stream(container, path)):
                images.append(frame.to_ndarray(format="rgb24"))
                if len(images) > frames:
                    break
    except (av.FFmpegError, OSError, RuntimeError) as error:
        raise UnusableError(f"cannot be read ({type(error).__name__})") from None
    return images


def check_folders(external: Mapping[str, str]) -> None:
    """Before hours of work: whether every folder of `generate.external` is there.

    Raises:
        StageError: One is not.
    """
    for method, place in external.items():
        if not (source := Path(place).expanduser()).is_dir():
            raise StageError(f"generate.external.{method}: {source} is not a folder; correct it or take the method out")


def take_in(
    external: Mapping[str, str], pairs: pd.DataFrame, folder: Path, group: zarr.Group, fps: Mapping[str, float]
) -> dict[str, Any]:
    """Bring every external video into the generated set; those taken in before, unchanged since, stay.

    What is missing or unusable costs only itself and is listed in external.csv with its reason.

    Args:
        external: Method -> folder.
        pairs: The generated pairs.
        folder: The folder `generated`.
        group: `frames.zarr`, with an array for every method and setting.
        fps: Driving clip -> frames per second.

    Returns:
        `external_videos_NAME` and `external_missing_NAME` of every method.

    Raises:
        StageError: A folder does not exist.
    """
    check_folders(external)
    known = {(row["method"], row["pair"]): row["sha256"] for row in read_external(folder).to_dict("records")}
    rows: list[dict[str, Any]] = []
    for method, place in external.items():
        source = Path(place).expanduser()
        for pair in pairs.to_dict("records"):
            setting, name = str(pair["setting"]), str(pair["pair"])
            row = {"method": method, "pair": name, "status": "ok", "reason": "", "sha256": ""}
            target = folder / "videos" / method / setting / f"{name}.mp4"
            try:
                video = find_video(source, setting, name)
                row["sha256"] = hashlib.sha256(b"".join(file.read_bytes() for file in _files(video))).hexdigest()
                if not (target.is_file() and known.get((method, name)) == row["sha256"]):
                    stored = array(group, f"{method}/{setting}")
                    frames = read_video(video, stored.shape[1], stored.shape[2])
                    stored[int(pair["index"])] = frames
                    write_video(target, frames, fps[str(pair["driving_clip"])])
            except UnusableError as error:
                row |= {"status": "missing", "reason": str(error)}
                target.unlink(missing_ok=True)
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(EXTERNAL_COLUMNS))
    table.to_csv(folder / EXTERNAL, index=False)
    return {
        f"external_{what}_{method}": int(((table["method"] == method) & (table["status"] == status)).sum())
        for method in external
        for what, status in (("videos", "ok"), ("missing", "missing"))
    }
