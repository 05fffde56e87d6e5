"""Adam with bounded gradients: a huge gradient moves the weights no further than a usual one."""

import copy
from typing import Any

import pytest
import torch

from tasks.optimiser import BoundedAdam, adam, restore


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


def conv(order: torch.memory_format) -> torch.nn.Conv2d:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(8, 8, 3)
    network.weight.data = network.weight.data.contiguous(memory_format=order)
    return network


def like_a_gpus(network: torch.nn.Module) -> BoundedAdam:
    """The form that `adam` chooses on a GPU."""
    groups: list[dict[str, Any]] = [{"params": list(network.parameters()), "lr": torch.tensor(1e-3)}]
    return BoundedAdam(groups, 0.0, betas=(0.5, 0.999), fused=True, capturable=True)


def like_a_cpus(network: torch.nn.Module) -> BoundedAdam:
    return adam([{"params": list(network.parameters())}], 1e-3)


def take_steps(network: torch.nn.Conv2d, optimiser: BoundedAdam, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for value in network.parameters():
            value.grad = torch.empty_like(value).copy_(torch.randn(value.shape, generator=generator))
        optimiser.step()


@pytest.mark.parametrize("from_gpu", [True, False])
def test_training_goes_on_as_before_on_another_device(from_gpu: bool):
    """Weights on a GPU are in channels-last order, and Adam is fused there."""
    gpu, cpu = conv(torch.channels_last), conv(torch.contiguous_format)
    pairs = [(gpu, like_a_gpus(gpu)), (cpu, like_a_cpus(cpu))]
    (here, before), (there, after) = pairs if from_gpu else pairs[::-1]
    form = {name: after.param_groups[0][name] for name in ("lr", "fused", "capturable")}
    take_steps(here, before, range(5))
    there.load_state_dict(here.state_dict())
    restore(after, copy.deepcopy(before.state_dict()))
    assert {name: after.param_groups[0][name] for name in form} == form
    for network, optimiser in pairs:
        take_steps(network, optimiser, range(5, 8))
    torch.testing.assert_close(there.weight, here.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(there.bias, here.bias, rtol=0, atol=1e-6)
