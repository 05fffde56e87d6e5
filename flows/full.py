"""Prefect flow `head3d`: the graph of dvc.yaml, one task per stage, in DVC's own cache.

    python -m flows.full serve            registers the deployment head3d/full and waits for runs
    prefect deployment run head3d/full --watch
    python -m flows.full run              runs it here and now, with or without a server

A stage that DVC finds up to date ends in the state `Cached`, one that ran in `Completed`; whichever of DVC and Prefect
ran first, the other has nothing left to do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import cache
from typing import Any

from prefect import flow, get_client, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed

from flows.artifacts import leave_artifacts
from flows.graph import Stage, in_order, project_root, read_graph, upstream
from flows.preset_files import write_preset
from flows.stage_process import Outcome, StageProcesses, StageRunError, StoppedError
from models.config import ConfigError

GPU_LIMIT = "head3d-gpu"
"""Name of the concurrency limit that stages with `meta: {gpu: true}` share; its size is the number of GPUs."""


SERVER_START_S = float(os.environ.get("HEAD3D_SERVER_PATIENCE_S", "45"))
"""How long `serve` waits for a server, which takes a while after `prefect server start --background` came back."""


@cache
def gpu_count() -> int:
    """GPUs of this machine, without loading torch."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def ensure_gpu_limit() -> None:
    """Create or resize the limit that keeps GPU stages to one per GPU; without a GPU there is none."""
    if gpu_count():
        with get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, gpu_count())


@task(name="stage", task_run_name="{stage}", persist_result=False)
def run_stage(stage: str, processes: StageProcesses, up_to_date: bool, description: Stage) -> State[Any]:
    """Bring one stage up to date through DVC, and leave its artifacts in the UI.

    Args:
        stage: Its name in dvc.yaml.
        processes: Where its process is started, so that the flow can stop it.
        up_to_date: DVC has already said that neither it nor anything above it changed.
        description: What dvc.yaml says about it; with `meta: {gpu: true}` it shares the GPUs' limit.

    Returns:
        Prefect state `Cached`, `Completed`, `Failed` or `Cancelled`.
    """
    logger = get_run_logger()
    if up_to_date:
        leave_artifacts(description, processes.root, Outcome.CACHED, logger.warning)
        return Completed(name=Outcome.CACHED, message="up to date")
    gpu = bool(description.meta.get("gpu")) and gpu_count() > 0
    with concurrency(GPU_LIMIT, occupy=1) if gpu else nullcontext():
        try:
            outcome = processes.run(stage, logger.info)
        except StoppedError as stopped:
            return Cancelled(message=str(stopped))
        except StageRunError as error:
            return Failed(message=str(error))
    leave_artifacts(description, processes.root, outcome, logger.warning)
    return Completed(name=outcome, message="DVC ran it" if outcome is Outcome.RAN else "up to date or from DVC's cache")


@flow(name="head3d")
def head3d(targets: list[str] | None = None, preset: str | None = None) -> dict[str, str] | State[Any]:
    """Bring the whole pipeline, or some stages with all they need, up to date.

    Args:
        targets: Stages of dvc.yaml; none: all.
        preset: Write params.yaml from this preset first.

    Returns:
        Stage -> state name, or a failed state whose message says what went wrong.
    """
    logger = get_run_logger()
    try:
        root = project_root()
        if preset:
            for line in write_preset(preset, root / "params.yaml"):
                logger.info("params.yaml: %s", line)
        stages = read_graph(root)
        order = in_order(stages, targets or [])
        processes = StageProcesses(root)
        to_run = processes.changed_stages(logger.info)
    except (ConfigError, FileNotFoundError, StageRunError, ValueError) as error:
        return Failed(message=str(error))
    ensure_gpu_limit()
    try:
        states = _run_all(stages, order, to_run, processes)
    finally:
        processes.stop()
    for name, state in states.items():
        if not state.is_completed():
            return Failed(message=f"stage '{name}' ended in state {state.name}: {state.message}")
    return {name: str(state.name) for name, state in states.items()}


def _run_all(
    stages: dict[str, Stage], order: list[str], to_run: set[str], processes: StageProcesses
) -> dict[str, State[Any]]:
    """Submit every stage behind those it needs; final states, once all have one."""
    above = upstream(stages)
    futures: dict[str, PrefectFuture[Any]] = {}
    for name in order:
        if any(other in to_run for other in above[name]):
            to_run.add(name)
        waits = [futures[other] for other in above[name]]
        done = name not in to_run
        futures[name] = run_stage.submit(name, processes, done, stages[name], wait_for=waits, return_state=False)
    for future in futures.values():
        future.wait()
    return {name: future.state for name, future in futures.items()}


def _server_answers(patience_s: float = 0.0) -> bool:
    """Whether the server of PREFECT_API_URL answers; one that was started a moment ago needs a while."""
    import httpx
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    deadline = time.monotonic() + patience_s
    while url:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return True
        if time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    return False


def _serve() -> int:
    from prefect.flows import EntrypointType

    from flows.full import head3d as deployed  # under its import name, so that a run can load it as flows.full:head3d

    if not _server_answers(SERVER_START_S):
        print("No Prefect server answers; start one with `prefect server start --background`.", file=sys.stderr)
        return 1
    ensure_gpu_limit()
    deployed.serve(name="full", limit=1, entrypoint_type=EntrypointType.MODULE_PATH)
    return 0


def _run(targets: list[str], preset: str | None) -> int:
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

    own_server: Any = nullcontext()
    if not _server_answers():
        print("No Prefect server answers: this run uses a temporary one and will not show in the UI.", file=sys.stderr)
        own_server = temporary_settings(
            updates={PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True}, restore_defaults={PREFECT_API_URL}
        )
    with own_server:
        state: State[Any] = head3d(targets or None, preset, return_state=True)
        if not state.is_completed():
            print(f"head3d: {state.message}", file=sys.stderr)
            return 1
        for name, outcome in state.result().items():
            print(f"{name:<10} {outcome}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line of `python -m flows.full`."""
    parser = argparse.ArgumentParser(prog="python -m flows.full", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="register the deployment head3d/full and wait for runs, one at a time")
    run = commands.add_parser("run", help="run the flow here and now")
    run.add_argument("targets", nargs="*", help="stages to bring up to date with all they need; none: all")
    run.add_argument("--preset", help="write params.yaml from this preset first")
    options = parser.parse_args(argv)
    return _serve() if options.command == "serve" else _run(options.targets, options.preset)


if __name__ == "__main__":
    sys.exit(main())
