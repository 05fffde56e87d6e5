"""Stage 1's labels: moved, mirrored and enlarged frames with the pose and depth that they then have."""

from __future__ import annotations

import pytest
import torch

from models.geometry import intrinsics
from models.landmark_pose import smoothed
from models.pose_net import HeadPose
from models.warp import sample, warp_canonical_from_frame
from tasks.clip_data import draw, gather, step_generator
from tasks.geometry import build_networks
from tasks.geometry_loss import GeometryLoss
from tasks.rendered_heads import RenderedHeads, as_clips, render_heads
from tests.tasks.factory import make_params
from tests.tasks.shares import mean_of_shares, on_one

SIZE_PX = 64


@pytest.fixture(scope="module")
def rendered() -> RenderedHeads:
    """One person in eight poses."""
    return render_heads(11, 1, 8, SIZE_PX, 5, workers=1)


@pytest.fixture(scope="module")
def loss(rendered: RenderedHeads) -> GeometryLoss:
    config = make_params(geometry={"bootstrap": "both", "rendered_people": 1, "rendered_batch": 8}).geometry
    networks = build_networks(config, torch.device("cpu"))
    return GeometryLoss(config, networks, as_clips(rendered, 8, torch.device("cpu")), rendered)


def in_canonical(loss: GeometryLoss, drawn: dict[str, torch.Tensor], turn: float = 1.0) -> float:
    """Mean difference, in the canonical frame, of the rendered heads of a step, where two see the same place."""
    assert loss.rendered is not None
    known = loss._from_renderer(loss.rendered, drawn)
    K = intrinsics(SIZE_PX, SIZE_PX, 10.0)
    pose = HeadPose(known.angles_deg * torch.tensor([turn, 1.0, 1.0]), known.translation_m).pose()
    warp = warp_canonical_from_frame(known.depth, known.masks, pose, K)
    images, seen = sample(known.heads, warp.pixels), warp.visibility > 0.9
    differences = []
    for i in range(len(images)):
        for j in range(i):
            both = (seen[i] & seen[j]).expand(3, -1, -1)
            if both.sum() > 200:
                differences.append((images[i] - images[j]).abs()[both].mean())
    assert len(differences) > 5
    return float(torch.stack(differences).mean())


def test_moved_mirrored_and_enlarged_rendered_heads_agree_in_the_canonical_frame(loss: GeometryLoss):
    assert loss.rendered is not None
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(8, 4, generator=generator) * 2 - 1
    unit[:, 1] = 0.2  # one size: every frame has its own canonical size otherwise
    # The person's own distance changes the size, too: only frames of about one distance are compared.
    near = (loss.rendered.translation_m[:, 2] - loss.rendered.translation_m[:, 2].median()).abs().argsort()[:5]
    for flip in (False, True):
        drawn = {
            "rendered": near,
            "rendered_move": unit[:5],
            "rendered_flip": torch.full((5,), flip),
        }
        right, wrong = in_canonical(loss, drawn), in_canonical(loss, drawn, turn=0.5)
        assert right < 0.08
        assert right < 0.75 * wrong


def test_a_step_of_both_sources_has_their_losses_and_every_network_learns(loss: GeometryLoss):
    for step in (0, loss.config.bootstrap_steps):
        losses = loss(loss.phase(step), loss.draw(step))
        assert {"pose", "depth", "rendered_pose", "rendered_depth", "total"} <= set(losses)
        assert ("head" in losses) == (step > 0)
        losses["total"].backward()
        for network in (loss.depth, loss.pose):
            gradients = [value.grad for value in network.parameters()]
            assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients)
            network.zero_grad()


def test_eq_4_asks_for_the_depth_of_references_and_not_of_driving_frames(
    loss: GeometryLoss, monkeypatch: pytest.MonkeyPatch
):
    shown: list[torch.Tensor] = []
    real = loss.depth_of

    def watched(heads: torch.Tensor) -> torch.Tensor:
        shown.append(heads)
        return real(heads)

    monkeypatch.setattr(loss, "depth_of", watched)
    train, start = loss.config.train, loss.config.bootstrap_steps
    for step, each in ((0, train.references + 1), (start, train.references)):
        shown.clear()
        drawn = loss.draw(step)
        losses = loss(loss.phase(step), drawn)
        count = train.batch_videos * each
        assert len(shown[0]) == count + len(drawn["rendered"])
        # in the order of the batch: a sample's references, then its driving frame
        whole = loss._from_clips(gather(loss.clips, drawn), drawn["move"])
        heads = whole.heads.unflatten(0, (train.batch_videos, -1))[:, :each]
        torch.testing.assert_close(shown[0][:count].view_as(heads), heads)
    # what is known of the depth is compared with the same frames
    depth = real(shown[0])[:count]
    known = whole.references(train.references + 1)
    torch.testing.assert_close(losses["depth"], loss._depth_prior(depth, known), rtol=1e-4, atol=0.0)


def test_two_devices_have_the_losses_of_one_where_poses_are_unknown(
    loss: GeometryLoss, monkeypatch: pytest.MonkeyPatch
):
    """The first sample's landmarks were not found: its process knows fewer poses than the other."""
    for network in (loss.depth, loss.pose):
        network.eval()  # on the CPU, batch norms see their own share
    for step in (0, loss.config.bootstrap_steps):
        drawn = loss.draw(step)
        angles = loss.angles.clone()
        angles[drawn["clip"][0], drawn["frame"][0]] = torch.nan
        monkeypatch.setattr(loss, "angles", angles)
        whole = on_one(loss, loss.phase(step), drawn)
        assert mean_of_shares(loss, loss.phase(step), drawn) == pytest.approx(whole, rel=1e-4)
    for network in (loss.depth, loss.pose):
        network.train()


def test_settings_and_rendered_heads_must_go_together(rendered: RenderedHeads):
    config = make_params(geometry={"bootstrap": "landmarks"}).geometry
    networks = build_networks(config, torch.device("cpu"))
    with pytest.raises(ValueError, match="rendered heads: True"):
        GeometryLoss(config, networks, as_clips(rendered, 8, torch.device("cpu")), rendered)


def test_frames_of_a_sample_come_from_where_the_setting_says(rendered: RenderedHeads):
    clips = as_clips(rendered, 2, torch.device("cpu"))  # four clips of one video
    train = make_params().geometry.train.model_copy(update={"references": 1, "batch_videos": 8})
    for span, crossed in (("clip", False), ("video", True)):
        drawn = draw(clips, train.model_copy(update={"span": span}), step_generator(train, 0))
        assert bool((drawn["clip"][:, 0] != drawn["clip"][:, 1]).any()) == crossed


def test_landmark_poses_are_smoothed_over_time_and_unknown_ones_stay_unknown():
    values = torch.tensor([0.0, 0.0, 9.0, 0.0, float("nan"), 0.0])[None, :, None]
    found = smoothed(values)[0, :, 0]
    assert found[4].isnan()
    # weights 1 2 3 2 1; frame 2 lacks its right-hand neighbour but one
    assert found[[0, 1, 2, 3]].tolist() == pytest.approx([9 / 6, 18 / 8, 27 / 8, 18 / 7])
