"""Training and judging the head parser on drawn portraits; the shipped weights on rendered heads."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.parser import CLASSES, load_parser
from tasks import labels, train_parser
from tasks.bench_parser import bench_parser
from tasks.errors import StageError
from tasks.parser_data import Augment, LabelledImages, mirror_labels, read_labelled, repair_sides
from tasks.parser_network import EMBEDDED_FILE
from tasks.parser_score import overlap, shrink
from tasks.train_parser import ParserTraining, parsing_loss
from tests.tasks.full_disk import small_files
from tests.tasks.rendered import rendered_clip

CPU = torch.device("cpu")
SETTINGS = ParserTraining(
    steps=24, batch=4, lr=3e-3, weight_decay=0.0, sizes_px=(64,), ema_steps=4, seed=0, zoomed_out=0.3, init="",
    init_share=0.3,
)  # fmt: skip


def draw_portrait(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A face of ellipses `(256, 256, 3)` u1 RGB with its labels `(256, 256)`."""
    random = np.random.default_rng(seed)
    image = np.full((256, 256, 3), random.integers(60, 200, 3), np.uint8)
    ids = np.zeros((256, 256), np.uint8)
    x, y = (int(v) for v in random.integers(110, 146, 2))

    def ellipse(at: tuple[int, int], axes: tuple[int, int], colour: tuple[int, int, int], label: int) -> None:
        cv2.ellipse(image, at, axes, 0, 0, 360, colour, -1)
        cv2.ellipse(ids, at, axes, 0, 0, 360, label, -1)

    ellipse((x, y - 20), (84, 100), (40, 25, 15), labels.HAIR)
    ellipse((x, y), (62, 84), (220, 170, 140), labels.SKIN)
    ellipse((x - 26, y - 15), (11, 7), (20, 60, 90), labels.RIGHT_EYE)
    ellipse((x + 26, y - 15), (11, 7), (20, 60, 90), labels.LEFT_EYE)
    ellipse((x, y + 45), (22, 9), (170, 40, 60), labels.LOWER_LIP)
    return image, ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parsing")
    for side, seeds in (("train", range(12)), ("val", range(20, 24))):
        for name in ("images", "masks"):
            (root / side / name).mkdir(parents=True)
        for seed in seeds:
            image, ids = draw_portrait(seed)
            cv2.imwrite(str(root / side / "images" / f"p{seed:02d}.png"), image[..., ::-1])
            cv2.imwrite(str(root / side / "masks" / f"p{seed:02d}.png"), ids)
    return root


@pytest.fixture(scope="module")
def portraits(folder: Path) -> LabelledImages:
    return read_labelled(folder / "train")[0]


def test_pictures_are_read_in_order_and_bad_ones_left_out(folder: Path, tmp_path: Path) -> None:
    data, refused = read_labelled(folder / "train")
    image, ids = draw_portrait(3)
    assert (data.images.shape, data.class_ids.shape, refused) == ((12, 3, 256, 256), (12, 256, 256), [])
    assert np.array_equal(data.images[3].permute(1, 2, 0).numpy(), image)
    assert np.array_equal(data.class_ids[3].numpy(), ids)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "a.png").write_bytes((folder / "train/images/p00.png").read_bytes())
    (tmp_path / "masks" / "a.png").write_bytes((folder / "train/masks/p00.png").read_bytes())
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    (tmp_path / "masks" / "b.png").write_bytes((folder / "train/masks/p00.png").read_bytes())
    (tmp_path / "images" / "c.png").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "images" / "d.png"), image)
    cv2.imwrite(str(tmp_path / "masks" / "d.png"), ids + 100)
    data, refused = read_labelled(tmp_path)
    assert len(data) == 1
    assert [text.split(":")[0] for text in refused] == ["c", "b", "d"]
    with pytest.raises(StageError, match="images/NAME"):
        read_labelled(tmp_path / "images")


