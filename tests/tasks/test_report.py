"""The report in a real browser, and what it says."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
from PIL import Image

from models.pose_net import HeadPose
from tasks import evaluate, report, report_files, report_heads, report_tables, study, tally_files
from tasks.charts import Line, line_chart
from tasks.errors import StageError
from tasks.export_head import HeadSurface, main_piece, surface_triangles
from tasks.paths import Paths
from tasks.report_media import error_map, frame_indices, mosaic, outlined
from tasks.video import read_frames
from tests.tasks.factory import Project, make_project
from tests.tasks.test_training import settings
from tests.tasks.untrained import write_checkpoints

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip
METHODS = ["Head3D", "Head3D, N = 1", "Head3D, N = 3", "Head3D, N = 10", "Mean canonical head"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A whole run up to its report, on synthetic heads and an untrained model; two examples of each setting."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(root))
        made = make_project(root, frames=8, size_px=48, report={"examples": 2, "frames_per_sheet": 4})
        write_checkpoints(made.paths.data / "checkpoints", settings())
        (made.paths.checkpoint("fusion") / "samples").mkdir()
        for step in (90, 200):
            samples = Image.new("RGB", (400, 100), (step, 0, 0))
            samples.save(made.paths.checkpoint("fusion") / "samples" / f"step_{step:08d}.png")
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


def local_files(html: str, folder: Path) -> set[str]:
    """Files of the folder that the page names anywhere; it names nothing outside."""
    named = set()
    for tag, attributes in Elements(html).found:
        for name in ("src", "href", "poster", "srcset", "data-head"):
            value = attributes.get(name)
            if value is None or value.startswith(("data:", "#")):
                continue
            assert (folder / value).resolve().is_relative_to(folder.resolve()), (tag, name, value)
            assert (folder / value).is_file(), (tag, name, value)
            named.add(value)
    return named


def test_the_folder_holds_what_the_page_shows_and_nothing_else(html: str, project: Project) -> None:
    folder = project.paths.report
    named = local_files(html, folder)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == named | {"index.html", "viewer.js"}
    assert not re.search(
        r"url\(|@import|https?://(?!download)", re.sub(r"<dd>.*?</dd>|<script>.*", "", html, flags=re.S)
    )
    elements = Elements(html).found
    images = [attributes for tag, attributes in elements if tag == "img"]
    assert len(images) > 40
    assert all(attributes.get("alt") for attributes in images)
    assert not any(
        tag in ("iframe", "object", "embed", "link") for tag, attributes in elements if "rel" not in attributes
    )
    levels = [int(tag[1]) for tag, _ in elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_without_scripts_videos_have_controls_and_nothing_asks_for_a_script(html: str) -> None:
    elements = Elements(html).found
    videos = [attributes for tag, attributes in elements if tag == "video"]
    assert len(videos) == 4
    assert all("controls" in attributes and "loop" in attributes for attributes in videos)
    for number, setting in enumerate(("self", "cross")):
        rivals = METHODS if setting == "self" else [METHODS[0], METHODS[-1]]
        names = ["Subject", "Driving", *rivals, "Copy of the reference frame"]
        assert videos[2 * number]["aria-label"] == f"row by row: {', '.join(names)}"
    hidden = [attributes for tag, attributes in elements if tag == "button" and "hidden" in attributes]
    assert sum(attributes.get("class") == "turn" for attributes in hidden) == 4
    shown = [attributes for tag, attributes in elements if tag == "button" and "hidden" not in attributes]
    assert {attributes.get("class") for attributes in shown} == {"front", "save", "close"}  # in the hidden viewer


def test_the_same_inputs_make_the_same_bytes(project: Project) -> None:
    again = SideReport(project.paths.data, project.paths.data / "again")
    report.run(project.params, again, "0123456789abcdef0123")
    first, second = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (project.paths.report, again.target)
    )
    assert first == second


def test_a_full_shelf_leaves_out_examples_and_heads_and_says_so(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(report_files.SHARES_MB, "examples", 0.02)
    monkeypatch.setattr(report_heads, "MESH_SHARE", 0.0)
    small = SideReport(project.paths.data, project.paths.data / "small")
    summary = report.run(project.params, small, "f")
    assert (summary["examples_self"], summary["examples_cross"]) == (1, 0)
    assert (summary["examples_left_out_self"], summary["examples_left_out_cross"]) == (1, 2)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (small.target / "index.html").read_text(encoding="utf-8")))
    assert "2 of the examples asked for ( report.examples ) are left out" in text
    assert "of 4 people 4 have pictures only" in text
    assert text.count("no surface: the folder must stay small") == 4
    assert not (small.target / "viewer.js").exists()
    monkeypatch.setattr(report, "LIMIT_MB", 0.1)
    with pytest.raises(StageError, match=r"make report\.examples smaller"):
        report.run(project.params, small, "f")


def test_heads_are_what_the_model_makes_and_smaller_meshes_keep_their_shape(project: Project, html: str) -> None:
    scripts = sorted(set(re.findall(r'data-head="([^"]+)"', html)))
    assert len(scripts) == 4
    for script in scripts:
        text = (project.paths.report / script).read_text(encoding="utf-8")
        found = re.fullmatch(r'head3dHead\("([A-Za-z0-9+/=]+)"\);\n', text)
        assert found
        scene: Any = trimesh.load(io.BytesIO(base64.b64decode(found[1])), file_type="glb")
        (mesh,) = scene.geometry.values()
        assert len(mesh.faces) > 100
        assert mesh.visual.material.baseColorTexture.format == "JPEG"
    assert [report_heads.mesh_grid(count, 13_000_000, 256) for count in (1, 60, 400, 4000)] == [96, 64, 24, 24]
    assert report_heads.mesh_grid(1, 13_000_000, 48) == 48


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


def test_views_change_one_parameter_and_stay_within_the_models_limits(project: Project) -> None:
    camera = project.params.geometry.camera
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


def test_figures_stand_beside_the_trivial_baseline_under_honest_names(html: str, project: Project) -> None:
    table = pd.read_csv(project.paths.metrics / "table1.csv")
    for value in table["l2"]:
        assert (f"{value:.4f}" if value >= 0.001 else f"{value:.6f}") in html
    assert "(trivial baseline)" in html
    assert "No LPIPS here" in html
    assert "alexnet-owt-7be5be79.pth" in html
    ours = re.sub(r'<div class="paper.*?</div>', "", html, flags=re.S)
    assert not re.search(r"<th[^>]*>LPIPS", ours)


def test_table_3_stands_beside_the_papers_and_says_what_is_noise(html: str, project: Project) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert "Ablation (Table 3), self-reconstruction, dataset demo" in text
    row = re.search(r"Head3D, N = 10 (.*?) Mean canonical head", text)
    assert row
    assert re.search(r"[+-]0.00\d \[-0.00\d, \+0.00\d\]", row[1])
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


def test_the_papers_tables_stand_beside_ours_and_are_marked(html: str) -> None:
    paper = report_tables.paper_tables()
    assert paper["datasets"] == ["VoxCeleb", "FaceForensics"]
    assert dict(paper["table1"])["Head3D"] == ["0.0113", "0.0855", "0.0079", "0.0442"]
    assert dict(paper["table2"])["DaGAN"] == ["80 / 20", "86 / 14"]
    marked = re.findall(r'<div class="paper[^"]*">(.*?)</div>', html, flags=re.S)
    assert len(marked) == 2
    rest = re.sub(r'<div class="paper[^"]*">.*?</div>|<t[dh][^>]*class="[^"]*paper"[^>]*>[^<]*', "", html, flags=re.S)
    for name, cells in paper["table1"]:
        assert name in marked[0]
        assert all(cell in marked[0] for cell in cells)
    assert "72 / 28" in marked[1]
    for figure in ("0.0885", "72 / 28", "0.0442", "0.0897"):
        assert figure not in rest, "a figure of the paper stands among ours"


def test_table_2_comes_from_the_tally(project: Project) -> None:
    assert set(report_tables.TALLY_COLUMNS) <= set(tally_files.ROW_COLUMNS)
    assert report_tables.preferences(project.paths) == []
    folder = project.paths.study / report_tables.TALLY
    folder.mkdir()
    row = {"dataset": "demo", "method": "mean_canonical", "answers": 40, "raters": 4, "percent": 57.5,
           "low_percent": 42.2, "high_percent": 71.5}  # fmt: skip
    try:
        pd.DataFrame([row, {**row, "low_percent": None}]).to_csv(folder / report_tables.TALLY_TABLE, index=False)
        found, alone = report_tables.preferences(project.paths)
        pd.DataFrame([{"dataset": "demo"}]).to_csv(folder / report_tables.TALLY_TABLE, index=False)
        with pytest.raises(StageError, match="has no column method, percent"):
            report_tables.preferences(project.paths)
    finally:
        shutil.rmtree(folder)
    assert found["rival"] == "Mean canonical head"
    assert (found["percent"], found["interval"], found["answers"]) == ("58 / 42", "42 to 72", 40)
    assert alone["interval"] == "– to 72"


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
    shutil.rmtree(elsewhere)


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
    for name in ("equivariance", "symmetry", "0123456789abcdef", "Samples: Stage 3: fusion (Eq. 8), step 200"):
        assert name in html
    weights = project.paths.checkpoint("fusion") / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in html
    assert "SHA-256 of checkpoints/fusion/model.safetensors" in html


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)


@dataclass
class Opened:
    """A page of the report in a browser, and what it said and asked for."""

    page: Any
    url: str
    said: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def opened(project: Project) -> Iterator[Opened]:
    """The report in a browser, from disk, at the width of a phone."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import sync_playwright

    url = (project.paths.report / "index.html").resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 390, "height": 844})
            found = Opened(page, url, [], [])
            page.on("console", lambda message: found.said.append(message.text))
            page.on("pageerror", lambda error: found.said.append(str(error)))
            page.on("request", lambda request: found.requests.append(request.url))
            page.goto(url)
            yield found
        finally:
            browser.close()


