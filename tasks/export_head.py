"""The canonical head as a file that other programs open: a textured mesh in metres, or a picture with alpha."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import trimesh
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.ply import export_ply

from models.geometry import NOMINAL_DISTANCE_M, back_project, intrinsics
from models.head3d import Subject
from tasks.animate import Limits, subject_notices, subject_state
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.output import check_output
from tasks.prepared import prepare
from tasks.trained import load_model, load_preparation

KINDS = (".glb", ".ply", ".png")
INSIDE = 0.5
"""Where the head's mask counts as head."""
STEEPEST = 6.0
"""A triangle whose depth changes by more than this many times its width is a depth edge, not a surface (80 degrees)."""
BORDER_ROUNDS = 3
"""How often the border of the mesh is smoothed."""
LEAST_TRIANGLES = 32
"""Fewer than these are no head."""


class HeadSurface(NamedTuple):
    """The canonical head as arrays.

    Attributes:
        rgb: `(H, W, 3)` u1, colours; outside the head, those of its nearest pixel (texture filters look there).
        alpha: The mask, `(H, W)` u1.
        points: `(H, W, 3)` f8, metres; x right, y up, z towards the viewer, the head's centre at 0.
        triangles: `(F, 3)` i8, indices into the pixels by rows, counter-clockwise as the camera sees them.
    """

    rgb: np.ndarray
    alpha: np.ndarray
    points: np.ndarray
    triangles: np.ndarray


def head_surface(subject: Subject, fov_deg: float) -> HeadSurface:
    """Turn x_hat^c, its mask and d^c into a surface.

    Source: our choice. d^c K^-1 q with K of Eq. 2 gives the points.

    Args:
        subject: From `Head3D.subject`.
        fov_deg: Horizontal field of view, degrees.

    Returns:
        The surface; triangles outside the mask, across depth edges and off the main piece are dropped.

    Raises:
        StageError: Next to nothing is left.
    """
    image, mask = (part[0].cpu().numpy().transpose(1, 2, 0) for part in subject.head[:2])
    mask = mask[..., 0]
    inside = mask > INSIDE
    if not inside.any():
        raise StageError("the canonical head is empty; take a video that shows the face, or more --references")
    # x_hat^c is multiplied by its mask: without the division, its border would be dark.
    colours = image / np.maximum(mask, INSIDE)[..., None]
    nearest = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    rgb = (np.clip(colours[tuple(nearest)], 0, 1) * 255).round().astype(np.uint8)
    height, width = inside.shape
    K = intrinsics(height, width, fov_deg, dtype=torch.float64)
    points = back_project(subject.head.depth.cpu().double(), K)[0].numpy()
    points = points * [1, -1, -1] + [0, 0, NOMINAL_DISTANCE_M]
    triangles = main_piece(surface_triangles(points, inside))
    if len(triangles) < LEAST_TRIANGLES:
        raise StageError(
            f"only {len(triangles)} triangles of the canonical head are left; take a video in which the whole face is "
            "seen, or more --references"
        )
    return HeadSurface(rgb, (np.clip(mask, 0, 1) * 255).round().astype(np.uint8), points, triangles)


