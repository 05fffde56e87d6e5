"""A person at poses given by hand: the head turns, the background stays (Sec. 3.4, Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.config import Camera
from models.pose_net import HeadPose
from tasks.animate import Limits, subject_notices, subject_state
from tasks.backdrop import backdrop, draw_views
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.frames import to_uint8
from tasks.notices import notices, pose_findings, trained_range
from tasks.output import check_output
from tasks.prepared import prepare
from tasks.sheets import contact_sheet, enlarge
from tasks.trained import held_to_parts, load_model, load_preparation
from tasks.video import write_video

AXES = ("yaw", "pitch", "roll", "tx", "ty", "tz")
"""Angles in degrees, then translations in metres, in the order of `HeadPose`."""
MOST_VIEWS = 2000
"""A range with more steps than this is a slip of the pen."""
CHUNK = 32
STRIP_COLUMNS, STRIP_PX = 9, 128
KINDS = (".mp4", ".png")
ON_BLACK = (
    "the model's regions are held to parts of the face (fusion.parts_weight), not found in a head on black: "
    "do not trust the face; leave --plain out"
)


def parse_range(axis: str, text: str) -> list[float]:
    """The values of one axis.

    Args:
        axis: Its name, for messages.
        text: A number, or `A:B:S` from A to B (included when a step ends there) in steps of S; S may be left out: 1
            degree, 0.01 m. A above B counts down.

    Returns:
        At least one value, degrees or metres.

    Raises:
        StageError: It is neither.
    """
    example = "-40:40:5" if axis in AXES[:3] else "-0.05:0.05:0.01"
    wrong = f"--{axis} {text}: write one number or first:last:step, for example --{axis} {example}"
    try:
        numbers = [float(word) for word in text.split(":")]
    except ValueError:
        raise StageError(wrong) from None
    if not np.isfinite(numbers).all() or len(numbers) > 3:
        raise StageError(wrong)
    if len(numbers) == 1:
        return numbers
    start, end = numbers[:2]
    step = abs(numbers[2]) if len(numbers) == 3 else (1.0 if axis in AXES[:3] else 0.01)
    if step == 0:
        raise StageError(f"--{axis} {text}: the step is 0; for example --{axis} {example}")
    # A tenth of a millionth of a step: 0.05 / 0.01 is 4.999... in floating point, and 0.05 belongs to the range.
    count = int(abs(end - start) / step + 1e-6) + 1
    if count > MOST_VIEWS:
        raise StageError(f"--{axis} {text} has {count} steps, more than {MOST_VIEWS}; take a larger step")
    return [round(start + i * (step if end >= start else -step), 9) for i in range(count)]


def wanted_poses(ranges: Mapping[str, str], own: HeadPose, camera: Camera) -> HeadPose:
    """The poses of all views.

    Source: our choice. An axis that is not named keeps the value of the reference frame, so that the head stays on its
    shoulders.

    Args:
        ranges: Axis -> text for `parse_range`.
        own: Pose of s_ref, one row.
        camera: Its limits are those of the poses in training.

    Returns:
        One row for each view.

    Raises:
        StageError: No axis is named, ranges of unequal length, or a value that the model does not know.
    """
    values = {axis: parse_range(axis, text) for axis, text in ranges.items()}
    if not values:
        raise StageError("no pose is given; for example --yaw -40:40:5")
    lengths = {axis: len(found) for axis, found in values.items() if len(found) > 1}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"--{axis} {ranges[axis]} has {count}" for axis, count in lengths.items())
        raise StageError(f"the ranges go together step by step and need equally many steps: {listed}")
    for axis, found in values.items():
        limit, unit = (camera.max_angle_deg, "degrees") if axis in AXES[:3] else (camera.max_translation_m, "metres")
        worst = max(found, key=abs)
        if abs(worst) > limit + 1e-9:
            raise StageError(
                f"--{axis} {ranges[axis]} reaches {worst:g}; the model knows -{limit:g} to {limit:g} {unit}"
            )
    count = max(lengths.values(), default=1)
    rows = torch.cat([own.angles_deg, own.translation_m], dim=1).expand(count, -1).clone()
    for axis, found in values.items():
        rows[:, AXES.index(axis)] = rows.new_tensor(found)
    return HeadPose(rows[:, :3], rows[:, 3:])


def strip(frames: np.ndarray, heads: np.ndarray, pose: HeadPose) -> np.ndarray:
    """All views beside each other, above the canonical head as it was turned for each.

    Args:
        frames: s_hat, `(T, H, W, 3)` u1.
        heads: x_hat_dri, the same.
        pose: Their poses.

    Returns:
        `(height, width, 3)` u1 RGB.
    """
    rows: list[list[np.ndarray]] = []
    captions: list[str] = []
    table = torch.cat([pose.angles_deg, pose.translation_m], dim=1).cpu().numpy()
    for first in range(0, len(frames), STRIP_COLUMNS):
        part = slice(first, first + STRIP_COLUMNS)
        a, b = table[part][0], table[part][-1]
        moving = [i for i in range(6) if a[i] != b[i]] or [0, 1, 2]
        units = [" deg"] * 3 + [" m"] * 3
        caption = ", ".join(
            f"{AXES[i]} {a[i]:.3g}" + (f" to {b[i]:.3g}" if a[i] != b[i] else "") + units[i] for i in moving
        )
        rows += [[enlarge(image, STRIP_PX) for image in group[part]] for group in (frames, heads)]
        captions += [caption, ""]
    return contact_sheet(rows, captions)


def novel_views(
    subject: Path,
    out: Path,
    ranges: Mapping[str, str],
    *,
    checkpoints: Path,
    device: str,
    references: int,
    limits: Limits,
    pick: str = "even",
    fps: float = 10.0,
    on_backdrop: bool = True,
) -> dict[str, Any]:
    """Write the subject at the wanted poses.

    Args:
        subject: Video of the person.
        out: An mp4 (one frame for each pose) or a png (`strip`).
        ranges: Axis of `AXES` -> a number or `A:B:S`; ranges go together step by step, a single number stays.
        checkpoints: Folder with geometry/, canonical/ and fusion/.
        device: auto, cpu, cuda or cuda:N.
        references: N, how many frames of the subject make the canonical head.
        limits: When a notice is given.
        pick: even or spread, see `tasks.references`.
        fps: Of the mp4, frames per second.
        on_backdrop: See `tasks.backdrop.draw_views`; False: x_hat_dri on black takes s_dri's place, as in Sec. 3.4.

    Returns:
        Views, size and device; `notices`, why the result is not to be trusted.

    Raises:
        StageError: `out` cannot be written, the ranges do not fit, the model is not trained, or the video cannot be
            used.
    """
    check_output(out, "views are", KINDS, "turn.mp4", subject)
    where = choose_device(device)
    model = load_model(checkpoints, where)
    own = HeadPose(torch.zeros(1, 3), torch.zeros(1, 3))
    wanted_poses(ranges, own, model.camera)  # a slip shows before the video is read
    crop, parse = load_preparation(checkpoints)
    person = prepare(subject, crop, parse, device)
    ready = subject_state(model, person, references, pick)
    pose = wanted_poses(ranges, ready.state.reference_pose, model.camera)
    images, masks = person.tensors(ready.frames[:1], where)
    behind = backdrop(images, masks)
    chunks = zip(pose.angles_deg.split(CHUNK), pose.translation_m.split(CHUNK), strict=True)
    poses = [HeadPose(angles, shift) for angles, shift in chunks]
    if on_backdrop:
        parts = [draw_views(model, ready.state, behind, part) for part in poses]
    else:
        parts = [model.view(ready.state, part) for part in poses]
    frames = np.concatenate([to_uint8(part.image) for part in parts])
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".png":
        heads = np.concatenate([to_uint8(part.head) for part in parts])
        Image.fromarray(strip(frames, heads, pose)).save(out)
    else:
        write_video(out, frames, fps)
    angles_deg = pose.angles_deg.cpu().numpy()
    turns = pose_findings(
        angles_deg, trained_range(checkpoints.parent), model.camera.max_angle_deg, limits.notices, "views"
    )
    said = [*subject_notices(person, ready, crop, limits), *notices(turns, "wanted poses")]
    if not on_backdrop and held_to_parts(checkpoints):
        said.append(ON_BLACK)
    return {"views": len(frames), "size_px": crop.size_px, "device": str(where), "notices": said}