def test_sides_are_repaired_where_they_are_the_wrong_way_round(portraits: LabelledImages) -> None:
    wrong = portraits.class_ids.clone()
    wrong[[2, 5]] = mirror_labels(wrong[[2, 5]])
    repaired, count = repair_sides(wrong)
    assert count == 2
    assert torch.equal(repaired, portraits.class_ids)


def test_views_keep_labels_on_their_pixels(portraits: LabelledImages) -> None:
    """However a view is turned, zoomed and recoloured, what is called hair stays dark and what is skin bright."""
    views = Augment(portraits, seed=1, zoomed_out=0.5)
    brighter = total = 0
    for step in range(3):
        images, class_ids = views.batch(step, 16, 96)
        assert images.shape == (16, 3, 96, 96)
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        assert class_ids.shape == (16, 96, 96)
        for image, ids in zip(images.mean(dim=1), class_ids, strict=True):
            skin, hair = image[ids == labels.SKIN], image[ids == labels.HAIR]
            if len(skin) > 50 and len(hair) > 50:
                total += 1
                brighter += bool(skin.mean() > hair.mean() + 0.02)
    assert total >= 30
    assert brighter == total


def test_views_have_the_persons_left_at_the_pictures_right(portraits: LabelledImages) -> None:
    _, class_ids = Augment(portraits, seed=2, zoomed_out=0.0).batch(0, 32, 96)
    checked = 0
    for ids in class_ids:
        left, right = ((ids == eye).nonzero()[:, 1].float() for eye in (labels.LEFT_EYE, labels.RIGHT_EYE))
        if len(left) > 8 and len(right) > 8:
            checked += 1
            assert left.mean() > right.mean()
    assert checked >= 16


def test_the_loss_is_least_for_the_truth(portraits: LabelledImages) -> None:
    ids = portraits.class_ids[:2, ::4, ::4].long()
    right = torch.nn.functional.one_hot(ids, CLASSES).movedim(-1, 1) * 20.0
    other = right.roll(20, dims=-1)
    assert float(parsing_loss(right, ids)) < 0.02
    assert float(parsing_loss(other, ids)) > 1.0
    ids[:, :, :20] = labels.UNKNOWN  # what is unknown costs nothing, whatever is said there
    assert float(parsing_loss(right.where((ids == labels.UNKNOWN)[:, None].logical_not(), -right), ids)) < 0.02


def test_figures_by_hand() -> None:
    counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    counts[0, 0], counts[0, labels.HAIR] = 60, 10
    counts[labels.HAIR, labels.HAIR], counts[labels.HAIR, labels.SKIN] = 20, 5
    counts[labels.SKIN, labels.SKIN], counts[labels.SKIN, 0] = 4, 1
    figures = overlap(counts)
    assert figures["head_iou"] == round(29 / 40, 4)  # hair taken for skin is still head
    assert figures["hair_iou"] == round(20 / 35, 4)
    assert figures["f1"] == {"background": round(120 / 131, 4), "skin": round(8 / 14, 4), "hair": round(40 / 55, 4)}
    assert figures["mean_f1"] == pytest.approx(np.mean([120 / 131, 8 / 14, 40 / 55]), abs=1e-4)


def test_shrunk_pictures_stand_on_a_background(portraits: LabelledImages) -> None:
    small = shrink(portraits, 0.45, seed=0)
    head = (portraits.class_ids > 0).float().mean()
    assert float((small.class_ids > 0).float().mean() / head) == pytest.approx(0.45**2, rel=0.05)
    assert torch.equal(small.images, shrink(portraits, 0.45, seed=0).images)


