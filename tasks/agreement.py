"""Statistics of paired preferences: intervals, sign tests, and how much raters agree.

An answer is one rater's choice in one pair. Answers are not independent: some videos are liked by everybody and some
raters like one method, so Wilson's interval of all answers is too narrow. `preference` therefore also gives an
interval that lets pairs and raters vary, and it is the one to quote.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student_t

Z_95 = 1.959963984540054

Answers = Mapping[tuple[str, str], bool]
"""(rater, pair) -> whether ours was preferred."""


class Preference(NamedTuple):
    """How often ours was preferred; shares from 0 to 1.

    Attributes:
        answers: How many.
        preferred: For ours.
        share: preferred / answers.
        wilson: Wilson's 95% interval, as if all answers were independent.
        honest: 95% interval over new pairs and new raters, never narrower than Wilson's.
        p_answers: Two-sided exact sign test over answers, as if they were independent.
        p_pairs: The same over pairs, each counted once by its majority; ties left out.
        pairs: How many pairs.
        pairs_won: In how many of them the majority preferred ours.
        pairs_tied: In how many there was none.
    """

    answers: int
    preferred: int
    share: float
    wilson: tuple[float, float]
    honest: tuple[float, float]
    p_answers: float
    p_pairs: float
    pairs: int
    pairs_won: int
    pairs_tied: int


def wilson(hits: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Args:
        hits: Successes.
        total: Trials, at least 1.
        z: Quantile of the normal distribution; 1.96 gives 95%.

    Returns:
        Lower and upper bound, 0 to 1.
    """
    share = hits / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def clustered(values: np.ndarray, pairs: np.ndarray, raters: np.ndarray) -> tuple[float, float]:
    """95% interval of a mean whose values share pairs and raters.

    Source: cluster-robust variance in two ways (Cameron, Gelbach and Miller 2011): V = V_pairs + V_raters - V_answers,
    each V = G / (G - 1) * sum over its G groups of (sum of (value - mean))^2 / n^2, at least V_pairs; a t quantile with
    as many degrees of freedom as the smaller number of groups has, less one. With one rater only pairs vary.

    Args:
        values: `(n,)` 0 or 1.
        pairs: `(n,)` which pair an answer is about, as integers from 0.
        raters: `(n,)` who gave it, the same.

    Returns:
        Lower and upper bound, cut at 0 and 1; 0 and 1 where there is one pair only.
    """
    rest = values - values.mean()

    def part(groups: np.ndarray) -> tuple[float, int]:
        sums = np.bincount(groups, weights=rest)
        count = len(np.unique(groups))
        return (count / (count - 1) if count > 1 else 0.0) * float(np.square(sums).sum()), count

    by_pair, pair_count = part(pairs)
    by_rater, rater_count = part(raters)
    if pair_count < 2:
        return 0.0, 1.0
    single = float(np.square(rest).sum()) * len(values) / max(len(values) - 1, 1)
    variance, groups = by_pair, pair_count
    if rater_count > 1 and by_pair + by_rater - single > by_pair:
        variance, groups = by_pair + by_rater - single, min(pair_count, rater_count)
    reach = float(student_t.ppf(0.975, groups - 1)) * math.sqrt(variance) / len(values)
    return max(0.0, float(values.mean()) - reach), min(1.0, float(values.mean()) + reach)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test: how likely such a lead, or a larger one, is where both are equally good."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def preference(answers: Answers) -> Preference:
    """Everything about one comparison.

    Args:
        answers: At least one.

    Returns:
        Counts, share, intervals and tests.
    """
    pair_ids = {pair: number for number, pair in enumerate(sorted({pair for _, pair in answers}))}
    rater_ids = {rater: number for number, rater in enumerate(sorted({rater for rater, _ in answers}))}
    values = np.array([float(ours) for ours in answers.values()])
    pairs = np.array([pair_ids[pair] for _, pair in answers])
    raters = np.array([rater_ids[rater] for rater, _ in answers])
    hits, total = int(values.sum()), len(values)
    narrow, wide = wilson(hits, total), clustered(values, pairs, raters)
    lead = np.bincount(pairs, weights=2 * values - 1)
    won, lost = int((lead > 0).sum()), int((lead < 0).sum())
    return Preference(
        answers=total,
        preferred=hits,
        share=hits / total,
        wilson=narrow,
        honest=(min(narrow[0], wide[0]), max(narrow[1], wide[1])),
        p_answers=sign_test(hits, total - hits),
        p_pairs=sign_test(won, lost),
        pairs=len(pair_ids),
        pairs_won=won,
        pairs_tied=int((lead == 0).sum()),
    )


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement of equally many raters on every subject beyond chance (Fleiss 1971).

    Args:
        counts: `(subjects, categories)`; how many raters put a subject into a category. Rows have the same sum, >= 2.

    Returns:
        1: full agreement, 0: as by chance; NaN where it is not defined (all answers in one category, or no subject).

    Raises:
        ValueError: The rows' sums differ or are below 2.
    """
    counts = np.asarray(counts, float)
    if counts.size == 0:
        return math.nan
    raters = counts.sum(axis=1)
    if (raters != raters[0]).any() or raters[0] < 2:
        raise ValueError("Fleiss' kappa needs the same number of raters, at least 2, for every subject")
    n = raters[0]
    observed = float(((np.square(counts).sum(axis=1) - n) / (n * (n - 1))).mean())
    expected = float(np.square(counts.sum(axis=0) / counts.sum()).sum())
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def krippendorff_alpha(units: Sequence[Sequence[object]]) -> float:
    """Agreement for nominal values, whoever and however many rated a unit (Krippendorff 2011).

    Args:
        units: Per unit the values that it was given; units with fewer than two say nothing.

    Returns:
        1: full agreement, 0: as by chance; NaN where it is not defined (one category, or nobody to compare with).
    """
    rated = [Counter(values) for values in units if len(values) >= 2]
    totals: Counter[object] = Counter()
    for counts in rated:
        totals.update(counts)
    n = totals.total()
    if len(totals) < 2:
        return math.nan
    observed = sum((c.total() ** 2 - sum(k * k for k in c.values())) / (c.total() - 1) for c in rated)
    expected = (n * n - sum(count * count for count in totals.values())) / (n - 1)
    return 1 - observed / expected


def agreement(answers: Answers) -> tuple[float, float, int]:
    """Both coefficients of a set of answers.

    Args:
        answers: May be incomplete.

    Returns:
        Krippendorff's alpha over all; Fleiss' kappa over the pairs that every rater answered; how many those are.
    """
    raters = {rater for rater, _ in answers}
    units: dict[str, list[bool]] = {}
    for (_, pair), ours in answers.items():
        units.setdefault(pair, []).append(ours)
    complete = [values for values in units.values() if len(values) == len(raters) >= 2]
    kappa = fleiss_kappa(np.array([[sum(values), len(values) - sum(values)] for values in complete]))
    return krippendorff_alpha(list(units.values())), kappa, len(complete)