def test_nothing_is_wider_than_a_phone_and_dark_mode_is_dark(opened: Opened) -> None:
    page = opened.page
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    shades = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(shades[:3]) < 60
    page.emulate_media(color_scheme="light")
    page.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
    page.wait_for_function("[...document.images].every(i => i.complete)", timeout=15000)
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")


def test_every_video_plays_and_one_control_drives_all_panels_of_its_row(opened: Opened, project: Project) -> None:
    page = opened.page
    players = page.locator(".player")
    assert players.count() == 4
    for number in range(players.count()):
        players.nth(number).scroll_into_view_if_needed()
        moved = """number => { const v = document.querySelectorAll('.player video')[number];
            return !v.error && v.readyState >= 2 && (v.played.length > 0 && v.played.end(v.played.length - 1) > 0); }"""
        page.wait_for_function(moved, arg=number, timeout=15000)
    player = players.nth(0)
    seek, count = player.locator("input"), player.locator("output")
    player.locator("select").select_option("0.25")
    assert player.locator("video").evaluate("v => v.playbackRate") == 0.25
    seek.evaluate("i => { i.value = 5; i.dispatchEvent(new Event('input')); }")
    page.wait_for_function("document.querySelector('.player video').seeking === false", timeout=5000)
    page.wait_for_function("document.querySelector('.player output').textContent === '6 / 8'", timeout=5000)
    clip = read_frames(project.paths.report / player.locator("video").get_attribute("src"))[5].astype(float)
    panels = player.locator("canvas")
    assert panels.count() == 2 + len(METHODS) + 1
    side = int(player.get_attribute("data-width"))
    for index in range(panels.count()):
        row, column = divmod(index, 4)
        part = clip[row * side : (row + 1) * side, column * side : (column + 1) * side]
        shown = pixels(panels.nth(index).screenshot())
        assert np.abs(shown.mean(axis=(0, 1)) - part.mean(axis=(0, 1))).max() < 8, f"panel {index}"
    player.get_by_role("button", name="One frame on").click()
    page.wait_for_function("document.querySelector('.player output').textContent === '7 / 8'", timeout=5000)
    assert count.inner_text() == "7 / 8"


