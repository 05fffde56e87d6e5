"""The study's statistics against published examples, and how often their intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.agreement import agreement, clustered, fleiss_kappa, krippendorff_alpha, preference, sign_test, wilson

FLEISS_1971 = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
KRIPPENDORFF_2011 = (  # four observers, twelve units, "." is missing
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (72, 100, 0.6251, 0.7986),
     (81, 263, 0.2553, 0.3662)],
)  # fmt: skip
def test_wilson_against_published_values(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=1e-4)  # 81 of 263: Newcombe 1998, Table I


def test_fleiss_kappa_of_the_published_example() -> None:
    assert fleiss_kappa(np.array(FLEISS_1971)) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(np.array([[3, 0], [0, 3]])) == 1.0
    assert math.isnan(fleiss_kappa(np.array([[3, 0], [3, 0]])))
    with pytest.raises(ValueError, match="same number of raters"):
        fleiss_kappa(np.array([[3, 0], [1, 1]]))


def test_krippendorffs_alpha_of_the_published_example_with_gaps() -> None:
    observers = [line.split() for line in KRIPPENDORFF_2011]
    units = [[value for value in unit if value != "."] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1.0
    assert math.isnan(krippendorff_alpha([["a", "a"], ["a"]]))


def test_exact_sign_test() -> None:
    assert sign_test(9, 1) == pytest.approx(22 / 1024)  # 2 * (1 + 10) / 2^10
    assert sign_test(5, 5) == sign_test(0, 0) == 1.0


def test_one_answer_per_pair_gives_the_textbook_interval() -> None:
    values = np.repeat([1.0, 0.0], (60, 40))
    low, high = clustered(values, np.arange(100), np.zeros(100, int))
    error = values.std(ddof=1) / 10 * 1.9842169515  # t with 99 degrees of freedom
    assert (low, high) == pytest.approx((0.6 - error, 0.6 + error))


def test_copies_of_an_answer_do_not_narrow_the_honest_interval() -> None:
    alone = {("r0", f"p{p}"): p % 5 < 3 for p in range(60)}
    copied = {(f"r{r}", f"p{p}"): p % 5 < 3 for p in range(60) for r in range(10)}
    one, ten = preference(alone), preference(copied)
    assert ten.wilson[1] - ten.wilson[0] < 0.35 * (one.wilson[1] - one.wilson[0])
    assert ten.honest == pytest.approx(one.honest, abs=0.01)
    assert ten.p_answers < 1e-5
    assert ten.p_pairs == one.p_pairs == one.p_answers
    assert agreement(copied) == (1.0, 1.0, 60)


def test_counts_ties_and_the_cases_without_spread() -> None:
    answers = {("r0", "p0"): True, ("r1", "p0"): False, ("r0", "p1"): True, ("r1", "p1"): True, ("r0", "p2"): False}
    found = preference(answers)
    assert (found.answers, found.preferred, found.pairs, found.pairs_won, found.pairs_tied) == (5, 3, 3, 1, 1)
    alpha, kappa, complete = agreement(answers)
    assert complete == 2
    assert alpha == pytest.approx(1 - 2 / (6 / 3))  # Do = 2 * 1/1, De = (16 - 10) / 3
    assert kappa == pytest.approx(-1 / 3)
    unanimous = preference({(f"r{r}", f"p{p}"): True for r in range(3) for p in range(4)})
    assert unanimous.honest == unanimous.wilson  # never narrower
    assert preference({("r0", "p0"): True}).honest == (0.0, 1.0)
