"""The networks: shapes, bounds, and what each is there for."""

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.canonical import CanonicalHead, HeadLayer, render_head
from models.coder import ConvLSTM, ImageDecoder, ImageEncoder, reflect_pad
from models.config import Camera, CoderNet, DepthNet, FlowNet, PartNet, Perceptual, PoseNet
from models.depth_net import DepthNetwork
from models.fusion import FusionNetwork, attend_where_seen
from models.geometry import intrinsics, pose_from_euler
from models.losses import RandomTransform, depth_smoothness, equivariance, head_reconstruction, symmetry
from models.motion import HELD_REACH, FlowPredictor, Regions, Seen, candidate_grids
from models.perceptual import PerceptualLoss
from models.pose_net import PoseNetwork
from models.warp import normalised_grid

CAMERA = Camera(
    fov_deg=10.0, depth_min_m=0.9, depth_max_m=1.1, border_depth_m=1.04, max_angle_deg=60.0, max_translation_m=0.1
)
NET = CoderNet(width=8, residual_blocks=1)
PARTS = PartNet(regions=2, scale=1.0, width=4, blocks=2)
FLOW = FlowNet(regions=4, parts=PARTS, scale=0.5, width=8, max_width=32, blocks=3, temperature=0.1)


@pytest.mark.parametrize("encoder", ["slim", "mobilenet_v2"])
@pytest.mark.parametrize("size", [64, 80])
def test_depth_lies_in_its_bounds_and_its_border_is_pinned(encoder: Literal["slim", "mobilenet_v2"], size: int):
    torch.manual_seed(0)
    network = DepthNetwork(DepthNet(encoder=encoder, initial="random", width=32), CAMERA)
    depth = network(torch.rand(2, 3, size, size))
    assert depth.shape == (2, size, size)
    assert depth.min() >= 0.9
    assert depth.max() <= 1.1
    assert torch.allclose(depth[:, :, [0, 1, -2, -1]], torch.tensor(1.04))
    assert depth[:, :, 2:-2].std() > 1e-3


@pytest.mark.parametrize("backbone", ["slim", "resnet18", "resnet50"])
def test_pose_is_bounded_and_translation_starts_at_zero(backbone: Literal["slim", "resnet18", "resnet50"]):
    torch.manual_seed(0)
    network = PoseNetwork(PoseNet(backbone=backbone, initial="random", input_px=64), CAMERA)
    pose = network(torch.rand(3, 3, 96, 96))
    assert pose.angles_deg.shape == pose.translation_m.shape == (3, 3)
    assert pose.angles_deg.abs().max() <= 60
    assert pose.translation_m.abs().max() < 1e-8  # a full frame's centre of area is its middle
    determinant = torch.linalg.det(pose.pose().rotation)
    assert torch.allclose(determinant, torch.ones(3), atol=1e-5)


def test_a_shifted_head_keeps_its_angles_and_its_shift_is_measured():
    torch.manual_seed(0)
    network = PoseNetwork(PoseNet(backbone="slim", initial="random", input_px=64), CAMERA).eval()
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, 20:44, 16:40] = torch.rand(1, 3, 24, 24) * 0.9 + 0.1
    here, there = network(image), network(image.roll((5, 9), dims=(2, 3)))
    assert torch.allclose(here.angles_deg, there.angles_deg, atol=1e-3)
    per_px = 2 * math.tan(math.radians(5)) / 63  # metres at the head's distance, 10 degrees of view
    moved = (there.translation_m - here.translation_m)[0] / per_px
    assert moved.tolist() == pytest.approx([9, 5, 0], abs=0.4)  # the soft bound bends large shifts a little


def test_hopenet_angle_is_the_expected_bin():
    network = PoseNetwork(PoseNet(backbone="resnet18", initial="random", input_px=32), CAMERA)
    for head in (network.fc_yaw, network.fc_pitch, network.fc_roll):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, -50.0)
        head.bias.data[40] = 50.0
    angle = network(torch.rand(2, 3, 32, 32)).angles_deg
    expected = 60 * torch.tanh(torch.tensor((40 * 3 - 99.0) / 60))
    assert torch.allclose(angle, expected.expand(2, 3), atol=1e-3)


def test_lstm_takes_any_number_of_references_and_minds_each():
    torch.manual_seed(0)
    memory = ConvLSTM(8)
    features = torch.randn(2, 5, 8, 6, 6)
    for count in (1, 3, 5):
        assert memory(features[:, :count]).shape == (2, 8, 6, 6)
    changed = features.clone()
    changed[:, 0] += 1
    assert (memory(features) - memory(changed)).abs().max() > 1e-4


def test_coder_keeps_the_size():
    image = torch.rand(2, 3, 64, 64)
    features = ImageEncoder(NET)(image)
    assert [tuple(f.shape[1:]) for f in features] == [(8, 64, 64), (16, 32, 32), (32, 16, 16)]
    output = ImageDecoder(NET)(features[-1]).sigmoid()
    assert output.shape == image.shape
    assert output.min() >= 0
    assert output.max() <= 1


