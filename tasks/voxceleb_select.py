"""Which clips of the VoxCeleb list are used: by seed, by person, independent of the order of the rows.

The order has a meaning: any first part of it (`acquire.voxceleb.limit`) is spread over people and videos and has both
sides in proportion.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.voxceleb_list import Clip

SIDES = ("train", "test")
LEAST_TEST_PEOPLE = 2
"""So many make a cross-identity pair."""
SELECTED = ("clip", "video_id", "start", "end", "bbox", "fps", "width", "height", "person_id", "side")


@dataclass(frozen=True)
class Chosen:
    """A clip and its side."""

    clip: Clip
    side: str


def select(clips: Sequence[Clip], train: int, test: int, clip_frames: int, seed: int) -> list[Chosen]:
    """Choose clips: first one of every video, spread over the people, then the second one of every video, and so on.

    Args:
        clips: What there is.
        train: How many for training, at most.
        test: How many for testing, at most.
        clip_frames: A test clip needs twice as many frames (self-reconstruction takes two pieces).
        seed: Of the choice.

    Returns:
        The chosen in their order; no person and no video is on both sides.
    """
    side = sides(clips, train, test, clip_frames, seed)
    lists = {}
    for name, count in (("train", train), ("test", test)):
        usable = [clip for clip in clips if side[clip.person] == name and _long_enough(clip, name, clip_frames)]
        lists[name] = _spread(usable, seed)[:count]
    ranked: list[tuple[float, str, Chosen]] = []
    for name, chosen in lists.items():
        for index, clip in enumerate(chosen):
            early = name == "test" and index < LEAST_TEST_PEOPLE
            ranked.append((-1.0 if early else (index + 0.5) / len(chosen), name, Chosen(clip, name)))
    return [chosen for _, _, chosen in sorted(ranked, key=lambda item: item[:2])]


def sides(clips: Iterable[Clip], train: int, test: int, clip_frames: int, seed: int) -> dict[str, str]:
    """Put every person on a side, together with whoever shares a video with them.

    Where the list says `test` for one of a person's rows, they are for testing. A list that has not both sides is
    split by seed, in proportion to the clips that are wanted.

    Args:
        clips: All of the list.
        train: Wanted for training.
        test: Wanted for testing.
        clip_frames: See `select`.
        seed: Of the split.

    Returns:
        Person -> train or test.
    """
    clips = list(clips)
    groups = _groups(clips)
    said: dict[str, set[str]] = defaultdict(set)
    usable: Counter[str] = Counter()
    for clip in clips:
        said[groups[clip.person]].add(clip.partition)
        usable[groups[clip.person]] += _long_enough(clip, "test", clip_frames)
    labels = set().union(*said.values()) if said else set()
    if {"train", "test"} <= labels:
        testing = {group for group, partitions in said.items() if "test" in partitions}
    else:
        testing = _split(usable, train, test, seed)
    return {person: "test" if group in testing else "train" for person, group in groups.items()}


def selected_csv(chosen: Sequence[Chosen]) -> str:
    """The chosen list as it is kept; the same choice gives the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SELECTED)
    for item in chosen:
        clip = item.clip
        box = "" if clip.box is None else "-".join(str(value) for value in clip.box)
        place = (clip.video_id, clip.start, clip.end, box, f"{clip.fps:g}", clip.width, clip.height)
        writer.writerow((clip.name, *place, clip.person, item.side))
    return text.getvalue()


def _long_enough(clip: Clip, side: str, clip_frames: int) -> bool:
    """A file without frame numbers passes: the crop counts its frames."""
    return bool(clip.part) or clip.end - clip.start >= clip_frames * (2 if side == "test" else 1)


def _groups(clips: Sequence[Clip]) -> dict[str, str]:
    """Person -> the smallest name among the people connected by shared videos."""
    parent = {clip.person: clip.person for clip in clips}

    def root(person: str) -> str:
        while parent[person] != person:
            parent[person] = parent[parent[person]]
            person = parent[person]
        return person

    first: dict[str, str] = {}
    for clip in clips:
        one, other = root(first.setdefault(clip.video_id, clip.person)), root(clip.person)
        parent[max(one, other)] = min(one, other)
    return {person: root(person) for person in parent}


def _split(usable: Counter[str], train: int, test: int, seed: int) -> set[str]:
    """Groups for testing: as many as give the wanted clips, or their share of what there is."""
    if not test:
        return set()
    if not train:
        return set(usable)
    share = min(test, usable.total() * test / (train + test))
    people = min(LEAST_TEST_PEOPLE, len(usable) // 2)
    testing: set[str] = set()
    clips = 0
    for group in sorted(usable, key=lambda group: _random(seed, "side", group)):
        if (clips >= share and len(testing) >= people) or len(testing) == len(usable) - 1:
            break
        if usable[group]:
            testing.add(group)
            clips += usable[group]
    return testing


def _spread(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """In an order whose first part has as many videos, and then as many people, as possible."""
    turns: Counter[str] = Counter()
    ranked = []
    for clip in sorted(clips, key=lambda clip: _random(seed, "clip", clip.key)):
        in_video = turns[clip.video_id]
        turns[clip.video_id] += 1
        of_person = turns[f"{in_video} {clip.person}"]
        turns[f"{in_video} {clip.person}"] += 1
        ranked.append((in_video, of_person, _random(seed, "clip", clip.key), clip))
    return [clip for *_, clip in sorted(ranked, key=lambda item: item[:3])]


def _random(seed: int, purpose: str, name: str) -> str:
    """A random number of its own for every name: another row changes nobody's."""
    return hashlib.sha256(f"{seed} {purpose} {name}".encode()).hexdigest()
