"""Poses given by hand, and references chosen by pose."""

from __future__ import annotations

import pytest
import torch

from models.canonical import RecurrentCanonical
from models.depth_net import DepthNetwork
from models.fusion import FusionNetwork
from models.head3d import Head3D
from models.pose_net import HeadPose, PoseNetwork
from tasks.errors import StageError
from tasks.novel_view import parse_range, wanted_poses
from tasks.references import choose_references, spread_by_pose
from tests.tasks.test_training import settings

CAMERA = settings().geometry.camera
OWN = HeadPose(torch.tensor([[7.0, -3.0, 1.0]]), torch.tensor([[0.01, 0.02, -0.03]]))


@pytest.mark.parametrize(
    ("axis", "text", "values"),
    [
        ("yaw", "-40:40:20", [-40, -20, 0, 20, 40]),
        ("yaw", "40:-40:40", [40, 0, -40]),
        ("yaw", "-2:1", [-2, -1, 0, 1]),
        ("pitch", "12.5", [12.5]),
        ("tx", "-0.05:0.05:0.05", [-0.05, 0, 0.05]),
        ("tz", "0:0.05:0.01", [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        ("yaw", "0:10:4", [0, 4, 8]),
    ],
)
def test_ranges(axis: str, text: str, values: list[float]):
    assert parse_range(axis, text) == pytest.approx(values)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"yaw": "left"}, "--yaw left: write one number or first:last:step, for example --yaw -40:40:5"),
        ({"tx": "0:1:2:3"}, "for example --tx -0.05:0.05:0.01"),
        ({"yaw": "nan"}, "write one number"),
        ({"yaw": "0:10:0"}, "the step is 0"),
        ({"yaw": "0:10:0.0001"}, "take a larger step"),
        ({"yaw": "-40:40:5", "pitch": "0:10:5"}, "--yaw -40:40:5 has 17, --pitch 0:10:5 has 3"),
        ({"yaw": "0:75:5"}, "reaches 75; the model knows -60 to 60 degrees"),
        ({"tx": "5"}, "reaches 5; the model knows -0.1 to 0.1 metres"),
        ({}, "no pose is given"),
    ],
)
def test_ranges_that_do_not_fit_say_why(ranges: dict[str, str], message: str):
    with pytest.raises(StageError) as refused:
        wanted_poses(ranges, OWN, CAMERA)
    assert message in str(refused.value)


def test_what_is_not_named_stays_as_in_the_reference():
    pose = wanted_poses({"yaw": "-10:10:10", "tx": "0"}, OWN, CAMERA)
    assert pose.angles_deg.tolist() == [[-10, -3, 1], [0, -3, 1], [10, -3, 1]]
    assert torch.equal(pose.translation_m, torch.tensor([[0, 0.02, -0.03]]).expand(3, 3))


def test_a_view_at_a_driving_frames_pose_shows_the_same_head():
    params = settings()
    torch.manual_seed(0)
    model = Head3D(
        DepthNetwork(params.geometry.depth_net, CAMERA).eval(),
        PoseNetwork(params.geometry.pose_net, CAMERA).eval(),
        RecurrentCanonical(params.canonical.net).eval(),
        FusionNetwork(params.fusion.net, params.fusion.flow_net).eval(),
        CAMERA,
        48,
    )
    images, masks = torch.rand(3, 3, 48, 48), torch.zeros(3, 1, 48, 48)
    masks[:, :, 10:38, 10:38] = 1
    state = model.subject(images, masks, reference=0)
    driven = model.drive(state, images, masks)
    pose = model.pose(images * masks)
    turned = model.view(state, pose)
    torch.testing.assert_close(turned.head, driven.head)
    expected = model._fuse(state, pose, turned.head).image
    torch.testing.assert_close(turned.image, expected)


def test_spread_begins_with_the_most_frontal_frame_and_takes_the_extremes():
    angles = torch.tensor([[20.0, 0, 0], [1, 0, 0], [-30, 0, 0], [2, 0, 0], [40, 0, 0], [0.5, 20, 0]])
    assert spread_by_pose(angles, 4).tolist() == [1, 4, 2, 5]
    assert sorted(spread_by_pose(torch.zeros(5, 3), 5).tolist()) == [0, 1, 2, 3, 4]


def test_references_are_never_more_than_the_frames():
    assert choose_references(torch.ones(3), 10, "spread", lambda: torch.rand(3, 3)).shape == (3,)
    even = choose_references(torch.ones(9), 3, "even", lambda: pytest.fail("poses are not needed"))
    assert even.tolist() == [0, 4, 8]
    with pytest.raises(StageError, match="take one of: even, spread"):
        choose_references(torch.ones(3), 2, "best", lambda: torch.rand(3, 3))


def test_spread_passes_over_frames_in_which_the_head_is_covered():
    # frame 1 is covered (F_P gives nearly 0), frame 4 half covered (an outlier)
    angles = torch.tensor([[20.0, 0, 0], [0, 0, 0], [-30, 0, 0], [5, 0, 0], [0, 50, 40], [15, 0, 0]])
    areas = torch.tensor([900, 0, 850, 950, 500, 1000])
    assert choose_references(areas, 3, "spread", lambda: angles).tolist() == [3, 2, 0]
    assert choose_references(areas, 5, "spread", lambda: angles).tolist()[0] == 3  # frame 4 must help out, frame 1 not
    assert sorted(choose_references(areas, 5, "spread", lambda: angles).tolist()) == [0, 2, 3, 4, 5]
    away = torch.tensor([0, 0, 850, 950, 0, 0])  # away most of the time: the median of all is no measure
    assert sorted(choose_references(away, 2, "spread", lambda: angles).tolist()) == [2, 3]
    assert choose_references(torch.zeros(6), 2, "spread", lambda: angles).shape == (2,)
