"""Tables 1 and 3: self-reconstruction against the truth, and Head3D's ablations; and whether outputs move.

Only the lossless frames of `generated/frames.zarr` are measured, never the mp4 files.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from models.config import Params
from tasks import ablation
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.generated import SECONDS, made_by, missing_videos, read_output, read_pairs, read_seconds, records
from tasks.methods import BASELINE, OURS, of_role
from tasks.metrics import definitions, mean_or_none, measure
from tasks.paths import Paths
from tasks.perceptual_metric import PerceptualMetric
from tasks.progress import progress
from tasks.stores import array, open_store

STATIC_SHARE = 0.1
"""An output whose mean frame difference is below this share of the driving video's counts as static."""

MOTION_DEFINITIONS = {
    "motion_correlation": "Pearson correlation over time of the frame-difference energies of output and driving video; "
    "0 for an output without any motion; mean over videos; says nothing about how the output looks",
    "motion_ratio": "mean absolute frame difference of the output divided by the driving video's; mean over videos",
    "static": f"share of outputs whose motion is below {STATIC_SHARE:.0%} of the driving video's",
}


def motion_energy(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of neighbouring frames, [0, 1] RGB.

    Args:
        frames: `(T, H, W, 3)` uint8.

    Returns:
        `(T - 1,)` float64.
    """
    difference = np.abs(np.diff(frames.astype(np.int16), axis=0))
    return difference.mean(axis=(1, 2, 3)) / 255.0


def motion_figures(output: np.ndarray, driving: np.ndarray) -> dict[str, float]:
    """How much an output follows its driving video (our choice; needs no truth).

    Args:
        output: `(T, H, W, 3)` uint8.
        driving: The same shape.

    Returns:
        `motion_correlation`, `motion_ratio` and `static` (0 or 1); NaN where the driving video itself does not move.
    """
    made, wanted = motion_energy(output), motion_energy(driving)
    if len(wanted) == 0 or wanted.mean() == 0:
        return dict.fromkeys(MOTION_DEFINITIONS, math.nan)
    ratio = float(made.mean() / wanted.mean())
    varies = made.std() > 1e-9 and wanted.std() > 1e-9
    correlation = float(np.corrcoef(made, wanted)[0, 1]) if varies else 0.0
    return {"motion_correlation": correlation, "motion_ratio": ratio, "static": float(ratio < STATIC_SHARE)}


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """Measure every generated pair and write `table1.csv`, `table3.csv` and `per_video.csv`.

    Without a self-reconstruction pair (no video with two clips) the tables are empty and the motion figures remain.

    Args:
        params: All settings; `evaluate` and `generate.methods` are used.
        paths: Where the data lies.
        fingerprint: Unused: the tables are written anew in seconds, so nothing has to be resumed.

    Returns:
        Flat figures: `l2_head3d`, `l2_copy_reference`, `l2_ratio_to_copy`, ..., and the definitions.

    Raises:
        StageError: No pair is finished.
    """
    del fingerprint
    pairs = read_pairs(paths)
    good = pairs[pairs["status"] == "ok"]
    if good.empty:
        raise StageError(
            f"none of the {len(pairs)} generated pairs is finished; see the reasons in generated/pairs.csv"
        )
    perceptual = PerceptualMetric(params.evaluate, choose_device(params.runtime.device))
    figures = ["l2", "psnr_db", perceptual.name]
    per_video = _measure_all(params.generate.methods, good, paths, perceptual)
    per_video = per_video.reindex(columns=["pair", "setting", "method", "dataset", *figures, *MOTION_DEFINITIONS])
    per_video["seen_in_training"] = per_video["pair"].map(good.set_index("pair")["seen_in_training"])
    per_video = per_video.merge(read_seconds(paths.metrics / SECONDS), on=["method", "pair"], how="left")
    rebuilt = per_video[per_video["setting"] == "self"]
    rivals = of_role(params.generate.methods, "ours", "trivial", "external")
    tables = {
        "per_video": per_video,
        "table1": _table(rebuilt[rebuilt["method"].isin(rivals)], figures),
        "table3": ablation.table3(rebuilt, ["l2", perceptual.name], good.set_index("pair")["subject_identity"]),
    }
    paths.metrics.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(paths.metrics / f"{name}.csv", index=False, float_format="%.6g")
    summary = _summary(per_video, figures)
    summary["pairs"] = len(pairs)
    summary["pairs_failed"] = len(pairs) - len(good)
    summary["pairs_seen_in_training"] = int(good["seen_in_training"].astype(int).sum())
    all_definitions = {**definitions(perceptual), **MOTION_DEFINITIONS, **ablation.DEFINITIONS}
    return {**summary, **{f"definition_{name}": text for name, text in all_definitions.items()}}


def _measure_all(methods: list[str], good: pd.DataFrame, paths: Paths, perceptual: PerceptualMetric) -> pd.DataFrame:
    """One row per pair and method that was made for it."""
    truth = array(open_store(paths.clips), "frames")
    generated = open_store(paths.generated / "frames.zarr")
    rows: list[dict[str, Any]] = []
    missing = missing_videos(paths)
    pairs = [(pair, made_by(methods, pair, missing)) for pair in records(good)]
    with progress("evaluate", sum(len(made) for _, made in pairs), "video") as bar:
        for pair, made in pairs:
            driving = np.asarray(truth[int(pair["driving_row"])])
            for method in made:
                output = read_output(generated, method, pair)
                row = {"pair": pair["pair"], "setting": pair["setting"], "method": method, "dataset": pair["dataset"]}
                if pair["setting"] == "self":
                    row.update(measure(output, driving, perceptual))
                row.update(motion_figures(output, driving))
                rows.append(row)
                bar.update()
    return pd.DataFrame(rows)


def _table(per_video: pd.DataFrame, figures: list[str]) -> pd.DataFrame:
    """Means over videos by dataset and method, in the order of the methods, and how many videos they are over."""
    groups = per_video.groupby(["dataset", "method"], sort=False)
    table = groups[figures].mean().reset_index()
    table["videos"] = groups.size().to_numpy()
    return table.sort_values("dataset", kind="stable")


def _summary(per_video: pd.DataFrame, figures: list[str]) -> dict[str, Any]:
    """Flat figures over all datasets: `{figure}_{method}`, `{motion figure}_{method}_{setting}`, and the comparison."""
    summary: dict[str, Any] = {}
    for method, rows in per_video.groupby("method", sort=False):
        for setting, part in rows.groupby("setting", sort=False):
            summary[f"videos_{method}_{setting}"] = len(part)
            for name in MOTION_DEFINITIONS:
                summary[f"{name}_{method}_{setting}"] = mean_or_none(part[name].tolist())
            if setting == "self":
                summary.update({f"{name}_{method}": mean_or_none(part[name].tolist()) for name in figures})
    ours, copy = summary.get(f"l2_{OURS}"), summary.get(f"l2_{BASELINE}")
    if ours is not None and copy:
        wide = per_video[per_video["setting"] == "self"].pivot(index="pair", columns="method", values="l2")
        summary["l2_ratio_to_copy"] = ours / copy
        summary["l2_better_than_copy"] = float((wide[OURS] < wide[BASELINE]).mean())
    return summary
