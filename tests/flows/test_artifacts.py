"""What stages leave in Prefect's UI, as text; the real server has its test in test_full.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.artifacts import figures, markdown, picture_address, read_summary
from flows.graph import Stage
from tasks import stage_pictures
from tasks.paths import Paths

EVALUATE = Stage("evaluate", "", (), (), ("data/metrics/table1.csv",))


def test_a_page_has_outcome_tables_definitions_and_outputs(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.metrics.mkdir()
    (paths.metrics / "table1.csv").write_text('method,l2\n"a|b",0.1\n', encoding="utf-8")
    text = markdown(EVALUATE, {"seconds": 4.25, "definition_l2": "mean squared error"}, paths, "Cached")
    assert text.splitlines()[:3] == ["# evaluate", "", "**Cached**, 4.25 s when it ran"]
    assert "| method | l2 |\n| --- | --- |\n| a\\|b | 0.1 |" in text
    assert "table3.csv" not in text  # it is not there
    assert "- `l2`: mean squared error" in text
    assert text.endswith("- `data/metrics/table1.csv`")
    report = markdown(Stage("report", "", (), (), ("data/report",)), {}, paths, "Completed")
    assert f"Open `{tmp_path / 'report' / 'index.html'}`" in report


def test_figures_leave_out_definitions_and_name_what_is_missing(tmp_path: Path) -> None:
    rows = figures({"seconds": 1.0, "ratio": None, "definition_l2": "text"})
    assert rows == [{"figure": "seconds", "value": 1.0}, {"figure": "ratio", "value": ""}]
    assert read_summary(tmp_path / "none.json") == {}


def test_a_picture_travels_as_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert picture_address("crop", Paths(tmp_path)) == ""
    monkeypatch.setattr(stage_pictures, "stage_picture", lambda stage, paths: np.zeros((8, 8, 3), np.uint8))
    assert picture_address("crop", Paths(tmp_path)).startswith("data:image/webp;base64,UklGR")