def test_a_turned_head_moves_and_leaves_black():
    size = 64
    K = intrinsics(size, size, 10.0)
    mask = torch.zeros(1, 1, size, size)
    mask[:, :, 16:48, 16:48] = 1
    head = CanonicalHead(mask.expand(-1, 3, -1, -1) * 0.7, mask, torch.ones(1, size, size))
    shift = pose_from_euler(
        torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.tensor([[8 / K[0, 0].item(), 0.0, 0.0]])
    )
    image, seen = render_head(head, shift, K)
    assert image[0, 0, 32, 20].item() == 0
    assert seen[0, 0, 32, 20].item() == 0
    assert abs(image[0, 0, 32, 50].item() - 0.7) < 1e-3


def uncorrected() -> FusionNetwork:
    """A fusion network whose decoder corrects nothing."""
    torch.manual_seed(0)
    network = FusionNetwork(NET, FLOW).eval()
    torch.nn.init.zeros_(network.decoder.out.weight)
    torch.nn.init.zeros_(network.decoder.out.bias)  # type: ignore[arg-type]
    return network


def test_attention_sums_to_one_and_every_part_learns():
    torch.manual_seed(0)
    network = FusionNetwork(NET, FLOW)
    images = [torch.rand(2, 3, 64, 64) for _ in range(3)]
    fused = network(HeadLayer(images[0], torch.rand(2, 1, 64, 64)), *images[1:])
    assert fused.image.shape == (2, 3, 64, 64)
    assert fused.maps.attention.shape[:2] == (2, 3)
    assert torch.allclose(fused.maps.attention.sum(1), torch.ones(2, 32, 32), atol=1e-5)
    assert fused.maps.pixels_head.shape == (2, 32, 32, 2)
    (fused.image - images[2]).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


def test_attention_does_not_rest_on_the_black_around_the_head():
    attention = torch.rand(1, 3, 8, 8).softmax(1)
    shown = torch.ones(1, 1, 8, 8)
    shown[..., 4:] = 0
    found = attend_where_seen(attention, shown)
    assert found[:, 0, :, 4:].max() == 0
    assert torch.equal(found[:, 0, :, :4], attention[:, 0, :, :4])
    assert torch.allclose(found.sum(1), torch.ones(1, 8, 8), atol=1e-6)


@torch.no_grad()
def test_a_soft_edge_of_the_head_is_no_dark_rim():
    """Head and reference are of one grey; wherever the head's edge fades, the output must be of that grey, too."""
    network = uncorrected()
    grey = torch.full((1, 3, 64, 64), 0.5)
    edge = (torch.arange(64.0) / 20 - 1).clamp(0, 1).expand(1, 1, 64, 64)
    out = network(HeadLayer(grey * edge, edge), grey, grey).image
    assert (out - 0.5).abs().max() < 0.01


@torch.no_grad()
def test_held_regions_move_only_what_is_in_their_reach():
    torch.manual_seed(0)
    network, wide = FlowPredictor(FLOW).eval(), 0.1
    for head in (network.mask_head, network.mask_reference):  # by themselves all candidates count the same
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    centre = torch.tensor([[[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]]])
    regions = Regions(centre, wide * torch.eye(2).expand(1, 4, 2, 2))
    seen = [Seen(torch.rand(1, 3, 32, 32), Regions(centre + 0.2, regions.frame)) for _ in range(2)]
    shares = network.mix(seen[0], seen[1], regions).shares
    torch.testing.assert_close(shares.sum(2), torch.ones(1, 2, 32, 32))
    away = (normalised_grid(32, 32, centre)[0] - centre[0, :, None, None]).norm(dim=-1) / wide
    for k in range(4):
        of = shares[0, :, 1 + k]
        assert (of[:, away[k] < HELD_REACH] > 0.19).all()
        beyond = of[:, away[k] > HELD_REACH + 3]
        assert (beyond < 1e-4).all() if k < PARTS.regions else (beyond > 0.19).all()


@torch.no_grad()
def test_a_novel_view_shows_the_turned_head_as_it_is():
    """Whatever Phi says: the head is at the pose that was asked for and must not be moved once more."""
    network = uncorrected()
    head, reference = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    layer = HeadLayer(head, torch.ones(1, 1, 64, 64))
    mixed, alone = (network(layer, reference, head, head_first=first).image for first in (False, True))
    known = head.clamp(0.01, 0.99)
    torch.testing.assert_close(alone, known, atol=1e-4, rtol=0)
    assert (mixed - known).abs().mean() > 0.05


