"""A whole run up to its report, for the tests that read it and those that open it; and the browser they use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tasks import evaluate, report, study
from tests.tasks.factory import Project, make_project
from tests.tasks.test_training import settings
from tests.tasks.untrained import write_checkpoints

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
]  # fmt: skip
METHODS = ["Head3D", "Head3D, N = 1", "Head3D, N = 3", "Head3D, N = 10", "Mean canonical head"]


def make_report(root: Path) -> Project:
    """A whole run up to its report, on synthetic heads and an untrained model; two examples of each setting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(root))
        made = make_project(root, frames=8, size_px=48, report={"examples": 2, "frames_per_sheet": 4})
        write_checkpoints(made.paths.data / "checkpoints", settings())
        (made.paths.checkpoint("fusion") / "samples").mkdir()
        for step in (90, 200):
            samples = Image.new("RGB", (400, 100), (step, 0, 0))
            samples.save(made.paths.checkpoint("fusion") / "samples" / f"step_{step:08d}.png")
        for name, stage in (("evaluate", evaluate), ("study", study)):
            summary = {"seconds": 65.0, **stage.run(made.params, made.paths, "f")}
            (made.paths.metrics / f"{name}.json").write_text(json.dumps(summary), encoding="utf-8")
        report.run(made.params, made.paths, "0123456789abcdef0123")
        return made
