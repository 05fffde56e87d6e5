"""Table 1 and the motion figures on a data folder whose outputs are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import stats

from tasks import evaluate
from tasks.ablation import paired_interval
from tasks.errors import StageError
from tasks.evaluate import motion_energy, motion_figures
from tasks.generated import SECONDS
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
    assert list(table.index) == ["head3d", "copy_reference"]
    for method in table.index:
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
    assert len(per_video) == 3 * len(METHODS) + 4 * 3  # the N of Table 3 have no cross-identity videos
    assert per_video[per_video["setting"] == "cross"]["l2"].isna().all()  # there is no truth


def test_table_3_has_ours_and_the_ablations_with_their_paired_differences(project: Project) -> None:
    paths = project.paths
    rows = [{"method": method, "pair": "self_000", "seconds_per_frame": 0.01} for method in METHODS]
    pd.DataFrame([*rows, {**rows[0], "pair": "self_001", "seconds_per_frame": 0.03}]).to_csv(
        paths.metrics / SECONDS, index=False
    )
    evaluate.run(project.params, paths, "f")
    table = pd.read_csv(paths.metrics / "table3.csv").set_index("method")
    assert list(table.index) == ["head3d", "head3d_n1", "head3d_n3", "head3d_n10", "mean_canonical"]
    assert (table["videos"] == 3).all()
    assert (table["people"] == 3).all()
    assert table["seconds_per_frame"].to_dict()["head3d"] == pytest.approx(0.02)
    assert "lpips" not in table.columns
    assert "lpips_random_backbone_minus_head3d_low" in table.columns
    per_video = pd.read_csv(paths.metrics / "per_video.csv")
    wide = per_video[per_video["setting"] == "self"].pivot(index="pair", columns="method", values="l2")
    found = {end: table[f"l2_minus_head3d{end}"].to_dict() for end in ("", "_low", "_high")}
    assert math.isnan(found[""]["head3d"])
    for method in table.index[1:]:
        difference = wide[method] - wide["head3d"]
        low, high = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
        assert [found[end][method] for end in found] == pytest.approx(
            [difference.mean(), low, high], rel=1e-3, abs=1e-9
        )
    assert found["_low"]["mean_canonical"] > 0  # always the same direction: told apart
    assert found["_low"]["head3d_n10"] < 0 < found["_high"]["head3d_n10"]  # only other noise: not told apart


def test_paired_interval_by_hand() -> None:
    found = paired_interval(np.array([1.0, 2.0, 6.0]), ["a", "b", "c"])
    # mean 3, standard deviation sqrt(7), t(0.975, 2) = 4.30265
    assert found == pytest.approx((3.0, 3 - 4.30265 * math.sqrt(7 / 3), 3 + 4.30265 * math.sqrt(7 / 3)), rel=1e-5)
    assert not found.tells_apart
    assert paired_interval(np.array([1.0, 1.1, 0.9]), ["a", "b", "c"]).tells_apart


def test_videos_of_one_person_are_one_draw() -> None:
    # Two people with two equal videos each say what two people with one video say.
    twice = paired_interval(np.array([1.0, 1.0, 3.0, 3.0]), ["a", "a", "b", "b"])
    assert twice == pytest.approx(paired_interval(np.array([1.0, 3.0]), ["a", "b"]))
    assert twice.high - twice.mean == pytest.approx(12.7062, rel=1e-4)  # t(0.975, 1) * sqrt(2) / sqrt(2)
    one = paired_interval(np.array([1.0, 3.0, math.nan]), ["a", "a", "b"])
    assert one.mean == 2
    assert math.isnan(one.low)
    assert not one.tells_apart
    assert math.isnan(paired_interval(np.array([math.nan]), ["a"]).mean)


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
    assert pd.read_csv(project.paths.metrics / "table3.csv").empty
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
