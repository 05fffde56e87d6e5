"""What the embedded parser can do on this machine: overlap with labelled pictures, and frames per second."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.device import choose_device
from tasks.parser_data import LabelledImages, read_labelled
from tasks.parser_network import EMBEDDED_FILE, ParserNetwork, load_network
from tasks.parser_score import SHRUNK, SIZES_PX, confusion, overlap, shrink

SPEED_SECONDS = 3.0


def bench_parser(folder: Path | None, weights: Path | None, device: str, threads: int | None) -> dict[str, Any]:
    """Judge and time the embedded parser as the pipeline runs it (network and softmax; no smoothing, no resizing).

    Args:
        folder: With images/ and masks/; None: speed only.
        weights: Another file than the shipped one.
        device: auto, cpu, cuda or cuda:N.
        threads: Of a CPU.

    Returns:
        `weights_bytes`; `parameters`; for each working size `frames_per_s_<S>` and with the mirrored picture
        `frames_per_s_<S>_mirror`; with a folder also `val_<S>`, `val_<S>_mirror` and `val_shrunk_<S>`, as
        `tasks.parser_score` defines them.

    Raises:
        StageError: The folder, the weights or the device cannot be used.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    file = weights or EMBEDDED_FILE
    where = choose_device(device)
    figures: dict[str, Any] = {"device": str(where), "threads": torch.get_num_threads(), "weights": file.name}
    networks = {mirror: load_network("embedded", device, mirror, weights) for mirror in (False, True)}
    figures["weights_bytes"] = file.stat().st_size
    for size in SIZES_PX:
        for mirror, network in networks.items():
            figures[f"frames_per_s_{size}" + "_mirror" * mirror] = round(_speed(network, size), 1)
    if folder is not None:
        data, refused = read_labelled(folder)
        figures |= {"pictures": len(data), "left_out": len(refused)}
        small = shrink(data, SHRUNK, seed=0)
        for size in SIZES_PX:
            for mirror, network in networks.items():
                figures[f"val_{size}" + "_mirror" * mirror] = _judge(network, data, size)
            figures[f"val_shrunk_{size}"] = _judge(networks[False], small, size)
    return figures


def _speed(network: ParserNetwork, size: int) -> float:
    """Frames per second, batched as the pipeline batches."""
    images = np.random.default_rng(0).integers(0, 256, (network.batch_frames(size), size, size, 3), dtype=np.uint8)

    def once() -> None:
        network.probabilities(images)
        if network.device.type == "cuda":
            torch.cuda.synchronize(network.device)

    for _ in range(3):
        once()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SPEED_SECONDS:
        once()
        count += len(images)
    return count / (time.perf_counter() - start)


def _judge(network: ParserNetwork, data: LabelledImages, size: int) -> dict[str, Any]:
    def scores(image: Tensor) -> Tensor:
        pictures = (image * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        return network.probabilities(pictures).permute(0, 3, 1, 2).cpu().clamp_min(1e-12).log()

    return overlap(confusion(scores, data, size))
