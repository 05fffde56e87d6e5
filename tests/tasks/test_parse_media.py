"""`head3d parse`: pictures and videos of every kind, called as a user does; the parser is a stand-in for colours."""

from __future__ import annotations

import csv
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from flows.cli import app
from tasks import labels, parse_media
from tasks.crop_plan import Square
from tasks.faces import Faces, Looks
from tasks.head_window import (
    ROOM,
    face_boxes,
    face_window,
    find_face,
    parse_side,
    plan_windows,
    runs_out,
    whole_picture,
    wider,
)
from tasks.image_read import ImageError, read_image
from tasks.parser_network import load_network
from tasks.video import write_video
from tests.tasks.colour_parser import painted, use_colour_parser
from tests.tasks.rendered import rendered_clip
from tests.tasks.videos import face, write_gif

ROOT = Path(__file__).parents[2]
BOX = np.array([80.0, 60.0, 140.0, 130.0])


@pytest.fixture(autouse=True)
def colour_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in, and a working directory that is no project."""
    use_colour_parser(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    yield
    load_network.cache_clear()


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        app(args=[*(str(word) for word in words)])
    code = ended.value.code
    return code if isinstance(code, int) else 0


def parse(*words: object) -> int:
    return call("parse", *words, "--parser", "embedded", "--device", "cpu")


def read_labels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "L"
        return np.array(image)


def scene(height: int = 240, width: int = 320) -> np.ndarray:
    """Labels: a head with hair about `BOX`, shoulders, and a second head far to the right."""
    class_ids = np.zeros((height, width), np.uint8)
    cv2.ellipse(class_ids, (110, 190), (60, 40), 0, 180, 360, labels.CLOTH, -1)
    cv2.ellipse(class_ids, (110, 90), (42, 58), 0, 0, 360, labels.HAIR, -1)
    cv2.ellipse(class_ids, (110, 98), (30, 42), 0, 0, 360, labels.SKIN, -1)
    cv2.circle(class_ids, (290, 100), 20, labels.SKIN, -1)
    return class_ids


@pytest.fixture
def face_at_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_media, "find_face", lambda _image, _least: BOX.copy())


def test_a_picture_gets_labels_where_its_head_is(tmp_path: Path, face_at_box: None) -> None:
    truth = scene()
    Image.fromarray(painted(truth)).save("portrait.png")
    assert parse("portrait.png", "-o", "labels.png") == 0
    found = read_labels(tmp_path / "labels.png")
    assert found.shape == truth.shape
    square = face_window(BOX[None])
    inside = np.zeros(truth.shape, bool)
    inside[max(0, square.y0) : square.y0 + square.side, max(0, square.x0) : square.x0 + square.side] = True
    assert not found[~inside].any()
    expected = np.where(inside, truth, 0)
    expected[:, 250:] = 0  # the other head is an island
    assert (found == expected).mean() > 0.98
    assert not found[:, 255:].any()


def test_labels_never_take_the_place_of_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(painted(scene())).save("picture.png")
    before = (tmp_path / "picture.png").read_bytes()
    for out in ("picture.png", "."):
        assert parse("picture.png", "-o", out, "--force") == 1
        assert "picture.png is read by this command and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "picture.png").read_bytes() == before


def test_without_a_face_the_whole_picture_is_parsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = scene()
    Image.fromarray(painted(truth)).save("picture.png")
    assert parse("picture.png", "-o", "out", "--overlay") == 0
    assert "1 frames without a face" in capsys.readouterr().out
    found = read_labels(tmp_path / "out" / "picture.png")
    truth[:, 260:] = 0
    assert (found == truth).mean() > 0.97
    with Image.open(tmp_path / "out" / "picture_overlay.jpg") as drawing:
        assert drawing.size == (320, 240)


def saved(kind: str, folder: Path) -> tuple[Path, np.ndarray]:
    """The scene in a file of some kind, and the labels it should get."""
    truth = scene()
    picture = Image.fromarray(painted(truth))
    path = folder / f"{kind}.png"
    if kind == "exif":
        path = folder / "exif.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6  # turn a quarter clockwise to show
        picture.rotate(90, expand=True).save(path, exif=exif, quality=100, subsampling=0)
    elif kind == "rgba":
        layer = picture.convert("RGBA")
        layer.putalpha(Image.fromarray(np.full(truth.shape, 255, np.uint8)))
        layer.save(path)
    elif kind == "palette":
        picture.quantize(32).save(path)
    elif kind == "cmyk":
        path = folder / "cmyk.tif"
        picture.convert("CMYK").save(path)
    elif kind == "webp":
        path = folder / "webp.webp"
        picture.save(path, lossless=True)
    return path, truth


@pytest.mark.parametrize("kind", ["exif", "rgba", "palette", "cmyk", "webp"])
def test_pictures_of_every_kind(kind: str, tmp_path: Path, face_at_box: None) -> None:
    path, truth = saved(kind, tmp_path)
    assert parse(path, "-o", "labels.png") == 0
    found = read_labels(tmp_path / "labels.png")
    assert found.shape == truth.shape
    truth[:, 250:] = 0
    assert ((found > 0) == (truth > 0)).mean() > 0.97


def test_grey_and_deep_pictures_are_read_as_shown(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(8, axis=0)
    Image.fromarray(grey).save("grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save("deep.png")
    Image.fromarray((grey / 255).astype(np.float32)).save("float.tif")
    for name in ("grey.png", "deep.png", "float.tif"):
        image = read_image(tmp_path / name)
        assert image.shape == (8, 64, 3)
        assert np.abs(image[..., 1].astype(int) - grey).max() <= 1
    half = np.dstack([np.zeros((4, 4, 3), np.uint8), np.array([[0, 255] * 2] * 4, np.uint8)])
    Image.fromarray(half).save("clear.png")
    assert read_image(tmp_path / "clear.png")[0, :2].tolist() == [[255] * 3, [0] * 3]  # transparent: white


def test_a_huge_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_media, "find_face", lambda _image, _least: BOX * 10)
    truth = cv2.resize(scene(), None, fx=10, fy=10, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite("huge.png", painted(truth)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert parse("huge.png", "-o", "labels.png") == 0
    found = read_labels(tmp_path / "labels.png")
    assert found.shape == (2400, 3200)
    truth[:, 2500:] = 0
    assert (found == truth).mean() > 0.98


@pytest.mark.parametrize(("name", "content"), [("empty.jpg", b""), ("text.png", b"no picture"), ("gone.jpg", None)])
def test_a_bad_picture_is_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=name):
        read_image(tmp_path / name)


def make_folder(root: Path) -> Path:
    """Two pictures of one name, a video in a folder, a film that is none, a picture that is none."""
    folder = root / "album"
    (folder / "trip").mkdir(parents=True)
    picture = Image.fromarray(painted(scene()))
    picture.save(folder / "one.png")
    picture.save(folder / "one.jpg")
    write_video(folder / "trip" / "talk.mp4", face(6, 96), 25.0)
    (folder / "trip" / "broken.mp4").write_bytes(b"no film")
    (folder / "bad.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_a_folder_is_mirrored_and_taken_up_again(
    tmp_path: Path, face_at_box: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = make_folder(tmp_path), tmp_path / "album" / "labels"  # inside of what is read
    assert parse(folder, "-o", out) == 0
    said = capsys.readouterr()
    assert "2 pictures, 1 videos, 8 label maps" in said.out
    assert "2 files refused" in said.out
    assert "bad.jpg" in said.err
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    frames = [f"trip/talk/{index:06d}.png" for index in range(6)]
    assert made == ["one.jpg.png", "one.png.png", "parse.csv", *frames, "trip/talk/parse.json"]
    with (out / "parse.csv").open(encoding="utf-8") as file:
        table = {row["source"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in table.items()} == {
        "bad.jpg": "error", "one.jpg": "ok", "one.png": "ok", "trip/broken.mp4": "error", "trip/talk.mp4": "ok",
    }  # fmt: skip
    assert "broken.mp4" in table["trip/broken.mp4"]["reason"]
    before = {name: (out / name).stat().st_mtime_ns for name in made if name.endswith(".png")}
    assert parse(folder, "-o", out) == 0
    assert "8 of them were there already" in capsys.readouterr().out
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    assert parse(folder, "-o", out, "--force") == 0
    assert all(before[name] != (out / name).stat().st_mtime_ns for name in before)


def test_only_bad_files_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert parse("in", "-o", "out") == 1
    assert "holds no pictures or videos" in capsys.readouterr().err
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    assert parse("in", "-o", "out") == 1
    assert "none of the 1 files" in capsys.readouterr().err
    assert parse("in/bad.jpg", "-o", "out.png") == 1
    assert parse("gone.jpg", "-o", "out.png") != 0


def test_an_interrupted_video_goes_on_and_equals_one_in_one_go(tmp_path: Path) -> None:
    write_video(tmp_path / "talk.mp4", face(30, 96), 25.0)  # four batches
    assert parse("talk.mp4", "-o", "whole", "--work-px", 64) == 0
    assert parse("talk.mp4", "-o", "again", "--work-px", 64) == 0
    again = tmp_path / "again"
    (again / "parse.json").unlink()
    for index in range(13, 30):
        (again / f"{index:06d}.png").unlink()
    (again / "000007.png").touch()
    kept = (again / "000012.png").stat().st_mtime_ns
    assert parse("talk.mp4", "-o", "again", "--work-px", 64) == 0
    assert (again / "000012.png").stat().st_mtime_ns == kept
    for index in range(30):
        name = f"{index:06d}.png"
        assert (again / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_face_of_a_video_is_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = cv2.resize(rendered_clip(1, 1, 96).frames[0], (96, 96))
    frames = np.full((24, 200, 360, 3), 90, np.uint8)
    for t, frame in enumerate(frames):
        frame[60:156, 10 + 10 * t : 106 + 10 * t] = small
    write_video(tmp_path / "walk.mp4", frames, 25.0)
    assert parse("walk.mp4", "-o", "out", "--overlay", "--work-px", 96) == 0
    assert "without a face" not in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.png"))) == 24
    assert len(list((tmp_path / "out" / "overlay").glob("*.jpg"))) == 24
    columns = [np.flatnonzero(read_labels(tmp_path / "out" / f"{t:06d}.png").any(axis=0)).mean() for t in (0, 23)]
    assert columns[1] - columns[0] > 100


def test_a_gif_is_a_video(tmp_path: Path) -> None:
    write_gif(tmp_path / "wave.gif", face(4, 96), 10)
    assert parse("wave.gif", "-o", "out") == 0
    assert len(list((tmp_path / "out").glob("0*.png"))) == 4
    assert parse("wave.gif", "-o", "out.png") == 1


def test_settings_come_from_the_project_or_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(painted(scene())).save("picture.png")
    shipped = ROOT / "flows" / "presets" / "demo.yaml"
    text = shipped.read_text(encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    parser = next(line for line in text.splitlines() if line.strip().startswith("parser:"))
    (tmp_path / "params.yaml").write_text(text.replace(parser, "  parser: grabcut"))
    assert call("parse", "picture.png", "-o", "out.png") == 1
    assert "--parser embedded" in capsys.readouterr().err
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert call("parse", "picture.png", "-o", "out.png", "--parser", "bisenet") == 1
    assert "79999_iter.pth" in capsys.readouterr().err
    assert parse("picture.png", "-o", "out.png", "--work-px", "64") == 0


# -- windows ----------------------------------------------------------------------------------------------------------


def test_a_small_face_in_a_large_picture_is_found() -> None:
    image = np.full((1200, 1600, 3), 120, np.uint8)
    clip = rendered_clip(2, 1, 96)
    image[700:796, 1200:1296] = clip.frames[0]
    box = find_face(image, 0.9)
    assert box is not None
    middle = (box[:2] + box[2:]) / 2
    assert np.abs(middle - clip.landmarks[0].mean(axis=0) - (1200, 700)).max() < 12
    assert find_face(np.full((100, 100, 3), 90, np.uint8), 0.9) is None


def test_the_whole_picture_is_centred() -> None:
    assert whole_picture(300, 200) == Square(0, -50, 300)
    assert whole_picture(201, 300) == Square(-50, 0, 300)


def test_windows_stand_still_and_follow_in_steps() -> None:
    still = np.tile([100.0, 100, 200, 220], (30, 1))
    shaking = still + np.random.default_rng(0).normal(0, 2, (30, 1))
    moving = still + np.arange(30)[:, None] * [20, 0, 20, 0]
    boxes = np.concatenate([shaking, moving, np.full((5, 4), np.nan)])
    shots = np.repeat([0, 1, 2], [30, 30, 5])
    windows = plan_windows(boxes, shots, 640, 360)
    assert [(window.start, window.stop) for window in windows[:1]] == [(0, 30)]
    assert windows[-1].square == whole_picture(640, 360)
    assert (windows[-1].start, windows[-1].stop, windows[-1].face) == (60, 65, False)
    assert 3 <= len(windows) <= 12
    assert all(a.stop == b.start for a, b in itertools.pairwise(windows))
    for window in windows[:-1]:
        for box in boxes[window.start : window.stop]:
            assert window.square.x0 <= box[0] - 50
            assert box[2] + 50 <= window.square.x0 + window.square.side
        assert window.square.side <= 1.31 * ROOM * 120 + 2


def test_a_lost_face_keeps_its_place_within_its_shot() -> None:
    looks = Looks(1, frames=8)
    seen = Faces(np.array([[10.0, 10, 60, 70]]), np.full((1, 5, 2), 30.0), np.ones(1))
    none = Faces(np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))
    looks.faces = [none, seen, seen, none, none, none, none, none]
    looks.change = [0.0, 1, 1, 1, 1, 120, 1, 1]
    boxes, shots = face_boxes(looks, 2.0)
    assert shots.tolist() == [0] * 5 + [1] * 3
    assert np.isfinite(boxes[:5]).all()
    assert np.isnan(boxes[5:]).all()


def test_a_square_grows_with_long_hair_and_keeps_the_faces_pixels(tmp_path: Path, face_at_box: None) -> None:
    truth = scene(420, 320)
    cv2.rectangle(truth, (75, 100), (145, 330), labels.HAIR, -1)  # far below the square of the face
    square = face_window(BOX[None])
    assert square.y0 + square.side < 300
    Image.fromarray(painted(truth)).save("hair.png")
    assert parse("hair.png", "-o", "labels.png") == 0
    found = read_labels(tmp_path / "labels.png")
    assert np.flatnonzero((found == labels.HAIR).any(axis=1)).max() > square.y0 + square.side + 10
    assert parse_side(square, BOX[None], 128) == pytest.approx(128, rel=0.02)
    assert parse_side(wider(square), BOX[None], 128) == pytest.approx(128 * 1.3, rel=0.02)
    assert parse_side(wider(wider(wider(square))), BOX[None], 128) == pytest.approx(128 * 1.7, rel=0.02)
    assert parse_side(square, np.full((1, 4), np.nan), 128) == 128


def test_a_head_that_the_picture_cuts_off_does_not_run_out() -> None:
    head = np.ones((32, 32), np.uint8)
    assert not runs_out(head, Square(-5, -5, 110), 100, 100)
    assert runs_out(head, Square(-5, -5, 80), 100, 100)
    assert not runs_out(head * 0, Square(10, 10, 50), 100, 100)


def test_the_console_script_with_the_shipped_weights(tmp_path: Path) -> None:
    clip = rendered_clip(2, 1, 256)
    Image.fromarray(clip.frames[0]).save(tmp_path / "portrait.png")
    command = [sys.executable, "-m", "flows.cli", "parse", "portrait.png", "-o", "labels.png", "--parser", "embedded"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("labels.png: 1 pictures")
    found = np.isin(read_labels(tmp_path / "labels.png"), [*range(1, 14), labels.HAIR])
    assert (found & clip.head[0]).sum() / (found | clip.head[0]).sum() > 0.88
