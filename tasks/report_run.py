"""What the report says about the run itself: times of every stage, environment, hashes of data, code and weights."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from models.config import Params
from tasks import checkpoint_folder
from tasks.device import choose_device
from tasks.methods import method_name
from tasks.paths import Paths
from tasks.stores import read_fingerprint

STAGES = ("acquire", "crop", "parse", "geometry", "canonical", "fusion", "generate", "evaluate", "study")
PACKAGES = (
    "torch", "torchvision", "lpips", "numpy", "pandas", "zarr", "av", "decord", "facenet-pytorch", "dvc", "prefect",
)  # fmt: skip
PER_FRAME = "seconds_per_frame_"
DETAILS = ("render_seconds", "train_seconds", "frames_per_s", "videos_per_s", "steps_per_s", "samples_per_s", "device")
"""What stages say beside their `seconds` that tells how fast they were."""
_BLOCK = 1 << 20


def summaries(paths: Paths) -> dict[str, dict[str, Any]]:
    """What each stage said about itself (`data/metrics/STAGE.json`), in the order of the pipeline."""
    found = {}
    for stage in STAGES:
        path = paths.metrics / f"{stage}.json"
        if path.is_file():
            found[stage] = json.loads(path.read_text(encoding="utf-8"))
    return found


def duration(seconds: float) -> str:
    """Seconds for a reader: 8.5 s, 42 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def times(said: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """How long every stage took.

    Args:
        said: From `summaries`.

    Returns:
        Per stage: the time as text, the length of its bar in percent of the longest, and what else it measured.
    """
    seconds = {stage: float(one["seconds"]) for stage, one in said.items() if one.get("seconds") is not None}
    longest = max(seconds.values(), default=1.0) or 1.0
    return [
        {
            "stage": stage,
            "text": duration(value),
            "bar": round(100 * value / longest, 1),
            "details": ", ".join(
                f"{name.replace('_', ' ').replace(' per s', '/s')} {said[stage][name]}"
                for name in DETAILS
                if said[stage].get(name) is not None
            ),
        }
        for stage, value in seconds.items()
    ]


def frame_times(said: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Method -> median time of a generated frame, from the stage `generate`."""
    found = {
        name.removeprefix(PER_FRAME): value for name, value in said.get("generate", {}).items() if PER_FRAME in name
    }
    return [(method_name(name), f"{1000 * value:.3g} ms") for name, value in found.items() if value is not None]


def environment(params: Params) -> list[tuple[str, str]]:
    """Python, system, device and the packages that matter, with their versions."""
    found = [("Python", platform.python_version()), ("System", f"{platform.system()} {platform.machine()}")]
    found.append(("Device", device_name(params)))
    for package in PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(params: Params) -> str:
    """The GPU's name, or how many cores the CPU has."""
    device = choose_device(params.runtime.device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {os.cpu_count()} cores"


def revision(folder: Path) -> str:
    """Short git revision of the folder's checkout and whether tracked files are changed; empty without a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + (" + local changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def hashes(paths: Paths, fingerprint: str) -> list[tuple[str, str, str]]:
    """What this report was made from, so that two runs can be told apart.

    Args:
        paths: Where the data lies.
        fingerprint: Of the stage `report`: settings, code and all inputs.

    Returns:
        Name, what the hash is of, the hash; only of what is there.
    """
    found = []
    for name, path in (("source videos", paths.manifest), ("clips", paths.clip_table), ("masks", paths.mask_table)):
        if path.is_file():
            found.append((name, f"SHA-256 of {path.name}", file_sha256(path)))
    for stage, store in (("crop", paths.clips), ("parse", paths.masks), ("geometry", paths.geometry)):
        mark = read_fingerprint(store) if store.exists() else None
        if mark:
            found.append((stage, "settings, code and inputs of the stage", mark))
    for stage in ("canonical", "fusion", "generate", "study"):
        folder = {"generate": paths.generated, "study": paths.study}.get(stage, paths.checkpoint(stage))
        mark = checkpoint_folder.read_fingerprint(folder)
        if mark:
            found.append((stage, "settings, code and inputs of the stage", mark))
    for stage in ("geometry", "canonical", "fusion"):
        for file in sorted(paths.checkpoint(stage).rglob("model.safetensors")):
            what = file.relative_to(paths.data).as_posix()
            found.append(("weights", f"SHA-256 of {what}", file_sha256(file)))
    return [*found, ("report", "settings, code and inputs of the stage", fingerprint)]


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
