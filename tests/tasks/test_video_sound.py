"""The sound goes with the pictures: in step, cut where they are cut, and never a reason to fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from tasks.video_sound import Sound
from tasks.video_write import VideoWriter
from tests.tasks.sounds import clicks, shown_at, write_clicks

FPS, COUNT = 25, 60
PICTURES = np.random.default_rng(0).integers(0, 255, (COUNT, 32, 32, 3), np.uint8)


def rewrite(source: Path, out: Path, first: int, count: int) -> Sound:
    """A new video with the sound of a part of another."""
    sound = Sound(source, first / FPS)
    with VideoWriter(out, FPS, sound=sound) as writer:
        for at in range(first, first + count, 16):
            writer.add(PICTURES[at : min(at + 16, first + count)])
    return sound


@pytest.mark.parametrize(
    ("name", "codec", "note"),
    [
        ("a.mp4", "aac", "copied (aac)"),
        ("b.mkv", "libmp3lame", "copied (mp3float)"),
        ("c.mov", "pcm_s16le", "encoded anew (pcm_s16le to aac)"),
    ],
)
@pytest.mark.parametrize(("first", "count"), [(0, COUNT), (30, 26)])
def test_clicks_stay_where_they_are_in_the_pictures(
    tmp_path: Path, name: str, codec: str, note: str, first: int, count: int
):
    write_clicks(tmp_path / name, PICTURES, FPS, codec)
    heard, _, _ = clicks(tmp_path / name)
    sound = rewrite(tmp_path / name, tmp_path / "out.mp4", first, count)
    assert sound.note == note
    found, end, _ = clicks(tmp_path / "out.mp4")
    begin = first / FPS
    # a click in the first few milliseconds may be lost in an encoder's start
    expected = [time - begin for time in heard if 0.01 < time - begin < count / FPS]
    assert [time for time in found if time > 0.01] == pytest.approx(expected, abs=0.03)
    assert len(expected) >= 2
    assert end == pytest.approx(count / FPS, abs=0.06)


def test_frames_with_times_of_their_own_stay_beside_the_sound(tmp_path: Path):
    times = np.concatenate([np.arange(30) / 10, 3 + np.arange(30) / 40])  # a phone in the dark, then in the light
    write_clicks(tmp_path / "phone.mp4", PICTURES, FPS, "aac", times_s=times)
    sound = Sound(tmp_path / "phone.mp4", times[20])
    with VideoWriter(tmp_path / "out.mp4", COUNT / 3.75, sound=sound) as writer:
        for at in range(20, COUNT, 16):
            writer.add(PICTURES[at : at + 16], times[at : at + 16])
    assert shown_at(tmp_path / "out.mp4") == pytest.approx(times[20:] - times[20], abs=1e-4)
    heard, end, _ = clicks(tmp_path / "out.mp4")
    assert heard[heard > 0.01] == pytest.approx([0.5, 1.0, 1.5], abs=0.03)
    assert end == pytest.approx(times[-1] - times[20] + 3.75 / COUNT, abs=0.06)


def test_times_that_no_file_can_hold_are_put_in_order(tmp_path: Path):
    times = np.array([0.0, 0.1, 0.1, 0.2, 3.2, 0.3, 3.3])  # one twice, a gap, and one in disorder
    again = np.arange(30) / 10  # a clock that begins anew
    with VideoWriter(tmp_path / "out.mp4", 10.0) as writer:
        writer.add(PICTURES[:7], times)
        writer.add(PICTURES[:30], again)
    shown = shown_at(tmp_path / "out.mp4")
    assert shown[:7] == pytest.approx([0, 0.1, 0.1, 0.2, 3.2, 3.2, 3.3], abs=1e-4)
    assert (np.diff(shown) > 0).all()
    assert np.diff(shown)[-20:] == pytest.approx(0.1, abs=1e-4)


def test_without_sound_there_is_none_and_what_breaks_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with VideoWriter(tmp_path / "silent.mp4", FPS) as writer:
        writer.add(PICTURES)
    assert rewrite(tmp_path / "silent.mp4", tmp_path / "out.mp4", 0, COUNT).note == "none"
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "silent.mp4").read_bytes()
    (tmp_path / "text.mp4").write_text("no video")
    assert rewrite(tmp_path / "text.mp4", tmp_path / "out.mp4", 0, COUNT).note == "none"

    write_clicks(tmp_path / "whole.mkv", PICTURES, FPS, "pcm_s16le")

    def broken(*_: object) -> Iterator[tuple[float, av.Packet]]:
        yield from ()
        raise av.InvalidDataError(1, "bad data", None)

    monkeypatch.setattr(Sound, "_encoded", broken)
    note = rewrite(tmp_path / "whole.mkv", tmp_path / "out.mp4", 0, COUNT).note
    assert "it ends early" in note
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == COUNT


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match=r"must be \(T, H, W, 3\)"), VideoWriter(tmp_path / "out.mp4", FPS) as writer:
        list(map(writer.add, (PICTURES, PICTURES[0])))
    with pytest.raises(ValueError, match="a frame at least"), VideoWriter(tmp_path / "out.mp4", FPS):
        pass
    assert not list(tmp_path.iterdir())
