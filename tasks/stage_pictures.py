"""One picture of what a stage left, small enough for a page that lists many: clips, masks, samples, outputs.

For whoever watches a run (the Prefect flow shows them): only what lies on disk is drawn, no network runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.clip_table import ok_clips, read_table
from tasks.errors import StageError
from tasks.generated import read_pairs, records
from tasks.methods import BASELINE, METHODS, OURS
from tasks.paths import Paths
from tasks.sheets import colour_labels, contact_sheet, draw_outline
from tasks.stores import array, open_store

TILE_PX, COLUMNS, ROWS = 112, 6, 2
MOST_WIDTH = 1200
"""Sample sheets of a training are made this wide at most."""
SAMPLES = "samples/step_*.png"
"""Below a training's checkpoint folder."""


def stage_picture(stage: str, paths: Paths) -> np.ndarray | None:
    """Draw what a stage left.

    Args:
        stage: Its name.
        paths: The data folder.

    Returns:
        `(height, width, 3)` uint8 RGB; None where there is nothing to draw.
    """
    draw = PICTURES.get(stage)
    try:
        return draw(paths) if draw else None
    except (StageError, FileNotFoundError):  # an out that is missing: the stage says so itself
        return None


def _tile(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS))


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers, evenly spread."""
    return sorted({round(float(at)) for at in np.linspace(0, count - 1, min(most, count))}) if count else []


def _grid(tiles: list[np.ndarray], captions: list[str]) -> np.ndarray | None:
    """Tiles in rows of `COLUMNS`, under their names."""
    if not tiles:
        return None
    rows = [tiles[first : first + COLUMNS] for first in range(0, len(tiles), COLUMNS)]
    names = [", ".join(captions[first : first + COLUMNS]) for first in range(0, len(tiles), COLUMNS)]
    return contact_sheet(rows, names)


def _clips(paths: Paths) -> np.ndarray | None:
    """The middle frame of some clips."""
    table = ok_clips(read_table(paths.clip_table))
    frames = array(open_store(paths.clips), "frames")
    chosen = [table.iloc[index] for index in _spread(len(table), COLUMNS * ROWS)]
    tiles = [_tile(np.asarray(frames[int(row["row"])])[frames.shape[1] // 2]) for row in chosen]
    return _grid(tiles, [str(row["clip"]) for row in chosen])


def _masks(paths: Paths) -> np.ndarray | None:
    """The middle frame of some clips with the head's outline, beside its labels."""
    table = ok_clips(read_table(paths.clip_table))
    store = open_store(paths.masks)
    done = np.asarray(array(store, "done")[:])
    rows = [row for row in records(table) if done[int(row["row"])]]
    frames, head, labels = array(open_store(paths.clips), "frames"), array(store, "head"), array(store, "labels")
    middle = frames.shape[1] // 2
    tiles, names = [], []
    for index in _spread(len(rows), COLUMNS * ROWS // 2):
        at = int(rows[index]["row"])
        image, mask = np.asarray(frames[at])[middle], np.asarray(head[at])[middle]
        tiles += [_tile(draw_outline(image, mask)), _tile(colour_labels(np.asarray(labels[at])[middle]))]
        names += [str(rows[index]["clip"]), "labels"]
    return _grid(tiles, names)


def _samples(stage: str) -> Callable[[Paths], np.ndarray | None]:
    """The last sample sheet of a training."""

    def draw(paths: Paths) -> np.ndarray | None:
        sheets = sorted(paths.checkpoint(stage).glob(SAMPLES))
        return read_picture(sheets[-1], MOST_WIDTH) if sheets else None

    return draw


def _outputs(paths: Paths) -> np.ndarray | None:
    """Subject, driving frame and every method's frame in the middle of some pairs."""
    pairs = read_pairs(paths)
    good = records(pairs[pairs["status"] == "ok"])
    frames = array(open_store(paths.clips), "frames")
    made = open_store(paths.generated / "frames.zarr")
    methods = sorted(made, key=lambda name: (name != OURS, name == BASELINE, name))
    middle, rows, names = frames.shape[1] // 2, [], []
    for index in _spread(len(good), 2 * ROWS):
        pair = good[index]
        tiles = [np.asarray(frames[int(pair[f"{who}_row"])])[middle] for who in ("subject", "driving")]
        shown = [name for name in methods if f"{name}/{pair['setting']}" in made]
        tiles += [np.asarray(array(made, f"{name}/{pair['setting']}")[int(pair["index"])])[middle] for name in shown]
        rows.append([_tile(tile) for tile in tiles])
        names.append(f"{pair['pair']}: " + ", ".join(["subject", "driving", *(METHODS[name].label for name in shown)]))
    return contact_sheet(rows, names) if rows else None


def read_picture(path: Path, most_width: int) -> np.ndarray:
    """A picture file as `(H, W, 3)` uint8 RGB, made smaller where it is wider than `most_width`."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((most_width, most_width * 4), Image.Resampling.LANCZOS)
    return np.asarray(picture)


PICTURES: dict[str, Callable[[Paths], np.ndarray | None]] = {
    "crop": _clips,
    "parse": _masks,
    "geometry": _samples("geometry"),
    "canonical": _samples("canonical"),
    "fusion": _samples("fusion"),
    "generate": _outputs,
}
"""Stages that leave something to look at."""
