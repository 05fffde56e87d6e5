"""Measures and flags of a clip, and what they keep out of training."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from models.config import Quality, build
from models.geometry import rotation_from_euler
from models.landmark_pose import MEAN_FACE
from tasks import labels, parse
from tasks.clip_data import left_out, load_clips
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.quality import FLAGS, MEANING, border_share, flags, least_yaw, mask_jump, measure, sharpness
from tests.tasks.rendered import make_clip_store, parse_params, rendered_clip

LIMITS: dict[str, float] = {
    "max_border_share": 0.2, "min_head_area": 0.1, "min_sharpness": 0.05, "max_mask_jump": 0.5,
    "max_least_yaw_deg": 30.0,
}  # fmt: skip
OFF: dict[str, float] = {
    "max_border_share": 1.0, "min_head_area": 0.0, "min_sharpness": 0.0, "max_mask_jump": 1.0,
    "max_least_yaw_deg": 180.0,
}  # fmt: skip
GOOD = {"border_share": 0.0, "head_area": 0.3, "sharpness": 0.2, "mask_jump": 0.1, "least_yaw_deg": 0.0}


def quality(**changes: float) -> Quality:
    return build(Quality, {**LIMITS, **changes})


def turned(yaw_deg: float) -> np.ndarray:
    """The mean face's landmarks `(5, 2)` in pixels, turned."""
    angle = torch.tensor([yaw_deg], dtype=torch.float64)
    face = torch.tensor(MEAN_FACE, dtype=torch.float64) @ rotation_from_euler(angle, angle * 0, angle * 0)[0].T
    return face[:, :2].numpy() * 30 + 64


def test_border_counts_the_head_above_and_beside_and_only_the_face_below() -> None:
    ids = np.zeros((2, 10, 20), np.uint8)
    edge = 2 * 20 + 2 * 8
    assert border_share(ids) == 0
    ids[:, 0, :7] = labels.HAIR
    assert border_share(ids) == pytest.approx(7 / edge)
    ids[0, 3:6, -1] = labels.SKIN  # in one of two frames
    assert border_share(ids) == pytest.approx((7 + 1.5) / edge)
    ids[:, -1] = labels.NECK
    ids[:, -1, :5] = labels.HAIR
    assert border_share(ids) == pytest.approx((7 + 1.5) / edge)
    ids[:, -1, 8:12] = labels.SKIN  # the chin is cut off
    assert border_share(ids) == pytest.approx((7 + 1.5 + 4) / edge)
    assert border_share(np.full((1, 10, 20), labels.SKIN, np.uint8)) == 1.0


def test_mask_jump_is_the_worst_of_all_steps() -> None:
    head = np.zeros((4, 8, 8), np.uint8)
    head[:, 2:6, 2:6] = 1
    assert mask_jump(head) == 0
    head[2] = 0
    head[2, 2:6, 4:8] = 1  # half of it is elsewhere: 8 of 24 pixels are common
    assert mask_jump(head) == pytest.approx(1 - 8 / 24)
    head[2] = 0
    assert mask_jump(head) == 1.0
    assert mask_jump(head[:1]) == 0


def test_sharpness_falls_with_blur_and_not_with_size() -> None:
    clip = rendered_clip(1, 3, 256)
    head = clip.head.astype(np.uint8)
    values = [sharpness(clip.frames, head)]
    for sigma in (2.0, 4.0, 8.0):
        values.append(sharpness(np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip.frames]), head))
    assert all(b < 0.75 * a for a, b in itertools.pairwise(values))
    assert values[-1] < values[0] / 8
    half = np.stack([cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA) for frame in clip.frames])
    half_head = np.stack([cv2.resize(mask, (128, 128), interpolation=cv2.INTER_NEAREST) for mask in head])
    assert sharpness(half, half_head) == pytest.approx(values[0], rel=0.25)
    darker = (clip.frames.astype(float) * 0.5 + 20).astype(np.uint8)
    assert sharpness(darker, head) == pytest.approx(values[0], rel=0.1)
    assert sharpness(np.full_like(clip.frames, 90), head) == 0
    assert sharpness(clip.frames, np.zeros_like(head)) == 0


