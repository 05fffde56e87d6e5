"""What the figures of stages 1 to 3 on real clips were made with: a data folder in one file, and the stages' own jobs
on a machine that has a GPU, torch, pandas and Pillow, but none of the stores' and videos' libraries.

python -m tests.tasks.real_clips pack data clips.pkl --split manifest.csv     # after `dvc repro parse`
python -m tests.tasks.real_clips geometry clips.pkl state.pt                  # stage 1
python -m tests.tasks.real_clips canonical clips.pkl state.pt --compile       # stage 2
python -m tests.tasks.real_clips fuse clips.pkl state.pt local fusion.train.clip_norm=0.0   # stage 3, and judged
"""

from __future__ import annotations

import argparse
import io
import json
import math
import pickle
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from models.config import Params, build, load_params
from models.head3d import Head3D, Output
from tasks.canonical import CanonicalLoss, canonical_job, compare_heads
from tasks.canonical import build_networks as build_canonical
from tasks.clip_data import ClipSet
from tasks.device import choose_device
from tasks.expressions import WORK_PX, follow, read_pictures
from tasks.frames import to_uint8
from tasks.fusion import build_networks as build_fusion
from tasks.fusion import fusion_job
from tasks.geometry import build_networks as build_geometry
from tasks.geometry import geometry_job, predict_geometry
from tasks.geometry_check import head_error, pose_agreement
from tasks.parser_network import load_network
from tasks.progress import progress
from tasks.stepper import Stepper, trained_values
from tasks.training import Training

KEPT = ("clip", "video", "identity", "segment", "dataset", "fps", "row")
LR_DROP = 0.75  # of the time, where a training has a time and not a number of steps


def pack(data: Path, file: Path, preset: Path, split: Path | None) -> None:
    """Frames as WebP, head masks as bits, parts of the face as moments; flagged training clips are left out."""
    import zarr

    from tasks.face_parts import part_moments
    from tasks.paths import Paths
    from tasks.quality import flags

    paths, quality = Paths(data), load_params(preset, complete=False).quality
    masks = pd.read_parquet(paths.mask_table).set_index("clip")
    flagged = flags(masks, quality)
    table = pd.read_parquet(paths.clip_table)
    if split is not None:  # columns `clip` (the video's file name) and `split`
        sides = pd.read_csv(split).set_index("clip")["split"]
        table["split"] = [sides[Path(str(source)).name] for source in table["source"]]
    used = table[table["clip"].isin(masks.index)]
    used = used[(used["split"] == "test") | (used["clip"].map(flagged) == "")]
    clips, parsed = (zarr.open_group(where, mode="r") for where in (paths.clips, paths.masks))

    def packed(row: dict[str, Any]) -> dict[str, Any]:
        place = int(row["row"])
        labels = torch.from_numpy(np.asarray(parsed["labels"][place]))  # type: ignore[index]
        return {
            **{name: row[name] for name in (*KEPT, "split")},
            "frames": webp(np.asarray(clips["frames"][place])),  # type: ignore[index]
            "head": zlib.compress(np.packbits(np.asarray(parsed["head"][place])).tobytes(), 9),  # type: ignore[index]
            "landmarks": np.asarray(clips["landmarks"][place], np.float32),  # type: ignore[index]
            "parts": part_moments(labels).numpy().astype(np.float16),
        }

    rows = used.to_dict("records")
    with ThreadPoolExecutor() as pool, progress("pack", len(rows), "clip") as bar:
        made = [(bar.update(), one)[1] for one in pool.map(packed, rows)]
    file.write_bytes(pickle.dumps(made))


def webp(frames: np.ndarray) -> list[bytes]:
    found = []
    for frame in frames:
        Image.fromarray(frame).save(kept := io.BytesIO(), "WEBP", quality=90, method=6)
        found.append(kept.getvalue())
    return found


