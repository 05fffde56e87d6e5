"""What has been read of a video so far: the looks at it, its frames' times, and the frames themselves while they fit.

A video is decoded once. It is read from its start in growing windows, only as far as clips are still missing, and the
frames of the window wait in the codec's layout for the plan; a plan that needs frames which did not fit decodes again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.config import Crop
from tasks.face_search import View, Watch
from tasks.faces import Looks, sudden
from tasks.video_read import VideoInfo
from tasks.video_stream import StreamFrame, stream_frames

KEEP_BYTES = 400_000_000
"""Decoded frames held at a time, per worker: 290 of 720p, 130 of 1080p, 32 of 2160p."""
LOOKS_AT_ONCE = 15
GAP_S = 0.5
"""Frames farther apart in time are not consecutive for anyone who watches: another shot begins."""
BOX_ROOM = 1.5
"""With a list's box, faces are looked for in this many times its longer side about its centre."""


class Footage:
    """A video being read; frames are counted from the start of its section."""

    def __init__(
        self,
        path: Path,
        info: VideoInfo,
        crop: Crop,
        section: tuple[float, float | None] = (0.0, None),
        box: np.ndarray | None = None,
    ) -> None:
        """Open it.

        Args:
            path: The file.
            info: What `probe` says about it.
            crop: How to look at it.
            section: Start and end in seconds; None: to the end.
            box: x0, y0, x1, y1 in pixels: look there and about it only.
        """
        self._path, self._info, self._crop, self._section = path, info, crop, section
        self._region = None if box is None else _region(box, info)
        self._watch = Watch(crop.detect_every_frames, crop.min_confidence, 0.8 * crop.second_face_ratio)
        self._stream = stream_frames(path, info, *section)
        self._kept: deque[StreamFrame] = deque()
        self._bytes = 0
        self._thumbnail: np.ndarray | None = None
        self._changes: list[float] = []
        self._breaks: set[int] = set()
        self.looks.exact = True
        self.times: list[float] = []
        self.first_frame = 0
        self.ended = False
        self.interlaced = False
        self.decoded = 0  # frames, those decoded again included

    @property
    def looks(self) -> Looks:
        """All that was seen so far."""
        return self._watch.looks

    def read(self, stop: int) -> None:
        """Go on until frame `stop` (exclusive), or the end.

        Raises:
            VideoError: The file cannot be opened any more.
        """
        waiting: list[tuple[np.ndarray, View]] = []
        while len(self.times) < stop:
            frame = next(self._stream, None)
            if frame is None:
                self.ended = True
                break
            self._note(frame)
            if (len(self.times) - 1) % self._crop.detect_every_frames == 0:
                waiting.append(self._view(frame))
                if len(waiting) == LOOKS_AT_ONCE:
                    self._look(waiting)
                    waiting = []
        if waiting:
            self._look(waiting)
        self.looks.frames = len(self.times)
        self.looks.breaks = self._breaks | sudden(self._changes)

    def part(self, frames: set[int]) -> None:
        """Take frames as the beginnings of new shots, so that no clip reaches over them."""
        self._breaks |= frames
        self.looks.breaks |= frames

    def pictures(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Whole frames as shown, with their numbers: those held, or else decoded again.

        Raises:
            VideoError: The file cannot be opened any more.
        """
        begin = len(self.times) - len(self._kept)
        if start >= begin:
            for index in range(start, min(stop, len(self.times))):
                yield index, self._kept[index - begin].picture()
            return
        for index, frame in enumerate(stream_frames(self._path, self._info, *self._section)):
            self.decoded += 1
            if index >= stop:
                return
            if index >= start:
                yield index, frame.picture()

    def _note(self, frame: StreamFrame) -> None:
        self.decoded += 1
        if not self.times:
            self.first_frame = frame.index
        elif frame.time_s - self.times[-1] > max(GAP_S, 3 / self._info.fps):
            self._breaks.add(len(self.times))
        self.interlaced |= bool(frame.raw.interlaced_frame)
        self.times.append(frame.time_s)
        thumbnail = frame.thumbnail().astype(float)
        self._changes.append(0.0 if self._thumbnail is None else float(np.abs(thumbnail - self._thumbnail).mean()))
        self._thumbnail = thumbnail
        self._kept.append(frame)
        self._bytes += frame.nbytes
        while self._bytes > KEEP_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popleft().nbytes

    def _look(self, waiting: list[tuple[np.ndarray, View]]) -> None:
        self._watch.add(np.stack([picture for picture, _ in waiting]), waiting[0][1])

    def _view(self, frame: StreamFrame) -> tuple[np.ndarray, View]:
        """The picture to look at, and where it lies in the frame."""
        long_side, wanted = max(self._info.width, self._info.height), self._crop.detect_long_side_px
        if self._region is None:
            picture = frame.picture(wanted)
            return picture, View(self._info.width / picture.shape[1])
        x0, y0, x1, y1 = self._region
        picture = frame.picture(round(long_side * min(1.0, wanted / max(x1 - x0, y1 - y0))))
        scale = self._info.width / picture.shape[1]
        left, top = int(x0 / scale), int(y0 / scale)
        part = picture[top : max(top + 1, round(y1 / scale)), left : max(left + 1, round(x1 / scale))]
        return part, View(scale, left * scale, top * scale)


def _region(box: np.ndarray, info: VideoInfo) -> tuple[int, int, int, int]:
    """The part of the frame about a list's box, whole pixels."""
    half = BOX_ROOM * float((box[2:] - box[:2]).max()) / 2
    centre, limits = (box[:2] + box[2:]) / 2, np.array([info.width, info.height])
    low = np.clip(np.floor(centre - half), 0, limits - 1).astype(int)
    high = np.clip(np.ceil(centre + half), low + 1, limits).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
