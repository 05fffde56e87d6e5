"""Fig. 6: the wheel's directions, what is drawn of the maps, and the report's choice of rows."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.head3d import Head3D, Subject
from models.warp import full_size, sample
from tasks import attention_sheet as sheets
from tasks.animate import Limits
from tasks.attention_maps import (
    COLUMNS,
    OUTLINE_RGB,
    Inside,
    colour_attention,
    colour_flow,
    flow_scale,
    flow_wheel,
    look_inside,
    row_tiles,
)
from tasks.attention_sheet import attention_sheet, write_attention_sheet
from tasks.prepared import HeadVideo
from tasks.report_attention import Look, _bins, _correlation, _extremes, attention_section
from tasks.report_files import Shelf
from tests.tasks.factory import make_project
from tests.tasks.test_training import settings
from tests.tasks.untrained import untrained_model, write_checkpoints

SIZE = 48


@pytest.fixture(scope="module")
def model() -> Head3D:
    return untrained_model(settings())


@pytest.fixture(scope="module")
def driving() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    masks = torch.zeros(3, 1, SIZE, SIZE)
    masks[:, :, 10:38, 10:38] = 1
    return torch.rand(3, 3, SIZE, SIZE), masks


@pytest.fixture(scope="module")
def subject(model: Head3D, driving: tuple[torch.Tensor, torch.Tensor]) -> Subject:
    return model.subject(*driving, reference=0)


@pytest.fixture(scope="module")
def inside(model: Head3D, subject: Subject, driving: tuple[torch.Tensor, torch.Tensor]) -> Inside:
    return look_inside(model, subject, *driving)


@pytest.mark.parametrize(("x", "y", "hue"), [(1, 0, 0.0), (0, 1, 0.25), (-1, 0, 0.5), (0, -1, 0.75)])
def test_direction_is_hue_and_length_is_saturation(x: int, y: int, hue: float):
    flow = np.zeros((2, 2, 3), np.float32)
    flow[:, 0] = np.array([[x], [y]]) * np.array([1.0, 2.0, 9.0])
    rows = colour_flow(flow, full_px=4.0) / 255
    found = [colorsys.rgb_to_hsv(*pixel) for pixel in rows[0]]
    np.testing.assert_allclose([pixel[0] for pixel in found], hue, atol=0.01)
    np.testing.assert_allclose([pixel[1] for pixel in found], [0.25, 0.5, 1], atol=0.01)
    assert (rows[1] == 1).all()  # no flow is white


def test_the_wheel_shows_the_colour_of_the_flow_that_points_there():
    wheel = flow_wheel(101)
    for x, y in ((30, 0), (0, 30), (-30, 0), (0, -30), (20, -20)):
        flow = np.array([x, y], np.float32).reshape(2, 1, 1)
        assert np.abs(wheel[50 + y, 50 + x].astype(int) - colour_flow(flow, 50.0)[0, 0]).max() <= 1
    assert len({tuple(wheel[y, x]) for x, y in ((80, 50), (50, 80), (20, 50), (50, 20))}) == 4


def test_a_shifted_picture_gets_the_colour_of_the_side_it_comes_from():
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    pixels = torch.stack([x + 5.0, y.float()], -1)[None]  # every pixel is taken from its right
    picture = torch.rand(1, 3, SIZE, SIZE)
    assert torch.allclose(sample(picture, pixels)[..., :40], picture[..., 5:45], atol=1e-4)
    flow = (pixels - torch.stack([x, y], -1)).permute(0, 3, 1, 2).numpy()
    red, green, blue = colour_flow(flow[0], 5.0)[20, 20]
    assert (red, green, blue) == (255, 0, 0)


def test_full_size_maps_sample_as_the_small_ones_do():
    torch.manual_seed(0)
    small, picture = torch.rand(2, 12, 12, 2) * 11, torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(sample(picture, full_size(small, SIZE, SIZE)), sample(picture, small), atol=1e-4, rtol=0)


def test_attention_colours_grow_evenly_brighter_from_blue_to_yellow():
    colours = colour_attention(np.linspace(0, 1, 11)[None])[0].astype(float)
    bright = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(bright) > 5).all()
    assert colours[0].argmax() == 2
    assert colours[-1, 2] < 60 < colours[-1, :2].min()


def test_what_is_looked_at_is_what_the_output_is_made_of(model: Head3D, subject: Subject, inside: Inside, driving):
    made = model.drive(subject, *driving)
    np.testing.assert_array_equal(
        inside.output, (made.image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    )
    np.testing.assert_allclose(inside.attention.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(inside.share.sum(axis=1), 1, atol=1e-5)
    head = inside.driving_mask[1] > 0
    np.testing.assert_allclose(inside.share[1], inside.attention[1][:, head].mean(axis=1), atol=1e-5)
    assert inside.turn_deg[0] < 0.1  # the first driving frame is s_ref
    assert abs(inside.yaw_deg[0]) < 1e-3
    assert (np.abs(inside.yaw_deg) <= inside.turn_deg + 0.5).all()


def test_a_row_has_a_picture_for_every_column_and_outlines_the_maps(inside: Inside):
    tiles = row_tiles(inside, 1, flow_scale([inside]))
    assert len(tiles) == len(COLUMNS)
    assert len({tile.shape for tile in tiles}) == 1
    assert min(tiles[0].shape[:2]) >= 128
    outlined = [(tile == OUTLINE_RGB).all(axis=-1).any() for tile in tiles]
    assert [COLUMNS[i][0] for i, there in enumerate(outlined) if there] == ["attention"] * 3


def test_the_sheet_has_a_row_for_every_frame(inside: Inside):
    sheet = attention_sheet(inside, ["a", "b", "c"])
    one = attention_sheet(inside._replace(driving=inside.driving[:1]), ["a"])
    side = row_tiles(inside, 0, 1.0)[0].shape[0]
    assert sheet.shape[1] > len(COLUMNS) * side
    assert sheet.shape[0] - one.shape[0] > 2 * side
    assert sheet.dtype == np.uint8


def test_the_sheet_names_frames_of_the_file_and_passes_over_an_empty_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The face comes after 50 frames, and the last frame shown has no head mask."""
    params = settings()
    frames = np.random.default_rng(0).integers(0, 255, (5, SIZE, SIZE, 3), np.uint8)
    head = np.zeros((5, SIZE, SIZE), np.uint8)
    head[:4, 10:38, 10:38] = 1
    measures = {"lost_share": 0.0}
    video = HeadVideo(frames, head, 25.0, measures, 50, np.array([2.0, 2.1, 2.2, 2.5, 2.6]))
    titles: list[str] = []

    def kept(inside: Inside, names: list[str], title: str) -> np.ndarray:
        titles.extend(names)
        return attention_sheet(inside, names, title)

    monkeypatch.setattr(sheets, "prepare", lambda *_: video)
    monkeypatch.setattr(sheets, "attention_sheet", kept)
    summary = write_attention_sheet(
        tmp_path / "me.mp4", tmp_path / "speech.mp4", tmp_path / "sheet.png",
        checkpoints=write_checkpoints(tmp_path / "checkpoints", params), device="cpu", references=2, frames=3,
        limits=Limits(params.quality, params.notices),
    )  # fmt: skip
    assert titles == ["frame 50 (2.00 s)", "frame 52 (2.20 s)", "frame 54 (2.60 s)"]
    assert sum(value for name, value in summary.items() if "_in_head" in name) == pytest.approx(1, abs=0.002)