def unpack(file: Path, split: str, device: torch.device) -> ClipSet:
    rows = [row for row in pickle.loads(file.read_bytes()) if row["split"] == split]

    def pictures(row: dict[str, Any]) -> np.ndarray:
        return np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in row["frames"]])

    with ThreadPoolExecutor() as pool:
        frames = torch.from_numpy(np.stack(list(pool.map(pictures, rows)))).permute(0, 1, 4, 2, 3).contiguous()
    size = frames[:, :, :1].shape
    bits = [np.unpackbits(np.frombuffer(zlib.decompress(row["head"]), np.uint8)) for row in rows]
    head = torch.from_numpy(np.stack(bits)).view(size)
    table = pd.DataFrame([{name: row[name] for name in KEPT} for row in rows])
    landmarks, parts = (
        torch.from_numpy(np.stack([row[name] for row in rows])).float() for name in ("landmarks", "parts")
    )
    clips = ClipSet(table, frames.to(device), head.to(device), landmarks.to(device))
    clips.parts = parts.to(device)
    return clips


def changed(params: Params, settings: Iterable[str]) -> Params:
    """With some settings, each `section.key=JSON`."""
    values = params.model_dump()
    for setting in settings:
        name, value = setting.split("=", 1)
        *path, key = name.split(".")
        section = values
        for part in path:
            section = section[part]
        section[key] = json.loads(value)
    return build(Params, values)


def fit(job: Training, lr: float, seconds: float = 0.0, fuse: bool = False) -> dict[str, float]:
    """Train for `seconds`, the rate a tenth in the last quarter; 0: for the job's steps. The averaged weights stay.

    With `fuse` the losses are compiled first, which takes a minute or two and counts as training.
    """
    averaged = {name: value.clone() for name, value in trained_values(job).items()} if job.average else {}
    stepper, begin, step, share = Stepper(job, record=True, averaged=averaged, fuse=fuse), time.monotonic(), 0, 0.0
    if seconds:
        job.rates = lambda _: [lr * (0.1 if share >= LR_DROP else 1.0)] * len(job.optimiser.param_groups)
    while share < 1:
        values = stepper.take(step)
        step += 1
        if step % 20 == 0 or step == job.steps:
            shown = dict(zip(stepper.names, (round(value, 4) for value in values.tolist()), strict=True))
            share = (time.monotonic() - begin) / seconds if seconds else step / job.steps
            if step % 1000 == 0:
                say(job.name, step, f"{1e3 * (time.monotonic() - begin) / step:.1f} ms", shown)
    stepper.close()
    for name, module in job.modules.items():
        for key, value in module.state_dict().items():
            value.copy_(averaged.get(f"{name}.{key}", value))
        module.eval().requires_grad_(False)
    return {f"{job.name}_steps": step, f"{job.name}_s": round(time.monotonic() - begin, 1)}


