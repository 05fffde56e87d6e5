"""The stage `generate`: self-reconstruction and cross-identity videos of every method, losslessly and as mp4."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import ZstdCodec

from models.config import Generate, Params
from models.head3d import Head3D, Subject
from tasks.clip_data import ClipSet, load_clips, usable_clips
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.frames import spread_frames, to_uint8
from tasks.pairs import choose_pairs
from tasks.paths import Paths
from tasks.progress import progress
from tasks.stores import array
from tasks.trained import load_model
from tasks.training import read_fingerprint
from tasks.video import write_video


def references_with(reference: int, length: int, count: int) -> Tensor:
    """N frames of a clip: s_ref first, the others spread over the clip, in a fixed order (design section 8)."""
    others = [int(frame) for frame in spread_frames(length, count + 1) if int(frame) != reference]
    return torch.tensor([reference, *others[: count - 1]])


def make_subject(model: Head3D, clips: ClipSet, clip: int, reference: int, count: int, use_mean: bool) -> Subject:
    """The canonical head of a stored clip; `reference` is s_ref's frame, `count` is N."""
    frames = references_with(reference, clips.frames.shape[1], count)
    images = clips.images(clip, frames)
    return model.subject(images, clips.head[clip, frames].float(), 0, use_mean)


def render_pair(
    model: Head3D, clips: ClipSet, subject: int, driving: int, reference: int, method: str, config: Generate
) -> tuple[np.ndarray, np.ndarray | None]:
    """One method's video of one pair.

    Args:
        model: The trained model.
        clips: Loaded clips.
        subject: Position of the subject clip.
        driving: Position of the driving clip.
        reference: Frame of s_ref in the subject clip.
        method: head3d, mean_canonical or copy_reference.
        config: N and the mode.

    Returns:
        Frames `(T, H, W, 3)` uint8, and the canonical head `(H, W, 4)` uint8 RGBA (None for the copy).
    """
    images, masks = clips.images(driving), clips.head[driving].float()
    if method == "copy_reference":
        still = clips.images(subject, slice(reference, reference + 1))
        return to_uint8(still.expand(len(images), -1, -1, -1)), None
    state = make_subject(model, clips, subject, reference, config.references, method == "mean_canonical")
    output = model.animate(state, images, masks, config.mode == "relative")
    canonical = to_uint8(torch.cat([state.head.image, state.head.mask], dim=1))[0]
    return to_uint8(output.image), canonical


def _prepare(paths: Paths, fingerprint: str) -> Path:
    folder = paths.generated
    if folder.exists() and read_fingerprint(folder) != fingerprint:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stray in folder.rglob("*.partial*"):
        stray.unlink()
    return folder


def _frame_arrays(folder: Path, pairs: Any, methods: Sequence[str], shape: tuple[int, ...]) -> zarr.Group:
    file = folder / "frames.zarr"
    if (file / "zarr.json").is_file():
        return zarr.open_group(file, mode="r+", zarr_format=3)
    group = zarr.create_group(file, zarr_format=3)
    for method in methods:
        for setting, rows in pairs.groupby("setting"):
            group.create_array(
                f"{method}/{setting}",
                shape=(len(rows), *shape),
                chunks=(1, *shape),
                dtype="uint8",
                compressors=ZstdCodec(level=1),
            )
    return group


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """The stage `generate`; a killed run goes on with the next video.

    Args:
        params: All settings; `generate`, `crop` and `runtime` are used.
        paths: The data folder.
        fingerprint: Hash of what this stage depends on.

    Returns:
        How many pairs and videos there are.

    Raises:
        StageError: The model is not trained, or no pair can be made.
    """
    config = params.generate
    device = choose_device(params.runtime.device)
    folder = _prepare(paths, fingerprint)
    pairs = choose_pairs(usable_clips(paths), params.crop.clip_frames, config)
    if pairs.empty:
        raise StageError(
            "no pair can be made: self-reconstruction needs a video with two clips, cross-identity two people; "
            "lower crop.clip_frames or add videos"
        )
    model = load_model(paths.data / "checkpoints", device)
    clips = load_clips(paths, None, device, with_geometry=False)
    shape = (clips.frames.shape[1], clips.size_px, clips.size_px, 3)
    group = _frame_arrays(folder, pairs, config.methods, shape)
    (folder / "stage.json").write_text(json.dumps({"fingerprint": fingerprint, "complete": False}) + "\n")
    jobs = [(method, pair) for method in config.methods for pair in pairs.to_dict("records")]
    with progress("generate", len(jobs), "video") as bar:
        for method, pair in jobs:
            setting, name = str(pair["setting"]), str(pair["pair"])
            video = folder / "videos" / method / setting / f"{name}.mp4"
            if not video.is_file():
                subject, driving = clips.index_of(pair["subject_clip"]), clips.index_of(pair["driving_clip"])
                frames, canonical = render_pair(model, clips, subject, driving, pair["reference_frame"], method, config)
                array(group, f"{method}/{setting}")[int(pair["index"])] = frames
                if canonical is not None:
                    write_png(folder / "canonical" / method / setting / f"{name}.png", canonical)
                video.parent.mkdir(parents=True, exist_ok=True)
                write_video(
                    video, frames, float(clips.table["fps"].iloc[driving])
                )  # written last: the mark that this video is done
            bar.update()
    pairs.to_csv(folder / "pairs.csv", index=False)
    (folder / "stage.json").write_text(json.dumps({"fingerprint": fingerprint, "complete": True}) + "\n")
    counts = pairs["setting"].value_counts()
    return {
        "device": str(device),
        "videos": len(jobs),
        "self_pairs": int(counts.get("self", 0)),
        "cross_pairs": int(counts.get("cross", 0)),
        "pairs_seen_in_training": int(pairs["seen_in_training"].sum()),
    }


def write_png(path: Path, image: np.ndarray) -> None:
    """Write RGB or RGBA `(H, W, 3 | 4)` uint8, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, code))
    assert ok
    partial = path.with_suffix(".png.partial")
    partial.write_bytes(data.tobytes())
    partial.replace(path)
