"""LPIPS, and the honest name for it where the backbone's weights are not on this machine.

The `lpips` package ships its linear heads; the backbone's ImageNet weights are torchvision's. Nothing is downloaded:
without the file the backbone is random (seeded), and the figure is called `lpips_random_backbone`, never LPIPS.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.config import Evaluate
from models.pretrained import REGISTRY, weights_folder
from tasks.device import choose_device
from tasks.errors import StageError

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
"""lpips' name of a backbone -> the registry's."""

RANDOM_SEED = 0
"""Seed of the backbone where no weights are there: the figure can be repeated, and compared on one machine only."""

MIN_SIDE_PX = 32
"""Smaller frames vanish in the backbone's strides."""

BATCH_FRAMES = 16


@dataclass(frozen=True)
class BackboneWeights:
    """The backbone's weights on this machine: `file` is None where there are none, and `message` says what to do."""

    file: Path | None
    sha256: str
    message: str


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_backbone_weights(backbone: str, configured: str) -> BackboneWeights:
    """Look for the ImageNet weights of an LPIPS backbone, without a network.

    Args:
        backbone: `alex`, `vgg` or `squeeze`.
        configured: `evaluate.lpips_weights`; empty: torch hub's checkpoint folder.

    Returns:
        The checked file, or None with the message which file to put where.

    Raises:
        StageError: A file was configured, and it is missing or is not torchvision's.
    """
    entry = REGISTRY[BACKBONES[backbone]]
    name, prefix = entry.file, entry.sha256
    path = Path(configured).expanduser() if configured else weights_folder() / name
    where = f"put {name} from {entry.url} (its SHA-256 starts with {prefix[:8]}) into {_tilde(path.parent)}"
    if not path.is_file():
        if configured:
            raise StageError(f"evaluate.lpips_weights = {configured}: there is no such file; {where}, or set it to ''")
        return BackboneWeights(None, "", f"no {name} on this machine; for LPIPS {where}, or name it in lpips_weights")
    digest = sha256_of(path)
    if not digest.startswith(prefix):
        problem = f"{path.name} has the SHA-256 {digest[:8]}... instead of {prefix[:8]}..."
        if configured:
            raise StageError(f"evaluate.lpips_weights: {problem}; {where}, or set it to ''")
        return BackboneWeights(None, "", f"{problem}: it is another or a broken file; {where}")
    return BackboneWeights(path, digest, "")


def _tilde(folder: Path) -> str:
    """`~/...` for a folder at home: the text ends up in committed tables, where nobody's home belongs."""
    home = Path.home()
    return f"~/{folder.relative_to(home).as_posix()}" if folder.is_relative_to(home) else str(folder)


class PerceptualMetric:
    """LPIPS with the weights of this machine; `name` is what its figures must be called."""

    def __init__(self, evaluate: Evaluate, device: torch.device | str = "cpu") -> None:
        """Load the metric.

        Args:
            evaluate: Backbone, its weights' place, and the stride over frames.
            device: Where it runs; `auto` as in the settings.

        Raises:
            StageError: The configured weights cannot be used, or there is no such device.
        """
        self.backbone = evaluate.lpips_backbone
        self.stride = evaluate.frame_stride
        self.weights = find_backbone_weights(self.backbone, evaluate.lpips_weights)
        self.name = "lpips" if self.weights.file else "lpips_random_backbone"
        self.device = choose_device(str(device))
        self._net, self.heads_sha256 = _build(self.backbone, self.weights.file)
        self._net.to(self.device)

    @property
    def label(self) -> str:
        """The name a person reads."""
        return "LPIPS" if self.weights.file else "lpips_random_backbone (not LPIPS)"

    @property
    def definition(self) -> str:
        """What the figure is: backbone, weights and how it is averaged."""
        how = f"mean over every {_nth(self.stride)} frame of a video, then over videos"
        heads = f"linear heads v0.1 (sha256 {self.heads_sha256[:8]})"
        if self.weights.file:
            weights = f"ImageNet weights (sha256 {self.weights.sha256[:8]})"
            return f"LPIPS, {self.backbone} with {weights}, {heads}, RGB in [-1, 1], {how}"
        random = f"a random {self.backbone} backbone (seed {RANDOM_SEED})"
        return f"not LPIPS: its formula over {random}, {heads}, {how}. {self.weights.message}"

    def video(self, pred: np.ndarray, truth: np.ndarray) -> float:
        """Mean distance over the frames looked at.

        Args:
            pred: `(T, H, W, 3)` uint8 RGB.
            truth: The same shape.

        Returns:
            The mean, or NaN where the frames are too small for the backbone.
        """
        if min(pred.shape[1:3]) < MIN_SIDE_PX:
            return math.nan
        pred, truth = pred[:: self.stride], truth[:: self.stride]
        total = 0.0
        with torch.inference_mode():
            for first in range(0, len(pred), BATCH_FRAMES):
                stop = first + BATCH_FRAMES
                values = self._net(self._signed(pred[first:stop]), self._signed(truth[first:stop]))
                total += float(values.double().sum())
        return total / len(pred)

    def _signed(self, frames: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)
        return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _nth(stride: int) -> str:
    return "single" if stride == 1 else f"{stride}th" if stride > 3 else ("2nd", "3rd")[stride - 2]


def _build(backbone: str, weights: Path | None) -> tuple[torch.nn.Module, str]:
    """The `lpips` network and the SHA-256 of its linear heads' file."""
    import lpips  # 1 s to import: only who measures pays

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # lpips still passes torchvision's old `pretrained=`
        torch.manual_seed(RANDOM_SEED)
        net = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)  # pnet_rand: it would download otherwise
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{backbone}.pth"
    if weights is not None:
        _load_backbone(net, weights)
    return net.eval().requires_grad_(False), sha256_of(heads)


def _load_backbone(net: torch.nn.Module, weights: Path) -> None:
    """Put torchvision's `features.N.*` into lpips' slices, which keep the layer number N in their names."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    own = net.get_submodule("net").state_dict()
    filled = {key: state.get("features." + key.split(".", 1)[1]) for key in own}
    wrong = [key for key, value in filled.items() if value is None or value.shape != own[key].shape]
    if wrong:
        raise StageError(f"{weights.name} does not fit the backbone (first: {wrong[0]}); use torchvision's own file")
    net.get_submodule("net").load_state_dict(filled)
