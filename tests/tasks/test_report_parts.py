"""What the report is put together from: meshes, poses, grids of panels, pictures and charts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.pose_net import HeadPose
from tasks import report, report_heads
from tasks.charts import Line, line_chart
from tasks.errors import StageError
from tasks.export_head import HeadSurface, main_piece, surface_triangles
from tasks.report_media import error_map, frame_indices, mosaic, outlined
from tests.tasks.factory import make_params


def test_a_thinned_mesh_lies_on_the_whole_one() -> None:
    y, x = np.mgrid[0:64, 0:64] / 63.0 - 0.5
    points = np.stack([x, -y, 0.3 - x**2 - y**2], axis=-1)
    inside = x**2 + y**2 < 0.2
    triangles = main_piece(surface_triangles(points, inside))
    surface = HeadSurface(np.full((64, 64, 3), 99, np.uint8), (255 * inside).astype(np.uint8), points, triangles)
    whole, thin = (report_heads.small_mesh(surface, grid) for grid in (64, 20))
    assert len(thin.faces) < len(whole.faces) / 8
    assert np.abs(thin.extents - whole.extents).max() < 0.08
    z = 0.3 - (thin.vertices[:, :2] ** 2).sum(axis=1)
    assert np.abs(thin.vertices[:, 2] - z).max() < 0.02
    visual: Any = thin.visual
    u, v = visual.uv.T
    assert np.abs((u - 0.5) - thin.vertices[:, 0]).max() < 0.02
    assert np.abs((v - 0.5) - thin.vertices[:, 1]).max() < 0.02


def test_views_change_one_parameter_and_stay_within_the_models_limits() -> None:
    camera = make_params().geometry.camera
    own = HeadPose(torch.tensor([[5.0, -3.0, 2.0]]), torch.tensor([[0.01, 0.0, 0.09]]))
    yaw = report_heads.view_poses(own, 0, (-30, 0, 30), camera)
    assert yaw.angles_deg.tolist() == [[-30, -3, 2], [0, -3, 2], [30, -3, 2]]
    assert torch.equal(yaw.translation_m, own.translation_m.expand(3, -1))
    far = report_heads.view_poses(own, 5, (-0.08, 0.08), camera)
    assert far.translation_m[:, 2].tolist() == pytest.approx([0.01, camera.max_translation_m])
    assert torch.equal(far.angles_deg, own.angles_deg.expand(2, -1))


def test_heads_that_do_not_fit_are_counted() -> None:
    shown = [{"problem": ""}, {"problem": report_heads.NO_ROOM}, {"problem": "the canonical head is empty"}]
    assert report_heads._left_out(shown[:1], 1) == ""
    assert report_heads._left_out(shown, 3).endswith("of 3 people 1 have pictures only")
    assert report_heads._left_out(shown, 5).endswith("of 5 people 1 have pictures only and 2 are left out")


def test_pictures_of_heads_are_cut_to_the_head() -> None:
    seen = np.zeros((64, 64), bool)
    seen[10:30, 40:62] = True
    rows, columns = report_heads.square_about(seen)
    assert rows.stop - rows.start == columns.stop - columns.start == 26
    assert rows.start <= 10
    assert rows.stop >= 30
    assert columns.stop == 64
    assert report_heads.square_about(np.zeros((64, 64), bool)) == (slice(0, 64), slice(0, 64))


def test_the_viewer_is_the_file_that_was_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert report._checked_viewer().stat().st_size < 700_000
    folder = report.VIEWER.parent
    assert "The MIT License" in report.VIEWER.read_text(encoding="utf-8")[:400]
    for file in ("package.json", "package-lock.json"):
        text = (folder / file).read_text(encoding="utf-8")
        assert "registry" not in text
        assert '"three": "0.' in text
    for file in (report.VIEWER.name, f"{report.VIEWER.name}.sha256"):
        shutil.copy(folder / file, tmp_path)
    monkeypatch.setattr(report, "VIEWER", tmp_path / report.VIEWER.name)
    with report.VIEWER.open("a", encoding="utf-8") as file_:
        file_.write("// changed")
    with pytest.raises(StageError, match="git checkout tasks/viewer"):
        report._checked_viewer()


def test_a_mosaic_puts_panels_row_by_row_at_even_sizes() -> None:
    panels = [np.full((3 - (number == 4), 45, 45, 3), 40 * number, np.uint8) for number in range(5)]
    made = mosaic(panels)
    assert (made.columns, made.rows, made.width, made.height) == (3, 2, 180, 180)
    assert made.frames.shape == (2, 360, 540, 3)
    assert made.frames[0, ::180, ::180, 0].tolist() == [[0, 40, 80], [120, 160, 0]]
    assert mosaic([np.zeros((1, 512, 512, 3), np.uint8)]).width == 256


def test_frame_indices_are_even_and_hold_both_ends() -> None:
    assert frame_indices(40, 6) == [0, 8, 16, 23, 31, 39]
    assert frame_indices(3, 6) == [0, 1, 2]
    assert frame_indices(1, 4) == [0]


def test_outline_is_the_inner_edge_of_the_mask() -> None:
    frames = np.full((1, 4, 4, 3), 200, np.uint8)
    masks = np.zeros((1, 4, 4), np.uint8)
    masks[0, 1:3, 1:3] = 1
    shown = outlined(frames, masks)[0]
    green = (shown == (0, 255, 120)).all(axis=-1)
    assert shown.shape == (8, 8, 3)
    assert green.sum() == 12  # the border of a 4 x 4 square
    assert (shown[3:5, 3:5] == 200).all()
    assert (shown[0, 0] == 100).all()


def test_error_map_grows_with_the_error() -> None:
    truth = np.zeros((1, 1, 4, 3), np.uint8)
    output = truth.copy()
    output[0, 0] = np.array([0, 25, 51, 255])[:, None]
    black, red, yellow, white = error_map(output, truth)[0, 0]
    assert black.tolist() == [0, 0, 0]
    assert white.tolist() == [255, 255, 255]
    assert red[0] > 240
    assert red[1] == 0
    assert yellow[0] == 255
    assert yellow[1] == 255
    assert yellow[2] == 0


def test_chart_is_logarithmic_where_values_span_decades() -> None:
    steps = np.arange(1.0, 101.0)
    falling = Line("a <loss>", steps, 10.0 ** (-steps / 50))
    svg = line_chart("losses", [falling, Line("zero", steps, np.zeros(100))], "step", [(50.0, "drop")])
    points = re.findall(r'line-0" points="([^"]*)"', svg)[0].split()
    y = np.array([float(point.split(",")[1]) for point in points])
    assert np.allclose(np.diff(y), np.diff(y)[0], atol=0.11)  # an exponential is a straight line
    assert "a &lt;loss&gt;" in svg
    assert 'class="mark"' in svg
    assert "0.01<" in svg
    assert "0.1<" in svg
    assert line_chart("none", [Line("a", steps, np.full(100, np.nan))], "step", []) == ""


def test_chart_of_a_constant_does_not_divide_by_zero() -> None:
    assert "polyline" in line_chart("flat", [Line("a", np.array([1.0, 2.0]), np.array([0.5, 0.5]))], "step", [])