def test_a_head_turns_in_the_one_viewer(opened: Opened) -> None:
    page = opened.page
    buttons = page.locator(".turn")
    assert buttons.count() == 4
    pictures = []
    for number in range(4):
        buttons.nth(number).click()
        page.wait_for_function("document.querySelector('.say').textContent.startsWith('Drag')", timeout=20000)
        pictures.append(page.locator(".stage").screenshot())
    assert page.locator(".stage canvas").count() == 1
    assert len(set(pictures)) > 1, "another head is shown"
    stage = page.locator(".stage canvas")
    stage.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    turned = page.locator(".stage").screenshot()
    page.get_by_label("shape without its picture").check()
    shape = page.locator(".stage").screenshot()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + 100, steps=3)
    page.mouse.up()
    dragged = page.locator(".stage").screenshot()
    page.get_by_role("button", name="From the front").click()
    page.get_by_label("shape without its picture").uncheck()
    front = page.locator(".stage").screenshot()
    images = [
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
        for data in (pictures[-1], turned, shape, dragged)
    ]
    for before, after in pairwise(images):
        assert (np.abs(before - after).max(axis=-1) > 25).mean() > 0.01
    assert np.abs(np.asarray(Image.open(io.BytesIO(front)).convert("RGB"), float) - images[0]).mean() < 2
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as .glb").click()
    assert Path(download.value.path()).read_bytes()[:4] == b"glTF"