def test_training_learns_and_an_interrupted_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.safetensors"
    monkeypatch.setattr(train_parser, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(train_parser, "LOG_EVERY", 8)
    monkeypatch.setattr(train_parser, "score", lambda *_: {})

    save = train_parser._Run._save

    def save_and_stop(run: train_parser._Run) -> None:
        save(run)
        if run._step == 16:
            raise KeyboardInterrupt

    train_parser.train_parser(folder, tmp_path / "whole.safetensors", SETTINGS, CPU)
    monkeypatch.setattr(train_parser._Run, "_save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_parser.train_parser(folder, out, SETTINGS, CPU)
    assert torch.load(tmp_path / "p.resume.pt", weights_only=True)["step"] == 16
    with pytest.raises(StageError, match="other settings"):
        train_parser.train_parser(folder, out, dataclasses.replace(SETTINGS, lr=1e-3), CPU)
    monkeypatch.setattr(train_parser._Run, "_save", save)
    figures = train_parser.train_parser(folder, out, SETTINGS, CPU)
    assert (figures["train_images"], figures["val_images"], figures["sides_repaired"]) == (12, 4, 0)
    assert json.loads(out.with_suffix(".json").read_text())["bytes"] == out.stat().st_size
    assert not (tmp_path / "p.resume.pt").exists()
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    val = read_labelled(folder / "val")[0]
    pictures, ids = val.images[:, :, ::4, ::4].float() / 255, val.class_ids[:, ::4, ::4].long()
    with torch.no_grad():
        untrained = parsing_loss(torch.zeros(len(ids), CLASSES, 64, 64), ids)
        assert parsing_loss(load_parser(out)(pictures), ids) < 0.8 * untrained


def test_a_full_disk_is_told_and_leaves_no_half_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_parser, "score", lambda *_: {})
    settings = dataclasses.replace(SETTINGS, steps=1)
    for save_every_s in (0.0, 1e9):  # the state to resume from does not fit, or the weights
        monkeypatch.setattr(train_parser, "SAVE_EVERY_S", save_every_s)
        with small_files(3_000), pytest.raises(StageError, match="size limit"):
            train_parser.train_parser(folder, tmp_path / "p.safetensors", settings, CPU)
        assert list(tmp_path.iterdir()) == []


def test_a_run_can_begin_from_weights_and_keep_a_share_of_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_parser, "score", lambda *_: {})
    settings = dataclasses.replace(SETTINGS, steps=2, lr=1e-4, init=str(EMBEDDED_FILE), init_share=1.0)
    train_parser.train_parser(folder, tmp_path / "same.safetensors", settings, CPU)
    before, after = load_parser(EMBEDDED_FILE), load_parser(tmp_path / "same.safetensors")
    for mine, theirs in zip(after.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)


def test_shipped_weights_find_rendered_heads() -> None:
    clip = rendered_clip(person=1, frames=2, size_px=96)
    picture = torch.from_numpy(cv2.resize(clip.frames[0], (128, 128))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        ids = load_parser(EMBEDDED_FILE)(picture.float()).argmax(dim=1)[0].byte().numpy()
    head = labels.head_mask(ids, [*range(1, 14), labels.HAIR])
    truth = cv2.resize(clip.head[0].astype(np.uint8), (128, 128), interpolation=cv2.INTER_NEAREST)
    assert (head & truth).sum() / (head | truth).sum() > 0.9


def test_the_bench_measures_and_judges(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.bench_parser.SPEED_SECONDS", 0.01)
    monkeypatch.setattr("tasks.bench_parser.SIZES_PX", (64,))
    figures = bench_parser(folder / "val", None, "cpu", None)
    assert figures["frames_per_s_64"] > figures["frames_per_s_64_mirror"] * 1.2 > 0
    assert figures["pictures"] == 4
    assert 0.5 < figures["val_64"]["head_iou"] <= 1


def test_the_command_trains(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    command = [sys.executable, "-m", "flows.cli", "train-parser", str(folder), "-o", str(out), "--steps", "2"]
    more = ["--batch", "2", "--sizes", "32", "--device", "cpu"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    assert "train_images" in done.stdout
    wrong = subprocess.run([*command, "--sizes", "100"], capture_output=True, text=True, check=False)
    assert wrong.returncode != 0
    assert "multiples of 32" in wrong.stderr + wrong.stdout
