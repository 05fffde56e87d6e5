"""Eq. 1, 2 and 3 against hand-computed values and against each other."""

import math

import pytest
import torch

from models.geometry import (
    Pose,
    intrinsics,
    pose_from_euler,
    project,
    rotation_from_euler,
    to_canonical,
    to_frame,
)
from models.warp import pixel_grid


def pose(yaw: float, pitch: float = 0.0, roll: float = 0.0, shift: tuple[float, float, float] = (0, 0, 0)) -> Pose:
    a, b, c = (torch.tensor([angle], dtype=torch.float64) for angle in (yaw, pitch, roll))
    return pose_from_euler(a, b, c, torch.tensor([shift], dtype=torch.float64))


def test_intrinsics_follow_eq_2():
    K = intrinsics(128, 128, 10.0, torch.float64)
    assert K[0, 0].item() == pytest.approx(127 / (2 * math.tan(math.radians(5))))
    assert K[0, 0].item() == pytest.approx(725.8, abs=0.05)
    assert K[0, 2].item() == K[1, 2].item() == 63.5
    with pytest.raises(ValueError, match="fov_deg"):
        intrinsics(128, 128, 0.0)


@pytest.mark.parametrize(("yaw", "moved_px"), [(10.0, -6.6), (30.0, -19.0)])
def test_nose_moves_as_in_the_design(yaw: float, moved_px: float):
    K, turned = intrinsics(128, 128, 10.0, torch.float64), pose(yaw)
    nose = turned.rotation[0] @ torch.tensor([0.0, 0.0, 0.95], dtype=torch.float64) + turned.translation[0]
    assert (project(nose, K)[0] - 63.5).item() == pytest.approx(moved_px, abs=0.05)


def test_positive_angles_turn_left_down_and_clockwise():
    nose = torch.tensor([0.0, 0.0, -0.05], dtype=torch.float64)
    ear = torch.tensor([0.05, 0.0, 0.0], dtype=torch.float64)
    assert (pose(20.0).rotation[0] @ nose)[0] < 0
    assert (pose(0.0, pitch=20.0).rotation[0] @ nose)[1] > 0  # Rx turns -z towards +y: down
    assert (pose(0.0, roll=20.0).rotation[0] @ ear)[1] > 0  # y is down: clockwise on the image


def test_rotation_is_the_product_named():
    angles = torch.tensor([[30.0, -20.0, 10.0]], dtype=torch.float64)
    a, b, c = torch.deg2rad(angles)[0].tolist()
    ry = [[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]]
    rx = [[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]]
    rz = [[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]]
    x, y, z = (torch.tensor(m, dtype=torch.float64) for m in (rx, ry, rz))
    assert torch.allclose(rotation_from_euler(*angles.unbind(-1))[0], z @ y @ x, atol=1e-12)


def test_eq_3_after_eq_1_returns_the_start():
    torch.manual_seed(0)
    size = 32
    K = intrinsics(size, size, 10.0, torch.float64)
    turned = pose(25.0, -12.0, 7.0, (0.01, -0.02, 0.03))
    depth = 0.95 + 0.1 * torch.rand(1, size, size, dtype=torch.float64)
    there = to_canonical(depth, turned, K)
    # Follow one point at a time: the depth it has in the canonical frame is what Eq. 3 needs.
    rays = torch.cat([(pixel_grid(size, size, depth) - K[:2, 2]) / K[0, 0], torch.ones(size, size, 1).double()], -1)
    points = (depth[0, ..., None] * rays - turned.translation[0]) @ turned.rotation[0]
    back = points @ turned.rotation[0].T + turned.translation[0]
    assert (project(points, K) - there[0]).abs().max() < 1e-9
    assert (project(back, K) - pixel_grid(size, size, depth)).abs().max() < 1e-9


def test_identity_pose_maps_every_pixel_to_itself():
    K = intrinsics(20, 24, 10.0, torch.float64)
    depth = 0.9 + 0.2 * torch.rand(2, 20, 24, dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    still = pose_from_euler(zero, zero, zero, torch.zeros(2, 3, dtype=torch.float64))
    for move in (to_canonical, to_frame):
        assert (move(depth, still, K) - pixel_grid(20, 24, depth)).abs().max() < 1e-9


def test_depth_of_a_wrong_shape_is_refused():
    K = intrinsics(8, 8, 10.0)
    with pytest.raises(ValueError, match="expected"):
        to_canonical(torch.ones(8, 8), pose(0.0), K)
