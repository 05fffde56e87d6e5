"""Table 1 and the motion figures on a data folder whose outputs are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

from tasks import evaluate
from tasks.errors import StageError
from tasks.evaluate import motion_energy, motion_figures
from tasks.stores import array, open_store
from tests.tasks.factory import METHODS, Project, make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Four people, the last one's self pair failed."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return make_project(tmp_path, videos=False)


def test_tables_hold_the_means_of_the_finished_pairs(project: Project) -> None:
    summary = evaluate.run(project.params, project.paths, "f")
    truth = array(open_store(project.paths.clips), "frames")
    generated = open_store(project.paths.generated / "frames.zarr")
    table = pd.read_csv(project.paths.metrics / "table1.csv").set_index("method")
    assert list(table.index) == list(METHODS)
    for method in METHODS:
        outputs = np.asarray(array(generated, f"{method}/self")[:3]) / 255.0
        wanted = np.stack([np.asarray(truth[2 * person + 1]) for person in range(3)]) / 255.0
        expected = float(np.mean((outputs - wanted) ** 2))
        assert table.loc[method, "l2"] == pytest.approx(expected, rel=1e-5)
        assert summary[f"l2_{method}"] == pytest.approx(expected, rel=1e-9)
        assert table.loc[method, "videos"] == 3
    assert "lpips_random_backbone" in table.columns
    assert "lpips" not in table.columns
    assert summary["l2_ratio_to_copy"] == pytest.approx(summary["l2_head3d"] / summary["l2_copy_reference"])
    assert summary["l2_better_than_copy"] == 1.0
    assert (summary["pairs"], summary["pairs_failed"]) == (8, 1)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    per_video = pd.read_csv(project.paths.metrics / "per_video.csv")
    assert len(per_video) == 3 * (3 + 4)
    assert per_video[per_video["setting"] == "cross"]["l2"].isna().all()  # there is no truth


def test_summary_tells_moving_outputs_from_static_ones(project: Project) -> None:
    summary = evaluate.run(project.params, project.paths, "f")
    for setting in ("self", "cross"):
        assert summary[f"motion_correlation_head3d_{setting}"] > 0.95
        assert summary[f"static_head3d_{setting}"] == 0
        assert summary[f"motion_ratio_copy_reference_{setting}"] == 0
        assert summary[f"static_copy_reference_{setting}"] == 1


def test_motion_energy_by_hand() -> None:
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1, 0, 0] = 255
    assert motion_energy(frames) == pytest.approx([0.25, 0.25])


def test_motion_figures_of_a_copy_a_reversed_and_a_still_video() -> None:
    brightness = np.array([0, 10, 40, 45, 100, 101, 130])
    driving = np.broadcast_to(brightness[:, None, None, None], (7, 4, 4, 3)).astype(np.uint8)
    same = motion_figures(driving, driving)
    assert same == pytest.approx({"motion_correlation": 1, "motion_ratio": 1, "static": 0})
    steps = np.diff(brightness)
    contrary = np.concatenate([[0], np.cumsum(60 - steps)])  # moves most where the driving video moves least
    opposed = motion_figures(
        np.broadcast_to(contrary[:, None, None, None] // 2, (7, 4, 4, 3)).astype(np.uint8), driving
    )
    assert opposed["motion_correlation"] < -0.9
    still = motion_figures(driving[:1].repeat(7, axis=0), driving)
    assert still == {"motion_correlation": 0.0, "motion_ratio": 0.0, "static": 1.0}
    assert all(math.isnan(value) for value in motion_figures(driving, driving[:1].repeat(7, axis=0)).values())


def test_without_self_pairs_motion_remains_and_without_any_pair_it_is_an_error(project: Project) -> None:
    table = project.paths.generated / "pairs.csv"
    pairs = pd.read_csv(table)
    pairs[pairs["setting"] == "cross"].to_csv(table, index=False)
    summary = evaluate.run(project.params, project.paths, "f")
    assert "l2_head3d" not in summary
    assert summary["motion_correlation_head3d_cross"] > 0.95
    empty = pd.read_csv(project.paths.metrics / "table1.csv")
    assert empty.empty
    assert {"dataset", "method", "l2", "psnr_db", "videos"} <= set(empty.columns)
    pairs.assign(status="error").to_csv(table, index=False)
    with pytest.raises(StageError, match=r"pairs\.csv"):
        evaluate.run(project.params, project.paths, "f")
    table.unlink()
    with pytest.raises(StageError, match="dvc repro generate"):
        evaluate.run(project.params, project.paths, "f")


def test_a_method_without_frames_is_named(project: Project) -> None:
    store = project.paths.generated / "frames.zarr"
    del zarr.open_group(store, mode="r+")["mean_canonical/self"]
    with pytest.raises(StageError, match="mean_canonical/self"):
        evaluate.run(project.params, project.paths, "f")
