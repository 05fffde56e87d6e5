"""What the report says and what lies in its folder."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import trimesh

from tasks import report, report_files, report_heads, report_tables, tally_files
from tasks.errors import StageError
from tasks.paths import Paths
from tests.tasks.factory import Project, make_project
from tests.tasks.report_project import METHODS


@pytest.fixture(scope="module")
def project(report_project: Project) -> Project:
    return report_project


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


def test_report_says_what_is_missing(tmp_path: Path) -> None:
    made = make_project(tmp_path, people=2, frames=4, cross=1, videos=False)
    with pytest.raises(StageError, match="dvc repro evaluate"):
        report.run(made.params, made.paths, "f")