def test_a_shifted_region_shifts_the_grid():
    frame = 0.1 * torch.eye(2).expand(1, 1, 2, 2)
    source = Regions(torch.tensor([[[0.3, 0.0]]]), frame)
    driving = Regions(torch.tensor([[[-0.1, 0.2]]]), frame)
    grids = candidate_grids(source, driving, 8, 8)
    identity = normalised_grid(8, 8, frame)[0]
    assert torch.allclose(grids[0, 0], identity)
    assert torch.allclose(grids[0, 1], identity + torch.tensor([0.4, -0.2]), atol=1e-5)


def test_losses_by_hand():
    image = torch.zeros(1, 3, 4, 4)
    image[..., 0] = 1.0
    assert symmetry(image).item() == pytest.approx(0.5)
    assert head_reconstruction(image, torch.zeros_like(image)).item() == pytest.approx(0.25)
    ramp = torch.arange(4.0).expand(1, 4, 4) * 0.1
    assert depth_smoothness(ramp, torch.zeros(1, 3, 4, 4)).item() == pytest.approx(1.0, abs=1e-5)
    edged = torch.arange(4.0).expand(1, 3, 4, 4).contiguous()
    assert depth_smoothness(ramp, edged).item() == pytest.approx(torch.exp(torch.tensor(-1.0)).item(), abs=1e-5)


def test_equivariance_is_zero_for_regions_that_move_along():
    transform = RandomTransform(RandomTransform.draw(1, torch.Generator().manual_seed(0)))
    moved = Regions(torch.tensor([[[0.1, -0.2], [0.4, 0.3]]]), 0.2 * torch.eye(2).expand(1, 2, 2, 2))
    along = Regions(transform(moved.centre), transform.jacobian(moved.centre) @ moved.frame)
    assert equivariance(along, moved, transform).item() < 1e-5
    assert equivariance(moved, moved, transform).item() > 1e-3


def test_perceptual_loss_is_zero_for_equals_and_seeded():
    config = Perceptual(backbone="slim_random", layer_weights=[10.0] * 5, scales=[1.0, 0.5], pixel_weight=1.0)
    one, two = PerceptualLoss(config), PerceptualLoss(config)
    a, b = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    assert one(a, a).item() == 0
    assert one(a, b).item() == two(a, b).item() > 0
    with pytest.raises(ValueError, match="vgg19_random"):
        PerceptualLoss(config.model_copy(update={"backbone": "vgg19"}))


def test_compiled_the_mirrored_border_is_made_of_slices_and_the_same():
    graphs: list[str] = []

    def see(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph.code)
        return graph.forward

    x = torch.randn(2, 3, 9, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 13, 11, dtype=torch.float64)
    expected = F.pad(x, [2] * 4, mode="reflect")
    found = torch.compile(reflect_pad, backend=see, dynamic=False)(x, 2)
    assert torch.equal(found, expected)
    assert "pad(" not in graphs[0]
    slopes = [torch.autograd.grad((padded * weight).sum(), x)[0] for padded in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_regions_with_a_predictor_of_their_own_are_moved_by_labels_alone():
    torch.manual_seed(0)
    phi = FlowPredictor(FLOW).train()
    head, reference, driving = torch.rand(3, 2, 3, 32, 32)
    looked = phi.see([head, reference, driving], lambda image: image.flip(-1))
    (of_head, of_reference, of_driving), moved = looked.seen, looked.moved
    assert of_driving.regions.centre.shape == (2, 4, 2)  # two held, two free
    assert moved is not None
    assert moved.centre.shape == (2, 2, 2)
    assert looked.free.centre.shape == (8, 2, 2)
    assert torch.equal(looked.free.centre[4:6], of_driving.regions.centre[:, 2:])
    assert looked.logits.shape[:2] == (8, 2)
    maps = phi.mix(of_head, of_reference, of_driving.regions)
    assert phi.parts is not None
    held, free = list(phi.parts.parameters()), list(phi.regions.parameters())

    def reached(value: Tensor, parameters: list[torch.nn.Parameter]) -> bool:
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        return any(gradient is not None and bool(gradient.any()) for gradient in gradients)

    frame = maps.pixels_reference.square().sum() + maps.attention.square().sum()
    assert reached(frame, free)
    assert not reached(frame, held)
    assert reached(of_driving.regions.centre[:, :2].sum(), held)


def test_held_regions_are_looked_for_at_their_own_scale():
    torch.manual_seed(0)
    phi = FlowPredictor(FLOW).eval()
    image = torch.rand(1, 3, 32, 32)
    checker = image.clone()
    checker[..., ::2, ::2] += 0.1  # a pattern of two pixels, gone at Phi's scale of one half
    checker[..., 1::2, ::2] -= 0.1
    checker[..., ::2, 1::2] -= 0.1
    checker[..., 1::2, 1::2] += 0.1
    (seen,) = phi.see([image]).seen
    (other,) = phi.see([checker]).seen
    change = (seen.regions.centre - other.regions.centre).abs().amax((0, 2))
    assert change[:2].min() > 5 * change[2:].max()
