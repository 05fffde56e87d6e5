"""Training of the embedded head parser: `head3d train-parser FOLDER` -> a weights file and its figures.

FOLDER holds train/ and val/, each with images/ and masks/ (see tasks/parser_data.py). The pictures lie on the device,
views are drawn there, and the weights that are kept are a running mean over the last thousands of steps.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parser import CLASSES, HeadParser, load_parser
from tasks import labels
from tasks.checkpoint_folder import write_state, write_tensors
from tasks.disk import storage_errors, whole_file
from tasks.errors import StageError
from tasks.output import check_output
from tasks.parser_data import UNKNOWN, Augment, LabelledImages, read_labelled, repair_sides
from tasks.parser_score import score
from tasks.progress import progress

RARE_WEIGHT = {labels.EARRING: 3.0, labels.NECKLACE: 3.0, labels.HAT: 2.0, labels.GLASSES: 2.0}
"""Classes that few pictures show count more in the cross entropy."""


SAVE_EVERY_S = 60.0
LOG_EVERY = 200


@dataclass(frozen=True)
class ParserTraining:
    """Settings of a training run; the values of the shipped weights are the defaults of `head3d train-parser`."""

    steps: int
    batch: int
    lr: float
    weight_decay: float
    sizes_px: tuple[int, ...]  # in turn
    ema_steps: int  # the mean over about so many steps is kept
    seed: int
    zoomed_out: float  # share of the views in which the head is small
    init: str  # weights file to go on from; empty: from nothing
    init_share: float  # of those in the result: a mean of both generalises better than either


def train_parser(folder: Path, out: Path, settings: ParserTraining, device: torch.device) -> dict[str, Any]:
    """Train, judge on `val`, write the weights (fp16, fused) and beside them `<name>.json` with the figures.

    A run that is interrupted goes on from `<name>.resume.pt`, which is written every minute.

    Args:
        folder: With train/ and val/.
        out: The safetensors file.
        settings: How long and how.
        device: Where.

    Returns:
        The figures: of `val` at each size, of `val` shrunk to 0.45, size, seconds, data.

    Raises:
        StageError: `out` cannot be written, or the folder has no data.
    """
    init = Path(settings.init) if settings.init else None
    check_output(out, "weights are", (".safetensors",), "parser.safetensors", init)
    torch.manual_seed(settings.seed)
    data, refused = read_labelled(folder / "train")
    fixed, swapped = repair_sides(data.class_ids)
    data = LabelledImages(data.images.to(device), fixed.to(device))
    val, refused_val = read_labelled(folder / "val")
    val = LabelledImages(val.images.to(device), val.class_ids.to(device))
    start = time.monotonic()
    network = _Run(data, settings, device, out.with_suffix(".resume.pt")).finish()
    seconds = time.monotonic() - start
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(network, out)
    figures = {
        "settings": asdict(settings),
        "train_images": len(data),
        "val_images": len(val),
        "left_out": len(refused) + len(refused_val),
        "sides_repaired": swapped,
        "seconds": round(seconds, 1),
        "bytes": out.stat().st_size,
        **score(network.fuse(), val),
    }
    out.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".resume.pt").unlink(missing_ok=True)
    return figures


def save_weights(network: HeadParser, path: Path) -> None:
    """Write a trained network fused and in fp16; `load_parser` reads it."""
    fused = copy.deepcopy(network).cpu().fuse()
    weights = {name: value.half() for name, value in fused.state_dict().items()}
    with storage_errors(path.parent), whole_file(path) as partial:
        write_tensors(partial, weights)


def parsing_loss(logits: Tensor, class_ids: Tensor) -> Tensor:
    """Cross entropy and soft Dice over the classes, and again entropy and overlap for the head as a whole and the hair.

    Args:
        logits: `(B, 19, H, W)`.
        class_ids: `(B, H, W)` int64; 255 is left out.

    Returns:
        A scalar.
    """
    logits = logits.float()
    weight = torch.ones(CLASSES, device=logits.device)
    for label, value in RARE_WEIGHT.items():
        weight[label] = value
    entropy = F.cross_entropy(logits, class_ids, weight, ignore_index=UNKNOWN)
    known = (class_ids != UNKNOWN)[:, None]
    share = logits.softmax(dim=1) * known
    truth = class_ids[:, None] == torch.arange(CLASSES, device=logits.device).view(1, -1, 1, 1)
    both, all_of = (share * truth).sum(dim=(0, 2, 3)), (share + truth).sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    dice = 1 - (2 * both + 1) / (all_of + 1)
    dice = (dice * present).sum() / present.sum().clamp(min=1)
    total = entropy + 0.5 * dice
    for classes in (labels.HEAD, (labels.HAIR,)):
        total = total + 0.5 * _region_loss(share, truth, known[:, 0].float(), list(classes))
    return total


def _region_loss(share: Tensor, truth: Tensor, seen: Tensor, classes: list[int]) -> Tensor:
    """Binary cross entropy and soft intersection over union of several classes taken as one region."""
    inside = share[:, classes].sum(dim=1).clamp(1e-5, 1 - 1e-5)
    wanted = truth[:, classes].any(dim=1).float()
    entropy = -(wanted * inside.log() + (1 - wanted) * (1 - inside).log()) * seen
    both = (inside * wanted).sum(dim=(1, 2))
    either = (inside * seen).sum(dim=(1, 2)) + wanted.sum(dim=(1, 2)) - both
    return entropy.sum() / seen.sum() + (1 - (both + 1) / (either + 1)).mean()


class _Run:
    """A training run that can be taken up again."""

    def __init__(self, data: LabelledImages, settings: ParserTraining, device: torch.device, resume: Path) -> None:
        self._settings, self._device, self._resume = settings, device, resume
        # One that goes on has no batch norms any more: they are folded in, and stay as they were.
        network = load_parser(settings.init) if settings.init else HeadParser()
        self._network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = copy.deepcopy(self._network).eval()
        self._optimiser = torch.optim.AdamW(
            _parameter_groups(self._network, settings.weight_decay), lr=settings.lr, fused=device.type == "cuda"
        )
        self._data, self._step = data, 0
        self._views = Augment(data, settings.seed, settings.zoomed_out)
        if resume.is_file():
            self._load()

    def finish(self) -> HeadParser:
        """Train to the end; returns the running mean of the weights, mixed with those it began from."""
        settings, saved = self._settings, time.monotonic()
        with progress("train-parser", settings.steps, "step", self._step) as bar:
            while self._step < settings.steps:
                for group in self._optimiser.param_groups:
                    group["lr"] = settings.lr * _schedule(self._step, settings.steps)
                size = settings.sizes_px[self._step % len(settings.sizes_px)]
                image, class_ids = self._views.batch(self._step, settings.batch, size)
                loss = self._loss(image.contiguous(memory_format=torch.channels_last), class_ids)
                self._optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
                self._optimiser.step()
                self._step += 1
                self._follow()
                bar.update(1)
                if self._step % LOG_EVERY == 0:
                    value = float(loss.detach())
                    if not math.isfinite(value):
                        raise StageError(f"the loss is {value} at step {self._step}; try a smaller --lr")
                    bar.set_postfix_str(f"loss {value:.3f}")
                    if time.monotonic() - saved > SAVE_EVERY_S:
                        self._save()
                        saved = time.monotonic()
        if settings.init:
            before = load_parser(settings.init, self._device)
            with torch.no_grad():
                for mine, theirs in zip(self._mean.parameters(), before.parameters(), strict=True):
                    mine.lerp_(theirs, settings.init_share)
        return self._mean

    def _loss(self, image: Tensor, class_ids: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            logits = self._network(image)
        return parsing_loss(logits, class_ids)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the running mean towards the weights; the norms' statistics are taken as they are."""
        share = max(1 / self._settings.ema_steps, 1 / (1 + self._step))
        theirs = [p.detach() for p in self._network.parameters()]
        torch._foreach_lerp_(list(self._mean.parameters()), theirs, share)
        for mine, other in zip(self._mean.buffers(), self._network.buffers(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(other, share)

    def _state(self) -> dict[str, Any]:
        return {
            "settings": asdict(self._settings),
            "step": self._step,
            "network": self._network.state_dict(),
            "mean": self._mean.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def _save(self) -> None:
        self._resume.parent.mkdir(parents=True, exist_ok=True)
        with storage_errors(self._resume.parent), whole_file(self._resume) as partial:
            write_state(partial, self._state())

    def _load(self) -> None:
        state = torch.load(self._resume, map_location=self._device, weights_only=True)
        if state["settings"] != asdict(self._settings):
            raise StageError(f"{self._resume} belongs to a run with other settings; delete it to begin anew")
        self._network.load_state_dict(state["network"])
        self._mean.load_state_dict(state["mean"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._step = state["step"]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over 2%, then a cosine to nothing."""
    warm = max(1, steps // 50)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels only."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
