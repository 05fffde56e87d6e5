"""Parts of the face from labels, and what stage 3 makes of them."""

from __future__ import annotations

import math

import pytest
import torch

from models.config_rules import FACE_PARTS
from models.losses import part_distance, part_shares
from models.motion import Regions, heat_maps, regions_from_heat
from tasks.face_parts import PARTS, mirrored_parts, part_moments
from tasks.labels import LEFT_EYE, LOWER_LIP, MIRRORED_IDS, MOUTH, RIGHT_EYE, SKIN, UPPER_LIP

EYE, MOUTH_PART, LOWER = PARTS.index((LEFT_EYE,)), PARTS.index((MOUTH, UPPER_LIP, LOWER_LIP)), PARTS.index((LOWER_LIP,))


def drawn_face(open_px: int = 2) -> torch.Tensor:
    """Labels of a face of 64 x 64 pixels whose mouth is so far open, `(1, 64, 64)`."""
    labels = torch.full((1, 64, 64), SKIN, dtype=torch.uint8)
    labels[:, 20:24, 36:44] = LEFT_EYE
    labels[:, 40:42, 24:40] = UPPER_LIP
    labels[:, 42 : 42 + open_px, 26:38] = MOUTH
    labels[:, 42 + open_px : 45 + open_px, 24:40] = LOWER_LIP
    return labels


def test_the_rules_of_the_settings_count_the_parts() -> None:
    assert len(PARTS) == FACE_PARTS


def test_centre_and_extent_are_those_of_the_pixels() -> None:
    parts = part_moments(drawn_face())
    unit = 2 / 63  # a pixel
    eye = parts[0, EYE]
    torch.testing.assert_close(eye[:2], torch.tensor([39.5, 21.5]) * unit - 1)
    variances = torch.tensor([(8**2 - 1) / 12, 0.0, (4**2 - 1) / 12]) * unit**2  # of 8 x 4 pixels in rows and columns
    torch.testing.assert_close(eye[2:], variances, atol=1e-6, rtol=1e-4)


def test_what_is_not_seen_is_unknown() -> None:
    parts = part_moments(drawn_face())
    assert parts[0, PARTS.index((RIGHT_EYE,))].isnan().all()
    assert parts[0, MOUTH_PART].isfinite().all()


def test_an_opening_mouth_grows_and_its_lower_lip_sinks() -> None:
    shut, wide = part_moments(drawn_face(1)), part_moments(drawn_face(8))
    assert wide[0, MOUTH_PART, 4] > 2 * shut[0, MOUTH_PART, 4]
    assert wide[0, LOWER, 1] - shut[0, LOWER, 1] > 6 * 2 / 63
    torch.testing.assert_close(wide[0, LOWER, 0], shut[0, LOWER, 0])


def test_mirrored_parts_are_the_parts_of_the_mirrored_labels() -> None:
    labels = drawn_face(3)
    labels[0, 43, 26:28] = SKIN  # nothing in it is symmetrical
    mirrored = torch.tensor(MIRRORED_IDS, dtype=torch.uint8)[labels.long()].flip(-1)
    both = torch.cat([part_moments(labels)] * 2)
    found = mirrored_parts(both, torch.tensor([True, False]))
    torch.testing.assert_close(found[:1], part_moments(mirrored), equal_nan=True, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[1:], part_moments(labels), equal_nan=True)


def regions_like(parts: torch.Tensor, more: int = 3) -> Regions:
    """Regions that lie exactly on the known parts, as Phi finds them (symmetric roots), and some others."""
    parts = torch.nan_to_num(parts, nan=0.3)
    covariance = torch.stack([parts[..., 2:4], parts[..., 3:5]], -2)
    values, vectors = torch.linalg.eigh(covariance + 1e-4 * torch.eye(2))
    frame = vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT
    away = torch.rand(len(parts), more, 2, generator=torch.Generator().manual_seed(0))
    return Regions(
        torch.cat([parts[..., :2], away], 1), torch.cat([frame, torch.eye(2).expand(len(parts), more, 2, 2)], 1)
    )


def test_the_distance_is_zero_on_the_parts_and_a_pixel_costs_about_one() -> None:
    parts = part_moments(drawn_face())
    on = regions_like(parts)
    assert part_distance(on, parts) < 1e-3
    beside = Regions(on.centre + 0.02, on.frame)
    assert abs(float(part_distance(beside, parts)) - 1) < 1e-3


def test_a_third_of_a_pixel_in_height_costs_the_same_for_a_wide_part_and_a_narrow_one() -> None:
    parts = part_moments(drawn_face())
    on = regions_like(parts)
    higher = on.frame + 0.005 * torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    for part in (EYE, MOUTH_PART):
        alone = torch.full_like(parts, torch.nan)
        alone[:, part] = parts[:, part]
        assert abs(float(part_distance(Regions(on.centre, higher), alone)) - 0.25) < 1e-3  # one of four numbers is off


