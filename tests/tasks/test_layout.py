"""A compiled step writes features as convolutions read them; nothing but that changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.geometry import _turned
from models.layout import WHOLE_CHANNELS, joined
from models.norms import InstanceNorm2d
from tasks.bench_train import make_job, synthetic_clips, with_batch
from tests.tasks.test_training import CPU, settings


class Copied(TorchDispatchMode):
    """Counts the features that gradients of convolutions would have to bring into another order."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.gradients += 1
            # a picture of three channels, or of two by two, is little to copy
            large = [x for x in args[:2] if x.shape[1] > 3 and x.shape[2] * x.shape[3] > 4]
            self.copies += sum(not x.is_contiguous(memory_format=torch.channels_last) for x in large)
        return func(*args, **(kwargs or {}))


def as_compiled(monkeypatch: pytest.MonkeyPatch, compiled: bool = True) -> None:
    """What is written for torch.compile runs, without it."""
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: compiled)


@pytest.mark.parametrize(("stage", "allowed"), [("geometry", 0), ("canonical", 1), ("fusion", 1)])
def test_no_gradient_of_a_convolution_copies_its_features(
    stage: str, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allowed are that of Phi's logits, whose softmax over places has its own order, and that of Omega_H's five
    channels, a picture with its opacity and depth."""
    params = with_batch(settings(geometry={"bootstrap": "both", "rendered_people": 1}), 2, 2)
    deep = params.canonical.net.model_copy(update={"residual_blocks": 7})
    params = params.model_copy(update={"canonical": params.canonical.model_copy(update={"net": deep})})
    job = make_job(params, stage, synthetic_clips(params, getattr(params, stage).train, 48, CPU))
    frozen = (part for part in vars(job.losses).values() if isinstance(part, torch.nn.Module))
    for network in (*job.modules.values(), *frozen):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    as_compiled(monkeypatch)
    step = params.geometry.bootstrap_steps if stage == "geometry" else 0
    with Copied() as seen:
        job.losses(job.losses.phase(step), job.losses.draw(step))["total"].backward()
    assert seen.gradients > 20
    assert seen.copies <= allowed


def values_and_gradients(result: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weight).sum(), inputs)]


@pytest.mark.parametrize("part", ["norm", "joined", "turned"])
def test_what_is_written_for_the_compiler_has_the_same_values_and_gradients(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw).requires_grad_()

    norm = InstanceNorm2d(6, affine=True).double()
    torch.nn.init.normal_(norm.weight, generator=draw)
    conv = torch.nn.Conv2d(WHOLE_CHANNELS + 3, 7, 3, padding=1, bias=False).double()
    x, skip, points, matrix = drawn(2, 6, 9, 8), drawn(2, WHOLE_CHANNELS - 3, 9, 8), drawn(2, 5, 7, 3), drawn(2, 3, 3)

    def run() -> list[Tensor]:
        if part == "norm":
            return values_and_gradients(norm(x), [x, norm.weight, norm.bias])
        if part == "joined":
            return values_and_gradients(joined(conv, (x, skip)), [x, skip, conv.weight])
        return values_and_gradients(_turned(points, matrix), [points, matrix])

    as_compiled(monkeypatch, False)
    plain = run()
    as_compiled(monkeypatch)
    for found, expected in zip(run(), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # the norm's statistics are float32