def surface_triangles(points: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Two triangles for each square of four pixels, less those outside the mask or across a depth edge.

    Args:
        points: `(H, W, 3)`, metres, z towards the viewer.
        inside: `(H, W)` bool.

    Returns:
        `(F, 3)`, indices into the pixels by rows, counter-clockwise as the camera sees them.
    """
    height, width = inside.shape
    index = np.arange(height * width).reshape(height, width)
    a, b, c, d = (index[i : height - 1 + i, j : width - 1 + j].ravel() for i in (0, 1) for j in (0, 1))
    triangles = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    triangles = triangles[inside.ravel()[triangles].all(axis=1)]
    corners = points.reshape(-1, 3)[triangles]
    z = corners[..., 2]
    step = np.abs(points[0, 1, 0] - points[0, 0, 0])
    return triangles[z.max(axis=1) - z.min(axis=1) <= STEEPEST * step]


def main_piece(triangles: np.ndarray) -> np.ndarray:
    """The triangles of the largest piece that hangs together by its vertices, `(F, 3)` of `(F', 3)`."""
    if not len(triangles):
        return triangles
    size = int(triangles.max()) + 1
    first, second = triangles[:, [0, 1]].ravel(), triangles[:, [1, 2]].ravel()
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(size, size))
    piece = connected_components(graph, directed=False)[1][triangles[:, 0]]
    return triangles[piece == np.bincount(piece).argmax()]


def smooth_border(values: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Pull every vertex of the border towards its neighbours along the border.

    Source: our choice. The mask's border is a staircase of pixels, whose single ones stick out as spikes from the side.

    Args:
        values: `(V, C)`, one row for each vertex.
        faces: `(F, 3)`.

    Returns:
        `(V, C)`; rows inside are as they were.
    """
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges, times = np.unique(edges, axis=0, return_counts=True)
    border = edges[times == 1]
    here, there = np.concatenate([border, border[:, ::-1]]).T
    shape = (len(values), len(values))
    neighbours = coo_matrix((np.ones(len(here)), (here, there)), shape=shape).tocsr()
    count = np.asarray(neighbours.sum(axis=1))
    values = values.astype(np.float64)
    for _ in range(BORDER_ROUNDS):
        mean = neighbours @ values / np.maximum(count, 1)
        values = np.where(count > 0, (values + mean) / 2, values)
    return values


def build_mesh(surface: HeadSurface, textured: bool) -> trimesh.Trimesh:
    """The surface as a mesh.

    Args:
        surface: From `head_surface`.
        textured: With the canonical picture as texture; otherwise with a colour at each vertex.

    Returns:
        A mesh in metres that faces +z, y up, as glTF expects.
    """
    used, faces = np.unique(surface.triangles, return_inverse=True)
    height, width = surface.alpha.shape
    faces = faces.reshape(-1, 3)
    rows, columns = np.divmod(used, width)
    # The texture's coordinates move with the points, so that the picture stays where it was.
    pixels = np.stack([columns, rows], axis=1)
    moved = smooth_border(np.hstack([surface.points.reshape(-1, 3)[used], pixels]), faces)
    if textured:
        # trimesh counts v from below; pixel centres are integers.
        uv = np.stack([(moved[:, 3] + 0.5) / width, 1 - (moved[:, 4] + 0.5) / height], axis=1)
        material = trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.fromarray(surface.rgb), metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True
        )
        visual: Any = trimesh.visual.TextureVisuals(uv=uv, material=material)
    else:
        visual = trimesh.visual.ColorVisuals(vertex_colors=surface.rgb[rows, columns])
    return trimesh.Trimesh(moved[:, :3], faces, visual=visual, process=False)


def write_head(surface: HeadSurface, out: Path) -> dict[str, Any]:
    """Write the surface as its file's ending says.

    Args:
        surface: From `head_surface`.
        out: One of `KINDS`.

    Returns:
        Triangles and size of a mesh, pixels of a picture.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".png":
        Image.fromarray(np.dstack([surface.rgb, surface.alpha])).save(out)
        return {"pixels": f"{surface.rgb.shape[1]} x {surface.rgb.shape[0]}"}
    textured = out.suffix.lower() == ".glb"
    mesh = build_mesh(surface, textured)
    # Normals smooth the light in viewers; without them each triangle is shaded on its own.
    content = export_glb(trimesh.Scene(mesh), include_normals=True) if textured else export_ply(mesh)
    out.write_bytes(content)
    size = " x ".join(f"{side:.3f}" for side in mesh.extents)
    return {"vertices": len(mesh.vertices), "triangles": len(mesh.faces), "size_m": size}


def export_head(
    subject: Path, out: Path, *, checkpoints: Path, device: str, references: int, limits: Limits, pick: str = "even"
) -> dict[str, Any]:
    """Write a subject's canonical head.

    Args:
        subject: Video of the person.
        out: .glb (textured mesh), .ply (mesh with vertex colours) or .png (picture with alpha).
        checkpoints: Folder with geometry/, canonical/ and fusion/.
        device: auto, cpu, cuda or cuda:N.
        references: N, how many frames of the subject make the canonical head.
        limits: When a notice is given.
        pick: even or spread, see `tasks.references`.

    Returns:
        What was written; `notices`, why it is not to be trusted.

    Raises:
        StageError: `out` cannot be written, the model is not trained, or the video cannot be used.
    """
    check_output(out, "the head is", KINDS, "head.glb", subject)
    model = load_model(checkpoints, choose_device(device))
    crop, parse = load_preparation(checkpoints)
    person = prepare(subject, crop, parse, device)
    ready = subject_state(model, person, references, pick)
    written = write_head(head_surface(ready.state, model.camera.fov_deg), out)
    return {**written, "notices": subject_notices(person, ready, crop, limits)}
