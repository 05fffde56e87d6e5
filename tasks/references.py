"""Which frames of a subject's video become its references."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tasks.errors import StageError
from tasks.frames import spread_frames

PICKS = ("even", "spread")
"""even: equal steps in time, as the pipeline's own evaluation does; spread: by pose."""
SHOWN_SHARE = 0.8
"""A frame shows the head if its head area is at least this share of the median's."""


def spread_by_pose(angles_deg: Tensor, count: int) -> Tensor:
    """Frames whose poses lie as far apart as possible.

    Source: our choice (Sec. 3.4 only asks for any number of frames). The frame that faces the camera most comes first
    and is s_ref; then always the one whose pose is farthest from all that are chosen (farthest-point sampling).

    Args:
        angles_deg: (yaw, pitch, roll) of every frame, `(T, 3)`, degrees.
        count: How many to choose, 1 to T.

    Returns:
        Frame indices, `(count,)`, in the order of choice.
    """
    chosen = [int(angles_deg.norm(dim=1).argmin())]
    distance = torch.full((len(angles_deg),), torch.inf)
    for _ in range(count - 1):
        distance = torch.minimum(distance, (angles_deg - angles_deg[chosen[-1]]).norm(dim=1))
        distance[chosen] = -1  # frames of equal pose must not come twice
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)


def frames_that_show_the_head(areas: Tensor, count: int) -> Tensor:
    """Frames among which references may be chosen by pose.

    Source: our choice. F_P's pose of a head that is covered, or not there, means nothing: it is near 0, so that a hand
    before the face would pass for the most frontal frame, or far from all others.

    Args:
        areas: Head area of every frame, `(T,)`.
        count: So many are needed; with fewer that show the head, those of the largest areas are taken.

    Returns:
        Frame indices in order, at least `count`.
    """
    areas = areas.float()
    shown = areas[areas > 0]  # the median of a head that is away half of the time would be 0
    enough = int((shown >= SHOWN_SHARE * shown.median()).sum()) if len(shown) else 0
    return areas.argsort(descending=True, stable=True)[: max(enough, count)].sort().values


def choose_references(areas: Tensor, count: int, pick: str, angles_deg: Callable[[], Tensor]) -> Tensor:
    """The reference frames of a video; the first of them is s_ref.

    Args:
        areas: Head area of every frame, `(T,)`: by pose, only frames that show the head are chosen.
        count: N, how many to choose; all of them if the video is shorter.
        pick: One of `PICKS`.
        angles_deg: Gives (yaw, pitch, roll) of every frame, `(T, 3)`, degrees; only called when it is needed.

    Returns:
        Frame indices, `(min(N, T),)`.

    Raises:
        StageError: No such way to choose.
    """
    count = min(count, len(areas))
    if pick == "even":
        return spread_frames(len(areas), count)
    if pick == "spread":
        among = frames_that_show_the_head(areas, count)
        return among[spread_by_pose(angles_deg().float()[among], count)]
    raise StageError(f"'{pick}' is no way to choose references; take one of: {', '.join(PICKS)}")