def look(setting: str, yaw: float, a_head: float) -> Look:
    return Look({"setting": setting}, 0, 0, abs(yaw), yaw, np.array([a_head, 1 - a_head, 0.0]))


def test_the_report_takes_the_largest_and_the_smallest_turn_of_each_setting():
    looks = [look("self", 5, 0.2), look("self", -40, 0.8), look("cross", 1, 0.1), look("cross", 25, 0.6)]
    shown = [(name, one.yaw_deg) for name, one in _extremes(looks)]
    assert shown == [
        ("Large difference", -40), ("Small difference", 5), ("Large difference", 25), ("Small difference", 1),
    ]  # fmt: skip
    rows = _bins(looks)
    assert [(row["frames"], row["values"][0]) for row in rows] == [(2, "0.15"), (1, "0.60"), (1, "0.80")]
    assert "+1.00 over 4 frames" in _correlation(looks)


def test_the_reports_section_draws_rows_of_both_settings_or_says_what_is_missing(tmp_path: Path):
    made = make_project(tmp_path, people=3, frames=8, size_px=48, cross=2, videos=False)
    shelf = Shelf(tmp_path / "report", 8.0)
    assert "the model is not trained" in attention_section(made.params, made.paths, shelf)["missing"]
    write_checkpoints(made.paths.data / "checkpoints", settings())
    section = attention_section(made.params, made.paths, shelf)
    assert [row["title"].split(":")[0] for row in section["rows"]] == [
        "Large difference, self-reconstruction", "Small difference, self-reconstruction",
        "Large difference, cross-identity", "Small difference, cross-identity",
    ]  # fmt: skip
    assert all((tmp_path / "report" / row["url"]).suffix == ".webp" for row in section["rows"])
    assert all((tmp_path / "report" / row["url"]).is_file() for row in section["rows"])
    frames = made.params.report.frames_per_sheet
    assert sum(row["frames"] for row in section["bins"]) == (2 + 2) * frames  # the third self pair failed
