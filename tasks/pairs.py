"""Which subject is driven by which video (Sec. 4.1): self-reconstruction and cross-identity pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.config import Generate

COLUMNS = [
    "pair",
    "index",
    "setting",
    "dataset",
    "subject_clip",
    "driving_clip",
    "subject_row",
    "driving_row",
    "subject_identity",
    "driving_identity",
    "reference_frame",
    "seen_in_training",
    "status",
    "reason",
]


def choose_pairs(table: pd.DataFrame, clip_frames: int, config: Generate) -> pd.DataFrame:
    """Pairs over the test clips; over all clips, marked as seen, where no test person has a pair.

    Self-reconstruction takes the first two clips of a video (subject, driving); cross-identity takes seeded pairs of
    different people of one dataset, each person about equally often, `config.cross_pairs` of every dataset (where no
    dataset has two people, of all together).

    Args:
        table: Usable clips.
        clip_frames: Frames per clip.
        config: How many pairs, and the seed.

    Returns:
        One row per pair, columns `COLUMNS`; `index` counts within a setting.
    """
    rng = np.random.default_rng(config.seed)
    rows: list[dict[str, object]] = []

    def add(setting: str, subject: pd.Series, driving: pd.Series, seen: bool) -> None:
        index = sum(row["setting"] == setting for row in rows)
        values = {
            "pair": f"{setting}_{index:03d}",
            "index": index,
            "setting": setting,
            "dataset": driving["dataset"],
            "reference_frame": int(rng.integers(clip_frames)),
            "seen_in_training": int(seen),
            "status": "ok",
            "reason": "",
        }
        for role, clip in (("subject", subject), ("driving", driving)):
            values |= {f"{role}_{key}": clip[key] for key in ("clip", "row", "identity")}
        rows.append(values)

    for seen in (False, True):
        pool = table if seen else table[table["split"] == "test"]
        doubles = [group.sort_values("segment") for _, group in pool.groupby("video", sort=True) if len(group) >= 2]
        if doubles:
            for group in doubles[: config.self_pairs or None]:
                add("self", group.iloc[0], group.iloc[1], seen)
            break
    for seen in (False, True):
        pool = table if seen else table[table["split"] == "test"]
        parts = [_people(part) for _, part in pool.groupby("dataset", sort=True)]
        crowds = [people for people in (*parts, _people(pool)) if len(people) >= 2]
        for people in crowds[: max(1, len(crowds) - 1)]:  # the last is everybody: only where no dataset has two
            for subject, driving in _cross(list(people), config.cross_pairs, rng):
                one, two = people[subject], people[driving]
                add("cross", one.iloc[rng.integers(len(one))], two.iloc[rng.integers(len(two))], seen)
        if crowds:
            break
    return pd.DataFrame(rows, columns=COLUMNS)


def _people(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Identity -> its clips, in the order of the names."""
    return {str(name): group for name, group in table.groupby("identity", sort=True)}


def _cross(people: list[str], count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """`count` ordered pairs of different people, in rounds of shifted permutations, so that nobody comes too often."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        order = rng.permutation(len(people))
        shift = 1 + (len(pairs) // len(people)) % (len(people) - 1)
        pairs += [(people[a], people[b]) for a, b in zip(order, np.roll(order, shift), strict=True)]
    return pairs[:count]
