"""Simulated raters with a known preference: the tally's interval recovers it as often as it says."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.cli import app
from tasks.study_power import Design, Outcome, draw_outcomes, middle_logit, simulate

STUDIES = 500


@pytest.fixture(scope="module")
def independent() -> Outcome:
    """10 raters, 100 pairs, 57% for ours, answers that have nothing in common."""
    return simulate(Design(10, 100, 0.57, 0.0, 0.0), STUDIES, 0)


@pytest.fixture(scope="module")
def alike() -> Outcome:
    """The same size, but people who agree about some videos and differ in taste, as real ones do."""
    return simulate(Design(10, 100, 0.57, 1.0, 0.5), STUDIES, 0)


def test_57_percent_is_recovered_in_95_percent_of_500_studies(independent: Outcome, alike: Outcome) -> None:
    for outcome in (independent, alike):  # 500 studies of a 95% interval: 95% +- 2% in 95 of 100 such tests
        assert 0.93 <= outcome.coverage <= 0.985
        assert abs(np.mean([one.share for one in outcome.found]) - 0.57) < 0.01
    assert independent.half_width < 0.04  # and not by being wide


def test_wilson_holds_it_only_where_answers_are_independent(independent: Outcome, alike: Outcome) -> None:
    assert 0.93 <= independent.coverage_wilson <= 0.98
    assert alike.coverage_wilson < 0.7
    assert alike.half_width > 2 * alike.half_width_wilson
    assert abs(independent.alpha) < 0.02
    assert 0.1 < alike.alpha < 0.25


def test_a_preference_that_is_none_is_rarely_noticed() -> None:
    outcome = simulate(Design(10, 100, 0.5, 1.0, 0.5), STUDIES, 1)
    assert outcome.noticed < 0.085
    assert simulate(Design(10, 100, 0.8, 1.0, 0.5), 50, 1).noticed == 1.0


def test_the_share_is_over_all_pairs_and_raters() -> None:
    assert middle_logit(Design(1, 1, 0.57, 0.0, 0.0)) == pytest.approx(np.log(0.57 / 0.43), abs=1e-6)
    assert middle_logit(Design(1, 1, 0.57, 2.0, 1.0)) > 0.4  # spread pulls the share towards a half
    assert middle_logit(Design(1, 1, 0.5, 2.0, 1.0)) == pytest.approx(0, abs=0.02)


def test_the_picture_is_the_same_every_time(independent: Outcome) -> None:
    picture = draw_outcomes([independent], "png")
    assert picture == draw_outcomes([independent], "png")
    with Image.open(io.BytesIO(picture)) as image:
        assert image.width > 800


def test_command_says_what_a_study_can_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "power.png"
    words = ["study", "simulate", "--raters", "4", "--pairs", "20", "--studies", "40", "-o", str(target)]
    with pytest.raises(SystemExit) as ended:
        app(args=words)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "interval holds 57%" in said
    assert target.stat().st_size > 10_000