def test_nothing_was_said_and_nothing_asked_for_outside_the_folder(opened: Opened, project: Project) -> None:
    assert opened.said == []
    folder = project.paths.report.resolve().as_uri()
    outside = [url for url in opened.requests if not url.startswith((folder, "data:", "blob:null/"))]
    assert outside == []


def test_without_scripts_videos_are_large_and_what_needs_them_is_hidden(opened: Opened) -> None:
    context = opened.page.context.browser.new_context(
        java_script_enabled=False, viewport={"width": 1280, "height": 900}
    )
    try:
        page = context.new_page()
        page.goto(opened.url)
        page.locator("video").first.scroll_into_view_if_needed()
        assert page.locator("video").first.bounding_box()["width"] > 600
        assert page.locator(".turn:visible").count() == 0
        assert page.locator(".viewer:visible").count() == 0
        assert page.locator(".heads img").count() == 4
    finally:
        context.close()


def test_without_webgl_the_pictures_stay_and_nothing_offers_more(opened: Opened) -> None:
    context = opened.page.context.browser.new_context()
    try:
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.add_init_script("HTMLCanvasElement.prototype.getContext = (get => function (kind, ...rest) {"
                             "return kind.startsWith('webgl') ? null : get.call(this, kind, ...rest); })"
                             "(HTMLCanvasElement.prototype.getContext)")  # fmt: skip
        page.goto(opened.url)
        assert page.locator(".driven").count() == 4
        assert page.locator(".turn:visible").count() == 0
        assert said == []
    finally:
        context.close()


def test_report_says_what_is_missing(tmp_path: Path) -> None:
    made = make_project(tmp_path, people=2, frames=4, cross=1, videos=False)
    with pytest.raises(StageError, match="dvc repro evaluate"):
        report.run(made.params, made.paths, "f")


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
