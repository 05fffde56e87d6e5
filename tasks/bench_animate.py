"""What a frame of `head3d animate` costs: one at a time, many at a time, and what each faster way changes.

Also runs as `python -m tasks.bench_animate --params flows/presets/paper.yaml` where only torch, numpy and pydantic are.

What is measured begins with the cropped driving frame and its head mask in the host's memory (uint8) and ends with the
new frame there (uint8). Decoding, cropping, parsing (but see `with_parser`) and encoding are not in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.canonical import RecurrentCanonical
from models.config import Params, load_params
from models.depth_net import DepthNetwork
from models.engine import PRECISIONS, Engine, Precision, change_of_error, rounding
from models.fusion import FusionNetwork
from models.head3d import Head3D, Subject
from models.pose_net import PoseNetwork
from tasks.device import choose_device
from tasks.device_peak import kernels, measured_peak, wait

REFERENCES = 5
WARM_CALLS = 5
JUDGED = 16
"""Frames that a mode's numbers are compared on."""


class Bench(NamedTuple):
    """What is measured.

    Attributes:
        device: Where.
        size_px: Side of the frames.
        batch: Frames at a time in the second figure.
        frames: Calls of the first figure; frames of the second.
        compiled: Also the two short precisions with torch.compile (minutes).
        with_parser: Also one frame at a time with the embedded parser finding its head mask.
    """

    device: torch.device
    size_px: int
    batch: int
    frames: int
    compiled: bool
    with_parser: bool


def random_model(params: Params, size_px: int, device: torch.device) -> Head3D:
    """The networks of the settings with seeded random weights: they take as long as trained ones.

    Args:
        params: Sections `geometry`, `canonical` and `fusion`.
        size_px: Side of the frames.
        device: Where they shall lie.
    """
    torch.manual_seed(0)
    camera = params.geometry.camera
    fusion = FusionNetwork(params.fusion.net, params.fusion.flow_net)
    torch.nn.init.normal_(fusion.decoder.out.weight, std=0.01)  # zeros would hide what rounding does before it
    pose = PoseNetwork(params.geometry.pose_net, camera)
    depth, canonical = DepthNetwork(params.geometry.depth_net, camera), RecurrentCanonical(params.canonical.net)
    for network in (depth, pose, canonical, fusion):
        network.to(device).eval().requires_grad_(False)
    return Head3D(depth, pose, canonical, fusion, camera, size_px)


def drawn_frames(count: int, size_px: int) -> tuple[Tensor, Tensor]:
    """A painted head that swings, and its mask.

    Returns:
        `(T, S, S, 3)` and `(T, S, S)` uint8.
    """
    y, x = np.mgrid[0:size_px, 0:size_px] / (size_px - 1)
    frames = np.empty((count, size_px, size_px, 3), np.uint8)
    masks = np.empty((count, size_px, size_px), np.uint8)
    for t in range(count):
        centre = 0.5 + 0.08 * np.sin(0.35 * t)
        head = ((x - centre) / 0.25) ** 2 + ((y - 0.45) / 0.33) ** 2 < 1
        picture = np.stack([120 + 60 * y, 140 - 50 * x, 90 + 40 * np.sin(9 * x)], -1)
        picture[head] = np.stack([200 - 60 * y, 150 + 30 * x, 120 + 20 * np.cos(12 * y)], -1)[head]
        for side in (-1, 1):
            picture[(x - centre - 0.02 * np.sin(0.35 * t) - 0.09 * side) ** 2 + (y - 0.42) ** 2 < 0.03**2] = 20
        picture[((x - centre) / 0.08) ** 2 + ((y - 0.6) / (0.02 + 0.01 * np.sin(t))) ** 2 < 1] = (160, 40, 50)
        frames[t], masks[t] = picture.clip(0, 255), head
    return torch.from_numpy(frames), torch.from_numpy(masks)


