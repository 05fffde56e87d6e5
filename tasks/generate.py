"""The stage `generate`: self-reconstruction and cross-identity videos of every method, losslessly and as mp4."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import ZstdCodec

from models.config import Generate, Params, Runtime
from models.engine import Engine
from models.head3d import Subject
from tasks.checkpoint_folder import mark, read_fingerprint
from tasks.clip_data import ClipSet, load_clips, usable_clips
from tasks.device import choose_device
from tasks.disk import whole_file
from tasks.errors import StageError
from tasks.external import check_folders, take_in
from tasks.frames import to_uint8
from tasks.generated import SECONDS, Seconds
from tasks.methods import METHODS, OURS
from tasks.pairs import choose_pairs
from tasks.paths import Paths
from tasks.progress import progress
from tasks.stores import array
from tasks.trained import load_model, load_without_head
from tasks.video import write_video

BATCH = 20
"""Frames that the engine takes at a time; a clip has 40."""


def reference_frames(reference: int, length: int, count: int, seed: int) -> Tensor:
    """The N frames of a clip that make the canonical head: s_ref first, then others in a random order.

    Source: Sec. 3.4 samples s_ref and the references at random. Here chance is fixed by the seed, s_ref is one of the
    references (N = 1 is s_ref alone), and a larger N only adds frames, so that the rows of Table 3 differ in N alone.

    Args:
        reference: Frame of s_ref.
        length: Frames of the clip.
        count: N; a shorter clip gives all its frames.
        seed: Of the pairs.

    Returns:
        `(min(count, length),)` frame indices.
    """
    order = np.random.default_rng([seed, reference]).permutation(length)
    return torch.tensor([reference, *order[order != reference][: count - 1].tolist()])


def make_subject(
    engine: Engine, clips: ClipSet, clip: int, reference: int, config: Generate, method: str = OURS
) -> Subject:
    """The canonical head of a stored clip as a method makes it; `reference` is s_ref's frame, the same for all."""
    row = METHODS[method]
    count = row.references or config.references
    frames = reference_frames(reference, clips.frames.shape[1], count, config.seed)
    return engine.subject(clips.images(clip, frames), clips.heads(clip, frames)[1], 0, row.mean_head)


def render_pair(
    engine: Engine, clips: ClipSet, subject: int, driving: int, reference: int, method: str, config: Generate
) -> tuple[np.ndarray, np.ndarray | None]:
    """One method's video of one pair.

    Args:
        engine: Of the trained model, with the method's fusion network.
        clips: Loaded clips.
        subject: Position of the subject clip.
        driving: Position of the driving clip.
        reference: Frame of s_ref in the subject clip.
        method: Its name in `METHODS`.
        config: N, the seed and the mode.

    Returns:
        Frames `(T, H, W, 3)` uint8, and the canonical head `(H, W, 4)` uint8 RGBA (None where the method has none).
    """
    motion, masks = clips.frames[driving].permute(0, 2, 3, 1), clips.head[driving, :, 0]
    if METHODS[method].role == "trivial":
        still = clips.images(subject, slice(reference, reference + 1))
        return to_uint8(still.expand(len(motion), -1, -1, -1)), None
    state = make_subject(engine, clips, subject, reference, config, method)
    engine.start(state, engine.pose_of(motion[:1], masks[:1]) if config.mode == "relative" else None)
    frames = engine.frames(motion, masks, BATCH).frames.numpy()
    if not METHODS[method].driving_head:
        return frames, None
    return frames, to_uint8(torch.cat([state.head.image, state.head.mask], dim=1))[0]


def _prepare(paths: Paths, fingerprint: str, methods: Sequence[str]) -> Path:
    """The stage's folder without what other settings, a killed run or methods no longer asked for left there."""
    folder = paths.generated
    if folder.exists() and read_fingerprint(folder) != fingerprint:
        shutil.rmtree(folder)
        (paths.metrics / SECONDS).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for stray in folder.rglob("*.partial*"):
        stray.unlink()
    for kind in ("videos", "canonical", "frames.zarr"):
        for old in (folder / kind).glob("*/"):
            if old.name not in methods:
                shutil.rmtree(old)
    return folder


def _frame_arrays(folder: Path, pairs: Any, methods: Sequence[str], shape: tuple[int, ...]) -> zarr.Group:
    """`frames.zarr` with an array `{method}/{setting}` for whatever is to be made; those that are there stay."""
    group = zarr.open_group(folder / "frames.zarr", mode="a", zarr_format=3)
    for method in methods:
        for setting, rows in pairs.groupby("setting"):
            if setting in METHODS[method].settings and f"{method}/{setting}" not in group:
                group.create_array(
                    f"{method}/{setting}",
                    shape=(len(rows), *shape),
                    chunks=(1, *shape),
                    dtype="uint8",
                    compressors=ZstdCodec(level=1),
                )
    return group


