"""The three training stages on rendered heads: they learn, they resume bitwise, and they say what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from models.config import Optim, Params, PartNet, Runtime
from tasks import canonical, fusion, geometry, geometry_loss, parse
from tasks.checkpoint_folder import is_finished, load_weights
from tasks.clip_data import ClipSet, Drawn, batch_depth, batch_pose, draw, gather, load_clips, step_generator
from tasks.errors import StageError
from tasks.face_parts import PARTS, part_moments, read_parts
from tasks.optimiser import adam
from tasks.paths import Paths
from tasks.stores import array, open_store
from tasks.training import Training, train
from tests.tasks.rendered import make_clip_store, parse_params
from tests.tasks.shares import mean_of_shares, on_one

STAGES: dict[str, Callable[[Params, Paths, str], dict[str, Any]]] = {
    "geometry": geometry.run,
    "canonical": canonical.run,
    "fusion": fusion.run,
}
CPU = torch.device("cpu")


def settings(**more: Any) -> Params:
    """Networks and schedules as small as they get."""
    train = {"batch_videos": 2, "references": 2, "steps": 4, "lr_drop_step": 3, "log_every_steps": 1}
    return parse_params(
        frames=4,
        size_px=48,
        runtime={"workers": 1, "device": "cpu", "checkpoint_every_s": 1e-6, **more.pop("runtime", {})},
        geometry={
            "train": train,
            "bootstrap": "landmarks",
            "bootstrap_steps": 4,
            "depth_net": {"width": 16},
            **more.pop("geometry", {}),
        },
        canonical={"train": train, "net": {"width": 4, "residual_blocks": 1}},
        fusion={
            "train": train,
            "net": {"width": 4, "residual_blocks": 1},
            "flow_net": {"regions": 3, "width": 4, "max_width": 16, "blocks": 2},
            "perceptual": {"scales": [1.0]},
        },
    )


def held_to_parts(params: Params, **more: Any) -> Params:
    """The same, Phi's regions held to parts of the face but for two."""
    parts = PartNet(regions=len(PARTS), scale=1.0, width=2, blocks=2)
    net = params.fusion.flow_net.model_copy(update={"regions": len(PARTS) + 2, "parts": parts})
    fusion = params.fusion.model_copy(update={"parts_weight": 1.0, "flow_net": net, **more})
    return params.model_copy(update={"fusion": fusion})


