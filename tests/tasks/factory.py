"""Small finished data folders of the pipeline's exact formats, with moving coloured heads, for the late stages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
import zarr
from PIL import Image

from models.config import MethodName, Params, build
from tasks import methods
from tasks.paths import Paths
from tasks.quality import measure
from tasks.stores import clip_arrays, geometry_arrays, mask_arrays, open_or_create, write_rows
from tasks.video import write_video

PRESET = Path(__file__).parents[2] / "flows" / "presets" / "demo.yaml"
BRIGHTNESS: dict[MethodName, float] = {
    "head3d": 1.0, "head3d_n1": 0.9, "head3d_n3": 0.95, "head3d_n10": 1.0, "mean_canonical": 0.85,
}  # fmt: skip
"""What the factory's methods do to the truth, before noise."""
METHODS: tuple[MethodName, ...] = (*BRIGHTNESS, "copy_reference")
SKIN, HAIR = 1, 17


def make_params(**changes: dict[str, Any]) -> Params:
    """The demo preset with some values of some sections replaced.

    Args:
        changes: Section -> setting -> value; nested settings as nested dicts.

    Returns:
        The checked parameters.
    """
    values = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    _merge(values, changes)
    return build(Params, values)


def _merge(target: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            _merge(target[key], value)
        else:
            target[key] = value


def head_clip(
    person: int, phase: float, frames: int, size_px: int, swing: float = 0.12
) -> tuple[np.ndarray, np.ndarray]:
    """A head of one colour that swings left and right, and its class labels.

    Args:
        person: Chooses the colours.
        phase: Where in the swing it starts, radians.
        frames: T.
        size_px: Side of the frame.
        swing: Amplitude as a share of the side.

    Returns:
        `(T, size, size, 3)` uint8 frames and `(T, size, size)` uint8 CelebAMask-HQ ids.
    """
    rng = np.random.default_rng(person)
    background, skin, hair, cloth = rng.integers(40, 220, (4, 3))
    y, x = np.mgrid[0:size_px, 0:size_px] / (size_px - 1)
    images = np.empty((frames, size_px, size_px, 3), np.uint8)
    labels = np.zeros((frames, size_px, size_px), np.uint8)
    for t in range(frames):
        centre = 0.5 + swing * np.sin(phase + t * (0.3 + 0.5 * np.sin(0.6 * t + phase) ** 2))
        turn = 0.5 * (centre - 0.5)
        labels[t][(y > 0.78) & (abs(x - 0.5) < 0.35)] = 16
        labels[t][((x - centre) / 0.24) ** 2 + ((y - 0.45) / 0.32) ** 2 < 1] = HAIR
        labels[t][((x - centre - turn) / 0.19) ** 2 + ((y - 0.5) / 0.25) ** 2 < 1] = SKIN
        for side in (-1, 1):
            labels[t][(x - centre - 2 * turn - 0.08 * side) ** 2 + (y - 0.45) ** 2 < 0.03**2] = 4
        labels[t][((x - centre - 2 * turn) / 0.07) ** 2 + ((y - 0.63) / 0.025) ** 2 < 1] = 12
        colours = np.zeros((19, 3))
        colours[[0, 16, SKIN, HAIR, 4, 12]] = background, cloth, skin, hair, (20, 20, 20), (170, 40, 40)
        shade = 1.0 - 0.25 * y[..., None]
        images[t] = np.clip(colours[labels[t]] * shade, 0, 255).astype(np.uint8)
    return images, labels


@dataclass(frozen=True)
class Project:
    """A data folder on disk and what its stages know about it."""

    params: Params
    paths: Paths


def make_project(
    root: Path,
    *,
    people: int = 4,
    frames: int = 12,
    size_px: int = 32,
    cross: int = 4,
    videos: bool = True,
    **changes: dict[str, Any],
) -> Project:
    """Write what evaluate, study and report read: clips, masks, generated sets, canonical heads, loss curves.

    The last identity's self pair failed, one video was rejected, one was empty. Methods are the truth darkened by
    `BRIGHTNESS`, with a little noise; `copy_reference` is a frame of the subject held still.

    Args:
        root: An empty folder; `root/data` is made.
        people: Identities, each with one video of two clips; all are test people.
        frames: Frames of a clip.
        size_px: Side of a clip.
        cross: Pairs of the cross-identity set.
        videos: Whether mp4 files are written beside the frames.
        changes: Passed to `make_params`.

    Returns:
        The parameters and the paths.
    """
    sizes: dict[str, Any] = {"size_px": size_px, "clip_frames": frames, "clips_per_video": 2, "shard_clips": 4}
    params = make_params(**{**changes, "crop": {**sizes, **changes.get("crop", {})}})
    paths = Paths(root / "data")
    clips = _write_clips(params, paths, people)
    _write_generated(paths, _pairs(people, cross), clips, videos)
    _write_metrics(paths)
    return Project(params, paths)


def _write_clips(params: Params, paths: Paths, people: int) -> np.ndarray:
    crop = params.crop
    rows = 2 * (people + 2)  # two more videos gave no clip
    frames = np.zeros((rows, crop.clip_frames, crop.size_px, crop.size_px, 3), np.uint8)
    labels = np.full((rows, crop.clip_frames, crop.size_px, crop.size_px), 255, np.uint8)
    done = np.zeros(rows, np.uint8)
    table = []
    for row in range(2 * people):
        person, segment = divmod(row, 2)
        frames[row], labels[row] = head_clip(person, 0.7 * row, crop.clip_frames, crop.size_px)
        done[row] = 1
        table.append(_clip_row(person, segment, row, crop.clip_frames))
    for reason, detail in (
        ("empty_file", "the file has no bytes"),
        ("no_face", "no face in 20 of 22 frames <b>looked at</b>"),
    ):
        status = "error" if reason == "empty_file" else "rejected"
        table.append(
            {
                **_clip_row(people, 0, -1, 0),
                "clip": reason,
                "video": reason,
                "status": status,
                "reason": reason,
                "detail": detail,
                "source": f"raw/{reason}.mp4",
            }
        )
        people += 1
    paths.data.mkdir(parents=True)
    shard = crop.shard_clips
    clips = open_or_create(paths.clips, clip_arrays(crop.clip_frames, crop.size_px), rows, shard, "f")
    masks = open_or_create(paths.masks, mask_arrays(crop.clip_frames, crop.size_px), rows, shard, "f")
    head = np.isin(labels, params.parse.head_labels).astype(np.uint8)
    for first in range(0, rows, shard):
        part = slice(first, first + shard)
        write_rows(clips, first, {"frames": frames[part]}, done[part])
        write_rows(masks, first, {"labels": labels[part], "head": head[part]}, done[part])
    good = [row for row in table if row["status"] == "ok"]
    pd.DataFrame(table).to_parquet(paths.clip_table)
    blind = np.full((crop.clip_frames, 5, 2), np.nan)
    parsed = {"status": "ok", "reason": "", "detail": "", "flicker": 0.01}
    measured = [{"clip": r["clip"], **parsed, **measure(frames[r["row"]], labels[r["row"]], blind)} for r in good]
    pd.DataFrame(measured).to_parquet(paths.mask_table)
    poses = open_or_create(paths.geometry, geometry_arrays(crop.clip_frames, crop.size_px), rows, shard, "f")
    swing = np.linspace(-20, 20, crop.clip_frames)
    angles = np.zeros((rows, crop.clip_frames, 3), np.float32)
    angles[:, :, 0] = swing
    angles[0, :, 0] = 35 + swing / 4  # the first person is seen from one side only
    for first in range(0, rows, shard):
        part = slice(first, first + shard)
        write_rows(poses, first, {"angles_deg": angles[part]}, done[part])
    return frames


def _clip_row(person: int, segment: int, row: int, frames: int) -> dict[str, Any]:
    video = f"demo_{person:02d}"
    return {
        "clip": f"{video}_{segment}", "video": video, "dataset": "demo", "identity": f"person_{person:02d}",
        "split": "test",
        "source": f"data/raw/demo/{video}.mp4", "sha256": "0" * 64, "row": row, "segment": segment,
        "start_frame": segment * frames, "end_frame": (segment + 1) * frames, "fps": 25.0,
        "source_width": 256, "source_height": 256, "box_x0": 10.0, "box_y0": 10.0, "box_x1": 240.0, "box_y1": 240.0,
        "face_px": 90.0, "status": "ok", "reason": "", "detail": "",
    }  # fmt: skip


def _pairs(people: int, cross: int) -> list[dict[str, Any]]:
    plan = [("self", 2 * p, 2 * p + 1) for p in range(people)]
    plan += [("cross", 2 * (i % people), 2 * ((i + 1 + i // people) % people) + 1) for i in range(cross)]
    rows, count = [], {"self": 0, "cross": 0}
    for setting, subject, driving in plan:
        index = count[setting]
        count[setting] += 1
        failed = setting == "self" and index == people - 1
        rows.append({
            "pair": f"{setting}_{index:03d}", "index": index, "setting": setting, "dataset": "demo",
            "subject_clip": f"demo_{subject // 2:02d}_{subject % 2}",
            "driving_clip": f"demo_{driving // 2:02d}_{driving % 2}",
            "subject_row": subject, "driving_row": driving, "subject_identity": f"person_{subject // 2:02d}",
            "driving_identity": f"person_{driving // 2:02d}", "reference_frame": 2, "seen_in_training": 0,
            "status": "error" if failed else "ok", "reason": "out of memory" if failed else "",
        })  # fmt: skip
    return rows


def fake_output(method: MethodName, subject: np.ndarray, driving: np.ndarray, seed: int) -> np.ndarray:
    """What `method` "made": truth with noise, truth darkened, or one frame held still; (T, H, W, 3) uint8."""
    if method == "copy_reference":
        return np.repeat(subject[2:3], len(driving), axis=0)
    noise = np.random.default_rng([seed, METHODS.index(method)]).integers(-3, 4, driving.shape)
    return np.clip(driving * BRIGHTNESS[method] + noise, 0, 255).astype(np.uint8)


def _write_generated(paths: Paths, pairs: list[dict[str, Any]], clips: np.ndarray, videos: bool) -> None:
    paths.generated.mkdir()
    pd.DataFrame(pairs).to_csv(paths.generated / "pairs.csv", index=False)
    group = zarr.create_group(paths.generated / "frames.zarr", zarr_format=3)
    group.attrs["fingerprint"] = "f"
    for method in METHODS:
        for setting in methods.METHODS[method].settings:
            chosen = [row for row in pairs if row["setting"] == setting]
            shape = (len(chosen), *clips.shape[1:])
            array = group.create_array(f"{method}/{setting}", shape=shape, chunks=(1, *shape[1:]), dtype="uint8")
            for row in chosen:
                if row["status"] != "ok":
                    continue
                subject, driving = clips[row["subject_row"]], clips[row["driving_row"]]
                output = fake_output(method, subject, driving, row["index"])
                array[row["index"]] = output
                if videos:
                    write_video(paths.generated / "videos" / method / setting / f"{row['pair']}.mp4", output, 25.0)
                if method != "copy_reference":
                    target = paths.generated / "canonical" / method / setting / f"{row['pair']}.png"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.dstack([subject[0], np.full(subject.shape[1:3], 255, np.uint8)])).save(target)


def _write_metrics(paths: Paths) -> None:
    paths.metrics.mkdir()
    step = np.arange(10, 201, 10)
    terms = {
        "geometry": ("image", "symmetry", "prior"),
        "canonical": ("pixel",),
        "fusion": ("perceptual", "equivariance"),
    }
    for number, (stage, names) in enumerate(terms.items()):
        table = pd.DataFrame({"step": step, "total": 0.0})
        for term, name in enumerate(names):
            rng = np.random.default_rng(10 * number + term)
            table[name] = (0.3 + term) * np.exp(-step / (60.0 + 40 * term)) * rng.uniform(0.9, 1.1, len(step)) + 0.01
            table["total"] += table[name]
        table["lr"] = np.where(step < 150, 1e-3, 1e-4)
        table.to_csv(paths.metrics / f"{stage}_loss.csv", index=False)
    for number, stage in enumerate(("acquire", "crop", "parse", "geometry", "canonical", "fusion", "generate")):
        text = json.dumps({"seconds": 3.5 + 20 * number, "videos": 6})
        (paths.metrics / f"{stage}.json").write_text(text, encoding="utf-8")
