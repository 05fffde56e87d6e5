"""Label maps of any picture or video, at its own size.

The main face is found, a square about the head goes through the parser, and the labels are put back where the square
lies in the picture; all beyond it is background. A picture without a face is parsed as a whole. Every file appears
under its name only when it is complete, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from models.config import Crop, Parse
from tasks.crop_plan import Square
from tasks.disk import whole_file
from tasks.face_search import View, Watch
from tasks.head_window import (
    Window,
    face_boxes,
    face_window,
    find_face,
    parse_side,
    plan_windows,
    runs_out,
    whole_picture,
    wider,
)
from tasks.image_read import read_image
from tasks.labels import HEAD_AND_HAT, head_mask
from tasks.parser_network import load_network
from tasks.segment_network import label_maps, steady
from tasks.sheets import colour_labels, draw_outline
from tasks.video import VideoError, VideoInfo, probe
from tasks.video_stream import StreamFrame, stream_frames

MARKER = "parse.json"
"""In a video's folder, written last: it is complete."""
OVERLAYS = "overlay"
"""Folder of a video's overlays, beside its label maps."""
LOOK_FRAMES = 16
VIDEO_BATCH = 8
"""Frames of a video that go through the parser at once: as pictures they may be large."""
WIDER_TIMES = 2
"""How often a square may be enlarged where the head does not fit into it."""
COLOUR_SHARE = 0.45
UNKNOWN_BOX = np.full(4, np.nan)

Tick = Callable[[int, int], None]
"""Told how many frames have been dealt with, of how many."""


@dataclass(frozen=True)
class Parsed:
    """What there is of a picture or video now.

    Attributes:
        frames: Label maps.
        faces: How many of them lie about a face; the others show the whole picture.
        kept: How many an earlier run had written.
    """

    frames: int
    faces: int
    kept: int


