"""Simulated studies: how often the intervals of Table 2 hold the truth, and how often a preference is noticed.

Raters differ in how much they like ours, and everybody likes some pairs better than others. Both spreads are of the
logit: 0 and 0 are independent answers; 1 for pairs and 0.5 for raters give an agreement (alpha) of about 0.15.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from tasks.agreement import Answers, Preference, agreement, preference

DRAWS = 100_000
SHOWN = 60
"""Simulated studies whose intervals the picture draws."""


@dataclass(frozen=True)
class Design:
    """A study that is simulated.

    Attributes:
        raters: How many.
        pairs: Per comparison.
        share: Of all possible answers that are for ours, 0 to 1.
        pair_sd: Spread of the pairs.
        rater_sd: Spread of the raters.
    """

    raters: int
    pairs: int
    share: float
    pair_sd: float
    rater_sd: float


@dataclass(frozen=True)
class Outcome:
    """What many simulated studies of one design gave; shares from 0 to 1.

    Attributes:
        design: What was simulated.
        found: Every study's preference.
        alpha: Mean agreement.
    """

    design: Design
    found: list[Preference]
    alpha: float

    @property
    def coverage(self) -> float:
        """How often the 95% interval holds the true share."""
        return float(np.mean([one.honest[0] <= self.design.share <= one.honest[1] for one in self.found]))

    @property
    def coverage_wilson(self) -> float:
        """The same of Wilson's interval."""
        return float(np.mean([one.wilson[0] <= self.design.share <= one.wilson[1] for one in self.found]))

    @property
    def half_width(self) -> float:
        """Mean half of the 95% interval's width."""
        return float(np.mean([one.honest[1] - one.honest[0] for one in self.found])) / 2

    @property
    def half_width_wilson(self) -> float:
        """The same of Wilson's interval."""
        return float(np.mean([one.wilson[1] - one.wilson[0] for one in self.found])) / 2

    @property
    def noticed(self) -> float:
        """How often the 95% interval leaves out 50%: the study's power, or its error where the truth is 50%."""
        return float(np.mean([not one.honest[0] <= 0.5 <= one.honest[1] for one in self.found]))


def middle_logit(design: Design) -> float:
    """The logit about which answers must spread for `design.share` of all to be for ours.

    Source: bisection over a fixed sample of both spreads together.
    """
    spread = math.hypot(design.pair_sd, design.rater_sd) * np.random.default_rng(0).normal(size=DRAWS)
    low, high = -12.0, 12.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(middle + spread).mean() < design.share else (low, middle)
    return low


def draw_answers(design: Design, middle: float, rng: np.random.Generator) -> Answers:
    """The answers of one study.

    Args:
        design: Its size and spreads.
        middle: Of `middle_logit`.
        rng: Source of chance.

    Returns:
        Every rater's answer to every pair.
    """
    liking = middle + design.pair_sd * rng.normal(size=(1, design.pairs))
    liking = liking + design.rater_sd * rng.normal(size=(design.raters, 1))
    chosen = rng.random(liking.shape) < expit(liking)
    return {(f"r{r}", f"p{p}"): bool(ours) for (r, p), ours in np.ndenumerate(chosen)}


def simulate(design: Design, studies: int, seed: int) -> Outcome:
    """Many studies of one design.

    Args:
        design: What to simulate.
        studies: How many.
        seed: The same seed gives the same studies.

    Returns:
        What each of them found.
    """
    rng, middle = np.random.default_rng(seed), middle_logit(design)
    answers = [draw_answers(design, middle, rng) for _ in range(studies)]
    alphas = [agreement(one)[0] for one in answers[:20]]
    return Outcome(design, [preference(one) for one in answers], float(np.nanmean(alphas)))


def draw_outcomes(outcomes: list[Outcome], kind: str) -> bytes:
    """Intervals of the first studies of each design, those that miss the truth in another colour.

    Args:
        outcomes: One panel each.
        kind: `png` or `svg`.

    Returns:
        The picture; the same for the same outcomes.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    blue, orange, grey = "#0b57c2", "#c24d00", "#55585e"
    with mpl.rc_context({"svg.hashsalt": "power", "font.family": "DejaVu Sans", "font.size": 9}):
        size = (8.6, 0.4 + 2.5 * len(outcomes))
        figure, panels = plt.subplots(len(outcomes), 2, figsize=size, dpi=110, sharex=True, sharey=True, squeeze=False)
        for panel, outcome in zip(panels, outcomes, strict=True):
            truth, design = 100 * outcome.design.share, outcome.design
            for axes, name, coverage in (
                (panel[0], "wilson", outcome.coverage_wilson),
                (panel[1], "honest", outcome.coverage),
            ):
                for number, one in enumerate(outcome.found[:SHOWN]):
                    low, high = (100 * end for end in getattr(one, name))
                    axes.plot([number] * 2, [low, high], color=blue if low <= truth <= high else orange, linewidth=2)
                axes.axhline(truth, color=grey, linewidth=1)
                axes.axhline(50, color=grey, linewidth=1, linestyle=":")
                title = "Wilson" if name == "wilson" else "over new pairs and raters"
                axes.set_title(f"{title}: {coverage:.1%} hold {truth:g}%", fontsize=10)
                axes.spines[["top", "right"]].set_visible(False)
            panel[0].set_ylabel(f"% for ours\nspread: pairs {design.pair_sd:g}, raters {design.rater_sd:g}")
        for axes in panels[-1]:
            axes.set_xlabel(f"simulated study (first {min(SHOWN, len(outcomes[0].found))} of {len(outcomes[0].found)})")
        figure.tight_layout()
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
        plt.close(figure)
    return stream.getvalue()
