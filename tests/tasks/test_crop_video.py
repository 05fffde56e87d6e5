"""One video -> clips: sections and boxes of a list, cuts, stills, odd files; every verdict has its code."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tasks import crop_video as module
from tasks import footage, reasons
from tasks.crop_video import CropJob, clips_wanted, crop_video
from tasks.footage import Footage
from tasks.video import probe, read_frames, write_video
from tasks.video_stream import stream_frames
from tests.tasks.factory import make_params
from tests.tasks.videos import corners, face, set_rotation, write_gif, write_wide_pixels

LENGTH, SIZE = 16, 32
TASKS = Path(module.__file__).parent


def job(path: Path, *, split: str = "test", section: str = "", box: str = "", **changes: Any) -> CropJob:
    values: dict[str, Any] = {
        "size_px": SIZE, "clip_frames": LENGTH, "clips_per_video": 2, "detect_long_side_px": 160, "min_face_px": 24,
    }  # fmt: skip
    names = dict.fromkeys(("video", "path", "dataset", "identity", "sha256"), "x")
    manifest = {**names, "split": split, "section": section, "box": box}
    return CropJob(0, manifest, path, make_params(crop={**values, **changes}).crop, path.with_suffix(".npz"))


def arrays(of: CropJob) -> dict[str, np.ndarray]:
    with np.load(of.spool) as stored:
        return dict(stored)


def stretched(path: Path, frames: np.ndarray, times_ms: list[int]) -> None:
    """An mp4 whose frames are shown at these times."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for image, time in zip(frames, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def side_by_side(frames: int = 40) -> np.ndarray:
    return np.concatenate([face(frames), face(frames, person=2)], axis=2)


def test_a_section_is_all_that_is_seen(tmp_path: Path) -> None:
    """Person 2 from the first second to the second one, person 1 before and after."""
    frames = np.concatenate([face(25), face(40, person=2)[:25], face(25)])
    write_video(tmp_path / "a.mp4", frames, 25)
    of = job(tmp_path / "a.mp4", section="1.000-2.000")
    rows = crop_video(of)
    assert [row["status"] for row in rows] == ["ok"]
    assert 25 <= rows[0]["start_frame"] <= rows[0]["end_frame"] - LENGTH <= 50 - LENGTH
    x0, y0, x1, y1 = (int(rows[0][f"box_{name}"]) for name in ("x0", "y0", "x1", "y1"))
    wanted = frames[rows[0]["start_frame"] : rows[0]["end_frame"], max(y0, 0) : y1, max(x0, 0) : x1]
    assert arrays(of)["frames"][0].mean(axis=(0, 1, 2)) == pytest.approx(wanted.mean(axis=(0, 1, 2)), abs=4)
    (short,) = crop_video(job(tmp_path / "a.mp4", section="1.000-1.400"))
    assert (short["reason"], short["status"]) == ("too_short", "rejected")
    assert "seconds 1.000-1.400" in short["detail"]
    (beyond,) = crop_video(job(tmp_path / "a.mp4", section="9.000-12.000"))
    assert beyond["reason"] == "too_short"
    assert "beyond the end" in beyond["detail"]


def test_a_box_says_whose_face_and_which_square(tmp_path: Path) -> None:
    write_video(tmp_path / "pair.mp4", side_by_side(), 25)
    assert crop_video(job(tmp_path / "pair.mp4"))[0]["reason"] == "two_faces"
    for x0, x1 in ((0.02, 0.45), (0.55, 0.98)):
        (row, *_) = crop_video(job(tmp_path / "pair.mp4", box=f"{x0:.5f} 0.10000 {x1:.5f} 0.95000"))
        assert row["status"] == "ok"
        middle = (row["box_x0"] + row["box_x1"]) / 2
        assert middle == pytest.approx(256 * (x0 + x1) / 2, abs=4)
        assert row["box_x1"] - row["box_x0"] == row["box_y1"] - row["box_y0"] >= round(256 * (x1 - x0)) - 1
    (nobody,) = crop_video(job(tmp_path / "pair.mp4", box="0.42000 0.00000 0.58000 0.30000"))
    assert nobody["reason"] in ("not_in_box", "no_face")
    (outside,) = crop_video(job(tmp_path / "pair.mp4", box="1.20000 0.10000 1.60000 0.95000"))
    assert outside["reason"] in ("not_in_box", "no_face")


