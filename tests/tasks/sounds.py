"""Videos with sound for the tests: clicks at known times, which are found again in what was written."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLICK_EVERY_S = 0.5
CLOCK_HZ = 90_000


def write_clicks(
    path: Path, frames: np.ndarray, fps: int, codec: str, rate: int = 44100, times_s: np.ndarray | None = None
) -> None:
    """A video whose sound clicks every half second, from its first picture on.

    Args:
        path: The file.
        frames: `(T, H, W, 3)` u1.
        fps: Frames per second.
        codec: Of the sound.
        rate: Samples per second.
        times_s: When each frame is shown, from 0 on; None: at an even rate.
    """
    times_s = np.arange(len(frames)) / fps if times_s is None else times_s
    seconds = float(times_s[-1]) + 1 / fps
    wave = np.zeros(int(rate * seconds), np.float32)
    for start in np.arange(0, seconds, CLICK_EVERY_S):
        at = int(start * rate)
        wave[at : at + 400] = 0.8 * np.sin(0.3 * np.arange(len(wave[at : at + 400])))
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("libx264", rate=fps)
        pictures.height, pictures.width, pictures.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        sound = out.add_stream(codec, rate=rate)
        assert isinstance(sound, av.AudioStream)
        sound.layout = "stereo"
        pictures.codec_context.time_base = Fraction(1, CLOCK_HZ)
        for image, time_s in zip(frames, times_s, strict=True):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = round(time_s * CLOCK_HZ), Fraction(1, CLOCK_HZ)
            out.mux(pictures.encode(picture))
        for first in range(0, len(wave), 1024):
            part = av.AudioFrame.from_ndarray(
                np.stack([wave[first : first + 1024]] * 2), format="fltp", layout="stereo"
            )
            part.sample_rate, part.pts, part.time_base = rate, first, Fraction(1, rate)
            out.mux(sound.encode(part))
        out.mux(pictures.encode(None))
        out.mux(sound.encode(None))


def shown_at(path: Path) -> list[float]:
    """When each frame of a video is shown, seconds from the first."""
    with av.open(str(path)) as video:
        times = [float(frame.time or 0) for frame in video.decode(video=0)]
    return [time - times[0] for time in times]


def clicks(path: Path) -> tuple[np.ndarray, float, str]:
    """When the sound of a video clicks and ends, in seconds from its first picture, and its codec."""
    with av.open(str(path)) as video:
        start = video.streams.video[0].start_time
        origin = float((start or 0) * (video.streams.video[0].time_base or 1))
        stream = video.streams.audio[0]
        times, waves = [], []
        resampler = av.AudioResampler(format="fltp", layout="mono")
        for frame in video.decode(stream):
            assert isinstance(frame, av.AudioFrame)
            first = (frame.time or 0.0) - origin
            for part in resampler.resample(frame):
                wave = part.to_ndarray()[0]
                times.append(first + np.arange(len(wave)) / part.sample_rate)
                waves.append(np.abs(wave))
        name = stream.codec_context.name
    when, loud = np.concatenate(times), np.concatenate(waves)
    on = when[loud > 0.4 * loud.max()]
    return on[np.insert(np.diff(on) > 0.1, 0, True)], float(when[-1]), name
