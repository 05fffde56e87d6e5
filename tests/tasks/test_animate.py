"""`head3d animate`: the model's frames, any length in the same memory, the sound, and a stop half-way."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.engine import Made
from tasks import animate as animating
from tasks import animate_files, prepared
from tasks.animate import Limits, Wanted, animate, make_engine, subject_state
from tasks.errors import StageError
from tasks.frames import to_uint8
from tasks.metrics import compare
from tasks.notices import loose_share
from tasks.prepared import prepare
from tasks.quality import measure
from tasks.trained import load_model, load_preparation
from tasks.video import probe, read_frames, write_video
from tests.tasks.sounds import clicks, shown_at, write_clicks
from tests.tasks.test_training import settings
from tests.tasks.untrained import write_checkpoints
from tests.tasks.videos import face, write_interlaced

CPU = torch.device("cpu")
PARAMS = settings()
LIMITS = Limits(PARAMS.quality, PARAMS.notices)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoints(tmp_path_factory.mktemp("model") / "checkpoints", PARAMS)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A subject, and a driving video with sound at two lengths."""
    folder = tmp_path_factory.mktemp("videos")
    made = {name: folder / f"{name}.mp4" for name in ("subject", "short", "long")}
    write_video(made["subject"], face(12, 128, 1), 25)
    for name, count in (("short", 20), ("long", 80)):
        frames = np.concatenate([face(20, 128, 2)] * (count // 20))
        write_clicks(made[name], frames, 25, "aac")
    return made


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, and a parser that takes no time: the head is an ellipse in the face's box."""
    monkeypatch.setattr(prepared, "PIECE", 8)

    def segment(frames: np.ndarray, landmarks: np.ndarray, boxes: np.ndarray, *_: Any) -> np.ndarray:
        assert len(frames) == len(landmarks) == len(boxes)
        y, x = np.mgrid[0 : frames.shape[1], 0 : frames.shape[2]]
        x0, y0, x1, y1 = (boxes[:, i, None, None] for i in range(4))
        inside = ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 < 1
        return inside.astype(np.uint8)

    monkeypatch.setattr(prepared, "segment", segment)


def run(videos: dict[str, Path], checkpoints: Path, out: Path, driving: str = "short", **more: Any) -> dict[str, Any]:
    wanted = Wanted(**{"device": "cpu", "mode": "absolute", "references": 3, **more})
    return animate(videos["subject"], videos[driving], out, checkpoints=checkpoints, wanted=wanted, limits=LIMITS)


@pytest.mark.parametrize("mode", ["absolute", "relative"])
def test_frames_are_the_models_and_the_sound_is_kept(
    videos: dict[str, Path], checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
):
    written: list[np.ndarray] = []
    real = animate_files.VideoWriter.add

    def kept(self: Any, frames: np.ndarray, times_s: np.ndarray) -> None:
        written.append(frames)
        real(self, frames, times_s)

    monkeypatch.setattr(animate_files.VideoWriter, "add", kept)
    summary = run(videos, checkpoints, tmp_path / "out.mp4", mode=mode)
    model = load_model(checkpoints, CPU)
    crop, parse = load_preparation(checkpoints)
    person, motion = (prepare(videos[name], crop, parse, "cpu") for name in ("subject", "short"))
    ready = subject_state(model, person, 3, "even")
    images, masks = motion.tensors(slice(None), CPU)
    with torch.no_grad():
        first = model.pose(images[:1] * masks[:1]) if mode == "relative" else None
    expected = to_uint8(model.drive(ready.state, images, masks, first).image)
    found = np.concatenate(written)
    assert found.shape == expected.shape == (20, 48, 48, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert [len(part) for part in written] == [8, 8, 4]
    written.clear()
    assert (summary["frames"], summary["precision"], summary["sound"]) == (20, "float32", "copied (aac)")
    assert probe(tmp_path / "out.mp4").frames == 20
    assert "left_out" not in summary
    heard, end, _ = clicks(tmp_path / "out.mp4")
    assert heard == pytest.approx(clicks(videos["short"])[0], abs=0.03)
    assert end == pytest.approx(0.8, abs=0.06)
    silent = run(videos, checkpoints, tmp_path / "silent.mp4", mode=mode, sound=False)
    assert silent["sound"] == "left out"
    assert (read_frames(tmp_path / "silent.mp4") == read_frames(tmp_path / "out.mp4")).all()


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_the_subject_is_made_in_the_precision_that_was_asked_for(
    videos: dict[str, Path], checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    rounded: list[bool] = []

    def made(*inputs: Any) -> Any:
        rounded.append(torch.backends.cudnn.allow_tf32)
        return subject_state(*inputs)

    monkeypatch.setattr(animating, "subject_state", made)
    run(videos, checkpoints, tmp_path / "out.mp4", precision=precision)
    assert rounded == [precision != "float32"]
    assert torch.backends.cudnn.allow_tf32


def test_frames_of_an_uneven_video_are_shown_with_their_sound(
    videos: dict[str, Path], checkpoints: Path, tmp_path: Path
):
    """A face that comes after 0.5 s, at 10 frames a second, then at 40."""
    times = np.concatenate([np.arange(15) / 10, 1.5 + np.arange(15) / 40])
    frames = np.concatenate([np.full((5, 128, 128, 3), 120, np.uint8), face(25, 128, 2)])
    write_clicks(tmp_path / "uneven.mp4", frames, 40, "aac", times_s=times)
    out = tmp_path / "out.mp4"
    summary = run({**videos, "uneven": tmp_path / "uneven.mp4"}, checkpoints, out, "uneven")
    first = len(times) - summary["frames"]
    assert first == 8  # the faces of every fourth frame are looked for
    assert shown_at(out) == pytest.approx(times[first:] - times[first], abs=1e-4)
    heard = clicks(out)[0]
    expected = np.array([0.5, 1.0, 1.5]) - times[first]
    assert heard[heard > 0.01] == pytest.approx(expected[expected > 0.01], abs=0.03)


def test_one_field_of_an_interlaced_video_is_shown_as_in_training(checkpoints: Path, tmp_path: Path):
    """The second field is the head six pixels further: whole frames would be combed."""
    crop, parse = load_preparation(checkpoints)
    crop = crop.model_copy(update={"size_px": 128})
    still = face(20, 128, 2)
    fields = still.copy()
    fields[:, 1::2] = np.roll(still, 6, axis=2)[:, 1::2]
    write_interlaced(tmp_path / "fields.mp4", fields)
    video = prepared.find_face(tmp_path / "fields.mp4", crop, None)
    found = np.concatenate([part.frames for part in prepared.pieces(video, crop, parse, "cpu")])

    def steps(frames: np.ndarray) -> float:
        cut = np.stack([video.square.cut(frame, 128) for frame in frames])
        return float(np.abs(np.diff(cut.astype(int), axis=1)).mean())

    between_rows = float(np.abs(np.diff(found.astype(int), axis=1)).mean())
    assert between_rows < 1.2 * steps(still) < 0.8 * steps(fields)


def test_measures_gathered_in_pieces_are_those_of_the_whole(videos: dict[str, Path], checkpoints: Path):
    crop, parse = load_preparation(checkpoints)
    video = prepared.find_face(videos["short"], crop, None)
    parts = list(prepared.pieces(video, crop, parse, "cpu"))
    whole = prepare(videos["short"], crop, parse, "cpu")
    class_ids = np.concatenate([part.class_ids for part in parts])
    landmarks = video.square.to_crop(video.track.landmarks, crop.size_px)
    expected = {**measure(whole.frames, class_ids, landmarks), "loose_share": loose_share(whole.head)}
    found = dict(whole.measures)
    assert found.pop("lost_share") == 0
    assert found == pytest.approx(expected, abs=2e-5)


def test_a_longer_video_holds_no_more_frames(
    videos: dict[str, Path], checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alive: list[weakref.ref[np.ndarray]] = []
    most: dict[str, int] = {}
    segment, real = prepared.segment, animating.Engine.frames

    def watched_segment(frames: np.ndarray, *rest: Any) -> np.ndarray:
        alive.append(weakref.ref(frames))
        return segment(frames, *rest)

    def watched_frames(self: Any, *inputs: Any) -> Made:
        made = real(self, *inputs)
        array = made.frames.numpy()
        alive.append(weakref.ref(array))
        held = sum(len(one) for ref in alive if (one := ref()) is not None)
        most[name] = max(most.get(name, 0), held)
        return Made(torch.from_numpy(array), made.angles_deg)

    monkeypatch.setattr(prepared, "segment", watched_segment)
    monkeypatch.setattr(animating.Engine, "frames", watched_frames)
    for name in ("short", "long"):
        alive.clear()
        assert run(videos, checkpoints, tmp_path / f"{name}.mp4", name)["frames"] == {"short": 20, "long": 80}[name]
    # a piece that came in, the one that goes out, and the ones before them until they are overwritten; the subject
    assert most["long"] <= most["short"] + 8
    assert most["long"] <= 4 * 8 + 12


def test_parts_without_the_face_are_said_to_be_left_out(videos: dict[str, Path], checkpoints: Path, tmp_path: Path):
    """A face after 12 frames, then none for 36, then the face again, which is lost with the gap."""
    wall = np.full((36, 128, 128, 3), 120, np.uint8)
    write_video(tmp_path / "gap.mp4", np.concatenate([wall[:12], face(40, 128, 2), wall, face(8, 128, 2)]), 25)
    summary = run({**videos, "gap": tmp_path / "gap.mp4"}, checkpoints, tmp_path / "out.mp4", "gap")
    assert 36 <= summary["frames"] <= 40  # to the last look or to the cut
    last_s = (96 - 12 - summary["frames"]) / 25
    assert summary["left_out"] == f"the first 0.48 s and the last {last_s:.2f} s: the face could not be followed there"
    whole = prepare(tmp_path / "gap.mp4", *load_preparation(checkpoints), "cpu")
    assert whole.left_out == summary["left_out"]
    assert (whole.first, whole.times_s[0], len(whole.times_s)) == (12, pytest.approx(0.48), summary["frames"])


def test_other_files_show_what_the_output_was_made_of(videos: dict[str, Path], checkpoints: Path, tmp_path: Path):
    """The crops fit the output, which `head3d metrics` wants; both videos play in step with the sound."""
    out, look, crops = (tmp_path / name for name in ("out.mp4", "look.mp4", "crops.mp4"))
    summary = run(videos, checkpoints, out, side_by_side=look, driving_out=crops)
    assert summary["beside"] == f"{look}, {crops}"
    assert compare(out, crops, PARAMS.evaluate)["frames"] == 20
    person, motion = (prepare(videos[name], *load_preparation(checkpoints), "cpu") for name in ("subject", "short"))
    assert np.abs(read_frames(crops).astype(int) - motion.frames).mean() < 4
    parts = np.split(read_frames(look).astype(int), 3, axis=2)
    assert np.abs(parts[0] - person.frames[0]).mean() < 4
    assert np.abs(parts[1] - motion.frames).mean() < 4
    assert np.abs(parts[2] - read_frames(out)).mean() < 4
    assert clicks(look)[0] == pytest.approx(clicks(out)[0], abs=0.001)
    for other in (out, videos["short"]):
        with pytest.raises(StageError, match=r"a name of its own|--side-by-side .* would be overwritten"):
            run(videos, checkpoints, out, side_by_side=other)


@pytest.mark.parametrize("pieces_before", [0, 2])
def test_ctrl_c_leaves_a_file_that_plays_or_none(
    videos: dict[str, Path], checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces_before: int
):
    real = animating.pieces

    def stopped(*words: Any) -> Iterator[prepared.Piece]:
        for number, piece in enumerate(real(*words)):
            if number == pieces_before:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(animating, "pieces", stopped)
    out = tmp_path / "out.mp4"
    if not pieces_before:
        with pytest.raises(KeyboardInterrupt):
            run(videos, checkpoints, out, "long")
        assert not list(tmp_path.iterdir())
        return
    summary = run(videos, checkpoints, out, "long")
    assert summary["stopped"] == "by Ctrl-C after 16 of 80 frames"
    assert len(read_frames(out)) == 16
    assert clicks(out)[1] == pytest.approx(16 / 25, abs=0.06)
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_choices_that_do_not_fit_say_what_to_do_before_a_video_is_read(
    videos: dict[str, Path], checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def must_not_be_called(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(animating, "prepare", must_not_be_called)
        for changes, text in (({"precision": "int8"}, "take auto, float32"), ({"compiled": True}, "for GPUs")):
            with pytest.raises(StageError, match=text):
                run(videos, checkpoints, tmp_path / "out.mp4", **changes)
    model = load_model(checkpoints, CPU)
    crop, parse = load_preparation(checkpoints)
    person = prepare(videos["subject"], crop, parse, "cpu")
    ready = subject_state(model, person, 3, "even")
    assert make_engine(model, person, ready, Wanted("cpu", "absolute", 3)).precision == "float32"
    assert make_engine(model, person, ready, Wanted("cpu", "absolute", 3, precision="bfloat16")).precision == "bfloat16"
