"""The trained head parsers: which there are, where their weights lie, and how pictures go through them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import bisenet, parser
from models.bisenet import BiSeNet
from models.pretrained import load_registered
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.labels import MIRRORED_IDS

EMBEDDED_FILE = Path(__file__).with_name("weights") / "head_parser.safetensors"
"""Weights of the embedded parser; they come with the package (see the model card beside them)."""

GPU_FRAMES = 40
CPU_PIXELS = 8 * 128**2
"""Measured at 128, 192 and 256 px: batches of 8, 3 and 2; 20 take a tenth to a fifth longer."""


@dataclass(frozen=True)
class Kind:
    """A trained parser.

    Attributes:
        load: Weights file (None: its usual place) -> network in eval mode, on the CPU, `(B, 3, S, S)` RGB in [0, 1] to
            logits `(B, 19, S, S)`.
        multiple_px: S must be a multiple of it.
    """

    load: Callable[[Path | None], nn.Module]
    multiple_px: int


def _load_embedded(file: Path | None) -> nn.Module:
    return parser.load_parser(file or EMBEDDED_FILE)


def _load_bisenet(file: Path | None) -> nn.Module:
    network = BiSeNet()
    network.load_state_dict(load_registered("bisenet", file), strict=True)
    return network.eval()


NETWORKS = {
    "embedded": Kind(_load_embedded, parser.STRIDE),
    "bisenet": Kind(_load_bisenet, bisenet.MULTIPLE_PX),
}
"""The values of `parse.parser` that are networks."""


class ParserNetwork:
    """A loaded network on its device."""

    def __init__(self, module: nn.Module, device: torch.device, multiple_px: int, mirror: bool) -> None:
        self.device, self._mirror = device, mirror
        self._multiple = multiple_px
        self._module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def side(self, work_px: int) -> int:
        """The side nearest to `work_px` that the network takes."""
        return max(1, round(work_px / self._multiple)) * self._multiple

    def batch_frames(self, side: int) -> int:
        """How many pictures of `side` go through it at once: on a CPU so few that their layers stay in the cache."""
        return GPU_FRAMES if self.device.type == "cuda" else max(2, CPU_PIXELS // side**2)

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> Tensor:
        """Class probabilities of a batch.

        On a GPU the network computes in half precision; the softmax is float32 everywhere.

        Args:
            images: `(n, S, S, 3)` u1 RGB, S as `side` says.

        Returns:
            `(n, S, S, 19)` float32 on the device.
        """
        batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)  # channels last already
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.device.type == "cuda"):
            pictures = batch.float() / 255
            shares = _shares(self._module(pictures))
            if self._mirror:
                shares.add_(_shares(self._module(pictures.flip(-1))).flip(2)[..., MIRRORED_IDS]).mul_(0.5)
        return shares


def _shares(logits: Tensor) -> Tensor:
    """`(n, 19, S, S)` scores to `(n, S, S, 19)` float32 probabilities."""
    return logits.float().permute(0, 2, 3, 1).contiguous().softmax(dim=-1)


@functools.lru_cache(maxsize=2)
def load_network(name: str, device: str, mirror: bool, file: Path | None = None) -> ParserNetwork:
    """A trained parser, loaded once per process.

    Args:
        name: Key of `NETWORKS`.
        device: auto, cpu, cuda or cuda:N.
        mirror: Average with the mirrored picture.
        file: Its weights; None: the package's own, or the registry's place.

    Returns:
        The network.

    Raises:
        StageError: The weights are missing, damaged or of another network, or the device is not there.
    """
    where = choose_device(device)
    try:
        module = NETWORKS[name].load(file)
    except (OSError, ValueError, RuntimeError) as error:
        raise StageError(f"parser {name}: {error}") from None
    return ParserNetwork(module, where, NETWORKS[name].multiple_px, mirror)