def say(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201


@torch.no_grad()
def add_geometry(clips: ClipSet, networks: dict[str, torch.nn.Module]) -> None:
    """What stage 1 stores."""
    found = [predict_geometry(networks, clips.heads(index)[0]) for index in range(len(clips))]
    depth, clips.angles_deg, clips.translation_m = (torch.stack(part) for part in zip(*found, strict=True))
    clips.depth = depth.half()


class Kept(NamedTuple):
    """What earlier stages left.

    Attributes:
        params: Their settings, with this stage's changes.
        networks: Frozen.
        train: The training clips, with geometry.
        test: Those of people kept for testing, the same.
    """

    params: Params
    networks: dict[str, torch.nn.Module]
    train: ClipSet
    test: ClipSet


def kept(file: Path, state: Path, settings: list[str], device: torch.device) -> Kept:
    """Read what the stages before left in `state`."""
    saved = torch.load(state, map_location=device, weights_only=True)
    params = changed(build(Params, saved["params"]), settings)
    made = {**build_geometry(params.geometry, device), **build_canonical(params.canonical, device)}
    networks = {name: network for name, network in made.items() if name in saved["networks"]}
    for name, network in networks.items():
        network.load_state_dict(saved["networks"][name])
        network.eval().requires_grad_(False)
    train, test = (unpack(file, split, device) for split in ("train", "test"))
    for clips in (train, test):
        add_geometry(clips, networks)
    return Kept(params, networks, train, test)


def keep(state: Path, params: Params, networks: dict[str, torch.nn.Module]) -> None:
    """What `kept` reads."""
    states = {name: one.state_dict() for name, one in networks.items()}
    torch.save({"networks": states, "params": params.model_dump()}, state)


def stage1(file: Path, state: Path, params: Params, device: torch.device) -> dict[str, float]:
    """Stage 1, kept in `state`; how it does on the test clips."""
    train, test = (unpack(file, split, device) for split in ("train", "test"))
    networks = build_geometry(params.geometry, device)
    figures = fit(geometry_job(params.geometry, networks, train, 8, {}), 0.0)
    keep(state, params, networks)
    add_geometry(test, networks)
    return {**figures, **pose_agreement(test, params), **head_error(test, params)}


def stage2(
    file: Path, state: Path, settings: list[str], seconds: float, device: torch.device, compiled: bool
) -> dict[str, float]:
    """Stage 2 (`seconds`; 0: its steps) on stage 1's, added to `state`; how it does on the test clips."""
    params, networks, train, test = kept(file, state, settings, device)
    made, camera = build_canonical(params.canonical, device), params.geometry.camera
    job = canonical_job(params.canonical, made["canonical"], camera, train)  # type: ignore[arg-type]
    figures = fit(job, params.canonical.lr, seconds, compiled)
    keep(state, params, {**networks, **made})
    loss = CanonicalLoss(params.canonical, made["canonical"], camera, test)  # type: ignore[arg-type]
    return {**figures, **compare_heads(loss, 8)}


def fuse(
    file: Path, state: Path, settings: list[str], seconds: float, device: torch.device
) -> tuple[Head3D, ClipSet, dict[str, float]]:
    """Stage 3 for `seconds` on what stages 1 and 2 kept: the model, the test clips, and how long it took."""
    params, networks, train, test = kept(file, state, settings, device)
    fusion, canonical = build_fusion(params.fusion, device), {"canonical": networks["canonical"]}
    job = fusion_job(params.fusion, fusion, canonical, params.geometry.camera, train, {})
    figures = fit(job, params.fusion.lr, seconds)
    parts: dict[str, Any] = {**networks, **fusion}
    return Head3D(**parts, camera=params.geometry.camera, size_px=test.size_px), test, figures


def pairs(clips: ClipSet) -> list[tuple[int, int, int]]:
    """Of every video its first two clips (subject, driving), and the frame of s_ref."""
    rng, found = np.random.default_rng(0), []
    for _, group in clips.table.groupby("video", sort=True):
        first, second, *_ = [*group.sort_values("segment").index, -1, -1]
        if second >= 0:
            found.append((int(first), int(second), int(rng.integers(clips.frames.shape[1]))))
    return found


def judge(model: Head3D, clips: ClipSet) -> tuple[dict[str, Any], np.ndarray, dict[str, list[bytes]]]:
    """Self-reconstruction of all test videos with five references.

    Returns:
        Error over that of copying s_ref, in all, inside and outside the head; how expressions follow. A sheet: s_ref,
        s_dri, x_hat_dri, the output and the attention, at most and least open lips and least open eyes. All frames.
    """
    parser = load_network("embedded", str(clips.device), False)
    sums, ratios, rows, sheet, frames = torch.zeros(2, 2), [], [], [], {}
    decoder: list[float] = []
    for number, (subject, driving, reference) in enumerate(pairs(clips)):
        order = np.random.default_rng([0, reference]).permutation(clips.frames.shape[1])
        index = torch.tensor([reference, *order[order != reference][:4].tolist()])
        who = model.subject(clips.images(subject, index), clips.heads(subject, index)[1], 0)
        truth, masks = clips.images(driving), clips.head[driving].float()
        made = model.drive(who, truth, masks)
        errors = torch.stack([(made.image - truth).square(), (who.reference - truth).square()]).mean(2).cpu()
        decoder.append(float(made.maps.attention[:, 2].mean()))
        inside = masks[:, 0].cpu()
        sums += torch.stack([(errors * part).sum((1, 2, 3)) for part in (inside, 1 - inside)])
        ratios.append(float(errors[0].mean() / errors[1].mean()))
        wanted, found = (read_pictures(at_side(part, parser.side(WORK_PX)), parser) for part in (truth, made.image))
        for name, one in follow(wanted, found).items():
            rows += [{"measure": name, **one._asdict()}] if one is not None else []
        lips, eyes = wanted.mean(0)[:, 1], wanted.mean(0)[:, 2]
        if number % 3 == 0:
            shown = [int(lips.argmax()), int(lips.argmin()), int(eyes.argmin())]
            sheet += [row_of(who.reference[0], truth, made, t) for t in shown]
        frames[str(clips.table["video"][subject])] = webp(to_uint8(made.image))
    ours, copied = sums.sum(0).tolist()
    inside, outside = (sums[:, 0] / sums[:, 1]).tolist()
    figures: dict[str, Any] = {"ratio": ours / copied, "median": float(np.median(ratios))}
    figures |= {"inside": inside, "outside": outside, "decoder_share": float(np.mean(decoder))}
    for measure, part in pd.DataFrame(rows, columns=["measure", "correlation", "ratio"]).groupby("measure"):
        error = part["correlation"].std() / math.sqrt(len(part))
        figures[str(measure)] = [
            round(float(v), 3) for v in (part["correlation"].mean(), error, part["ratio"].median())
        ]
    return figures, np.concatenate(sheet), frames


def at_side(images: Tensor, side: int) -> np.ndarray:
    return to_uint8(F.interpolate(images, (side, side), mode="bilinear"))


def row_of(reference: Tensor, driving: Tensor, made: Output, t: int) -> np.ndarray:
    attention = F.interpolate(made.maps.attention[t : t + 1].float(), driving.shape[-2:], mode="bilinear")[0]
    return to_uint8(torch.cat([reference, driving[t], made.head[t], made.image[t], attention], 2)[None])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pack", "geometry", "canonical", "fuse"])
    parser.add_argument("paths", type=Path, nargs=2)
    parser.add_argument("rest", nargs="*", help="settings as section.key=JSON; of fuse a name before them")
    parser.add_argument("--preset", type=Path, default=Path("flows/presets/local.yaml"))
    parser.add_argument("--split", type=Path, help="of pack: who is for testing")
    parser.add_argument("--seconds", type=float, help="of canonical (else its steps) or fuse (225)")
    parser.add_argument("--compile", action="store_true", help="of canonical: its losses")
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args()
    first, second = given.paths
    if given.what == "pack":
        pack(first, second, given.preset, given.split)
        return
    device, seconds = choose_device("auto"), given.seconds or 0.0
    if given.what == "geometry":
        params = changed(load_params(given.preset, complete=False), given.rest)
        say(json.dumps(stage1(first, second, params, device)))
        return
    if given.what == "canonical":
        say(json.dumps(stage2(first, second, given.rest, seconds, device, given.compile)))
        return
    name, *settings = given.rest
    model, test, figures = fuse(first, second, settings, seconds or 225.0, device)
    judged, sheet, frames = judge(model, test)
    say(json.dumps({"name": name, "settings": settings, **figures, **judged}))
    Image.fromarray(sheet).save(given.out / f"{name}.png")
    (given.out / f"{name}.pkl").write_bytes(pickle.dumps(frames))
    torch.save(model.fusion.state_dict(), given.out / f"{name}.pt")


if __name__ == "__main__":
    main()
