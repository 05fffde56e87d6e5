"""Novel views on the subject's own background: the old head is gone, and small moves keep the subject's frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.canonical import CanonicalHead, HeadLayer
from models.head3d import Head3D, Subject
from models.pose_net import HeadPose
from tasks.backdrop import MOVED_SHARE, backdrop, draw_views, without_rim
from tests.tasks.test_training import settings
from tests.tasks.untrained import untrained_model

SIZE = 48
Y, X = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
HEAD = (((X - 24) ** 2 + (Y - 22) ** 2) < 12**2).float()[None, None]
GROUND = torch.stack([X / 96, Y / 96, torch.full((SIZE, SIZE), 0.3)])[None]
RED = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
REFERENCE = GROUND * (1 - HEAD) + RED * HEAD


def test_the_head_is_painted_over_with_what_surrounds_it():
    behind = backdrop(REFERENCE, HEAD)
    assert (behind - GROUND).abs().max() < 0.12  # a ramp is continued
    assert behind[:, 0].max() < 0.6  # nothing red is left
    far = (((X - 24) ** 2 + (Y - 22) ** 2) > 16**2).expand(1, 3, -1, -1)
    assert torch.equal(behind[far], REFERENCE[far])


def test_a_rim_that_fades_to_black_is_cut_off():
    inner = -F.max_pool2d(-HEAD, 3, stride=1, padding=1)
    faded = RED * (0.2 * HEAD + 0.8 * inner)  # the outermost pixel is dark
    head = without_rim(CanonicalHead(faded, HEAD, torch.ones(1, 64, 64)))
    assert torch.equal(head.mask, inner)
    torch.testing.assert_close(head.image, RED * inner)
    whole = torch.ones(1, 1, 64, 64)  # a head that reaches the frame's edge goes on there
    edgeless = CanonicalHead(whole.expand(-1, 3, -1, -1), whole, torch.ones(1, 64, 64))
    assert torch.equal(without_rim(edgeless).mask, whole)


@pytest.fixture(scope="module")
def model() -> Head3D:
    return untrained_model(settings())


@pytest.fixture(scope="module")
def subject(model: Head3D) -> Subject:
    made = model.subject(REFERENCE.expand(2, -1, -1, -1), HEAD.expand(2, -1, -1, -1), reference=0)
    return made._replace(reference_pose=HeadPose(torch.zeros(1, 3), torch.zeros(1, 3)))


@pytest.mark.parametrize(
    ("yaw", "tx_m", "kept"), [(0.0, 0.0, 1.0), (40.0, 0.0, 1.0), (0.0, 0.04, 0.0), (0.0, -0.0105, 0.5)]
)
def test_the_subjects_frame_stays_unless_the_head_moves_away(
    model: Head3D, subject: Subject, monkeypatch: pytest.MonkeyPatch, yaw: float, tx_m: float, kept: float
):
    given: list[Any] = []
    real = model.fusion.forward

    def watched(head: HeadLayer, reference: torch.Tensor, driving: torch.Tensor, **options: Any) -> Any:
        given.extend([head, reference, driving])
        return real(head, reference, driving, **options)

    monkeypatch.setattr(model.fusion, "forward", watched)
    behind = backdrop(REFERENCE, HEAD)
    pose = HeadPose(torch.tensor([[yaw, 0, 0]]), torch.tensor([[tx_m, 0, 0]]))
    made = draw_views(model, subject, behind, pose)
    head, reference, driving = given
    assert torch.equal(made.head, head.image)
    # The frame's own face has no say where the turned head is shown; the decoder has what it had.
    mixed, alone = (maps.attention[0] for maps in (real(head, reference, driving).maps, made.maps))
    torch.testing.assert_close(alone[2], mixed[2])
    shown = F.interpolate(head.alpha, alone.shape[-2:], mode="bilinear", antialias=True)[0, 0]
    torch.testing.assert_close(alone[0], shown * (1 - mixed[2]), atol=1e-4, rtol=0)
    assert (alone[0] - mixed[0]).max() > 0.1
    bare = head.alpha.expand(-1, 3, -1, -1) == 0
    torch.testing.assert_close(driving[bare], behind[bare])
    solid = (driving[:, :1] - behind[:, :1]).abs() > 0.05  # red skin on grey ground
    assert (solid & ~bare[:, :1]).sum() > 0.5 * (~bare[:, :1]).sum()
    # 47 px / (2 tan 5 degrees) = 268.6 px a metre at 1 m
    share = abs(tx_m) * 268.6 / SIZE
    expected = 1 - min(1, max(0, (share - MOVED_SHARE[0]) / (MOVED_SHARE[1] - MOVED_SHARE[0])))
    assert expected == pytest.approx(kept, abs=0.03)
    torch.testing.assert_close(reference, REFERENCE * expected + driving * (1 - expected), atol=2e-3, rtol=0)


def test_views_go_together_and_do_not_mix(model: Head3D, subject: Subject):
    behind = backdrop(REFERENCE, HEAD)
    angles, shift = torch.tensor([[20.0, 0, 0], [-20, 0, 0]]), torch.tensor([[0.0, 0, 0], [0.05, 0, 0]])
    both = draw_views(model, subject, behind, HeadPose(angles, shift))
    for row in range(2):
        one = draw_views(model, subject, behind, HeadPose(angles[row : row + 1], shift[row : row + 1]))
        torch.testing.assert_close(both.image[row], one.image[0], atol=1e-4, rtol=1e-4)
