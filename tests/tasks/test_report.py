"""The report in a real browser, and what it says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks import evaluate, report, report_tables, study
from tasks.charts import Line, line_chart
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.report_media import error_map, frame_indices, outlined
from tests.tasks.factory import Project, make_project

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A whole run up to its report, on synthetic heads; two examples of each setting."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(root))
        made = make_project(root, frames=8, report={"examples": 2, "frames_per_sheet": 4})
        for name, stage in (("evaluate", evaluate), ("study", study)):
            summary = {"seconds": 65.0, **stage.run(made.params, made.paths, "f")}
            (made.paths.metrics / f"{name}.json").write_text(json.dumps(summary), encoding="utf-8")
        report.run(made.params, made.paths, "0123456789abcdef0123")
        yield made


@pytest.fixture(scope="module")
def html(project: Project) -> str:
    return (project.paths.report / "index.html").read_text(encoding="utf-8")


@dataclass(frozen=True)
class SideReport(Paths):
    """The same data with another folder for the report."""

    target: Path

    @property
    def report(self) -> Path:
        return self.target


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_everything_is_inside_the_one_file(html: str, project: Project) -> None:
    assert [path.name for path in project.paths.report.iterdir()] == ["index.html"]
    elements = Elements(html).found
    assert not any(tag in ("script", "iframe", "object", "embed") for tag, _ in elements)
    for tag, attributes in elements:
        for name in ("src", "href", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"url\(|@import", html)
    images = [attributes for tag, attributes in elements if tag == "img"]
    assert len(images) >= 4 * 6
    assert all(attributes.get("alt") for attributes in images)
    assert sum(tag == "video" for tag, _ in elements) == 4
    assert len(html) < 15e6


def test_figures_stand_beside_the_trivial_baseline_under_honest_names(html: str, project: Project) -> None:
    table = pd.read_csv(project.paths.metrics / "table1.csv")
    for value in table["l2"]:
        assert (f"{value:.4f}" if value >= 0.001 else f"{value:.6f}") in html
    assert "(trivial baseline)" in html
    assert "No LPIPS here" in html
    assert "alexnet-owt-7be5be79.pth" in html
    assert not re.search(r"<th[^>]*>LPIPS", html)


def test_table_3_stands_beside_the_papers_and_says_what_is_noise(html: str, project: Project) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert "Ablation (Table 3), self-reconstruction, dataset demo" in text
    row = re.search(r"Head3D, N = 10 (.*?) Mean canonical head", text)
    assert row
    assert re.search(r"-0.001 \[-0.00\d, \+0.00\d\]", row[1])
    assert row[1].endswith("not measured 3 0.0116 0.0839")  # no times in this project; the paper's L2 and LPIPS
    bold = re.findall(r'<td class="number best">(\+[^<]*)</td>', html)
    assert any(text.startswith("+") and "[+" in text for text in bold)  # the darkened mean head is surely worse
    assert "not told apart from Head3D by these videos: Head3D, N = 10" in text
    table = pd.read_csv(project.paths.metrics / "table3.csv")
    assert "Head3D, N = 5" in text
    assert "the paper's own (VoxCeleb" in text
    other = report_tables.ablations(table, references=4)[0]["rows"]
    assert other[0]["paper"] == ["–", "–"]  # the paper's Head3D is N = 5
    assert report_tables.ablations(table[table["method"] == "head3d"], references=5) == []


def test_a_paper_dataset_shows_the_papers_table_1(project: Project) -> None:
    table = pd.read_csv(project.paths.metrics / "table1.csv")
    assert report_tables.results(table)[0]["paper"] == []
    paper = report_tables.results(table.assign(dataset="voxceleb"))[0]["paper"]
    assert ("Head3D", "0.0113 / 0.0855") in paper


def test_a_model_worse_than_copying_is_flagged(html: str, project: Project) -> None:
    assert "Not better than copying" not in html
    path = project.paths.metrics / "evaluate.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(json.dumps({**json.loads(text), "l2_ratio_to_copy": 1.0}), encoding="utf-8")
    elsewhere = project.paths.data / "copy"
    try:
        report.run(project.params, SideReport(project.paths.data, elsewhere), "f")
    finally:
        path.write_text(text, encoding="utf-8")
    assert "Not better than copying" in (elsewhere / "index.html").read_text(encoding="utf-8")


def test_refused_inputs_are_listed_and_their_text_is_escaped(html: str) -> None:
    assert "the file has no bytes" in html
    assert "&lt;b&gt;looked at&lt;/b&gt;" in html
    assert "<b>looked at" not in html
    for part in ("empty_file", "no_face", "videos gave a clip", "4 / 6", "1 min 05 s"):
        assert part in html


def test_settings_environment_and_curves_are_there(html: str, project: Project) -> None:
    assert f"size_px: {project.params.crop.size_px}" in html
    assert torch.__version__.split("+")[0] in html
    assert html.count('<svg class="chart"') + html.count('class="chart">') >= 3
    for name in ("equivariance", "symmetry", "0123456789abcdef"):
        assert name in html


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_in_a_browser_videos_play_and_nothing_is_wider_than_a_phone(project: Project) -> None:
    from playwright.sync_api import sync_playwright

    url = (project.paths.report / "index.html").resolve().as_uri()
    said: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 390, "height": 844})
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(url)
            page.wait_for_function(
                "[...document.querySelectorAll('video')].every(v => v.readyState >= 2)", timeout=15000
            )
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            video: dict[str, Any] = page.evaluate(
                """async () => { const v = document.querySelector('video'); v.pause(); v.currentTime = 0;
                await v.play(); await new Promise(done => setTimeout(done, 250));
                return {time: v.currentTime, width: v.videoWidth, error: v.error}; }"""
            )
            assert video["time"] > 0
            assert video["error"] is None
            assert video["width"] == 5 * 192  # subject, driving, Head3D, mean canonical head, copy
            page.emulate_media(color_scheme="dark")
            shades = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert max(shades[:3]) < 60
            page.set_viewport_size({"width": 1280, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        finally:
            browser.close()
    assert said == []
    assert [address for address in requests if not address.startswith("data:")] == [url]


def test_report_says_what_is_missing(tmp_path: Path) -> None:
    made = make_project(tmp_path, people=2, frames=4, cross=1, videos=False)
    with pytest.raises(StageError, match="dvc repro evaluate"):
        report.run(made.params, made.paths, "f")


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
