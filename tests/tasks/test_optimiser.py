"""Adam with bounded gradients: a huge gradient moves the weights no further than a usual one."""

from typing import Any

import pytest
import torch

from tasks.optimiser import adam


def after_a_bad_batch(scale: float, clip_norm: float) -> torch.Tensor:
    """Weights after a usual step, one whose gradient is `scale` times as long, and ten more usual ones."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimiser = adam([{"params": [weight]}], 0.1, clip_norm)
    for factor in (1.0, scale, *[1.0] * 10):
        optimiser.zero_grad()
        (factor * weight * torch.tensor([3.0, -4.0])).sum().backward()
        optimiser.step()
    return weight.detach()


def test_a_gradient_is_shortened_and_keeps_its_direction():
    weight = torch.nn.Parameter(torch.zeros(2))
    beside = torch.nn.Parameter(torch.zeros(1))
    other, free = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    groups: list[dict[str, Any]] = [
        {"params": [weight, beside]},
        {"params": [other]},
        {"params": [free], "bounded": False},
    ]
    optimiser = adam(groups, 0.1, clip_norm=1.0)
    ((weight * torch.tensor([3.0, 0.0])).sum() + 4 * beside.sum() + 2 * other.sum() + 5 * free.sum()).backward()
    optimiser.step()
    # each group by itself, and not at all where that is said
    expected = {weight: [0.6, 0.0], beside: [0.8], other: [1.0], free: [5.0]}
    for value, gradient in expected.items():
        assert value.grad is not None
        torch.testing.assert_close(value.grad, torch.tensor(gradient), rtol=1e-4, atol=1e-6)


def test_training_goes_on_after_one_bad_batch():
    torch.testing.assert_close(after_a_bad_batch(1e4, 1.0), after_a_bad_batch(1.0, 1.0), rtol=1e-4, atol=1e-5)
    # Unbounded, Adam remembers the size: its steps stay short for a thousand more.
    assert after_a_bad_batch(1e4, 0.0).abs().max() < 0.3 * after_a_bad_batch(1.0, 0.0).abs().max()


@pytest.mark.parametrize("clip_norm", [0.0, 100.0])
def test_a_short_gradient_is_left_alone(clip_norm: float):
    usual = torch.optim.Adam([weight := torch.nn.Parameter(torch.ones(3))], lr=0.1, betas=(0.5, 0.999))
    ours = adam([{"params": [mine := torch.nn.Parameter(torch.ones(3))]}], 0.1, clip_norm)
    for optimiser, value in ((usual, weight), (ours, mine)):
        value.square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(mine.detach(), weight.detach(), rtol=0, atol=0)