def test_least_yaw_is_zero_for_who_looks_to_both_sides() -> None:
    assert least_yaw(np.stack([turned(yaw) for yaw in (-20, 5, 25)])) == 0
    right = least_yaw(np.stack([turned(yaw) for yaw in (45, 38, 50)]))
    assert right == pytest.approx(38, abs=4)
    assert least_yaw(np.stack([turned(yaw) for yaw in (-45, -38, -50)])) == pytest.approx(right, abs=1)
    some = np.stack([turned(40), turned(-40)])
    some[1] = np.nan
    assert least_yaw(some) == pytest.approx(40, abs=4)
    assert np.isnan(least_yaw(some[1:]))


def test_measure_of_a_rendered_head() -> None:
    clip = rendered_clip(1, 3, 96)
    ids = np.where(clip.head, labels.SKIN, 0).astype(np.uint8)
    found = measure(clip.frames, ids, clip.landmarks)
    assert set(found) == {column for column, _ in FLAGS.values()} == set(GOOD)
    assert found["head_area"] == pytest.approx(clip.head.mean(), abs=1e-4)
    assert all(type(value) is float for value in found.values())


def test_every_limit_has_its_flag() -> None:
    worse = {"border_share": 0.3, "head_area": 0.05, "sharpness": 0.01, "mask_jump": 0.8, "least_yaw_deg": 35.0}
    rows = [GOOD, *({**GOOD, column: value} for column, value in worse.items()), worse]
    table = pd.DataFrame(rows, index=[10 + row for row in range(7)])
    found = flags(table, quality())
    assert found.tolist() == ["", *FLAGS, ",".join(FLAGS)]
    assert found.index.tolist() == table.index.tolist()
    assert flags(table, build(Quality, OFF)).tolist() == [""] * 7
    assert set(FLAGS) == set(MEANING)


def test_what_is_not_known_flags_nothing() -> None:
    table = pd.DataFrame([{"head_area": 0.3, "least_yaw_deg": float("nan")}])
    assert flags(table, quality()).tolist() == [""]
    assert flags(table.iloc[:0], quality()).empty


@pytest.fixture
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = make_clip_store(tmp_path_factory.mktemp("quality"), 4, set(), frames=3, size_px=48)
    parse.run(parse_params(parse={"parser": "grabcut"}), paths, "parse")
    table = pd.read_parquet(paths.clip_table)
    table.loc[table["clip"] == "clip4_0", "split"] = "test"
    table.to_parquet(paths.clip_table)
    masks = pd.read_parquet(paths.mask_table)
    for column, value in GOOD.items():
        masks[column] = value
    masks.loc[masks["clip"].isin(["clip2_0", "clip4_0"]), ["sharpness", "mask_jump"]] = 0.0, 0.9
    masks.to_parquet(paths.mask_table)
    return paths


def test_training_leaves_flagged_clips_out_and_testing_keeps_them(prepared: Paths) -> None:
    def names(split: str | None, **limits: Any) -> list[str]:
        clips = load_clips(prepared, split, torch.device("cpu"), with_geometry=False, **limits)
        assert len(clips.frames) == len(clips.table)
        return [str(name)[:5] for name in clips.table["clip"]]

    assert names("train") == ["clip1", "clip2", "clip3"]
    assert names("train", quality=quality()) == ["clip1", "clip3"]
    assert names(None, quality=quality()) == ["clip1", "clip3", "clip4"]
    assert names("test", quality=quality()) == ["clip4"]
    assert left_out(prepared, quality()) == {
        "clips_train": 2, "clips_left_out": 1, "left_out_blurred": 1, "left_out_jump": 1,
    }  # fmt: skip
    assert left_out(prepared, build(Quality, OFF)) == {"clips_train": 3, "clips_left_out": 0}


def test_a_clear_word_when_nothing_is_left(prepared: Paths) -> None:
    limits = build(Quality, {**OFF, "min_head_area": 0.9})
    with pytest.raises(StageError, match=r"every one of the 3 training clips is flagged \(3 tiny\).*quality"):
        load_clips(prepared, "train", torch.device("cpu"), False, limits)
    prepared.mask_table.unlink()
    with pytest.raises(StageError, match="dvc repro parse"):
        left_out(prepared, quality())
