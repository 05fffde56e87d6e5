"""The files that `head3d animate` writes, frame by frame in step: the output, and on wish what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tasks.errors import StageError
from tasks.output import check_output
from tasks.prepared import FaceVideo, Piece
from tasks.video_sound import Sound
from tasks.video_write import VideoWriter

KIND = ".mp4"
SIDE_BY_SIDE = "--side-by-side"
"""s_ref, the driving video's crop and the output beside each other: the usual picture of this field."""
DRIVING_OUT = "--driving-out"
"""The driving video's crops: what `head3d metrics` can compare the output with."""


def check_files(out: Path, more: Mapping[str, Path], subject: Path, driving: Path) -> None:
    """Refuse files that cannot be written, or that would overwrite another.

    Args:
        out: The output.
        more: Option -> file, see `AnimatedFiles`.
        subject: Is read.
        driving: Is read.

    Raises:
        StageError: One of them cannot be written, or two are one.
    """
    for option, file in {"-o": out, **more}.items():
        check_output(file, "the video is", (KIND,), "out.mp4", subject, driving, option=option)
    if len({file.resolve() for file in (out, *more.values())}) <= len(more):
        raise StageError(f"{', '.join(('-o', *more))} name the same file; give each a name of its own")


class AnimatedFiles(ExitStack):
    """Writes them; each appears under its name when the `with` block has ended well, as `VideoWriter` says."""

    def __init__(
        self, out: Path, more: Mapping[str, Path], video: FaceVideo, reference: np.ndarray, *, sound: bool
    ) -> None:
        """Open nothing yet.

        Args:
            out: The output.
            more: `SIDE_BY_SIDE` or `DRIVING_OUT` -> file.
            video: The driving video.
            reference: s_ref, `(S, S, 3)` u1.
            sound: Keep the driving video's sound.
        """
        super().__init__()
        self._reference = reference
        self._sounds, self._writers = dict[str, Sound](), dict[str, VideoWriter]()
        for option, file in {"-o": out, **more}.items():
            if sound:
                self._sounds[option] = Sound(video.path, video.start_s)
            writer = VideoWriter(file, video.info.fps, sound=self._sounds.get(option))
            self._writers[option] = self.enter_context(writer)

    @property
    def frames(self) -> int:
        """How many frames the output has."""
        return self._writers["-o"].frames

    @property
    def sound(self) -> str:
        """What became of the sound."""
        return self._sounds["-o"].note if self._sounds else "left out"

    def add(self, piece: Piece, made: np.ndarray) -> None:
        """Write the next frames.

        Args:
            piece: Of the driving video.
            made: What they became, `(n, S, S, 3)` u1.
        """
        self._writers["-o"].add(made, piece.times_s)
        if DRIVING_OUT in self._writers:
            self._writers[DRIVING_OUT].add(piece.frames, piece.times_s)
        if SIDE_BY_SIDE in self._writers:
            row = [np.broadcast_to(self._reference, made.shape), piece.frames, made]
            self._writers[SIDE_BY_SIDE].add(np.concatenate(row, axis=2), piece.times_s)