class MediaParser:
    """A loaded parser, and how it is used."""

    def __init__(
        self, crop: Crop, parse: Parse, device: str, *, weights: Path | None, overlay: bool, force: bool
    ) -> None:
        """Load the network.

        Args:
            crop: How faces are looked for: `detect_long_side_px` and `min_confidence`.
            parse: `parser` (a network), `work_px`, `mirror` and `smooth_frames`.
            device: auto, cpu, cuda or cuda:N.
            weights: Another weights file than the parser's own.
            overlay: Also write pictures with the labels' colours.
            force: Parse what is there already again.

        Raises:
            StageError: The weights or the device are not there.
        """
        self._crop, self._smooth = crop, parse.smooth_frames
        self._network = load_network(parse.parser, device, parse.mirror, weights)
        self._work_px = parse.work_px
        self._overlay, self._force = overlay, force
        self._facts = parse.model_dump(include={"parser", "work_px", "mirror", "smooth_frames"})

    def picture(self, source: Path, target: Path) -> Parsed:
        """Write the label map of a picture, and with overlays `<name>_overlay.jpg` beside it.

        Args:
            source: The picture.
            target: The PNG.

        Returns:
            One frame.

        Raises:
            ImageError: It cannot be read.
        """
        drawing = target.with_name(f"{target.stem}_overlay.jpg")
        if not self._force and target.is_file() and (drawing.is_file() or not self._overlay):
            return Parsed(1, 0, 1)
        image = read_image(source)
        height, width = image.shape[:2]
        box = find_face(image, self._crop.min_confidence)
        if box is None:
            known, square = UNKNOWN_BOX, whole_picture(width, height)
        else:
            known, square = box, self._widened(image, face_window(box[None]), box[None])
        share = self._network.probabilities(square.cut(image, self._side(square, known[None]))[None])[0]
        class_ids = _in_place(share, square, known, width, height)
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._overlay:
            _save(overlay_picture(image, class_ids), drawing)
        _save(class_ids, target)
        return Parsed(1, int(box is not None), 0)

    def video(self, source: Path, folder: Path, tick: Tick) -> Parsed:
        """Write `000000.png`... of a video, and with overlays `overlay/000000.jpg`...

        Args:
            source: The video.
            folder: Where the label maps go; what an earlier, interrupted run left there is kept.
            tick: Told of the progress.

        Returns:
            The counts.

        Raises:
            VideoError: It cannot be read.
        """
        if not self._force and self._is_complete(folder):
            facts = json.loads((folder / MARKER).read_text(encoding="utf-8"))
            return Parsed(facts["frames"], facts["faces"], facts["frames"])
        info = probe(source)
        boxes, shots = self._look(source, info)
        windows = plan_windows(boxes, shots, info.width, info.height)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).unlink(missing_ok=True)
        kept = 0 if self._force else self._written(folder)
        tick(kept, len(boxes))
        for index, image, class_ids in self._label_maps(source, info, windows, boxes, kept):
            if self._overlay:
                (folder / OVERLAYS).mkdir(exist_ok=True)
                _save(overlay_picture(image, class_ids), folder / OVERLAYS / f"{index:06d}.jpg")
            _save(class_ids, folder / f"{index:06d}.png")
            tick(index + 1, len(boxes))
        faces = sum(window.stop - window.start for window in windows if window.face)
        facts = {"source": source.name, "frames": len(boxes), "faces": faces, "fps": info.fps, **self._facts}
        with whole_file(folder / MARKER, shared=True) as partial:
            partial.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return Parsed(len(boxes), faces, kept)

    def _side(self, square: Square, boxes: np.ndarray) -> int:
        return self._network.side(round(parse_side(square, boxes, self._work_px)))

    def _widened(self, image: np.ndarray, square: Square, boxes: np.ndarray) -> Square:
        """The square, larger where the head runs out of it inside the picture (long hair, a hat)."""
        for _ in range(WIDER_TIMES):
            cut = square.cut(image, self._side(square, boxes))
            best = self._network.probabilities(cut[None])[0].max(dim=-1).indices
            head = head_mask(best.byte().cpu().numpy(), list(HEAD_AND_HAT))
            if not runs_out(head, square, *image.shape[1::-1]):
                break
            square = wider(square)
        return square

    def _is_complete(self, folder: Path) -> bool:
        return (folder / MARKER).is_file() and (not self._overlay or (folder / OVERLAYS / "000000.jpg").is_file())

    def _written(self, folder: Path) -> int:
        """How many of the first frames are there."""
        for index in itertools.count():
            there = (folder / f"{index:06d}.png").is_file()
            if not there or (self._overlay and not (folder / OVERLAYS / f"{index:06d}.jpg").is_file()):
                return index
        raise AssertionError

    def _look(self, source: Path, info: VideoInfo) -> tuple[np.ndarray, np.ndarray]:
        """Main face and shot of every frame, see `face_boxes`: the first pass over the video."""
        watch = Watch(1, self._crop.min_confidence)
        frames = stream_frames(source, info)
        while batch := list(itertools.islice(frames, LOOK_FRAMES)):
            pictures = np.stack([frame.picture(self._crop.detect_long_side_px) for frame in batch])
            watch.add(pictures, View(info.width / pictures.shape[2]))
        watch.looks.frames = len(watch.looks.faces)
        if not watch.looks.frames:
            raise VideoError("unreadable", f"{source.name}: no frame of it can be decoded")
        return face_boxes(watch.looks, info.fps)

    def _label_maps(
        self, source: Path, info: VideoInfo, windows: list[Window], boxes: np.ndarray, first: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Index, picture (empty unless overlays are wanted) and label map from frame `first` on: the second pass."""
        frames = stream_frames(source, info)
        for window in windows:
            inside: Iterator[StreamFrame] = itertools.islice(frames, window.stop - window.start)
            if window.stop <= first:
                for _ in inside:
                    pass
                continue
            begin = max(window.start, first - self._smooth // 2)  # the frames before are averaged in
            pictures: deque[np.ndarray] = deque()
            square, inside_boxes = window.square, boxes[window.start : window.stop]
            if window.face and (first_frame := next(inside, None)) is not None:
                square = self._widened(first_frame.picture(), square, inside_boxes)
                inside = itertools.chain([first_frame], inside)
            side = self._side(square, inside_boxes)
            batches = self._cut(itertools.dropwhile(_before(begin), inside), square, side, pictures)
            shares = itertools.chain.from_iterable(steady(batches, self._network, self._smooth))
            for index, share in enumerate(shares, start=begin):
                image = pictures.popleft()
                if index >= first:
                    yield index, image, _in_place(share, square, boxes[index], info.width, info.height)

    def _cut(
        self, frames: Iterator[StreamFrame], square: Square, side: int, pictures: deque[np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Batches of what the parser sees; the whole pictures are left in `pictures` if overlays need them."""
        while batch := list(itertools.islice(frames, VIDEO_BATCH)):
            cuts = []
            for frame in batch:
                picture = frame.picture()
                cuts.append(square.cut(picture, side))
                pictures.append(picture if self._overlay else picture[:0])
            yield np.stack(cuts)


def _in_place(share: Tensor, square: Square, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Labels of the square, enlarged to its size and put where it lies in the picture `(H, W)`."""
    corner = np.array([square.x0, square.y0, square.x0, square.y0])
    inside = next(label_maps(share[None], (square.side, square.side), (box - corner)[None]))
    x0, y0 = max(0, square.x0), max(0, square.y0)
    x1, y1 = min(width, square.x0 + square.side), min(height, square.y0 + square.side)
    out = np.zeros((height, width), np.uint8)
    if x1 > x0 and y1 > y0:
        out[y0:y1, x0:x1] = inside[y0 - square.y0 : y1 - square.y0, x0 - square.x0 : x1 - square.x0]
    return out


def overlay_picture(image: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
    """A picture `(H, W, 3)` with its labels' colours over it and the head outlined."""
    mixed = image * (1 - COLOUR_SHARE) + colour_labels(class_ids) * COLOUR_SHARE
    out = np.where((class_ids > 0)[..., None], mixed.round().astype(np.uint8), image)
    return draw_outline(out, head_mask(class_ids, list(HEAD_AND_HAT)))


def _before(index: int) -> Callable[[StreamFrame], bool]:
    return lambda frame: frame.index < index


def _save(image: np.ndarray, path: Path) -> None:
    """Write a PNG or JPEG by the name's ending; `(H, W)` becomes mode L."""
    options = {"quality": 90} if path.suffix == ".jpg" else {"compress_level": 4}
    kind = "JPEG" if path.suffix == ".jpg" else "PNG"
    with whole_file(path, shared=True) as partial:
        Image.fromarray(image).save(partial, kind, **options)
