"""What `head3d doctor` checks: each check is one line that says what is so and, if need be, what to do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from flows.graph import differences
from flows.preset_files import preset_names, preset_text
from flows.stage_process import StageProcesses, StageRunError
from models.config import ConfigError, Params, load_params
from tasks.errors import StageError

LEAST_FREE_GB, GOOD_FREE_GB = 1.0, 10.0


@dataclass(frozen=True)
class Check:
    """One line: `ok`, a `note` to know, or a `problem` that keeps the pipeline from running."""

    state: Literal["ok", "note", "problem"]
    name: str
    text: str


def check_all(root: Path) -> list[Check]:
    """Every check of the machine and the project; a check that itself fails becomes a problem of its own."""
    from flows.doctor_sources import check_source

    checks: list[Check] = []
    params: Params | None = None
    try:
        params = load_params(root / "params.yaml")
        checks.append(Check("ok", "params.yaml", f"valid ({_preset_of(root)})"))
    except ConfigError as error:
        checks.append(Check("problem", "params.yaml", str(error)))
    general: list[Callable[[], Iterable[Check]]] = [
        check_versions,
        lambda: check_python(root),
        lambda: check_disk(root),
        lambda: check_repository(root),
        check_prefect,
    ]
    if params is not None:
        settings = params
        general += [
            lambda: check_device(settings),
            lambda: check_weights(settings),
            lambda: check_source(root, settings),
        ]
    for check in general:
        try:
            checks.extend(check())
        except Exception as error:  # one broken check must not hide the others
            name = getattr(check, "__name__", "check").replace("check_", "")
            checks.append(Check("problem", name, f"{type(error).__name__}: {error}"))
    return checks


def _preset_of(root: Path) -> str:
    content = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    same = [name for name in preset_names() if yaml.safe_load(preset_text(name)) == content]
    return f"preset {same[0]}" if same else "no preset as it ships"


def check_versions() -> Iterable[Check]:
    """Installed packages against the ranges that the project declares."""
    from packaging.requirements import Requirement

    wrong = []
    for text in importlib.metadata.requires("head3d") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    if wrong:
        yield Check("problem", "packages", f"{'; '.join(wrong)}: run `make install`")
    names = ("torch", "zarr", "dvc", "prefect")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    yield Check("ok", "versions", f"Python {platform.python_version()}, {versions}")


def check_python(root: Path) -> Iterable[Check]:
    """DVC starts `python`: it must be the one with the packages."""
    found = shutil.which("python")
    own = Path(sys.executable).parent.resolve()
    if found and Path(found).parent.resolve() == own:
        yield Check("ok", "python on PATH", found)
        return
    text = f"`python` is {found or 'not found'}, the packages are in {own.parent}"
    here = own == (root / ".venv" / "bin").resolve()
    how = ". .venv/bin/activate" if here else f'PATH="{own}:$PATH"'
    yield Check("note", "python on PATH", f"{text}: before `dvc repro` say `{how}`")


def check_disk(root: Path) -> Iterable[Check]:
    """Free space where data/ and DVC's cache lie."""
    free_gb = shutil.disk_usage(root).free / 1e9
    text = f"{free_gb:.0f} GB free"
    if free_gb < LEAST_FREE_GB:
        yield Check("problem", "disk", f"{text}: too little for any run")
    elif free_gb < GOOD_FREE_GB:
        yield Check("note", "disk", f"{text}: enough for the demo, not for thousands of videos")
    else:
        yield Check("ok", "disk", text)


def check_device(params: Params) -> Iterable[Check]:
    """The device that the settings ask for."""
    import torch

    from tasks.device import choose_device

    device = params.runtime.device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    try:
        choose_device(device)
    except StageError as error:
        yield Check("problem", "device", str(error))
    else:
        cpu = f"no GPU, {os.cpu_count()} CPU cores"
        yield Check("ok", "device", f"{device}: {names or cpu}")


