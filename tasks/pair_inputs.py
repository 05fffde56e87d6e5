"""What another method needs to make its videos of our pairs (`generate.external`): subject, driving, reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tasks.clip_table import read_table
from tasks.errors import StageError
from tasks.generate import write_png
from tasks.generated import read_pairs
from tasks.paths import Paths
from tasks.progress import progress
from tasks.stores import array, open_store
from tasks.video_write import write_video

CRF = 1
"""x264's rate factor: 0 is a lossless profile that many decoders cannot read; 1 loses about as little."""


def write_inputs(paths: Paths, folder: Path, as_frames: bool) -> dict[str, Any]:
    """Write the inputs of every generated pair.

    `subject/`, `driving/` and `reference/` (s_ref) hold a video or a picture per pair, named after it; pairs.csv lists
    them. What the other method makes of them goes to `self/self_000.mp4`, `cross/cross_000.mp4` ..., as many frames as
    the driving video has.

    Args:
        paths: Where clips and pairs lie.
        folder: Where to; made if need be.
        as_frames: Folders of PNG frames, which lose nothing, in place of mp4 files, whose colours have half the size.

    Returns:
        How many pairs, and of which setting.

    Raises:
        StageError: No pair has been generated.
    """
    pairs = read_pairs(paths)
    pairs = pairs[pairs["status"] == "ok"]
    if pairs.empty:
        raise StageError("no pair has been generated; `dvc repro generate` chooses them")
    frames = array(open_store(paths.clips), "frames")
    rates = read_table(paths.clip_table).set_index("clip")["fps"]
    with progress("inputs", len(pairs), "pair") as bar:
        for row in pairs.to_dict("records"):
            name = str(row["pair"])
            for role in ("subject", "driving"):
                images = np.asarray(frames[int(row[f"{role}_row"])])
                if as_frames:
                    for number, image in enumerate(images):
                        write_png(folder / role / name / f"{number:04d}.png", image)
                else:
                    write_video(folder / role / f"{name}.mp4", images, float(rates[row[f"{role}_clip"]]), CRF)
                if role == "subject":
                    write_png(folder / "reference" / f"{name}.png", images[int(row["reference_frame"])])
            bar.update()
    columns = ["pair", "setting", "dataset", "subject_clip", "driving_clip", "reference_frame"]
    pairs[columns].to_csv(folder / "pairs.csv", index=False)
    return {"pairs": len(pairs), **{str(name): int(count) for name, count in pairs["setting"].value_counts().items()}}
