"""Table 3: the ablations under self-reconstruction, and whether their differences from Head3D are more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from tasks.methods import OURS, of_role

CONFIDENCE = 0.95
DIFFERENCE = f"_minus_{OURS}"
"""Ends the columns of paired differences; their interval's ends have `_low` and `_high` after it."""

DEFINITIONS = {
    "seconds_per_frame": "median over videos of what a generated frame takes, the canonical head's share included, on "
    "the device that ran the stage generate; no_driving_head also makes the head that it does not look at",
    "paired_difference": f"mean over videos of (ablation - {OURS}) on the same video, below 0 where the ablation is "
    f"better; with its {CONFIDENCE:.0%} confidence interval (t distribution; the videos of one person count as one "
    "draw, so it takes two people). An interval that holds 0: these videos do not tell the two apart",
}


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval; NaN where there is none."""

    mean: float
    low: float
    high: float

    @property
    def tells_apart(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def paired_interval(differences: np.ndarray, people: Sequence[str]) -> Interval:
    """Mean difference and its confidence interval when the videos come from several people.

    Source: our choice. With n videos of G people, mean m and s_g = sum over person g's videos of (d - m), the variance
    of m is G / (G - 1) * sum_g s_g^2 / n^2 (cluster-robust); with a video a person that is the paired t interval.

    Args:
        differences: One number a video; NaN ones are left out.
        people: Whose video it is.

    Returns:
        The mean over videos; the ends are NaN for fewer than two people.
    """
    table = pd.DataFrame({"difference": np.asarray(differences, float), "person": list(people)}).dropna()
    if table.empty:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(table["difference"].mean())
    sums = (table["difference"] - mean).groupby(table["person"]).sum().to_numpy()
    if len(sums) < 2:
        return Interval(mean, math.nan, math.nan)
    error = math.sqrt(len(sums) / (len(sums) - 1) * float(np.square(sums).sum())) / len(table)
    reach = float(student_t.ppf(0.5 + CONFIDENCE / 2, len(sums) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def table3(per_video: pd.DataFrame, figures: Sequence[str], people: pd.Series) -> pd.DataFrame:
    """Means of Head3D and of its ablations by dataset, and every ablation's paired differences from it.

    Args:
        per_video: Rows of per_video.csv under self-reconstruction: pair, method, dataset, seconds_per_frame, figures.
        figures: Names of the figures to compare.
        people: Pair -> identity of the subject.

    Returns:
        One row per dataset and method, in the order of the methods; without rows where there is no video.
    """
    rows = []
    for dataset, videos in per_video.groupby("dataset", sort=True):
        wide = {name: videos.pivot(index="pair", columns="method", values=name) for name in figures}
        for method in of_role(list(videos["method"].unique()), "ours", "ablation"):
            own = videos[videos["method"] == method]
            row: dict[str, object] = {"dataset": dataset, "method": method}
            row |= {name: own[name].mean() for name in figures}
            row |= {"seconds_per_frame": own["seconds_per_frame"].median(), "videos": len(own)}
            row["people"] = people.reindex(own["pair"]).nunique()
            for name in figures:
                interval = Interval(math.nan, math.nan, math.nan)
                if method != OURS and OURS in wide[name]:
                    difference = wide[name][method] - wide[name][OURS]
                    interval = paired_interval(difference.to_numpy(), people.reindex(difference.index).tolist())
                ends = zip(("", "_low", "_high"), interval, strict=True)
                row |= {f"{name}{DIFFERENCE}{end}": value for end, value in ends}
            rows.append(row)
    return pd.DataFrame(rows, columns=columns(figures))


def columns(figures: Sequence[str]) -> list[str]:
    """The columns of table3.csv."""
    differences = [f"{name}{DIFFERENCE}{end}" for name in figures for end in ("", "_low", "_high")]
    return ["dataset", "method", *figures, "seconds_per_frame", "videos", "people", *differences]
