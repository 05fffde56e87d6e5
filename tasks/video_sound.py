"""The sound of a video, or of a part of it, for a new file: packets as they are where mp4 holds them, else AAC."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

KEPT = ("aac", "mp3", "ac3", "eac3", "alac", "opus")
"""Codecs that an mp4 holds and players play; others (uncompressed, Vorbis, WMA, ...) are encoded anew."""
ENCODED = "aac"
RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""What AAC knows."""
USUAL_RATE_HZ = 48000
TICK = Fraction(1, 1_000_000)
"""Clock of times within this file, seconds."""


class Sound:
    """Sound of a video from a time on, written to a new file in step with its pictures.

    Where the sound ends early or breaks, the new file goes on without it: `note` says so.

    Attributes:
        note: What was done, for example "copied (aac)"; "none" if there is no sound.
    """

    def __init__(self, source: Path, start_s: float = 0.0) -> None:
        """Look at a video.

        Args:
            source: The video; one that cannot be opened has no sound.
            start_s: Seconds from its first picture; what is heard before is left out.
        """
        self.note = "none"
        self._start_s = start_s
        self._input: av.container.InputContainer | None = None
        self._waiting: tuple[float, av.Packet] | None = None
        self._packets: Iterator[tuple[float, av.Packet]] = iter(())
        self._source: av.AudioStream | None = None
        self._origin_s = 0.0
        try:
            self._input = av.open(str(source))
        except (av.FFmpegError, OSError):
            return
        found, pictures = (self._input.streams.best(kind) for kind in ("audio", "video"))
        self._source = found if isinstance(found, av.AudioStream) else None
        if pictures is not None and pictures.start_time is not None and pictures.time_base is not None:
            self._origin_s = float(pictures.start_time * pictures.time_base)

    def open_in(self, out: av.container.OutputContainer) -> None:
        """Give the new file a stream for the sound, before its first packet.

        Args:
            out: An mp4 that is being written.
        """
        source = self._source
        if source is None:
            return
        name = source.codec_context.name
        try:
            if source.codec_context.codec.canonical_name in KEPT:
                self._packets = self._copied(out.add_stream_from_template(source))
                self.note = f"copied ({name})"
            else:
                rate = source.rate if source.rate in RATES_HZ else USUAL_RATE_HZ
                target = out.add_stream(ENCODED, rate=rate)
                assert isinstance(target, av.AudioStream)
                target.layout = "mono" if source.channels == 1 else "stereo"
                self._packets = self._encoded(target)
                self.note = f"encoded anew ({name} to {ENCODED})"
        except (av.FFmpegError, ValueError) as error:
            self.note = f"lost: {name} cannot be written ({error})"

    def write_until(self, out: av.container.OutputContainer, until_s: float) -> None:
        """Write what is heard before a time.

        Args:
            out: The file of `open_in`.
            until_s: Seconds from the new file's start.
        """
        try:
            while True:
                if self._waiting is None:
                    self._waiting = next(self._packets, None)
                if self._waiting is None or self._waiting[0] >= until_s:
                    return
                packet, self._waiting = self._waiting[1], None
                out.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            self._packets, self._waiting = iter(()), None
            self.note += f"; it ends early: {error}"

    def finish(self, out: av.container.OutputContainer, until_s: float) -> None:
        """Write the rest up to the end of the pictures."""
        self.write_until(out, until_s)

    def close(self) -> None:
        """Let go of the source."""
        self._packets = iter(())
        if self._input is not None:
            self._input.close()
            self._input = None

    def _shift_s(self) -> float:
        """From times of the source to those of the new file."""
        return self._origin_s + self._start_s

    def _copied(self, target: av.AudioStream) -> Iterator[tuple[float, av.Packet]]:
        """Packets that are heard after the start, with their times in the new file; the first one may be before it."""
        assert self._input is not None
        assert self._source is not None
        base = self._source.time_base or TICK
        shift = round(self._shift_s() / float(base))
        self._seek()
        for packet in self._input.demux(self._source):
            if packet.pts is None or packet.dts is None:  # the empty packet at the end
                continue
            # one packet more than is heard: decoders need it to begin, and the file's edit list hides it
            if packet.pts + 2 * (packet.duration or 0) <= shift:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = target
            yield float(packet.pts * base), packet

    def _encoded(self, target: av.AudioStream) -> Iterator[tuple[float, av.Packet]]:
        """The sound after the start, encoded; times are counted in samples, so that they have no gaps."""
        assert self._input is not None
        assert self._source is not None
        rate = target.rate
        resampler = av.AudioResampler(format="fltp", layout=target.layout, rate=rate)
        samples: int | None = None
        self._seek()
        for frame in self._input.decode(self._source):
            assert isinstance(frame, av.AudioFrame)
            time_s = (frame.time or 0.0) - self._shift_s()
            if time_s + frame.samples / frame.sample_rate / 2 <= 0:
                continue
            frame.pts = None
            if samples is None:
                samples = max(0, round(time_s * rate))  # sound that begins later than the pictures stays late
            for part in resampler.resample(frame):
                part.pts, part.time_base = samples, Fraction(1, rate)
                samples += part.samples
                yield from self._timed(target.encode(part), rate)
        yield from self._timed(target.encode(None), rate)

    @staticmethod
    def _timed(packets: list[av.Packet], rate: int) -> Iterator[tuple[float, av.Packet]]:
        for packet in packets:
            base = packet.time_base or Fraction(1, rate)
            yield float((packet.pts or 0) * base), packet

    def _seek(self) -> None:
        """Near the start, where it is far and the file allows it; what comes too early is left out anyway."""
        if self._input is not None and self._start_s > 1:
            try:
                self._input.seek(int((self._shift_s() - 0.5) * av.time_base))
            except av.FFmpegError:
                return
