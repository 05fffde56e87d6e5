"""Head segmentation: from the frames of a clip and its detected face to class ids, by the method that is asked for.

A method is a function in `METHODS`: the embedded network (the default), the public BiSeNet, or colour models that need
no weights (`grabcut`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.config import Parse
from tasks.errors import SegmentationError
from tasks.grabcut import segment_grabcut
from tasks.parser_network import NETWORKS, load_network
from tasks.segment_network import segment_network

__all__ = ["METHODS", "SegmentationError", "check_parser", "segment"]

Method = Callable[[np.ndarray, np.ndarray, np.ndarray, Parse, str], np.ndarray]


def segment(
    frames: np.ndarray, landmarks: np.ndarray, face_box: np.ndarray, settings: Parse, device: str
) -> np.ndarray:
    """Class ids of every pixel of a clip by `settings.parser`.

    Args:
        frames: `(T, H, W, 3)` u1 RGB.
        landmarks: `(T, 5, 2)` pixels (x, y); NaN where the face was not found.
        face_box: `(T, 4)` x0, y0, x1, y1 in pixels; NaN likewise.
        settings: The section `parse`.
        device: auto, cpu, cuda or cuda:N, for the parsers that are networks.

    Returns:
        `(T, H, W)` u1, ids of CelebAMask-HQ.

    Raises:
        SegmentationError: `grabcut` only: the clip has no face to start from.
        StageError: The network's weights or the device are not there.
    """
    return METHODS[settings.parser](frames, landmarks, face_box, settings, device)


def check_parser(settings: Parse) -> None:
    """See to it, before any worker starts, that `settings.parser` can run on this machine.

    Raises:
        StageError: Its weights are missing or damaged; the text says which file to put where.
    """
    if settings.parser in NETWORKS:
        load_network(settings.parser, "cpu", settings.mirror)


def _grabcut(
    frames: np.ndarray, landmarks: np.ndarray, face_box: np.ndarray, settings: Parse, _device: str
) -> np.ndarray:
    return segment_grabcut(frames, landmarks, face_box, settings)


def _network(
    frames: np.ndarray, _landmarks: np.ndarray, face_box: np.ndarray, settings: Parse, device: str
) -> np.ndarray:
    network = load_network(settings.parser, device, settings.mirror)
    return segment_network(frames, face_box, network, settings.work_px, settings.smooth_frames)


METHODS: dict[str, Method] = {"embedded": _network, "bisenet": _network, "grabcut": _grabcut}
