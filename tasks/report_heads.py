"""The report's sections on canonical heads (all test people, to be turned in 3D) and novel views (Fig. 5)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import torch
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb

from models.canonical import render_layer
from models.config import Camera, Params
from models.geometry import intrinsics
from models.head3d import Head3D, Subject
from models.pose_net import HeadPose
from tasks.backdrop import backdrop, draw_views
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.export_head import HeadSurface, build_mesh, head_surface, main_piece, surface_triangles
from tasks.frames import to_uint8
from tasks.generated import read_pairs
from tasks.paths import Paths
from tasks.report_examples import Picture, Stores
from tasks.report_files import Shelf
from tasks.report_media import frame_indices, shrink
from tasks.report_subjects import clip_tensors, people, reference_indices, subject_of
from tasks.trained import load_model

TURNS_DEG = (-40.0, -20.0, 0.0, 20.0, 40.0)
"""Yaw of the pictures beside each head: what a browser without WebGL, or a printed page, shows of it."""
VIEWS: tuple[tuple[str, int, tuple[float, ...], str], ...] = (
    ("Yaw", 0, (-30, -15, 0, 15, 30), "degrees"),
    ("Pitch", 1, (-20, -10, 0, 10, 20), "degrees"),
    ("Roll", 2, (-20, -10, 0, 10, 20), "degrees"),
    ("Sideways (x)", 3, (-0.02, -0.01, 0, 0.01, 0.02), "m"),
    ("Up and down (y)", 4, (-0.02, -0.01, 0, 0.01, 0.02), "m"),
    ("Nearer and farther (z)", 5, (-0.08, -0.04, 0, 0.04, 0.08), "m"),
)
"""Fig. 5, one strip each: its name, the parameter, its values and their unit. Angles are absolute; shifts are from
where the reference frame has the head, so that it starts on its shoulders (our choice)."""
GRIDS = (96, 64, 48, 32, 24)
"""The largest of these meshes, in vertices along a side of the frame, with which all heads fit into their share."""
MESH_SHARE = 0.85
"""Meshes may take this part of the heads' room; the rest is for the pictures of those who come after."""
HEAD_SHARE, VERTEX_BYTES, TEXTURE_BYTES = 0.45, 60, 9000
"""For that guess: the head's share of the frame, and what a vertex (with two triangles) and a picture take as text."""
TEXTURE_PX = 256
NO_ROOM = "the folder must stay small"
GREY = 128
SEEN = 0.1
"""Opacity from which on a pixel of the turned head counts when its picture is cut out."""


def heads_section(params: Params, paths: Paths, shelf: Shelf, views_shelf: Shelf) -> dict[str, Any]:
    """What the template shows of canonical heads and novel views.

    Args:
        params: All settings; `generate`, `report` and `runtime` are used.
        paths: Where the data lies.
        shelf: Where the heads go.
        views_shelf: Where the strips of Fig. 5 go.

    Returns:
        `heads` of all test people and `views` of some; `missing` says why there are none, `note` what was left out.
    """
    empty: dict[str, Any] = {"missing": "", "heads": [], "views": [], "note": "", "grid": 0}
    try:
        model = load_model(paths.data / "checkpoints", choose_device(params.runtime.device))
    except StageError as error:
        return {**empty, "missing": str(error)}
    stores = Stores(paths)
    found = people(read_pairs(paths), pd.read_parquet(paths.clip_table))
    room = int(MESH_SHARE * shelf.limit)
    grid = mesh_grid(len(found), room, model.size_px)
    heads: list[dict[str, Any]] = []
    for person in found:
        if shelf.full:
            break
        heads.append(_head(person, model, stores, params, shelf, grid if shelf.spent < room else 0))
    shown = [found[index] for index in frame_indices(len(found), params.report.examples)] if found else []
    views = [_views(person, model, stores, params, views_shelf) for person in shown if not views_shelf.full]
    return {**empty, "heads": heads, "views": views, "note": _left_out(heads, len(found)), "grid": grid}


def _left_out(heads: list[dict[str, Any]], people_in_all: int) -> str:
    """What did not fit, in words."""
    flat, missing = sum(head["problem"] == NO_ROOM for head in heads), people_in_all - len(heads)
    parts = [f"{flat} have pictures only"] if flat else []
    parts += [f"{missing} are left out"] if missing else []
    return f"The folder must stay small: of {people_in_all} people {' and '.join(parts)}" if parts else ""


def mesh_grid(count: int, limit: int, size_px: int) -> int:
    """Vertices along a side of the frame.

    Args:
        count: How many heads there are.
        limit: Bytes that they may take together.
        size_px: Side of the frames: more vertices than pixels say nothing new.

    Returns:
        One of `GRIDS`, at most about `size_px`.
    """
    fits = [side for side in GRIDS if count * (HEAD_SHARE * side**2 * VERTEX_BYTES + TEXTURE_BYTES) <= limit]
    return min(max(fits, default=GRIDS[-1]), size_px)