def check_weights(params: Params) -> Iterable[Check]:
    """Weights from elsewhere: what is missing, and whether that matters with these settings."""
    from models.pretrained import REGISTRY, WeightsFormatError, WeightsMissingError, find_weights, load_official

    geometry = params.geometry
    initial = {"mobilenet_v2": geometry.depth_net.initial, "hopenet": geometry.pose_net.initial}
    without = {"mobilenet_v2": "geometry.depth_net.initial: random", "hopenet": "geometry.pose_net.initial: random"}
    wanted = {name: text for name, text in without.items() if initial[name] != "random"}
    needed = {name: text for name, text in without.items() if initial[name] == "pretrained"}
    if params.fusion.perceptual.backbone == "vgg19":
        needed["vgg19"] = "fusion.perceptual.backbone: vgg19_random"
    if params.parse.parser == "bisenet":
        needed["bisenet"] = "parse.parser: embedded"
    for name in REGISTRY:
        try:
            file = find_weights(name)
            if name == "hopenet" and name in wanted:  # no hash of it is published: only reading it shows what it is
                load_official(name)
            yield Check("ok", f"weights {name}", str(file))
        except WeightsMissingError as error:
            # a damaged file stops a stage that would do without one
            instead = {**needed, **wanted} if isinstance(error, WeightsFormatError) else needed
            if name in instead:
                yield Check("problem", f"weights {name}", f"{error} (or set {instead[name]})")
            else:
                yield Check("note", f"weights {name}", str(error))


def check_repository(root: Path) -> Iterable[Check]:
    """git, DVC, the code dependencies in dvc.yaml, and what `dvc repro` would do."""
    inside = subprocess.run(["git", "rev-parse", "--git-dir"], cwd=root, capture_output=True, check=False)
    if inside.returncode or not (root / ".dvc" / "config").is_file():
        yield Check(
            "problem", "DVC", "this is not a git repository with .dvc/config: run `git init` (or clone it again)"
        )
        return
    wrong = differences(root)
    if wrong:
        yield Check("problem", "dvc.yaml", f"run `python -m flows.graph --write` ({'; '.join(wrong)})")
    try:
        changed = StageProcesses(root, patience_s=0).changed_stages(lambda _line: None)
    except StageRunError as error:
        busy = "another run is in progress" in str(error)
        yield Check("note" if busy else "problem", "DVC", str(error))
        return
    if changed:
        order = [name for name in yaml.safe_load((root / "dvc.yaml").read_text())["stages"] if name in changed]
        yield Check("note", "DVC", f"`dvc repro` would look at: {', '.join(order)}")
    else:
        yield Check("ok", "DVC", "every stage is up to date")
    report = root / "data" / "report" / "index.html"
    if report.is_file():
        yield Check("ok", "report", str(report))


def check_prefect() -> Iterable[Check]:
    """Whether `prefect deployment run head3d/full` would run anything: server, deployment, someone serving."""
    import httpx
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    start = "`prefect server start --background`, then `python -m flows.full serve`"
    if not url:
        yield Check("note", "Prefect", f"no API address is set, so a deployment run would do nothing: {start}")
        return
    try:
        answer = httpx.get(f"{url}/deployments/name/head3d/full", timeout=5)
    except httpx.HTTPError:
        yield Check("note", "Prefect", f"no server at {url}, so a deployment run would do nothing: {start}")
        return
    if answer.status_code == 404:
        yield Check("note", "Prefect", f"the server at {url} has no head3d/full: `python -m flows.full serve`")
    elif not answer.is_success:
        yield Check("problem", "Prefect", f"the server at {url} answers {answer.status_code}")
    elif answer.json().get("status") != "READY":
        yield Check("note", "Prefect", "nobody serves head3d/full, so runs would wait: `python -m flows.full serve`")
    elif answer.json().get("paused"):
        yield Check("note", "Prefect", "head3d/full is paused: `prefect deployment resume head3d/full`")
    else:
        yield Check("ok", "Prefect", f"head3d/full is served at {url}")
