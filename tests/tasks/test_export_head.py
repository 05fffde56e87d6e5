"""The canonical head as a mesh and a picture: what is cut away, where it lies, which way it faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from models.canonical import CanonicalHead
from models.geometry import back_project, intrinsics
from models.head3d import Subject
from models.pose_net import HeadPose
from tasks.errors import StageError
from tasks.export_head import HeadSurface, build_mesh, head_surface, write_head

SIZE, FOV_DEG = 64, 10.0
X, Y = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="xy")


def dome() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A round head with its nose at 0.95 m: image (red grows to the right, green downward), mask, depth."""
    image = torch.stack([X / SIZE, Y / SIZE, torch.full((SIZE, SIZE), 0.5)])
    radius = ((X - 32) ** 2 + (Y - 32) ** 2).float().sqrt()
    depth = 0.95 + 0.05 * (radius / 24) ** 2
    return image, (radius < 24).float(), depth


def subject(image: torch.Tensor, mask: torch.Tensor, depth: torch.Tensor) -> Subject:
    own = HeadPose(torch.zeros(1, 3), torch.zeros(1, 3))
    return Subject(CanonicalHead((image * mask)[None], mask[None, None], depth[None]), image[None], own)


def seen_from_camera(surface: HeadSurface) -> np.ndarray:
    """Which pixels (of the triangles' first corners) the surface has."""
    there = np.zeros(SIZE * SIZE, bool)
    there[surface.triangles.ravel()] = True
    return there.reshape(SIZE, SIZE)


def test_the_mesh_lies_in_metres_and_faces_the_viewer():
    image, mask, depth = dome()
    mesh = build_mesh(head_surface(subject(image, mask, depth), FOV_DEG), textured=True)
    assert (mesh.face_normals[:, 2] > 0).all()
    points = back_project(depth[None], intrinsics(SIZE, SIZE, FOV_DEG))[0][mask > 0.5].numpy()
    expected = np.array([points.min(0), points.max(0)]) * [1, -1, -1] + [0, 0, 1]
    # the border is smoothed by less than a pixel, 2.7 mm
    np.testing.assert_allclose(mesh.bounds, np.sort(expected, axis=0), atol=2.7e-3)
    assert mesh.bounds[1, 2] == pytest.approx(0.05, abs=1e-4)  # the nose, 5 cm in front of the centre


def test_only_the_border_is_smoothed():
    surface = head_surface(subject(*dome()), FOV_DEG)
    mesh = build_mesh(surface, textured=True)
    pixels = surface.points.reshape(-1, 3)[np.unique(surface.triangles)]
    moved = np.linalg.norm(mesh.vertices - pixels, axis=1)
    radius = np.linalg.norm(pixels[:, :2], axis=1)
    assert moved.max() < 2.7e-3
    assert (moved[radius < 0.9 * radius.max()] == 0).all()
    assert np.linalg.norm(mesh.vertices[moved > 0, :2], axis=1).std() < radius[moved > 0].std()  # rounder


def test_holes_depth_edges_and_loose_pieces_are_cut_away():
    image, mask, depth = dome()
    mask[30:34, 20:24] = 0  # a hole
    mask[2:6, 2:6] = 1  # a loose piece
    depth[:, 40:] += 0.08  # an edge: what lies behind it is the smaller piece
    there = seen_from_camera(head_surface(subject(image, mask, depth), FOV_DEG))
    assert there[32, 32]
    assert not there[30:34, 20:24].any()
    assert not there[2:6, 2:6].any()
    assert not there[:, 40:].any()


def test_the_border_keeps_its_colour_under_a_soft_mask():
    image, mask, depth = dome()
    surface = head_surface(subject(image, mask * 0.6, depth), FOV_DEG)
    np.testing.assert_allclose(surface.rgb[32, 32], [128, 128, 128], atol=1)
    assert surface.alpha[32, 32] == 153
    assert surface.rgb[32, 5, 2] == surface.rgb[0, 0, 2] == 128  # no black beside the head


@pytest.mark.parametrize("kind", ["glb", "ply"])
def test_files_read_back_with_the_picture_in_its_place(tmp_path: Path, kind: str):
    surface = head_surface(subject(*dome()), FOV_DEG)
    summary = write_head(surface, tmp_path / f"head.{kind}")
    mesh = trimesh.load_mesh(tmp_path / f"head.{kind}", process=False)
    assert summary["triangles"] == len(mesh.faces)
    assert (mesh.face_normals[:, 2] > 0).all()
    visual: Any = mesh.visual
    if kind == "glb":
        texture = np.asarray(visual.material.baseColorTexture.convert("RGB"))
        column = (visual.uv[:, 0] * SIZE).astype(int)
        row = ((1 - visual.uv[:, 1]) * SIZE).astype(int)
        colours = texture[row, column].astype(float)
    else:
        colours = np.asarray(visual.vertex_colors)[:, :3].astype(float)
    # red grows to the right and green downward, on the mesh as in the picture
    assert np.corrcoef(colours[:, 0], mesh.vertices[:, 0])[0, 1] > 0.99
    assert np.corrcoef(colours[:, 1], -mesh.vertices[:, 1])[0, 1] > 0.99


def test_the_picture_has_alpha(tmp_path: Path):
    write_head(head_surface(subject(*dome()), FOV_DEG), tmp_path / "head.png")
    picture = np.asarray(Image.open(tmp_path / "head.png"))
    assert picture.shape == (SIZE, SIZE, 4)
    assert picture[32, 32, 3] == 255
    assert picture[0, 0, 3] == 0


def test_a_head_that_is_not_there_is_refused():
    image, mask, depth = dome()
    with pytest.raises(StageError, match="is empty"):
        head_surface(subject(image, mask * 0, depth), FOV_DEG)
    few = torch.zeros_like(mask)
    few[30:33, 30:33] = 1
    with pytest.raises(StageError, match="only 8 triangles"):
        head_surface(subject(image, few, depth), FOV_DEG)
