"""What stage 2 makes of a few samples while it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.canonical import render_head
from models.precision import mixed
from tasks.training_look import Look

if TYPE_CHECKING:
    from tasks.canonical import CanonicalLoss


def look_at_canonical(loss: CanonicalLoss) -> Look:
    """Stage 2: reference, mean and recurrent canonical head, the latter in the driving pose."""
    from tasks.canonical import warped_batch

    drawn = {name: value.to(loss.clips.device) for name, value in loss.draw(0).items()}
    batch, mean, warp, driving = warped_batch(loss.clips, drawn, loss.K)
    with mixed(batch.images.device, loss.config.train.precision):
        head = loss.network(batch.heads[:, :-1], mean, warp)
    rendered, _ = render_head(head, driving, loss.K)
    images = {
        "reference": batch.images[:, 0],
        "mean canonical head": mean.image,
        "canonical head": head.image,
        "in the driving pose": rendered,
        "driving head": batch.heads[:, -1],
    }
    return Look(images, {"head_share": float((head.mask > 0.5).float().mean())})