def _head(
    person: dict[str, Any], model: Head3D, stores: Stores, params: Params, shelf: Shelf, grid: int
) -> dict[str, Any]:
    """One person: pictures of the turned head, and its mesh (grid 0: none)."""
    subject = subject_of(person, model, stores, params)
    name = str(person["subject_identity"])
    words = ", ".join(f"{turn:+.0f}" for turn in TURNS_DEG)
    shown = {
        "name": name,
        "clip": str(person["subject_clip"]),
        "picture": Picture(
            name, f"canonical head of {name}, turned by {words} degrees", shelf.image(_turned(subject, model), 84)
        ),
        "url": "",
        "problem": "",
        "triangles": 0,
    }
    if not grid:
        return {**shown, "problem": NO_ROOM}
    try:
        mesh = small_mesh(head_surface(subject, model.camera.fov_deg), grid)
    except StageError as error:
        return {**shown, "problem": str(error)}
    return {**shown, "url": shelf.head(export_glb(trimesh.Scene(mesh))), "triangles": len(mesh.faces)}


def _turned(subject: Subject, model: Head3D) -> np.ndarray:
    """The canonical head at `TURNS_DEG` side by side on grey, `(H, 5 W, 3)` uint8."""
    count, (height, width) = len(TURNS_DEG), subject.reference.shape[-2:]
    angles = subject.reference.new_zeros(count, 3)
    angles[:, 0] = subject.reference.new_tensor(TURNS_DEG)
    pose = HeadPose(angles, subject.reference.new_zeros(count, 3))
    K = intrinsics(height, width, model.camera.fov_deg, device=subject.reference.device)
    with torch.no_grad():
        layer = render_layer(subject.head.repeated(count), pose.pose(), K)
    frames = to_uint8(layer.image + (1 - layer.alpha) * (GREY / 255))
    frames = frames[(slice(None), *square_about(layer.alpha.amax(dim=(0, 1)).cpu().numpy() > SEEN))]
    return np.concatenate([shrink(frame) for frame in frames], axis=1)


def square_about(seen: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest square about what is seen, inside the frame.

    Args:
        seen: `(S, S)` bool; the whole frame where nothing is.
    """
    size = len(seen)
    if not seen.any():
        return slice(0, size), slice(0, size)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    side = min(size, max(int(np.ptp(rows)), int(np.ptp(columns))) + 1 + size // 16)
    starts = [min(max((int(ends[0] + ends[-1]) + 1 - side) // 2, 0), size - side) for ends in (rows, columns)]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def small_mesh(surface: HeadSurface, grid: int) -> trimesh.Trimesh:
    """A head's surface with fewer vertices and its picture as JPEG: `head3d canonical` writes all of it.

    Args:
        surface: From `head_surface`.
        grid: Vertices along a side of the frame at most.

    Returns:
        The mesh; texture coordinates still fit the whole picture.
    """
    height, width = surface.alpha.shape
    step = max(1, -(-max(height, width) // grid))
    rows = np.unique(np.append(np.arange(0, height, step), height - 1))
    columns = np.unique(np.append(np.arange(0, width, step), width - 1))
    thin = np.ix_(rows, columns)
    kept = np.zeros(height * width, bool)
    kept[np.unique(surface.triangles)] = True
    faces = main_piece(surface_triangles(surface.points[thin], kept.reshape(height, width)[thin]))
    if step == 1 or not len(faces):
        faces = surface.triangles
    else:  # indices into the thin grid -> into the pixels
        faces = (rows[faces // len(columns)] * width) + columns[faces % len(columns)]
    mesh = build_mesh(surface._replace(triangles=faces), textured=True)
    visual: Any = mesh.visual
    visual.material.baseColorTexture = _jpeg(surface.rgb)
    return mesh


def _jpeg(rgb: np.ndarray) -> Image.Image:
    """A picture that trimesh stores as the JPEG it is: a PNG takes four times as much."""
    picture = Image.fromarray(rgb)
    picture.thumbnail((TEXTURE_PX, TEXTURE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return Image.open(io.BytesIO(buffer.getvalue()))


def _views(person: dict[str, Any], model: Head3D, stores: Stores, params: Params, shelf: Shelf) -> dict[str, Any]:
    """Fig. 5 for one person: the model's own frames, one parameter changing in each strip."""
    subject = subject_of(person, model, stores, params)
    first = reference_indices(person, stores, params)[:1]
    behind = backdrop(*clip_tensors(stores, int(person["subject_row"]), first, model.device))
    strips = []
    for name, axis, values, unit in VIEWS:
        frames = to_uint8(
            draw_views(model, subject, behind, view_poses(subject.reference_pose, axis, values, model.camera)).image
        )
        text = f"{values[0]:+g} to {values[-1]:+g} {unit}"
        alt = f"{person['subject_identity']}: {name.lower()} from {values[0]:g} to {values[-1]:g} {unit}"
        strips.append(Picture(f"{name}, {text}", alt, shelf.strip(frames, list(range(len(frames))))))
    return {"name": str(person["subject_identity"]), "strips": strips}


def view_poses(own: HeadPose, axis: int, values: tuple[float, ...], camera: Camera) -> HeadPose:
    """The poses of a strip.

    Args:
        own: Pose of s_ref, one row.
        axis: 0 to 2: yaw, pitch, roll, which take the values; 3 to 5: x, y, z, which are moved by them.
        values: Degrees or metres.
        camera: Its limits are those of training.

    Returns:
        One row for each value.
    """
    rows = torch.cat([own.angles_deg, own.translation_m], dim=1).repeat(len(values), 1)
    wanted = rows.new_tensor(values)
    limit = camera.max_angle_deg if axis < 3 else camera.max_translation_m
    rows[:, axis] = (wanted if axis < 3 else rows[:, axis] + wanted).clamp(-limit, limit)
    return HeadPose(rows[:, :3], rows[:, 3:])
