"""`head3d attention`: the sheet of Fig. 6, a row of pictures for each driving frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.animate import Limits, driving_notices, subject_notices, subject_state
from tasks.attention_maps import COLUMNS, MAPS, Inside, colour_bar, flow_scale, flow_wheel, look_inside, row_tiles
from tasks.device import choose_device
from tasks.frames import spread_frames
from tasks.output import check_output
from tasks.prepared import prepare
from tasks.sheets import GAP_PX, PAPER_RGB, TEXT_PX, contact_sheet, text_line
from tasks.trained import load_model, load_preparation

LEGEND_PX = 96
KIND = ".png"


def legend(width: int, full_px: float) -> np.ndarray:
    """What the colours of flows and maps mean.

    Args:
        width: Pixels.
        full_px: From `flow_scale`.

    Returns:
        `(LEGEND_PX, width, 3)` u1 RGB.
    """
    band = np.full((LEGEND_PX + GAP_PX, width, 3), PAPER_RGB, np.uint8)
    band[:LEGEND_PX, GAP_PX : GAP_PX + LEGEND_PX] = flow_wheel(LEGEND_PX)
    left, half = LEGEND_PX + 3 * GAP_PX, width // 2
    lines = (
        "Flow: the colour tells from which side a pixel is taken,",
        f"seen from its own place; full colour: {full_px:g} px or more;",
        "white: from its own place.",
    )
    for number, line in enumerate(lines):
        top = (number + 1) * TEXT_PX
        band[top : top + TEXT_PX, left:half] = text_line(line, half - left)
    bar = min(256, width - half - GAP_PX)
    band[TEXT_PX : 2 * TEXT_PX, half : half + bar] = colour_bar(bar, TEXT_PX)
    ticks = np.full((TEXT_PX, bar, 3), PAPER_RGB, np.uint8)
    for value in (0.0, 0.5, 1.0):
        at = min(int(value * (bar - 24)), bar - 24)
        ticks[:, at : at + 24] = text_line(f"{value:g}", 24)
    band[2 * TEXT_PX : 3 * TEXT_PX, half : half + bar] = ticks
    text = "Attention; the three maps sum to 1. Cyan: outline of the driving head mask."
    band[3 * TEXT_PX : 4 * TEXT_PX, half:] = text_line(text, width - half)
    return band


def attention_sheet(inside: Inside, titles: list[str], title: str = "") -> np.ndarray:
    """The sheet of Fig. 6: a row of `COLUMNS` for each driving frame, and what the colours mean.

    Args:
        inside: From `look_inside`.
        titles: What to call each driving frame.
        title: First line, if not empty.

    Returns:
        `(height, width, 3)` u1 RGB.
    """
    full_px = flow_scale([inside])
    rows = [row_tiles(inside, row, full_px) for row in range(len(inside.driving))]
    captions = [f"{name}: {inside.describe(row)}" for row, name in enumerate(titles)]
    body = contact_sheet(rows, captions)
    side, width = rows[0][0].shape[1], body.shape[1]
    head = np.full((2 * TEXT_PX, width, 3), PAPER_RGB, np.uint8)
    for column, words in enumerate(COLUMNS):
        left = GAP_PX + column * (side + GAP_PX)
        head[:, left : left + side] = np.concatenate([text_line(word, side) for word in words])
    first = [text_line(title, width)] if title else []
    return np.concatenate([*first, head, body, legend(width, full_px)])


def write_attention_sheet(
    subject: Path,
    driving: Path,
    out: Path,
    *,
    checkpoints: Path,
    device: str,
    references: int,
    frames: int,
    limits: Limits,
    pick: str = "even",
) -> dict[str, Any]:
    """Write the sheet of Fig. 6 for two videos.

    Args:
        subject: Video of the person to show.
        driving: Video with the motion.
        out: A png.
        checkpoints: Folder with geometry/, canonical/ and fusion/.
        device: auto, cpu, cuda or cuda:N.
        references: N, how many frames of the subject make the canonical head.
        frames: How many driving frames are shown, evenly spread.
        limits: When a notice is given.
        pick: even or spread, see `tasks.references`.

    Returns:
        Rows, mean attention inside the head over the rows that have a head mask, and device; `left_out`: which parts
        of the driving video are not used; `notices`, why the rows are not to be trusted.

    Raises:
        StageError: `out` cannot be written, the model is not trained, or one of the videos cannot be used.
    """
    check_output(out, "the sheet is", (KIND,), "sheet.png", subject, driving)
    where = choose_device(device)
    model = load_model(checkpoints, where)
    crop, parse = load_preparation(checkpoints)
    person, motion = (prepare(video, crop, parse, device) for video in (subject, driving))
    ready = subject_state(model, person, references, pick)
    at = spread_frames(len(motion.frames), min(frames, len(motion.frames)))
    images, masks = motion.tensors(at, where)
    inside = look_inside(model, ready.state, images, masks)
    titles = [f"frame {motion.first + int(t)} ({motion.times_s[int(t)]:.2f} s)" for t in at]
    sheet = attention_sheet(inside, titles, f"{subject.name} driven by {driving.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(out)
    shares = inside.share[np.isfinite(inside.share).all(axis=1)]  # a frame without a head mask has none
    columns = shares.mean(0) if len(shares) else ()
    means = {f"{name}_in_head": round(float(value), 3) for name, value in zip(MAPS, columns, strict=False)}
    said = [
        *subject_notices(person, ready, crop, limits),
        *driving_notices(motion.measures, model.pose(images * masks).angles_deg, model, crop, limits, checkpoints),
    ]
    parts = {"left_out": motion.left_out} if motion.left_out else {}
    return {"rows": len(at), **means, "device": str(where), **parts, "notices": said}
