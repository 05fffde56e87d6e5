"""Rules that tie several settings together; `models.config.load_params` raises the first that is broken."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from models.config import Generate, Params


FACE_PARTS = 8
"""So many of Phi's regions `fusion.parts_weight` holds to parts of the face (tasks/face_parts.py)."""
LAYERS = 5
"""So many layers' features `fusion.perceptual` compares (models/perceptual.py)."""
_RENDERED = ("people", "batch", "beside")
_STAGES = ("geometry", "canonical", "fusion")


def broken_rules(params: Params) -> Iterator[str]:
    """What is wrong and what to change, one sentence a rule.

    Args:
        params: Settings that are each valid by themselves.
    """
    camera, crop = params.geometry.camera, params.crop
    if not camera.depth_min_m < 1.0 < camera.depth_max_m:
        yield "geometry.camera needs depth_min_m < 1.0 (the head's centre, Sec. 3.1) < depth_max_m"
    if crop.size_px % 16:
        yield f"crop.size_px = {crop.size_px} must be a multiple of 16"
    if params.parse.smooth_frames % 2 == 0:
        yield f"parse.smooth_frames = {params.parse.smooth_frames} must be odd"
    if crop.train_clips_per_video > crop.clips_per_video:
        yield "crop.train_clips_per_video must not exceed crop.clips_per_video"
    if not params.acquire.sources:
        yield "acquire.sources is empty; name at least one of demo, folder, voxceleb, faceforensics"
    if "folder" in params.acquire.sources and not params.acquire.folder.path:
        yield "acquire.folder.path is empty; `head3d preset local --folder DIR` sets it"
    start = params.geometry
    for net, name, one in (
        ("depth_net", start.depth_net.encoder, "mobilenet_v2"),
        ("pose_net", start.pose_net.backbone, "resnet50"),
    ):
        if getattr(start, net).initial != "random" and name != one:
            yield f"geometry.{net}.initial must be random: there are public weights for {one} only, not for {name}"
    if start.bootstrap != "landmarks" and not all(getattr(start, f"rendered_{name}") for name in _RENDERED):
        names = ", ".join(f"rendered_{name}" for name in _RENDERED)
        yield f"geometry.bootstrap {start.bootstrap} needs geometry.{names} above 0"
    yield from _parts(params)
    yield from _label_steps(params)
    yield from _training(params)
    yield from _methods(params)
    yield from _devices(params)


def _parts(params: Params) -> Iterator[str]:
    """Whether Phi's held regions are those that there are labels for."""
    phi, fusion = params.fusion.flow_net, params.fusion
    if phi.parts.regions not in (0, FACE_PARTS):
        yield f"fusion.flow_net.parts.regions = {phi.parts.regions} must be 0 or {FACE_PARTS}"
    elif phi.parts.regions and not fusion.parts_weight:
        yield "fusion.flow_net.parts.regions above 0 needs fusion.parts_weight above 0: nothing else trains them"
    elif fusion.parts_weight and not phi.parts.regions:
        yield f"fusion.parts_weight above 0 needs fusion.flow_net.parts.regions = {FACE_PARTS}: it trains those"
    elif phi.regions <= phi.parts.regions:
        yield f"fusion.flow_net.regions = {phi.regions} must be more than the {phi.parts.regions} of its parts"
    if fusion.parts_steps and not phi.parts.regions:
        yield "fusion.parts_steps above 0 needs fusion.flow_net.parts.regions above 0: it trains those alone"


def _label_steps(params: Params) -> Iterator[str]:
    """Whether steps of Eq. 8 are left after those on labels alone."""
    fusion = params.fusion
    for name, steps in (("train.steps", fusion.train.steps), ("without_head_steps", fusion.without_head_steps)):
        if fusion.parts_steps and 0 < steps <= fusion.parts_steps:
            yield (
                f"fusion.parts_steps = {fusion.parts_steps} must be less than fusion.{name} = {steps}: they are the "
                "first of these, and the rest are those of Eq. 8"
            )


def _training(params: Params) -> Iterator[str]:
    """Whether every stage can be trained at all."""
    length = params.crop.clip_frames
    for stage in _STAGES:
        train = getattr(params, stage).train
        if train.span == "clip" and train.references >= length:
            yield (
                f"{stage}.train.references = {train.references} leaves no frame to be driven by in a clip of "
                f"crop.clip_frames = {length}: take fewer references"
            )
        if train.average >= 1:
            yield f"{stage}.train.average = {train.average:g} must be less than 1: nothing would be learned; 0: none"
    layers = len(params.fusion.perceptual.layer_weights)
    if layers != LAYERS:
        yield (
            f"fusion.perceptual.layer_weights has {layers} values and needs {LAYERS}, for relu1_1 to relu5_1 (0 leaves "
            "a layer out)"
        )


def _devices(params: Params) -> Iterator[str]:
    """Whether every batch can be shared evenly."""
    count = params.runtime.devices
    if count > 1 and ":" in params.runtime.device:
        yield f"runtime.device = {params.runtime.device} is one GPU and runtime.devices = {count}: set device to auto"
    rows = {f"{name}.train.batch_videos": getattr(params, name).train.batch_videos for name in _STAGES}
    if params.geometry.bootstrap != "landmarks":
        rows |= {f"geometry.rendered_{name}": getattr(params.geometry, f"rendered_{name}") for name in _RENDERED[1:]}
    for name, size in rows.items():
        if size % count:
            yield f"{name} = {size} cannot be shared evenly by runtime.devices = {count}"


def _methods(params: Params) -> Iterator[str]:
    """Whether every method can be generated; N is part of the names head3d_n1, head3d_n3, head3d_n10."""
    config = params.generate
    if len(set(config.methods)) < len(config.methods):
        yield "generate.methods names a method twice"
    yield from _method_names(config)
    if "no_driving_head" in config.methods and not params.fusion.without_head_steps:
        yield (
            "generate.methods lists no_driving_head, which needs a network of its own: set fusion.without_head_steps "
            f"(fusion.train.steps is {params.fusion.train.steps}) or take the method out"
        )
    counts = [int(name.removeprefix("head3d_n")) for name in config.methods if name.startswith("head3d_n")]
    needed = max([config.references, *counts])
    if needed > params.crop.clip_frames:
        yield (
            f"generate.references or generate.methods ask for {needed} reference frames, and a clip has only "
            f"crop.clip_frames = {params.crop.clip_frames}"
        )


def _method_names(config: Generate) -> Iterator[str]:
    """Whether every name in `generate.methods` is known, and every folder of `generate.external` is used."""
    from models.config import MethodName

    ours = [str(name) for name in get_args(MethodName)]
    for name in config.methods:
        if name not in ours and name not in config.external:
            near = difflib.get_close_matches(name, [*ours, *config.external], n=1, cutoff=0.4)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            yield f"generate.methods: '{name}' is neither a method nor a name in generate.external{hint}"
    for name in config.external:
        if name in ours or not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
            yield (
                f"generate.external: '{name}' must be a new name of small letters, digits and underscores, "
                f"not one of {', '.join(ours)}"
            )
        elif name not in config.methods:
            yield f"generate.external names '{name}': add it to generate.methods or take it out"
