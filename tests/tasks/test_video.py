"""Video in and out: what is written comes back, and every reader shows the same."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tasks import video_read
from tasks.video import VideoError, iterate_frames, probe, read_frames, write_video
from tests.tasks.videos import corners, green_x, set_edit_list, set_rotation, write_gif, write_wide_pixels

COUNT = 30


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "plain.mp4"
    write_video(path, corners(COUNT), 25)
    return path


@pytest.fixture(params=["decord", "pyav"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pyav":
        monkeypatch.setattr(video_read, "_decord_frames", lambda *_args: iter(()))
    else:
        monkeypatch.setattr(video_read, "_pyav_frames", lambda *_args: iter(()))
    return str(request.param)


def green_at(frame: np.ndarray) -> int:
    """Left edge of the green square."""
    row = frame[frame.shape[0] // 2].astype(int)
    return int(np.flatnonzero((row[:, 1] > 130) & (row[:, 0] < 130))[0])


def test_written_frames_come_back(plain: Path, reader: str) -> None:
    frames = read_frames(plain)
    error = np.mean((frames.astype(float) - corners(COUNT)) ** 2)
    assert frames.shape == (COUNT, 96, 128, 3)
    assert 10 * np.log10(255**2 / error) > 33


def test_probe(plain: Path) -> None:
    info = probe(plain)
    assert (info.frames, info.fps, info.width, info.height, info.rotation_deg) == (COUNT, 25.0, 128, 96, 0)
    assert info.duration_s == pytest.approx(COUNT / 25)
    assert info.codec == "h264"


@pytest.mark.parametrize("fps", [11.083, 29.97, 60.0])
def test_frame_rate_is_kept(tmp_path: Path, fps: float) -> None:
    write_video(tmp_path / "a.mp4", corners(12), fps)
    info = probe(tmp_path / "a.mp4")
    assert info.fps == pytest.approx(fps, rel=1e-4)
    assert info.frames == 12


def test_same_bytes_every_time_and_playable_while_loading(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, corners(12), 25)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_odd_sizes_are_padded_by_their_edge(tmp_path: Path) -> None:
    frames = corners(8, 97, 63)
    write_video(tmp_path / "odd.mp4", frames, 25, crf=5)
    back = read_frames(tmp_path / "odd.mp4")
    assert back.shape == (8, 98, 64, 3)
    assert np.abs(back[:, :97, :63].astype(int) - frames).mean() < 4
    assert np.abs(back[:, :96, 63].astype(int) - back[:, :96, 62]).mean() < 4


@pytest.mark.parametrize("bad", [np.zeros((3, 8, 8, 3), np.float32), np.zeros((0, 8, 8, 3), np.uint8)])
def test_wrong_frames_are_refused_and_leave_nothing(tmp_path: Path, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", bad, 25)
    assert list(tmp_path.iterdir()) == []


def test_ranges_steps_and_sizes(plain: Path, reader: str) -> None:
    some = read_frames(plain, 7, 22)
    assert [green_at(frame) for frame in some] == pytest.approx([green_x(i) for i in range(7, 22)], abs=1)
    every = np.concatenate(list(iterate_frames(plain, 2, 29, every=5)))
    assert [green_at(frame) for frame in every] == pytest.approx([green_x(i) for i in range(2, 29, 5)], abs=1)
    assert read_frames(plain, long_side_px=64).shape == (COUNT, 48, 64, 3)
    assert read_frames(plain, long_side_px=640).shape == (COUNT, 96, 128, 3)
    assert [len(batch) for batch in iterate_frames(plain)] == [16, 14]


@pytest.mark.parametrize(
    ("turn", "red", "blue"), [(90, (0, -1), (-1, 0)), (180, (-1, -1), (0, 0)), (270, (-1, 0), (0, -1))]
)
def test_rotation_is_applied_by_both_readers(
    plain: Path, tmp_path: Path, reader: str, turn: int, red: tuple[int, int], blue: tuple[int, int]
) -> None:
    path = tmp_path / "turned.mp4"
    set_rotation(plain, path, turn)
    frames = read_frames(path)
    assert frames.shape[1:3] == ((96, 128) if turn == 180 else (128, 96))
    assert probe(path).rotation_deg == turn
    assert (probe(path).height, probe(path).width) == frames.shape[1:3]
    assert frames[5][red] == pytest.approx([230, 30, 30], abs=20)
    assert frames[5][blue] == pytest.approx([30, 30, 230], abs=20)


def test_pixels_that_are_not_square(tmp_path: Path, reader: str) -> None:
    write_wide_pixels(tmp_path / "wide.mp4", corners(10), Fraction(3, 2))
    info = probe(tmp_path / "wide.mp4")
    assert (info.width, info.height) == (192, 96)
    frames = read_frames(tmp_path / "wide.mp4")
    assert frames.shape == (10, 96, 192, 3)
    assert green_at(frames[6]) == pytest.approx(1.5 * green_x(6, 10), abs=2)


def test_edit_list_gives_only_what_is_shown(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "trimmed.mp4"
    set_edit_list(plain, path, skip_s=0.4, show_s=0.6)
    frames = read_frames(path)
    assert [green_at(frame) for frame in frames] == pytest.approx([green_x(i) for i in range(10, 25)], abs=1)


def test_gif(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", corners(12), 10)
    frames = read_frames(tmp_path / "a.gif")
    assert frames.shape == (12, 96, 128, 3)
    assert [green_at(frame) for frame in frames] == pytest.approx([green_x(i, 12) for i in range(12)], abs=1)


def test_a_truncated_file_gives_what_there_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (COUNT, 96, 128, 3), dtype=np.uint8)  # compresses badly: frames spread over the file
    write_video(tmp_path / "a.mp4", noise, 25)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) * 2 // 3])
    assert COUNT // 3 < len(read_frames(tmp_path / "a.mp4")) < COUNT


def test_where_decord_gives_up_pyav_goes_on(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = video_read._decord_frames
    monkeypatch.setattr(video_read, "_decord_frames", lambda *args: itertools.islice(whole(*args), 7))
    frames = read_frames(plain)
    assert [green_at(frame) for frame in frames] == pytest.approx([green_x(i) for i in range(COUNT)], abs=1)


def test_what_decord_has_read_whole_is_not_decoded_again(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_be_called(*_args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(video_read, "_pyav_frames", must_not_be_called)
    assert len(read_frames(plain, 3, COUNT + 50)) == COUNT - 3


def test_containers_without_a_frame_count(tmp_path: Path) -> None:
    path = tmp_path / "a.mpg"  # decord starts late in these and repeats the last frame
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg1video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for image in corners(COUNT):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    frames = read_frames(path)
    assert [green_at(frame) for frame in frames] == pytest.approx([green_x(i) for i in range(COUNT)], abs=2)


def test_what_is_no_video_says_so(tmp_path: Path, plain: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 40, encoding="utf-8")
    (tmp_path / "headless.mp4").write_bytes(plain.read_bytes().replace(b"moov", b"none"))
    silent = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 8036, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", 8000
    )
    (tmp_path / "sound.mp4").write_bytes(silent + b"\x80" * 8000)
    for name, reason in {
        "empty": "empty_file",
        "text": "unreadable",
        "headless": "unreadable",
        "sound": "unreadable",
        "none": "missing",
    }.items():
        for function in (probe, read_frames):
            with pytest.raises(VideoError, match=f"{name}.mp4") as caught:
                function(tmp_path / f"{name}.mp4")
            assert caught.value.reason == reason
