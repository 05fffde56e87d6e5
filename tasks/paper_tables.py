"""What the paper's own tables say (Ni et al., WACV 2024), to be shown beside ours; copied, not reproduced."""

from __future__ import annotations

from typing import NamedTuple

from models.config import MethodName


class Figures(NamedTuple):
    """L2 and LPIPS as printed."""

    l2: float
    lpips: float


TABLE1: dict[str, dict[str, Figures]] = {
    "voxceleb": {
        "FOMM": Figures(0.0114, 0.0856),
        "MRAA": Figures(0.0108, 0.0830),
        "DaGAN": Figures(0.0123, 0.0885),
        "FaceV2V": Figures(0.0186, 0.0994),
        "Head3D": Figures(0.0113, 0.0855),
    },
    "faceforensics": {
        "FOMM": Figures(0.0102, 0.0543),
        "MRAA": Figures(0.0075, 0.0449),
        "DaGAN": Figures(0.0106, 0.0490),
        "FaceV2V": Figures(0.0119, 0.0509),
        "Head3D": Figures(0.0079, 0.0442),
    },
}
"""Dataset -> method: self-reconstruction at 128 px."""

TABLE2: dict[str, dict[str, int]] = {
    "voxceleb": {"FOMM": 72, "MRAA": 57, "DaGAN": 80, "FaceV2V": 53},
    "faceforensics": {"FOMM": 68, "MRAA": 59, "DaGAN": 86, "FaceV2V": 54},
}
"""Dataset -> rival: percent of the comparisons in which raters preferred Head3D, cross-identity."""

DATASETS = {"voxceleb": "VoxCeleb", "faceforensics": "FaceForensics"}
"""How the paper writes them."""

TABLE3: dict[MethodName, Figures] = {
    "head3d_n1": Figures(0.0117, 0.0873),
    "head3d_n3": Figures(0.0115, 0.0880),
    "head3d_n10": Figures(0.0116, 0.0839),
    "mean_canonical": Figures(0.0117, 0.0897),
    "no_driving_head": Figures(0.0117, 0.0872),
    "head3d": Figures(0.0113, 0.0855),
}
"""Ablations on VoxCeleb; `head3d` is N = 5."""

TABLE3_REFERENCES = 5
"""N of `head3d` in the paper's Table 3."""
