"""Which videos the raters of the user study compare, in which order and on which side (Sec. 4.1)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from models.config import Study
from tasks.methods import OURS

PAIR_COLUMNS = ("pair", "dataset", "setting", "video_a", "video_b")
ANSWER_COLUMNS = ("choice", "realism", "motion", "identity", "seconds", "comment")
SHEET_COLUMNS = (*PAIR_COLUMNS, *ANSWER_COLUMNS)
KEY_COLUMNS = (*PAIR_COLUMNS, "subject", "driving", "method_a", "method_b", "source_pair", "repeat_of")
SETTING = "cross"
REPEAT_GAP = 10
"""A repeat comes at least so many showings after (or before) the first one, where the sheet is long enough."""
TRIES = 200


@dataclass(frozen=True)
class Comparison:
    """Two blinded videos that are shown side by side; `repeat_of` names the other showing of the same two."""

    pair: str
    dataset: str
    video_a: str
    video_b: str
    subject: str
    driving: str
    method_a: str
    method_b: str
    source_pair: str
    repeat_of: str = ""

    def flipped(self) -> Comparison:
        """The same two videos with their sides exchanged."""
        return replace(self, video_a=self.video_b, video_b=self.video_a, method_a=self.method_b, method_b=self.method_a)

    @property
    def rival(self) -> str:
        """The method that ours is compared with."""
        return self.method_b if self.method_a == OURS else self.method_a

    def shown(self) -> dict[str, str]:
        """What a rater may see."""
        return {"pair": self.pair, "dataset": self.dataset, "setting": SETTING, "video_a": self.video_a,
                "video_b": self.video_b}  # fmt: skip

    def known(self) -> dict[str, str]:
        """The line of the key."""
        values = {name: str(getattr(self, name)) for name in KEY_COLUMNS if name != "setting"}
        return {**values, "setting": SETTING}


def plan(candidates: Mapping[tuple[str, str], list[str]], study: Study, rng: random.Random) -> list[Comparison]:
    """Draw the comparisons: up to `pairs_per_method` of every dataset and rival, then the repeats.

    Every showing has file names of its own: the same video of ours seen against two rivals does not give itself away.

    Args:
        candidates: (dataset, rival) -> pairs of the cross-identity set of which both videos exist.
        study: How many pairs and repeats.
        rng: Seeded source of chance.

    Returns:
        The comparisons in a random order, which their numbers follow: a repeat's number tells nothing. In half of each
        group ours is `video_a`; a repeat has the sides exchanged.
    """
    drawn = []
    for (dataset, rival), pairs in sorted(candidates.items()):
        sources = sorted(rng.sample(pairs, min(study.pairs_per_method, len(pairs))))
        first = rng.random() < 0.5  # who gets the odd one
        sides = [(index % 2 == 0) == first for index in range(len(sources))]
        rng.shuffle(sides)
        drawn += [(dataset, rival, source, side) for source, side in zip(sources, sides, strict=True)]
    rng.shuffle(drawn)
    used: set[str] = set()
    inputs = {
        source: (_token(rng, used), _token(rng, used)) for source in sorted({source for _, _, source, _ in drawn})
    }
    found = []
    for number, (dataset, rival, source, ours_first) in enumerate(drawn):
        names = _token(rng, used), _token(rng, used)
        item = Comparison(str(number), dataset, *names, *inputs[source], OURS, rival, source)
        found.append(item if ours_first else item.flipped())
    for original in rng.sample(found, min(study.repeats, len(found))):
        again = replace(original.flipped(), pair=str(len(found)), repeat_of=original.pair)
        found.append(replace(again, video_a=_token(rng, used), video_b=_token(rng, used)))
    rng.shuffle(found)
    width = max(4, len(str(len(found))))
    numbers = {item.pair: f"p{place + 1:0{width}d}" for place, item in enumerate(found)}
    return [replace(item, pair=numbers[item.pair], repeat_of=numbers.get(item.repeat_of, "")) for item in found]


def sheet(comparisons: list[Comparison], rater: int, seed: int) -> list[Comparison]:
    """What one rater sees, in their own order.

    Neighbouring raters see each pair from opposite sides, so that the sides are balanced in each sheet and over raters.

    Args:
        comparisons: All of the study.
        rater: Number of the rater, from 1.
        seed: Of the study.

    Returns:
        The comparisons, shuffled, with exchanged sides for raters of an even number; the two showings of a repeated
        pair lie `REPEAT_GAP` rows apart (a quarter of a short sheet), or as far as many tries bring them.
    """
    rng = random.Random(f"{seed}/{rater}")
    rows = [item.flipped() if rater % 2 == 0 else item for item in comparisons]
    wanted = min(REPEAT_GAP, max(2, len(rows) // 4))
    best, best_gap = rows, -1
    for _ in range(TRIES):
        rng.shuffle(rows)
        gap = _repeat_gap(rows)
        if gap > best_gap:
            best, best_gap = list(rows), gap
        if gap >= wanted:
            break
    return best


def _repeat_gap(rows: list[Comparison]) -> int:
    """Fewest rows between the two showings of a repeated pair."""
    places = {item.pair: place for place, item in enumerate(rows)}
    gaps = [abs(places[item.pair] - places[item.repeat_of]) for item in rows if item.repeat_of]
    return min(gaps, default=len(rows))


def _token(rng: random.Random, used: set[str]) -> str:
    """A new blinded file name."""
    while True:
        token = f"{rng.getrandbits(40):010x}.mp4"
        if token not in used:
            used.add(token)
            return token