def to_stored(images: Tensor) -> Tensor:
    """`(T, 3, H, W)` in [0, 1] to stored frames `(T, H, W, 3)` uint8 on the CPU."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()


def _milliseconds(call: Callable[[int], Any], count: int, device: torch.device) -> np.ndarray:
    """How long each of `count` calls takes, after some that are not counted."""
    for index in range(WARM_CALLS):
        call(index)
    wait(device)
    took = []
    for index in range(count):
        started = time.perf_counter()
        call(index)
        took.append(time.perf_counter() - started)
    return 1e3 * np.array(took)


def _timed(one: Callable[[Tensor, Tensor], Any], many: Callable[[Tensor, Tensor], Any], bench: Bench) -> dict[str, Any]:
    """Figures of one way to make frames; both calls end with the frames in the host's memory."""
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    frames, masks = drawn_frames(max(bench.batch, JUDGED), bench.size_px)
    single = _milliseconds(lambda i: one(frames[i % len(frames)], masks[i % len(masks)]), bench.frames, bench.device)
    figures: dict[str, Any] = {
        "stream_ms_median": float(np.median(single)),
        "stream_ms_p95": float(np.quantile(single, 0.95)),
        "stream_fps": 1e3 / float(np.median(single)),
    }
    if bench.batch > 1:
        rounds = max(3, bench.frames // bench.batch)
        whole = _milliseconds(lambda _: many(frames[: bench.batch], masks[: bench.batch]), rounds, bench.device)
        figures |= {"batch_fps": bench.batch * 1e3 / float(np.median(whole))}
    if on_gpu:
        figures["peak_memory_mb"] = torch.cuda.max_memory_allocated(bench.device) / 2**20
    return figures


def _plain(model: Head3D, subject: Subject, bench: Bench) -> dict[str, Any]:
    """The model as it was before there was an engine: the whole forward pass, float32, from Python."""

    def many(frames: Tensor, masks: Tensor) -> Tensor:
        images = frames.to(model.device).permute(0, 3, 1, 2).float() / 255
        made = model.drive(subject, images, masks.to(model.device)[:, None].float())
        return to_stored(made.image)

    with rounding("float32"):
        return _timed(lambda frame, mask: many(frame[None], mask[None]), many, bench)


@torch.inference_mode()
def _apart(model: Head3D, engine: Engine, subject: Subject, size_px: int, batch: int) -> dict[str, float]:
    """How far an engine's frames are from those of the plain float32 model, in [0, 1] and in grey levels of 255."""
    frames, masks = drawn_frames(JUDGED, size_px)
    images = frames.to(model.device).permute(0, 3, 1, 2).float() / 255
    heads = masks.to(model.device)[:, None].float()
    with rounding("float32"):
        expected = model.drive(subject, images, heads).image
    difference = engine.images(images, heads) - expected
    # the frames as they come out, recorded or compiled
    levels = (engine.frames(frames, masks, batch).frames.float() - to_stored(expected).float()).abs()
    return {
        "mse_to_eager": float(difference.square().mean()),
        "largest_difference": float(difference.abs().max()),
        "mean_difference_levels": float(levels.mean()),
        "largest_difference_levels": float(levels.max()),
        "change_of_error": change_of_error(model, engine, subject, frames, masks),
    }


def _with_parser(engine: Engine, bench: Bench) -> dict[str, float]:
    """One frame at a time, its head mask found by the embedded parser (no smoothing over time, which needs the next
    frame)."""
    from tasks.labels import HEAD_AND_HAT, head_mask
    from tasks.parser_network import load_network
    from tasks.segment_network import segment_network

    network = load_network("embedded", str(bench.device), False)
    nobody = np.full((1, 4), np.nan)

    def one(frame: Tensor) -> None:
        class_ids = segment_network(frame[None].numpy(), nobody, network, bench.size_px, 1)
        engine.frames(frame[None], torch.from_numpy(head_mask(class_ids, list(HEAD_AND_HAT))), 1)

    frames = drawn_frames(JUDGED, bench.size_px)[0]
    took = _milliseconds(lambda i: one(frames[i % JUDGED]), bench.frames, bench.device)
    return {"stream_ms_median": float(np.median(took)), "stream_ms_p95": float(np.quantile(took, 0.95))}


class Mode(NamedTuple):
    """One way of the engine.

    Attributes:
        name: In the figures.
        precision: Of the networks.
        compiled: By torch.compile.
        fused: Whether cuDNN joins convolution, sum and ReLU (on a GPU, but not in float32).
    """

    name: str
    precision: Precision
    compiled: bool = False
    fused: bool = True


def modes(bench: Bench) -> list[Mode]:
    """What is measured; what a CPU gains nothing by is left out."""
    on_gpu = bench.device.type == "cuda"
    found = [Mode("float32", "float32")]
    if on_gpu:
        found = [*(Mode(name, name) for name in PRECISIONS), Mode("float16_unfused", "float16", fused=False)]
    if bench.compiled:
        short: tuple[Precision, ...] = ("float16", "bfloat16") if on_gpu else ("float32",)
        found += [Mode(f"{name}_compiled", name, compiled=True) for name in short]
    return found


def _tell(mode: str, figures: dict[str, Any]) -> None:
    """A mode's figures as soon as they are known: a run that is cut short has shown what it measured."""
    sys.stderr.write(json.dumps({"mode": mode, **figures}) + "\n")
    sys.stderr.flush()


def bench_animate(model: Head3D, bench: Bench) -> dict[str, Any]:
    """Measure all modes.

    Args:
        model: Trained or not.
        bench: What to measure.

    Returns:
        Figures of the device and the subject, and `modes`: name -> figures. `share_of_peak` is of `batch_fps`.
    """
    device, count = bench.device, max(bench.batch, JUDGED)
    frames, masks = drawn_frames(count, bench.size_px)
    chosen = torch.arange(REFERENCES) * (count // REFERENCES)
    images = frames.to(device).permute(0, 3, 1, 2).float() / 255
    heads = masks.to(device)[:, None].float()
    model.subject(images[chosen], heads[chosen], 0)  # kernels are loaded
    wait(device)
    started = time.perf_counter()
    subject = model.subject(images[chosen], heads[chosen], 0)
    wait(device)
    subject_ms = 1e3 * (time.perf_counter() - started)
    peak = measured_peak(device)
    made: dict[str, dict[str, Any]] = {"plain_float32": _plain(model, subject, bench)}
    _tell("plain_float32", made["plain_float32"])
    notes, flops, parser = [], 0, {}
    for name, precision, compiled, fused in modes(bench):
        started = time.perf_counter()
        engine = Engine(model, precision, compiled=compiled, fused=fused)
        engine.start(subject)
        engine.frame(frames[0], masks[0])
        first_ms = 1e3 * (time.perf_counter() - started)
        if not flops:
            with FlopCounterMode(display=False) as counter:
                engine.images(images[:1], heads[:1])
            flops = counter.get_total_flops()
        figures = _timed(engine.frame, partial(engine.frames, batch=bench.batch), bench)
        made[name] = {
            "first_frame_ms": first_ms,
            **figures,
            **_apart(model, engine, subject, bench.size_px, bench.batch),
            "kernels_per_frame": kernels(partial(engine.frame, frames[0], masks[0]), device),
        }
        _tell(name, {**made[name], "notes": engine.notes})
        notes += [f"{name}: {note}" for note in engine.notes]
        if bench.with_parser and name == [mode for mode in modes(bench) if mode.fused][-1].name:
            parser = {"with_parser": {"mode": name, **_with_parser(engine, bench)}}
        del engine
    for figures in made.values():
        figures["share_of_peak"] = flops * figures.get("batch_fps", figures["stream_fps"]) / peak
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "size_px": bench.size_px,
        "batch": bench.batch,
        "frames": bench.frames,
        "measured": "cropped frame and head mask in host memory to new frame in host memory",
        "gflop_per_frame": flops / 1e9,
        "peak_tflops": peak / 1e12,
        "subject_ms": subject_ms,
        "modes": made,
        **parser,
        "notes": notes,
    }


def load_or_make(params: Params, checkpoints: Path | None, size_px: int | None, device: torch.device) -> Head3D:
    """The trained model of a folder, or one with random weights.

    Args:
        params: Settings of the latter.
        checkpoints: `data/checkpoints`; None: random weights.
        size_px: Side of the frames; None: as in the settings (or as trained).
        device: Where.
    """
    if checkpoints is None:
        return random_model(params, size_px or params.crop.size_px, device)
    from tasks.trained import load_model

    model = load_model(checkpoints, device)
    model.size_px = size_px or model.size_px
    return model


def main(words: list[str] | None = None) -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(prog="python -m tasks.bench_animate", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="settings, for example a preset's file"
    )
    parser.add_argument("--checkpoints", type=Path, help="a trained model; without it the weights are random")
    parser.add_argument("--size", type=int, help="side of the frames, pixels")
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="also compiled; takes minutes")
    parser.add_argument("--with-parser", action="store_true", help="also with the head parser in the path")
    given = parser.parse_args(words)
    device = choose_device(given.device)
    model = load_or_make(load_params(given.params, complete=False), given.checkpoints, given.size, device)
    bench = Bench(device, model.size_px, given.batch, given.frames, given.compile, given.with_parser)
    sys.stdout.write(json.dumps(bench_animate(model, bench), indent=2) + "\n")


if __name__ == "__main__":
    main()
