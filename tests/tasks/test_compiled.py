"""`runtime.compile` takes a stage's whole losses: nothing in them may break the graph apart."""

from __future__ import annotations

import pytest
import torch

from tasks.bench_train import make_job, synthetic_clips, with_batch
from tests.tasks.test_training import CPU, held_to_parts, settings

GRAPHS = {"geometry": 4, "canonical": 1, "fusion": 1}
"""In stage 1, F_P and F_D run beside each other (`tasks.device.beside`), between what comes before and after."""


@pytest.mark.parametrize("stage", ["geometry", "canonical", "fusion"])
def test_the_losses_of_a_stage_are_few_graphs_with_the_same_values(stage: str):
    params = with_batch(settings(geometry={"bootstrap": "both", "rendered_people": 1}), 2, 2)
    params = held_to_parts(params, face_weight=1.0)
    job = make_job(params, stage, synthetic_clips(params, getattr(params, stage).train, 48, CPU))
    step = params.geometry.bootstrap_steps if stage == "geometry" else 0
    drawn, phase = job.losses.draw(step), job.losses.phase(step)
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    with torch._dynamo.config.patch(recompile_limit=64):
        found = torch.compile(job.losses.__call__, backend=count, fullgraph=GRAPHS[stage] == 1, dynamic=False)(
            phase, drawn
        )
    expected = job.losses(phase, drawn)
    assert graphs == GRAPHS[stage]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
