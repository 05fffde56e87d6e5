"""Losses: eyes and mouth are found where they are; what once blew up stays bounded."""

import pytest
import torch

from models.losses import HEAT_SHARE, RandomTransform, crowding, equivariance, near_features
from models.motion import Regions, regions_from_heat, scores

FACE = torch.tensor([[[20.0, 24.0], [44.0, 24.0], [32.0, 34.0], [24.0, 46.0], [40.0, 46.0]]])


def test_near_features_is_one_at_eyes_and_mouth_and_nothing_at_the_chin_or_background():
    near = near_features(FACE, 64, 64)
    assert near.shape == (1, 1, 64, 64)
    for x, y in ((20, 24), (44, 24), (32, 46)):
        assert near[0, 0, y, x] > 0.99
    assert near[0, 0, :8].max() < 0.2
    assert near[0, 0, 63].max() < 0.4
    assert near[0, 0, :, 63].max() < 0.2
    torch.testing.assert_close(near[..., 1:], near[..., 1:].flip(-1), atol=1e-5, rtol=0)  # the face's middle is x = 32


def test_near_features_does_not_point_at_unknown_landmarks():
    unknown = FACE.clone()
    unknown[0, 2, 0] = torch.nan
    assert near_features(torch.cat([unknown, FACE]), 64, 64).sum((1, 2, 3)).tolist()[0] == 0
    assert torch.isfinite(near_features(torch.full_like(FACE, torch.nan), 64, 64)).all()


def test_equivariance_of_a_region_that_shrank_to_a_point_stays_bounded():
    still = RandomTransform(torch.zeros(1, 31))
    centre = torch.zeros(1, 1, 2)
    point, wide = (Regions(centre, size * torch.eye(2)[None, None]) for size in (0.01, 0.7))
    assert float(equivariance(wide, wide, still)) < 1e-3
    for pair in ((point, wide), (wide, point)):
        assert 0.4 < float(equivariance(*pair, still)) < 1.1  # relative to one size it was 1,200


def test_scores_are_not_rounded_inside_a_short_precision():
    torch.manual_seed(0)
    head, features = torch.nn.Conv2d(16, 10, 7, padding=3), 10 * torch.randn(2, 16, 12, 12)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain, ours = head(features), scores((head,), features)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, head(features), atol=1e-4, rtol=1e-4)
    assert (plain.float() - ours).abs().max() > 1e-2


def test_crowding_by_hand_and_only_of_those_that_are_near():
    even = torch.zeros(1, 3, 4, 4)
    centre = torch.tensor([[[0.0, 0.0], [0.1, 0.2], [0.9, 0.9]]], requires_grad=True)
    frames = torch.eye(2).expand(1, 3, 2, 2)
    found = crowding(Regions(centre, frames), even)
    assert found.item() == pytest.approx(2 * (0.1 - 0.05) / 3)
    found.backward()
    assert centre.grad is not None
    assert (-centre.grad[0, 1] > 0).all()  # away from the first
    assert (centre.grad[0, 2] == 0).all()
    uneven = even.clone()
    uneven[0, 0, 1, 1] = 16.0
    alone = crowding(Regions(centre.detach() * 9, frames), uneven)
    assert alone.item() == pytest.approx(HEAT_SHARE * (15.0**2 + 15 * 1.0) / 48)


def test_a_heat_map_stuck_on_one_pixel_has_a_gradient_again():
    """Its region does not follow the picture: equivariance tells it nothing, crowding lowers its peak."""
    logits = torch.zeros(1, 2, 8, 8)
    logits[0, 0, 7, 7] = 20.0
    logits.requires_grad_()
    regions = regions_from_heat((logits.flatten(2) / 0.1).softmax(-1).view_as(logits))
    (of_place,) = torch.autograd.grad(regions.centre[0, 0].sum(), logits, retain_graph=True)
    assert of_place[0, 0].abs().max() < 1e-6
    (pulled,) = torch.autograd.grad(crowding(regions, logits), logits)
    assert pulled[0, 0, 7, 7] > 1e-4
