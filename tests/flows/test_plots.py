"""`dvc plots show`: curves and comparisons of dvc.yaml, drawn in a browser without a network."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.flows.toy import SOURCE, Project
from tests.tasks.report_project import CHROMIUM, FLAGS

ENTRIES = yaml.safe_load((SOURCE / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
PLOTS: dict[str, dict[str, Any]] = {
    name: options
    for entry in ENTRIES
    if isinstance(entry, dict)
    for name, options in entry.items()
    if "title" in options
}
"""Those of finished stages; the others are folders in which a training leaves curves while it runs."""
LOSSES = ("geometry", "canonical", "fusion")


def columns_of(options: dict[str, Any]) -> dict[str, set[str]]:
    """File -> the columns that a plot of dvc.yaml reads."""
    return {
        file: {options["x"], *([names] if isinstance(names, str) else names)} for file, names in options["y"].items()
    }


def write_metrics(folder: Path) -> None:
    """Every column that dvc.yaml's plots name, of a run of two methods; the terms of Eq. 4 begin late."""
    folder.mkdir(parents=True)
    found: dict[str, set[str]] = {f"{stage}_loss.csv": {"step", "total"} for stage in LOSSES}
    for options in PLOTS.values():
        for file, columns in columns_of(options).items():
            found.setdefault(Path(file).name, set()).update(columns)
    for name, columns in found.items():
        if name.endswith("_loss.csv"):
            table = pd.DataFrame({column: [2.0 / (step + 1) for step in range(20)] for column in sorted(columns)})
            table["step"] = range(10, 210, 10)
            table.loc[:9, [column for column in ("head", "symmetry", "smoothness") if column in table]] = None
        else:
            rows = [dict.fromkeys(columns, 0.01 * number) for number in (1, 2, 3)]
            table = pd.DataFrame(rows).assign(dataset="demo", method=["head3d", "copy_reference", "head3d"])
            table.loc[2, [column for column in columns if column not in ("method", "dataset")]] = None
        table.to_csv(folder / name, index=False)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that `dvc plots show` writes in a project with the real dvc.yaml."""
    root = tmp_path_factory.mktemp("plots") / "project"
    shutil.copytree(SOURCE / ".dvc" / "plots", root / ".dvc" / "plots", ignore=shutil.ignore_patterns("node_modules"))
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(SOURCE / name, root / name)
    write_metrics(root / "data" / "metrics")
    project = Project(root)
    project.git("init", "-q", "-b", "main")
    project.dvc("plots", "show")
    return root / "dvc_plots" / "index.html"


def test_every_plot_has_its_title_axes_and_values(page: Path) -> None:
    found = re.findall(r"var spec = (\{.*?\});\n", page.read_text(encoding="utf-8"))
    specs = {spec["title"]["text"]: spec for spec in map(json.loads, found) if spec}  # empty: nothing is being trained
    stages = yaml.safe_load((SOURCE / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    totals = [options for stage in LOSSES for options in stages[stage]["plots"][0].values()]
    assert set(specs) == {options["title"] for options in [*PLOTS.values(), *totals]}
    for options in [*PLOTS.values(), *totals]:
        spec = specs[options["title"]]
        assert spec["encoding"]["x"]["title"] == options["x_label"]
        assert spec["encoding"]["y"]["title"] == options["y_label"]
        assert spec["data"]["values"]
    terms = {row["field"] for row in specs[PLOTS["geometry_terms"]["title"]]["data"]["values"]}
    assert terms == {"total", "pose", "depth", "head", "symmetry", "smoothness"}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_plots_are_drawn_without_a_network(page: Path) -> None:
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.on("console", lambda message: said.append(message.text))
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto(page.resolve().as_uri())
            count = len(PLOTS) + len(LOSSES)
            tab.wait_for_function(f"document.querySelectorAll('canvas.marks').length === {count}", timeout=20000)
            drawn = tab.evaluate(
                """[...document.querySelectorAll('canvas.marks')].map(canvas => {
                const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                let coloured = 0;
                for (let i = 0; i < data.length; i += 4)
                    if (Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]) > 40)
                        coloured++;
                return coloured; })"""
            )
        finally:
            browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert min(drawn) > 60, "a plot has no line, bar or dot"


def test_the_page_is_the_file_that_was_pinned() -> None:
    folder = SOURCE / ".dvc" / "plots"
    wanted = (folder / "page.html.sha256").read_text(encoding="utf-8").split()[0]
    assert hashlib.sha256((folder / "page.html").read_bytes()).hexdigest() == wanted
    assert "registry" not in (folder / "package-lock.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PLOTS)
def test_a_finished_run_has_the_columns_that_a_plot_reads(tiny_project: Project, name: str) -> None:
    for file, columns in columns_of(PLOTS[name]).items():
        assert columns <= set(pd.read_csv(tiny_project.root / file).columns)
