"""The engine gives the frames of the plain model, whatever is reused, folded, batched or rounded on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from models.engine import PRECISIONS, Engine, Made, Precision, _Recorded, change_of_error, choose_precision
from models.fusion import FusionNetwork
from models.head3d import Head3D, Subject
from models.per_frame import fold_batch_norms
from models.pose_net import HeadPose
from tests.models.test_frozen import as_cudnn, as_cudnn_add
from tests.tasks.factory import head_clip
from tests.tasks.test_training import held_to_parts, settings
from tests.tasks.untrained import untrained_model

SIZE, COUNT = 48, 7


@pytest.fixture(scope="module")
def stored() -> tuple[Tensor, Tensor]:
    """Frames `(T, S, S, 3)` and head masks `(T, S, S)` of one person."""
    frames, labels = head_clip(3, 0.4, COUNT, SIZE)
    return torch.from_numpy(frames), torch.from_numpy(((labels == 1) | (labels > 1) & (labels != 16)).astype("uint8"))


def as_images(stored: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return stored[0].permute(0, 3, 1, 2).float() / 255, stored[1][:, None].float()


def lively(network: nn.Module) -> None:
    """Weights and statistics as after a training: batch norms that do something, a decoder that corrects."""
    generator = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator) * 0.1)
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
        if isinstance(part, FusionNetwork):
            part.decoder.out.weight.copy_(torch.randn(part.decoder.out.weight.shape, generator=generator) * 0.05)


@pytest.fixture(scope="module")
def model() -> Head3D:
    made = untrained_model(held_to_parts(settings()))
    with torch.no_grad():
        for network in (made.pose, made.fusion, made.canonical):
            lively(network.requires_grad_(False))
        made.pose.fc_translation.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(2))
    return made


@pytest.fixture(scope="module")
def subject(model: Head3D, stored: tuple[Tensor, Tensor]) -> Subject:
    images, masks = as_images(stored)
    return model.subject(images[:3], masks[:3], 1)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("with_head", [True, False])
def test_frames_are_those_of_the_plain_model(
    model: Head3D, subject: Subject, stored: tuple[Tensor, Tensor], relative: bool, with_head: bool
):
    if not with_head:
        torch.manual_seed(5)
        params = settings()
        network = FusionNetwork(params.fusion.net, params.fusion.flow_net, with_head=False).eval().requires_grad_(False)
        with torch.no_grad():
            lively(network)
        model = replace(model, fusion=network)
    images, masks = as_images(stored)
    first = model.pose(images[2:3] * masks[2:3]) if relative else None
    expected = model.drive(subject, images, masks, first)
    engine = Engine(model)
    engine.start(subject, engine.pose_of(stored[0][2:3], stored[1][2:3]) if relative else None)
    torch.testing.assert_close(engine.images(images, masks), expected.image, atol=1e-4, rtol=0)
    rounded = (expected.image * 255).round().permute(0, 2, 3, 1)
    for batch in (1, 3, COUNT, 40):
        made = engine.frames(*stored, batch)
        assert made.frames.dtype == torch.uint8
        assert made.frames.shape == (COUNT, SIZE, SIZE, 3)
        assert (made.frames.float() - rounded).abs().max() <= 1
        assert (made.frames.float() != rounded).float().mean() < 0.001
    assert rounded.std(dim=0).mean() > 0.5  # the frames differ, so that a mix-up would show


def test_one_in_one_out_and_the_angles_it_was_given(model: Head3D, subject: Subject, stored: tuple[Tensor, Tensor]):
    engine = Engine(model)
    images, masks = as_images(stored)
    pose = model.pose(images * masks)
    engine.start(subject)
    together = engine.frames(*stored, COUNT)
    torch.testing.assert_close(together.angles_deg, pose.angles_deg, atol=1e-2, rtol=0)
    for index in range(COUNT):
        one = engine.frame(stored[0][index], stored[1][index])
        assert one.frames.shape == (1, SIZE, SIZE, 3)
        assert (one.frames[0].int() - together.frames[index].int()).abs().max() <= 1
    engine.start(subject, HeadPose(pose.angles_deg[:1], pose.translation_m[:1]))
    moved = engine.frames(*stored, COUNT).angles_deg
    wanted = subject.reference_pose.angles_deg + pose.angles_deg - pose.angles_deg[:1]
    torch.testing.assert_close(moved, wanted.clamp(-60, 60), atol=1e-2, rtol=0)


def test_an_engine_takes_another_subject_and_another_size(
    model: Head3D, subject: Subject, stored: tuple[Tensor, Tensor]
):
    engine = Engine(model)
    engine.start(subject)
    before = engine.frames(*stored, COUNT).frames
    for size in (SIZE, 64):
        frames, labels = head_clip(8, 0.1, COUNT, size)
        other = torch.from_numpy(frames), torch.from_numpy((labels > 0).astype("uint8"))
        images, masks = as_images(other)
        state = model.subject(images[:2], masks[:2], 0)
        engine.start(state)
        expected = model.drive(state, images, masks).image
        torch.testing.assert_close(engine.images(images, masks), expected, atol=1e-4, rtol=0)
    engine.start(subject)
    assert torch.equal(engine.frames(*stored, COUNT).frames, before)


def test_frames_without_a_subject_are_refused(model: Head3D, stored: tuple[Tensor, Tensor]):
    with pytest.raises(RuntimeError, match="takes the subject first"):
        Engine(model).frames(*stored, 4)


def test_a_short_precision_stays_near_and_is_judged(
    model: Head3D, subject: Subject, stored: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    images, masks = as_images(stored)
    plain, short = Engine(model), Engine(model, "bfloat16")
    for engine in (plain, short):
        engine.start(subject)
    error = (short.images(images, masks) - plain.images(images, masks)).abs()
    assert 1e-5 < error.mean() < 0.02
    change = change_of_error(model, short, subject, *stored)
    assert 0 < change < 0.2
    assert change_of_error(model, plain, subject, *stored) < 1e-4
    assert choose_precision(model, subject, *stored) == "float32"  # a CPU gains nothing by the others
    monkeypatch.setattr(Head3D, "device", torch.device("meta"))  # any but a CPU
    for shares, chosen in (((0.002,), "float16"), ((float("nan"), 0.02, 0.0), "tf32"), ((1.0, 1.0, 1.0), "float32")):
        left = iter([0.01, *(0.01 * (1 + share) for share in shares)])  # the exact model's error first
        monkeypatch.setattr("models.engine._error", lambda *_, left=left: next(left))
        assert choose_precision(model, subject, *stored) == chosen


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_convolutions_that_a_gpu_fuses_leave_the_frames_as_they_are(
    model: Head3D, subject: Subject, stored: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, precision: Any
):
    monkeypatch.setattr(torch, "cudnn_convolution_relu", as_cudnn)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", as_cudnn_add)
    images, masks = as_images(stored)
    plain, fused = Engine(model, precision), Engine(model, precision)
    assert not plain._fused  # a CPU has no such operations
    monkeypatch.setattr(fused, "_fused", True)
    for engine in (plain, fused):
        engine.start(subject)
    error = (fused.images(images, masks) - plain.images(images, masks)).abs()
    assert fused.notes == []
    assert error.max() < 1e-4 if precision == "tf32" else error.mean() < 5e-3


def test_where_the_compiler_fails_the_path_runs_without_it_and_says_so(
    model: Head3D, subject: Subject, stored: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    plain = Engine(model)
    plain.start(subject)
    calls = []

    def broken(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def fail(*_: Any) -> Any:
            calls.append(function)
            raise NotImplementedError("no compiler is here\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    engine = Engine(model, compiled=True)
    engine.start(subject)
    for _ in range(2):
        assert torch.equal(engine.frames(*stored, 4).frames, plain.frames(*stored, 4).frames)
    assert len(calls) == 1
    assert engine.notes == ["torch.compile failed (no compiler is here); the path runs without it"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_subject_is_computed_in_the_engines_numbers(
    model: Head3D, stored: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, precision: Precision
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    images, masks = as_images(stored)
    expected = model.subject(images[:3], masks[:3], 1), model.pose(images[:1] * masks[:1])
    engine = Engine(model, precision)
    seen: list[tuple[bool, bool]] = []

    def look(*_: object) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")))

    hooks = [part.register_forward_hook(look) for part in (model.pose, model.depth, model.canonical)]
    found = engine.subject(images[:3], masks[:3], 1), engine.pose_of(stored[0][:1], stored[1][:1])
    for hook in hooks:
        hook.remove()
    assert set(seen) == {(precision != "float32", False)}
    assert len(seen) == 4  # F_P and F_D on the references, the canonical head; F_P on the driving frame
    assert torch.backends.cudnn.allow_tf32
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


class Replayed:
    """Stands in for a recorded graph on a machine without a GPU: replays compute from the fixed buffers into others."""

    def __init__(self, engine: Engine, frames: Tensor, masks: Tensor, made: Made) -> None:
        self.engine, self.inputs, self.made, self.count = engine, (frames, masks), made, 0

    def replay(self) -> None:
        self.count += 1
        for kept, new in zip(self.made, self.engine._guarded(*self.inputs), strict=True):
            kept.copy_(new)


def test_a_recording_is_replayed_over_its_buffers_and_filled_up(
    model: Head3D, subject: Subject, stored: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    plain, engine = Engine(model), Engine(model)
    graphs: list[Replayed] = []

    def record(frames: Tensor, masks: Tensor, batch: int) -> _Recorded:
        inputs = torch.zeros(batch, SIZE, SIZE, 3, dtype=torch.uint8), torch.zeros(batch, SIZE, SIZE, dtype=torch.uint8)
        made = engine._guarded(*inputs)
        graph = Replayed(engine, *inputs, made)
        graphs.append(graph)
        host = [torch.zeros_like(part) for part in (*inputs, *made)]
        return _Recorded(cast("Any", graph), *inputs, made, host[0], host[1], Made(host[2], host[3]))

    monkeypatch.setattr(engine, "_record", True)
    monkeypatch.setattr(engine, "_record_batch", record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(synchronize=lambda: None))
    for relative in (False, True):  # a second subject state goes into the same buffers
        first = plain.pose_of(stored[0][3:4], stored[1][3:4]) if relative else None
        for one in (plain, engine):
            one.start(subject, first)
        for batch in (1, 3):  # seven frames: the last batch of three has one row
            made, expected = engine.frames(*stored, batch), plain.frames(*stored, batch)
            assert made.frames.shape == expected.frames.shape
            assert (made.frames.int() - expected.frames.int()).abs().max() <= 1
            torch.testing.assert_close(made.angles_deg, expected.angles_deg, atol=1e-2, rtol=0)
    assert [graph.count for graph in graphs] == [14, 6]
    kept = engine.frames(stored[0][:3], stored[1][:3], 3).frames
    copy = kept.clone()
    engine.frames(stored[0][3:6], stored[1][3:6], 3)
    assert torch.equal(kept, copy)  # what was given out does not change with the next batch


def test_where_recording_fails_the_path_runs_from_python_and_says_so(
    model: Head3D, subject: Subject, stored: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    plain, engine = Engine(model), Engine(model)
    monkeypatch.setattr(engine, "_record", True)

    def fail(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(engine, "_record_batch", fail)
    for one in (plain, engine):
        one.start(subject)
    for _ in range(2):
        assert torch.equal(engine.frames(*stored, 3).frames, plain.frames(*stored, 3).frames)
    text = "recording failed (operation not permitted when stream is capturing); the path runs from Python"
    assert engine.notes == [text]


def test_the_models_own_networks_stay_as_they_are(model: Head3D, subject: Subject):
    before = {key: value.clone() for key, value in model.fusion.state_dict().items()}
    Engine(model, "bfloat16").start(subject)
    after = model.fusion.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_folding_leaves_no_batch_norm_and_the_same_numbers():
    torch.manual_seed(0)
    network = resnet50(weights=None).eval().requires_grad_(False)
    with torch.no_grad():
        lively(network)
        image = torch.rand(1, 3, 32, 32)
        expected = network(image)
        folded = fold_batch_norms(network)
        torch.testing.assert_close(folded(image), expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
