"""The test people whom the report shows, made by the trained model as the stage `generate` makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.config import Params
from models.head3d import Head3D, Subject
from tasks.generate import reference_frames
from tasks.generated import records
from tasks.report_examples import Stores


def clip_tensors(stores: Stores, row: int, frames: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Frames of a clip `(n, 3, H, W)` in [0, 1] and their head masks `(n, 1, H, W)`."""
    images = torch.from_numpy(np.asarray(stores.frames[row])[frames]).to(device).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(np.asarray(stores.head[row])[frames]).to(device)[:, None].float()


def reference_indices(pair: dict[str, Any], stores: Stores, params: Params) -> list[int]:
    """The frames that make the canonical head of a pair's subject, s_ref first."""
    config = params.generate
    found = reference_frames(int(pair["reference_frame"]), stores.frames.shape[1], config.references, config.seed)
    return [int(frame) for frame in found]


def subject_of(pair: dict[str, Any], model: Head3D, stores: Stores, params: Params) -> Subject:
    """The pair's subject as `generate` makes it.

    Args:
        pair: A row of the table of pairs (or of `people`).
        model: The trained model.
        stores: Where the frames lie.
        params: All settings; `generate` is used.

    Returns:
        Its canonical head and reference.
    """
    chosen = reference_indices(pair, stores, params)
    return model.subject(*clip_tensors(stores, int(pair["subject_row"]), chosen, model.device), reference=0)


def people(pairs: Any, table: Any) -> list[dict[str, Any]]:
    """One subject clip of every test person: that of the person's first pair, or the first clip where there is none.

    Args:
        pairs: The table of generated pairs.
        table: The clip table.

    Returns:
        Dicts with `subject_identity`, `subject_clip`, `subject_row` and `reference_frame`, by name of the person.
    """
    names = ["subject_identity", "subject_clip", "subject_row", "reference_frame"]
    done = pairs[pairs["status"] == "ok"].drop_duplicates("subject_identity")
    found = {str(row["subject_identity"]): row for row in records(done[names])}
    test = table[(table["status"] == "ok") & (table["split"] == "test")].sort_values("row")
    for row in records(test):
        rest = {"subject_clip": row["clip"], "subject_row": int(row["row"]), "reference_frame": 0}
        found.setdefault(str(row["identity"]), {"subject_identity": str(row["identity"]), **rest})
    return [found[name] for name in sorted(found)]
