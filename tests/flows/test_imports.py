"""flows -> tasks -> models, never upward; each layer knows only what it may."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flows.graph import imported_modules

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "tasks": {"flows", "prefect", "dvc", "typer"},
    "models": {"flows", "tasks", "prefect", "dvc", "zarr", "pandas", "av", "decord", "cv2", "typer"},
}
MODELS_MAY = {"torch", "torchvision", "models"}
"""Beside the standard library; settings and weights files need a little more."""
EXTRAS = {"models/config.py": {"pydantic", "yaml"}, "models/parser.py": {"safetensors"}}


def files_of(package: str) -> list[str]:
    return sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("file", files_of("tasks") + files_of("models"))
def test_no_import_upward(file: str) -> None:
    roots = {name.split(".")[0] for name in imported_modules((ROOT / file).read_text(encoding="utf-8"))}
    assert not roots & FORBIDDEN[file.split("/", maxsplit=1)[0]]


@pytest.mark.parametrize("file", files_of("models"))
def test_models_need_torch_only(file: str) -> None:
    roots = {name.split(".")[0] for name in imported_modules((ROOT / file).read_text(encoding="utf-8"))}
    assert roots - set(sys.stdlib_module_names) <= MODELS_MAY | EXTRAS.get(file, set())


@pytest.mark.parametrize("file", files_of("flows"))
def test_flows_reach_models_only_for_settings_and_weights(file: str) -> None:
    names = imported_modules((ROOT / file).read_text(encoding="utf-8"))
    modules = {".".join(name.split(".")[:2]) for name in names if name.split(".")[0] == "models"}
    assert modules <= {"models", "models.config", "models.pretrained"}


def test_files_stay_readable() -> None:
    long = {
        file: lines
        for package in ("flows", "tasks", "models")
        for file in files_of(package)
        if (lines := len((ROOT / file).read_text(encoding="utf-8").splitlines())) > 420
    }
    assert not long