def parsed_clips(folder: Path) -> Paths:
    """Six clips of three people, parsed."""
    paths = make_clip_store(folder, 6, set(), frames=4, size_px=48)
    parse.run(settings(), paths, "parse")
    return paths


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return parsed_clips(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def trained(prepared: Paths) -> Paths:
    """All three stages run without a break."""
    for name, run in STAGES.items():
        run(settings(), prepared, f"fp-{name}")
    return prepared


def weights(paths: Paths, stage: str) -> bytes:
    return (paths.checkpoint(stage) / "model.safetensors").read_bytes()


def test_every_stage_leaves_weights_settings_and_a_loss_curve(trained: Paths):
    for stage in STAGES:
        folder = trained.checkpoint(stage)
        assert is_finished(folder, f"fp-{stage}")
        assert json.loads((folder / "config.json").read_text())["size_px"] == 48
        assert not list(folder.glob("step_*"))
        curve = pd.read_csv(trained.metrics / f"{stage}_loss.csv")
        assert curve["step"].tolist() == list(range(1, 9 if stage == "geometry" else 5))
        assert np.isfinite(curve["total"]).all()


def interrupt(monkeypatch: pytest.MonkeyPatch, losses: type, at: int) -> list[str]:
    """Let a stage's losses be interrupted, once, at a call; returns the phases of the calls so far, which grows."""
    real: Callable[..., dict[str, torch.Tensor]] = losses.__call__
    calls: list[str] = []

    def interrupted(self: Any, phase: str, drawn: Drawn) -> dict[str, torch.Tensor]:
        calls.append(phase)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(self, phase, drawn)

    monkeypatch.setattr(losses, "__call__", interrupted)
    return calls


@pytest.fixture
def fusion_kept(trained: Paths) -> Iterator[None]:
    """Stage 3's files are afterwards what they were."""
    folder, curve = trained.checkpoint("fusion"), trained.metrics / "fusion_loss.csv"
    kept = {path: path.read_bytes() for path in [*folder.iterdir(), curve] if path.is_file()}
    yield
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.mark.parametrize("stage", list(STAGES))
def test_an_interrupted_run_ends_with_the_same_bytes(
    trained: Paths, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    whole, curve = weights(trained, stage), (trained.metrics / f"{stage}_loss.csv").read_text()
    losses = {
        "geometry": geometry_loss.GeometryLoss,
        "canonical": canonical.CanonicalLoss,
        "fusion": fusion.FusionLoss,
    }
    marker = trained.checkpoint(stage) / "stage.json"
    marker.write_text(marker.read_text().replace(f"fp-{stage}", "another"))  # so that it trains anew
    calls = interrupt(monkeypatch, losses[stage], 3)
    with pytest.raises(KeyboardInterrupt):
        STAGES[stage](settings(), trained, f"fp-{stage}")
    assert list(trained.checkpoint(stage).glob("step_*"))
    assert not (trained.checkpoint(stage) / "model.safetensors").exists()
    STAGES[stage](settings(), trained, f"fp-{stage}")
    assert len(calls) > 3
    assert weights(trained, stage) == whole
    assert (trained.metrics / f"{stage}_loss.csv").read_text() == curve


@pytest.mark.usefixtures("fusion_kept")
def test_the_fusion_is_held_to_the_parts_of_the_stored_labels(trained: Paths):
    whole = weights(trained, "fusion")
    curve = trained.metrics / "fusion_loss.csv"
    labels = array(open_store(trained.masks), "labels")
    rows = np.array([3, 0])
    parts = read_parts(trained, rows, torch.device("cpu"))
    for place, row in enumerate(rows):
        expected = part_moments(torch.from_numpy(np.asarray(labels[int(row)])))
        torch.testing.assert_close(parts[place], expected, equal_nan=True)
    alone = 2
    fusion.run(held_to_parts(settings(), parts_steps=alone), trained, "held")
    losses = pd.read_csv(curve)
    assert weights(trained, "fusion") != whole
    before, after = losses[losses["step"] <= alone], losses[losses["step"] > alone]
    assert (len(before), len(after)) == (alone, 4 - alone)
    assert "frame" not in before or before["frame"].isna().all()  # at first only the labels teach
    assert ((before["total"] - before["parts"]).abs() < 1e-3).all()
    assert (after["total"] >= after["frame"] + after["parts"] + after["shares"] - 1e-3).all()
    assert (losses["parts"] > 0).all()
    assert (after["shares"] > 0).all()


@pytest.mark.usefixtures("fusion_kept")
def test_the_steps_on_labels_alone_go_on_after_an_interruption(trained: Paths, monkeypatch: pytest.MonkeyPatch):
    curve = trained.metrics / "fusion_loss.csv"
    params = held_to_parts(settings(), parts_steps=2)
    fusion.run(params, trained, "held")
    whole, losses = weights(trained, "fusion"), curve.read_text()
    calls = interrupt(monkeypatch, fusion.FusionLoss, 2)
    with pytest.raises(KeyboardInterrupt):
        fusion.run(params, trained, "once more")
    fusion.run(params, trained, "once more")
    assert len(calls) == 2 + 3  # the first step is not taken again
    assert weights(trained, "fusion") == whole
    assert curve.read_text() == losses


def test_two_devices_have_the_losses_of_one_where_parts_and_landmarks_are_unknown(trained: Paths):
    params = held_to_parts(settings(), face_weight=1.0)
    clips = load_clips(trained, "train", CPU, with_geometry=True)
    clips.parts = read_parts(trained, clips.table["row"].to_numpy(), CPU)
    networks = fusion.build_networks(params.fusion, CPU)
    stage_2 = canonical.build_networks(params.canonical, CPU)
    for network in (*networks.values(), *stage_2.values()):
        network.eval()  # on the CPU, batch norms see their own share
    loss = fusion.FusionLoss(params.fusion, {**networks, **stage_2}, params.geometry.camera, clips)
    drawn = loss.draw(0)
    clip, frame = drawn["clip"][0], drawn["frame"][0]  # of the first process
    clips.parts[clip, frame, 2:] = torch.nan
    clips.landmarks[clip[-1], frame[-1]] += 8.0  # less of the eyes' surroundings is in the picture
    for phase in ("parts", "eq8"):
        assert mean_of_shares(loss, phase, drawn) == pytest.approx(on_one(loss, phase, drawn), rel=1e-4)


def with_steps(count: int) -> Params:
    params = settings()
    return params.model_copy(update={"fusion": params.fusion.model_copy(update={"without_head_steps": count})})


def test_the_fusion_without_the_head_is_trained_beside_the_other(trained: Paths, monkeypatch: pytest.MonkeyPatch):
    whole = weights(trained, "fusion")
    summary = fusion.run(with_steps(6), trained, "fp-fusion")
    second = trained.checkpoint("fusion") / "without_head"
    first_bytes = (second / "model.safetensors").read_bytes()
    assert weights(trained, "fusion") == whole  # neither trained anew nor touched
    assert "loss_last" not in summary
    assert summary["without_head_loss_last"] > 0
    assert pd.read_csv(second / "loss.csv")["step"].tolist() == [1, 2, 3, 4, 5, 6]
    rates = pd.read_csv(second / "loss.csv")["lr"]
    assert rates.tolist() == pytest.approx([6e-4] * 5 + [6e-5])  # drops after 3/4 of the steps, as the other's does
    assert first_bytes != whole

    shutil.rmtree(second)
    calls = interrupt(monkeypatch, fusion.FusionLoss, 3)
    with pytest.raises(KeyboardInterrupt):
        fusion.run(with_steps(6), trained, "fp-fusion")
    assert list(second.glob("step_*"))
    fusion.run(with_steps(6), trained, "fp-fusion")
    assert len(calls) == 7
    assert (second / "model.safetensors").read_bytes() == first_bytes
    fusion.run(settings(), trained, "fp-fusion")
    assert not second.exists()
    assert weights(trained, "fusion") == whole


def test_a_finished_stage_is_not_trained_again(trained: Paths, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(geometry, "train_geometry", lambda *_: pytest.fail("trained again"))
    geometry.run(settings(), trained, "fp-geometry")


def test_stage_1_learns_from_its_start(prepared: Paths, tmp_path: Path):
    clips = load_clips(prepared, "train", CPU, with_geometry=False)
    params = settings(geometry={"bootstrap_steps": 40}).geometry
    networks = geometry.build_networks(params, CPU)
    loss = geometry_loss.GeometryLoss(params, networks, clips)
    optimiser = adam([{"params": [p for n in networks.values() for p in n.parameters()]}], 1e-3)
    job = Training("geometry", networks, optimiser, 40, loss, lambda _: [1e-3], {}, log_every=10)
    train(job, tmp_path / "geometry", "fp", settings().runtime)
    first, last = job.history[0], job.history[-1]
    assert last["total"] < 0.85 * first["total"]
    assert last["depth"] < 0.6 * first["depth"]


def test_geometry_store_holds_what_the_networks_say(trained: Paths):
    clips = load_clips(trained, None, CPU, with_geometry=True)
    networks = geometry.build_networks(settings().geometry, CPU)
    load_weights(trained.checkpoint("geometry"), networks)
    for network in networks.values():
        network.eval()
    depth, angles, translation = geometry.predict_geometry(networks, clips.heads(2)[0])
    assert (clips.depths(2) - depth).abs().max() < 1e-3  # float16 in the store
    assert clips.angles_deg is not None
    assert clips.translation_m is not None
    assert torch.allclose(clips.angles_deg[2], angles, atol=1e-4)
    assert torch.allclose(clips.translation_m[2], translation, atol=1e-6)
    assert np.asarray(array(open_store(trained.geometry), "done")[:]).tolist() == [0, 1, 1, 1, 1, 1, 1]


def drawn_at(clips: ClipSet, config: Optim, step: int) -> Drawn:
    return draw(clips, config, step_generator(config, step))


def test_batches_depend_on_seed_and_step_alone(trained: Paths):
    clips = load_clips(trained, "train", CPU, with_geometry=True)
    config = settings().geometry.train
    one, two, other = (gather(clips, drawn_at(clips, config, step)) for step in (5, 5, 6))
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, other.images)
    assert all(len(set(row.tolist())) == 3 for row in one.frame)  # N references and the driving frame are different


def test_a_mirrored_sample_has_mirrored_geometry(trained: Paths):
    clips = load_clips(trained, "train", CPU, with_geometry=True)
    config = settings().geometry.train
    drawn = next(d for d in (drawn_at(clips, config, step) for step in range(20)) if d["flip"][0])
    batch = gather(clips, drawn)
    depth, (angles, translation) = batch_depth(clips, batch, drawn), batch_pose(clips, batch)
    where = (batch.clip, batch.frame)
    assert clips.depth is not None
    assert clips.angles_deg is not None
    assert clips.translation_m is not None
    assert torch.equal(depth[0], clips.depth[where].float()[0].flip(-1))
    assert torch.equal(angles[0], clips.angles_deg[where][0] * torch.tensor([-1.0, 1.0, -1.0]))
    assert torch.equal(translation[0], clips.translation_m[where][0] * torch.tensor([-1.0, 1.0, 1.0]))
    assert torch.equal(batch.masks[0], clips.head[where].float()[0].flip(-1))


class BreaksAtStep4:
    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def phase(self, step: int) -> str:
        return "only"

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        return {"factor": torch.tensor(float("nan") if step == 3 else 1.0)}

    def __call__(self, phase: str, drawn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        value = self.network(torch.ones(1, 1)).sum() * drawn["factor"]
        return {"frame": value, "total": value}


def test_a_loss_that_is_no_number_is_named(tmp_path: Path):
    network = torch.nn.Linear(1, 1)
    job = Training(
        "fusion",
        {"net": network},
        torch.optim.Adam(network.parameters()),
        5,
        BreaksAtStep4(network),
        lambda _: [1e-3],
        {},
        log_every=1,
    )
    runtime = Runtime(
        device="cpu",
        devices=1,
        sync_batch_norm=True,
        clips_on_gpu="auto",
        cuda_graphs=False,
        compile=False,
        scheduler="local",
        stores="",
        workers=1,
        video_deadline_s=1.0,
        checkpoint_every_s=1.0,
    )
    with pytest.raises(StageError, match=r"frame, total is no longer a number at step 4"):
        train(job, tmp_path / "fusion", "fp", runtime)


def test_without_clips_the_message_says_where_to_look(trained: Paths):
    with pytest.raises(StageError, match="head3d inspect --store"):
        load_clips(trained, "test", CPU, with_geometry=False)


class Adversary:
    """A picture of one number that shall pass for 2; the judge shall tell the two apart."""

    def __init__(self, maker: torch.nn.Module, judge: torch.nn.Module) -> None:
        self.maker, self.judge = maker, judge

    def phase(self, step: int) -> str:
        return "only"

    def draw(self, step: int) -> dict[str, torch.Tensor]:
        return {"seed": torch.ones(4, 1)}

    def __call__(self, phase: str, drawn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        picture = self.maker(drawn["seed"])
        still = {name: value.detach() for name, value in self.judge.named_parameters()}
        fools = (torch.func.functional_call(self.judge, still, (picture,)) - 1).square().mean()
        found = self.judge(picture.detach()).square().mean() + (self.judge(torch.full((4, 1), 2.0)) - 1).square().mean()
        return {"fools": fools, "found": found, "total": fools + found}


def test_an_adversarial_loss_needs_one_backward_pass():
    """Each network gets the gradient of its own loss alone, as with two passes and two optimisers."""
    torch.manual_seed(0)
    maker, judge = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    loss = Adversary(maker, judge)
    losses = loss("only", loss.draw(0))
    losses["total"].backward()
    found = [value.grad for network in (maker, judge) for value in network.parameters()]
    losses = loss("only", loss.draw(0))
    alone = [
        *torch.autograd.grad((judge(maker(torch.ones(4, 1))) - 1).square().mean(), list(maker.parameters())),
        *torch.autograd.grad(losses["found"], list(judge.parameters())),
    ]
    for one, other in zip(found, alone, strict=True):
        assert one is not None
        assert torch.allclose(one, other)