def test_a_face_never_sticks_out_of_a_lists_square(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", face(40), 25)
    of = job(tmp_path / "a.mp4", box="0.35000 0.40000 0.65000 0.70000")
    row = crop_video(of)[0]
    found = arrays(of)["face_box"]
    assert row["status"] == "ok"
    assert found.min() > -1.5
    assert found.max() < SIZE + 0.5


def test_training_videos_give_as_many_clips_as_they_may(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", face(40), 25)
    assert len(crop_video(job(tmp_path / "a.mp4", split="train", train_clips_per_video=1))) == 1
    assert len(crop_video(job(tmp_path / "a.mp4", split="test", train_clips_per_video=1))) == 2
    crop = make_params(crop={"clips_per_video": 2, "train_clips_per_video": 5}).crop
    assert (clips_wanted(crop, "train"), clips_wanted(crop, "test")) == (2, 2)


def test_a_cut_is_found_to_the_frame(tmp_path: Path) -> None:
    darker = (face(40, person=2) * 0.35).astype(np.uint8)
    write_video(tmp_path / "a.mp4", np.concatenate([face(18), darker[:22]]), 25)
    rows = crop_video(job(tmp_path / "a.mp4"))
    assert [row["status"] for row in rows] == ["ok"] * len(rows)
    assert all(row["end_frame"] <= 18 or row["start_frame"] >= 18 for row in rows)


def test_a_photograph_is_no_video(tmp_path: Path) -> None:
    write_video(tmp_path / "still.mp4", face(40)[:1].repeat(40, axis=0), 25)
    (row,) = crop_video(job(tmp_path / "still.mp4"))
    assert (row["status"], row["reason"]) == ("rejected", "frozen")
    write_video(tmp_path / "starts.mp4", np.concatenate([face(40)[:1].repeat(40, axis=0), face(40)]), 25)
    rows = crop_video(job(tmp_path / "starts.mp4"))
    assert [row["status"] for row in rows] == ["ok"] * len(rows)
    assert all(row["start_frame"] > 24 for row in rows)


def test_remarks_on_odd_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "twice.mp4", face(20).repeat(2, axis=0), 60)
    detail = crop_video(job(tmp_path / "twice.mp4"))[0]["detail"]
    assert "60 fps: a clip lasts 0.27 s" in detail
    assert re.search(r"4\d%|5\d% of the frames repeat", detail)
    times = np.cumsum([20 if index % 4 else 90 for index in range(40)]).tolist()
    stretched(tmp_path / "uneven.mp4", face(40), times)
    rows = crop_video(job(tmp_path / "uneven.mp4"))
    assert "variable frame rate: frames are 20 to 90 ms apart" in rows[0]["detail"]
    assert rows[0]["fps"] == pytest.approx(1000 / np.mean(np.diff(times)), rel=0.05)


def test_a_gap_in_time_parts_the_video(tmp_path: Path) -> None:
    stretched(tmp_path / "gap.mp4", face(40), [40 * index + (3000 if index >= 18 else 0) for index in range(40)])
    rows = crop_video(job(tmp_path / "gap.mp4"))
    assert rows[0]["status"] == "ok"
    assert all(row["end_frame"] <= 18 or row["start_frame"] >= 18 for row in rows)


def test_only_as_much_is_read_as_is_needed(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", np.concatenate([face(40)] * 6), 25)
    of = job(tmp_path / "long.mp4", clips_per_video=1)
    source = Footage(of.path, probe(of.path), of.crop)
    module.find_clips(of, probe(of.path), source, None)
    assert source.decoded == round(module.WINDOW * LENGTH)
    blank = np.full_like(face(40), 90)
    write_video(tmp_path / "late.mp4", np.concatenate([blank, blank, face(40)]), 25)
    (row,) = crop_video(job(tmp_path / "late.mp4", clips_per_video=1))
    assert row["start_frame"] >= 80
    (none,) = crop_video(job(tmp_path / "late.mp4", clips_per_video=1, max_seconds=2.0))
    assert none["reason"] == "no_face"


def test_frames_that_do_not_fit_are_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", face(40), 25)
    of = job(tmp_path / "a.mp4")
    rows, held = crop_video(of), arrays(of)
    monkeypatch.setattr(footage, "KEEP_BYTES", 100_000)
    assert crop_video(of) == rows
    for name, values in arrays(of).items():
        assert np.array_equal(values, held[name])


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_the_stream_shows_what_the_reader_shows(tmp_path: Path, turn: int) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, corners(20), 25)
    if turn:
        set_rotation(path, tmp_path / "turned.mp4", turn)
        path = tmp_path / "turned.mp4"
    frames = list(stream_frames(path, probe(path)))
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.time_s for frame in frames] == pytest.approx([index / 25 for index in range(20)])
    wanted = read_frames(path)
    assert np.abs(np.stack([frame.picture() for frame in frames]).astype(int) - wanted).mean() < 2
    small = np.stack([frame.picture(64) for frame in frames])
    assert small.shape == read_frames(path, long_side_px=64).shape
    assert np.abs(small.astype(int) - read_frames(path, long_side_px=64)).mean() < 3
    middle = list(stream_frames(path, probe(path), 0.4, 0.6))
    assert [frame.index for frame in middle] == list(range(10, 15))
    assert np.array_equal(middle[0].picture(), frames[10].picture())


def test_the_stream_of_odd_files(tmp_path: Path) -> None:
    write_wide_pixels(tmp_path / "wide.mp4", corners(6), Fraction(3, 2))
    (first, *_) = stream_frames(tmp_path / "wide.mp4", probe(tmp_path / "wide.mp4"))
    assert first.picture().shape == (96, 192, 3)
    assert first.picture(96).shape == (48, 96, 3)
    write_gif(tmp_path / "a.gif", corners(6), 10)
    frames = list(stream_frames(tmp_path / "a.gif", probe(tmp_path / "a.gif")))
    assert [frame.thumbnail().shape for frame in frames] == [(16, 16)] * 6
    assert np.abs(np.stack([frame.picture() for frame in frames]).astype(int) - corners(6)).mean() < 24  # 256 colours
    write_video(tmp_path / "odd.mp4", face(20)[:, :97, :103], 25)
    assert next(iter(stream_frames(tmp_path / "odd.mp4", probe(tmp_path / "odd.mp4")))).picture().shape[2] == 3


def test_every_code_in_use_is_explained() -> None:
    used: set[str] = set()
    for path in TASKS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        used |= set(re.findall(r'(?:Refused|VideoError|SegmentationError)\(\s*"(\w+)"', text))
        used |= set(re.findall(r'refusal\(\s*job,\s*"\w+",\s*"(\w+)"', text))
    used |= {"deadline", "crashed"}
    listed = {**reasons.VIDEO, **reasons.MASK}
    assert used - set(listed) == set()
    assert set(listed) - used == set()
    assert all(text.endswith(".") and len(text) > 20 for text in listed.values())
    assert reasons.sentence("two_faces") == reasons.VIDEO["two_faces"]
    assert reasons.sentence("of_old") == "of_old"
