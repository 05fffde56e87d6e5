"""Smooth tracks of head pose and expression for a rendered talking head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_WIDE_YAW_DEG = 20.0
"""Every half of a video reaches at least this far to both sides, where `max_yaw_deg` lets it."""
_PITCH_DEG, _ROLL_DEG = 15.0, 10.0


@dataclass(frozen=True)
class Tracks:
    """Motion of one video; every array starts with the T frames."""

    yaw_deg: np.ndarray  # (T,) right-handed about y: positive turns the face to the left of the picture
    pitch_deg: np.ndarray  # (T,) about x: positive looks down
    roll_deg: np.ndarray  # (T,) about z: positive tilts clockwise in the picture
    translation_m: np.ndarray  # (T, 3) the predicted translation t_pred: of the head's centre from (0, 0, 1 m)
    mouth: np.ndarray  # (T,) 0 closed, 1 wide open
    smile: np.ndarray  # (T,) -0.3 to 1
    blink: np.ndarray  # (T,) 0 open, 1 shut
    brow: np.ndarray  # (T,) 0 to 1 raised
    gaze: np.ndarray  # (T, 2) iris offset, shares of the eye's half size

    def __len__(self) -> int:
        return len(self.yaw_deg)


def rotation(yaw_deg: float, pitch_deg: float, roll_deg: float) -> np.ndarray:
    """R = Rz(roll) Ry(yaw) Rx(pitch), `(3, 3)` float64, right-handed about z, y and x (design: our choice)."""
    y, p, r = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    rx = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return rz @ ry @ rx


def _waves(rng: np.random.Generator, seconds: np.ndarray, low_hz: float, high_hz: float, count: int) -> np.ndarray:
    """Sum of `count` sines of random frequency and phase, scaled to [-1, 1] by the sum of their weights."""
    weights = rng.uniform(0.5, 1.0, count)
    hz = rng.uniform(low_hz, high_hz, count)
    phase = rng.uniform(0, 2 * np.pi, count)
    return np.sin(2 * np.pi * hz * seconds[:, None] + phase) @ weights / weights.sum()


def _yaw(rng: np.random.Generator, frames: int, max_yaw_deg: float, amplitude_deg: float) -> np.ndarray:
    """Turns to both sides in each half of the video, eased between the extremes (zero speed there)."""
    side = rng.choice([-1.0, 1.0])
    low = min(_WIDE_YAW_DEG + 2.0, max_yaw_deg)
    peaks = rng.uniform(low, max(low, amplitude_deg), 4)
    peaks[rng.integers(4)] = max(low, amplitude_deg)
    at = np.array([0.14, 0.37, 0.62, 0.85]) + rng.uniform(-0.02, 0.02, 4)
    start, end = side * rng.uniform(0.2, 0.6, 2) * np.array([1, -1]) * amplitude_deg
    values = np.concatenate([[start], side * peaks * np.array([1, -1, 1, -1]), [end]])
    knots = np.concatenate([[0.0], at, [1.0]]) * max(frames - 1, 1)
    times = np.arange(frames, dtype=np.float64)
    left = np.clip(np.searchsorted(knots, times, side="right") - 1, 0, len(knots) - 2)
    share = (times - knots[left]) / (knots[left + 1] - knots[left])
    ease = share**2 * (3 - 2 * share)  # speed is zero at the knots
    return np.clip(values[left] + (values[left + 1] - values[left]) * ease, -max_yaw_deg, max_yaw_deg)


def _blinks(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """Shut for a moment every two to four seconds."""
    blink = np.zeros_like(seconds)
    at = rng.uniform(0.4, 1.6)
    while at < seconds[-1] + 0.2:
        blink = np.maximum(blink, np.clip(1.35 - np.abs(seconds - at) / 0.10, 0, 1))
        at += rng.uniform(1.3, 3.0)
    return blink


def _speech(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """Mouth opening: syllables of a few hertz in phrases, with pauses."""
    phrase = np.clip(0.65 + 0.9 * _waves(rng, seconds, 0.25, 0.6, 3), 0, 1)
    syllable = np.clip(0.35 + 0.75 * _waves(rng, seconds, 1.5, 3.4, 4), 0, 1)
    return phrase * syllable


def make_tracks(rng: np.random.Generator, frames: int, fps: float, max_yaw_deg: float, wide: bool) -> Tracks:
    """Draw the motion of one video.

    Args:
        rng: Its random numbers.
        frames: T.
        fps: Frames per second; speech and blinking follow it.
        max_yaw_deg: Bound on |yaw|.
        wide: Go all the way to the bound; otherwise to somewhere between 20 degrees and it.

    Returns:
        Tracks with |yaw| <= max_yaw_deg, |pitch| <= 15, |roll| <= 10 degrees, translations within 25 mm.
    """
    seconds = np.arange(frames) / fps
    amplitude = max_yaw_deg if wide else float(rng.uniform(0.55, 0.85)) * max_yaw_deg
    # the mean stands a little above the middle, so that the shoulders show
    centre = np.array([rng.uniform(-0.004, 0.004), rng.uniform(-0.011, -0.006), rng.uniform(-0.008, 0.008)])
    sway = np.stack([_waves(rng, seconds, 0.15, 0.5, 3) for _ in range(3)], axis=1) * np.array([0.004, 0.003, 0.010])
    return Tracks(
        yaw_deg=_yaw(rng, frames, max_yaw_deg, amplitude),
        pitch_deg=_PITCH_DEG * rng.uniform(0.7, 1.0) * _waves(rng, seconds, 0.2, 0.7, 3),
        roll_deg=_ROLL_DEG * rng.uniform(0.7, 1.0) * _waves(rng, seconds, 0.2, 0.6, 3),
        translation_m=centre + sway,
        mouth=_speech(rng, seconds),
        smile=0.35 + 0.65 * _waves(rng, seconds, 0.15, 0.5, 2),
        blink=_blinks(rng, seconds),
        brow=np.clip(0.4 + 0.8 * _waves(rng, seconds, 0.3, 1.0, 3), 0, 1),
        gaze=np.stack([_waves(rng, seconds, 0.2, 0.7, 3) for _ in range(2)], axis=1) * np.array([0.35, 0.15]),
    )