def _load_engines(paths: Paths, methods: Sequence[str], device: torch.device, runtime: Runtime) -> dict[bool, Engine]:
    """Of the trained model and, where a method asks for it, of the one whose fusion does not see x_hat_dri (key False).

    What is measured must not hang on the machine: float32.
    """
    checkpoints = paths.data / "checkpoints"
    models = {True: load_model(checkpoints, device)}
    if not all(METHODS[method].driving_head for method in methods):
        models[False] = load_without_head(models[True], checkpoints)
    return {key: Engine(model, "float32", record=runtime.cuda_graphs) for key, model in models.items()}


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """The stage `generate`; a killed run goes on with the next video, and a method that is added makes only its own.

    Args:
        params: All settings; `generate`, `crop` and `runtime` are used.
        paths: The data folder.
        fingerprint: Hash of what this stage depends on, without `generate.methods`.

    Returns:
        How many pairs and videos there are, and each method's median seconds per frame.

    Raises:
        StageError: The model is not trained, or no pair can be made.
    """
    config = params.generate
    device = choose_device(params.runtime.device)
    check_folders(config.external)
    folder = _prepare(paths, fingerprint, config.methods)
    pairs = choose_pairs(usable_clips(paths), params.crop.clip_frames, config)
    if pairs.empty:
        raise StageError(
            "no pair can be made: self-reconstruction needs a video with two clips, cross-identity two people; "
            "lower crop.clip_frames or add videos"
        )
    engines = _load_engines(paths, config.methods, device, params.runtime)
    needed = {*pairs["subject_clip"], *pairs["driving_clip"]}  # a few of a training set that may fill the memory
    clips = load_clips(paths, None, device, with_geometry=False, on_gpu=params.runtime.clips_on_gpu, only=needed)
    shape = (clips.frames.shape[1], clips.size_px, clips.size_px, 3)
    group = _frame_arrays(folder, pairs, config.methods, shape)
    mark(folder, fingerprint, complete=False)
    own = [method for method in config.methods if METHODS[method].role != "external"]
    jobs = [
        (method, pair)
        for pair in pairs.to_dict("records")
        for method in own
        if pair["setting"] in METHODS[method].settings
    ]
    seconds = Seconds(paths.metrics / SECONDS, own)
    with progress("generate", len(jobs), "video") as bar, seconds:
        for method, pair in jobs:
            setting, name = str(pair["setting"]), str(pair["pair"])
            video = folder / "videos" / method / setting / f"{name}.mp4"
            if not video.is_file():
                subject, driving = clips.index_of(pair["subject_clip"]), clips.index_of(pair["driving_clip"])
                started = time.perf_counter()
                frames, canonical = render_pair(
                    engines[METHODS[method].driving_head],
                    clips,
                    subject,
                    driving,
                    pair["reference_frame"],
                    method,
                    config,
                )
                seconds.add(method, name, (time.perf_counter() - started) / len(frames))
                array(group, f"{method}/{setting}")[int(pair["index"])] = frames
                if canonical is not None:
                    write_png(folder / "canonical" / method / setting / f"{name}.png", canonical)
                video.parent.mkdir(parents=True, exist_ok=True)
                write_video(
                    video, frames, float(clips.table["fps"].iloc[driving])
                )  # written last: the mark that this video is done
            bar.update()
    pairs.to_csv(folder / "pairs.csv", index=False)
    fps = {str(clip): float(value) for clip, value in zip(clips.table["clip"], clips.table["fps"], strict=True)}
    outside = take_in(config.external, pairs, folder, group, fps)
    mark(folder, fingerprint, complete=True)
    counts = pairs["setting"].value_counts()
    return {
        "device": str(device),
        "videos": len(jobs),
        "self_pairs": int(counts.get("self", 0)),
        "cross_pairs": int(counts.get("cross", 0)),
        "pairs_seen_in_training": int(pairs["seen_in_training"].sum()),
        **{f"seconds_per_frame_{method}": seconds.median(method) for method in own},
        **outside,
    }


def write_png(path: Path, image: np.ndarray) -> None:
    """Write RGB or RGBA `(H, W, 3 | 4)` uint8, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, code))
    assert ok
    with whole_file(path) as partial:
        partial.write_bytes(data.tobytes())
