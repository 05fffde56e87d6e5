"""What stage 3 makes of a few samples while it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from models.precision import mixed
from tasks.collapse import attention_figures, region_figures
from tasks.training_look import Look

if TYPE_CHECKING:
    from tasks.fusion import FusionLoss


def look_at_fusion(loss: FusionLoss) -> Look:
    """Stage 3: reference, head, driving frame, output, and the attention as colours (red head, green s_ref, blue
    decoder)."""
    drawn = {name: value.to(loss.clips.device) for name, value in loss.draw(0).items()}
    head, reference, driving = loss.inputs(drawn)
    with mixed(driving.device, loss.config.train.precision):
        fused = loss.fusion(head, reference, driving)
    attention = fused.maps.attention.float()
    images = {
        "reference": reference,
        "head in the driving pose": head.image,
        "driving": driving,
        "output": fused.image,
        "attention (red head, green reference, blue decoder)": F.interpolate(
            attention, driving.shape[-2:], mode="nearest"
        ),
    }
    held = loss.fusion.flow.held
    free = torch.cat([regions.free(held).centre.float() for regions in (fused.regions_reference, fused.regions)])
    change = float((fused.image - fused.mixture).abs().mean())
    return Look(images, {**attention_figures(attention), **region_figures(free), "decoder_change": change})