def test_the_distance_pulls_known_regions_only() -> None:
    parts = part_moments(drawn_face())
    centre = torch.zeros(1, 11, 2, requires_grad=True)
    frame = (0.2 * torch.eye(2)).expand(1, 11, 2, 2).clone().requires_grad_()
    part_distance(Regions(centre, frame), parts).backward()
    assert centre.grad is not None
    moved = centre.grad.abs().sum(-1)[0] > 0
    known = torch.zeros(11, dtype=torch.bool)
    known[: len(PARTS)] = parts[0].isfinite().all(-1)
    assert torch.equal(moved, known)
    assert part_distance(Regions(centre, frame), torch.full_like(parts, torch.nan)) == 0


def test_a_step_down_the_distance_moves_a_region_towards_its_part() -> None:
    parts = part_moments(drawn_face())
    logits = torch.zeros(1, 11, 64 * 64, requires_grad=True)

    def found() -> Regions:
        return regions_from_heat((logits * 30).softmax(-1).view(1, 11, 64, 64))

    optimiser = torch.optim.Adam([logits], 0.05)
    first = float(part_distance(found(), parts).detach())
    for _ in range(60):
        optimiser.zero_grad()
        part_distance(found(), parts).backward()
        optimiser.step()
    assert float(part_distance(found(), parts).detach()) < 0.2 * first


def eye_alone() -> torch.Tensor:
    """A face of which only an eye is known, `(1, P, 5)`."""
    parts = part_moments(drawn_face())
    alone = torch.full_like(parts, torch.nan)
    alone[:, EYE] = parts[:, EYE]
    return alone


def shared(own: torch.Tensor) -> torch.Tensor:
    """Shares of both flows `(1, 2, K + 1, 32, 32)`: the eye's region has `own`, the background's motion the rest."""
    shares = torch.zeros(1, 2, 1 + len(PARTS) + 3, 32, 32)
    shares[:, :, 1 + EYE] = own
    shares[:, :, 0] = 1 - own
    return shares


@pytest.mark.parametrize(("own", "cost"), [((1.0, 1.0), 0.0), ((0.5, 0.5), 1.0), ((1.0, 0.5), 0.5), ((0.25, 0.5), 1.5)])
def test_the_cost_of_shares_is_their_cross_entropy_in_both_flows(own: tuple[float, float], cost: float) -> None:
    found = part_shares(shared(torch.tensor(own)[:, None, None]), eye_alone())
    assert float(found) == pytest.approx(cost * math.log(2), abs=1e-4)


def test_only_what_lies_about_a_part_must_move_with_it() -> None:
    parts = eye_alone()
    region = regions_like(parts)
    near = heat_maps(Regions(region.centre[:, EYE : EYE + 1], region.frame[:, EYE : EYE + 1]), 32, 32)[0, 0] > 0.1
    assert 4 < near.sum() < 60
    about, elsewhere = near.float(), 1 - near.float()
    assert part_shares(shared(about), parts) < 0.2 * part_shares(shared(elsewhere), parts)


def test_unknown_parts_ask_for_nothing() -> None:
    shares = shared(torch.tensor(0.3)).requires_grad_()
    lost = part_shares(shares, torch.full((1, len(PARTS), 5), torch.nan))
    lost.backward()
    assert lost == 0
    assert shares.grad is not None
    assert (shares.grad == 0).all()


def test_where_two_parts_overlap_their_regions_share() -> None:
    """Of all constant shares of mouth and lower lip, the best is the mean of what the Gaussians say there."""
    parts = part_moments(drawn_face(8))
    alone = torch.full_like(parts, torch.nan)
    alone[:, [MOUTH_PART, LOWER]] = parts[:, [MOUTH_PART, LOWER]]

    def cost(lower: float) -> float:
        shares = torch.zeros(1, 2, 1 + len(PARTS), 32, 32)
        shares[:, :, 1 + LOWER], shares[:, :, 1 + MOUTH_PART] = lower, 1 - lower
        return float(part_shares(shares, alone))

    region = regions_like(alone, 1)
    mouth, lip = heat_maps(region, 32, 32)[0, [MOUTH_PART, LOWER]]
    weight = torch.maximum(mouth, lip)
    best = float((weight * lip / (mouth + lip).clamp(min=1e-6)).sum() / weight.sum())
    assert 0.1 < best < 0.9
    assert cost(best) < min(cost(best - 0.05), cost(best + 0.05))
