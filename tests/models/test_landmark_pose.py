"""The start of stage 1: poses from five landmarks, depth from a mask."""

import torch

from models.geometry import intrinsics, rotation_from_euler
from models.landmark_pose import MEAN_FACE, InPlane, ellipsoid_depth, fit_landmarks, poses_from_landmarks

K = intrinsics(128, 128, 10.0)


def project_face(angles: torch.Tensor, scale: float = 36.0, centre: tuple[float, float] = (60.0, 66.0)) -> torch.Tensor:
    turned = torch.einsum("bij,kj->bki", rotation_from_euler(*angles.unbind(-1)), torch.tensor(MEAN_FACE))
    return turned[..., :2] * scale + torch.tensor(centre)


def test_known_poses_are_found():
    angles = torch.tensor([[0.0, 0, 0], [30, 0, 0], [-40, 10, 5], [15, -15, -20], [5, 12, 8]])
    found, scale, centre = fit_landmarks(project_face(angles), 60.0)
    assert (found - angles).abs().max() < 1.5
    assert (scale - 36).abs().max() < 1
    assert (centre - torch.tensor([60.0, 66.0])).abs().max() < 1


def test_noise_of_a_pixel_costs_a_few_degrees():
    generator = torch.Generator().manual_seed(0)
    angles = torch.zeros(200, 3)
    angles[:, 0] = torch.linspace(-40, 40, 200)
    noisy = project_face(angles) + torch.randn(200, 5, 2, generator=generator)
    found, _, _ = fit_landmarks(noisy, 60.0)
    assert (found - angles).abs()[:, 0].mean() < 5
    assert (found - angles).abs()[:, 2].mean() < 3


def test_unknown_landmarks_stay_unknown_and_spoil_nothing():
    points = project_face(torch.tensor([[10.0, 0, 0], [20, 0, 0]]))
    points[0] = torch.nan
    angles, translation = poses_from_landmarks(points, K, 60.0, 0.1)
    assert torch.isnan(angles[0]).all()
    assert torch.isnan(translation[0]).all()
    assert abs(angles[1, 0].item() - 20) < 1.5


def test_translation_puts_the_centre_where_it_is_seen():
    _angles, translation = poses_from_landmarks(project_face(torch.zeros(3, 3)), K, 60.0, 0.1)
    expected = (torch.tensor([60.0, 66.0]) - 63.5) / K[0, 0]
    assert (translation[:, :2] - expected).abs().max() < 1e-3
    assert translation[:, 2].abs().max() < 1e-3


def test_ellipsoid_fills_the_mask():
    ys, xs = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    mask = ((((xs - 60) / 30) ** 2 + ((ys - 70) / 40) ** 2) < 1).float()[None]
    depth = ellipsoid_depth(mask, K)
    assert abs(depth[0, 70, 60].item() - (1 - 30 / K[0, 0].item())) < 1e-3
    assert depth[0, 0, 0] == 1
    assert depth[0, 70, 85] > depth[0, 70, 60]


def test_an_in_plane_move_moves_the_pose_as_it_moves_the_picture():
    generator = torch.Generator().manual_seed(3)
    move = InPlane.of(InPlane.draw(4, generator), 128)
    points = project_face(torch.tensor([[20.0, 5, 3]]).expand(4, 3))
    angles, translation = poses_from_landmarks(points, K, 60.0, 0.1)
    dots = torch.zeros(4, 5, 128, 128)  # one channel per landmark: a soft dot to find again after the move
    ys, xs = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    for i in range(4):
        for j in range(5):
            dots[i, j] = torch.exp(-((xs - points[i, j, 0]) ** 2 + (ys - points[i, j, 1]) ** 2) / 18)
    moved = move.apply(dots)
    weight = moved / moved.sum((2, 3), keepdim=True)
    found = torch.stack([(weight * xs).sum((2, 3)), (weight * ys).sum((2, 3))], -1)
    expected_angles, expected_translation = move.move(angles, translation, K)
    for i in range(4):
        fitted, scale, centre = fit_landmarks(found[i : i + 1], 60.0)
        assert (fitted - expected_angles[i]).abs().max() < 1.0
        offset = (centre[0] - 63.5) / K[0, 0] * (1 + expected_translation[i, 2])
        assert (offset - expected_translation[i, :2]).abs().max() < 1e-3
        assert abs(scale.item() / 36 * (1 + expected_translation[i, 2].item()) - 1) < 0.02
