"""Runs one stage: `python -m flows.stage NAME`, which is every `cmd` of dvc.yaml.

Reads params.yaml strictly, works out the stage's fingerprint, keeps a second run out, runs `tasks.NAME.run`, and writes
its summary with the seconds it took to `data/metrics/NAME.json`. Exit code 0: done; 1: an expected failure, said in one
message; 130 or 143: stopped by SIGINT or SIGTERM (the next `dvc repro` goes on from there).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import json
import math
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from filelock import FileLock, Timeout

from flows.fingerprint import fingerprint, visible
from flows.graph import Stage, project_root, read_graph
from flows.stage_process import WATCH_VARIABLE
from models.config import ConfigError, Params, load_params
from tasks.disk import storage_errors
from tasks.errors import StageError
from tasks.paths import Paths

FRESH_VARIABLE = "HEAD3D_FRESH"
"""Set to 1, a stage first throws its own outputs away: `HEAD3D_FRESH=1 dvc repro --force --single-item STAGE`."""

PARENT_CHECK_S = 1.0
"""How often a stage looks whether the DVC that started it still lives."""


# torch's OpenMP threads spin for about a millisecond when they wait; on a machine that does anything else, a step was
# seen to take ten times as long for it. A thirtieth of that costs a quiet machine nothing that could be measured.
# Read when torch is loaded, which is after this line.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGINT, raised in the main thread so that a stage can save what it has; holds the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


def _stop(number: int, _frame: FrameType | None) -> None:
    raise Stopped(128 + number)


def _stop_children() -> None:
    """End the worker processes that a stopped stage leaves behind."""
    children = [
        child
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(_command(child))
    ]
    for child in children:
        _quietly(child.terminate)
    for child in psutil.wait_procs(children, timeout=3)[1]:
        _quietly(child.kill)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _quietly(action: Callable[[], Any]) -> None:
    with contextlib.suppress(psutil.Error):
        action()


def _alive(process: psutil.Process) -> bool:
    """Whether it still runs; a killed process that nobody has waited for yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _starters() -> list[psutil.Process]:
    """DVC (through its shell, if that is in between) and the process that a Prefect run names in `WATCH_VARIABLE`."""
    starters = []
    parent = psutil.Process().parent()
    if parent is not None:
        starters.append(parent)
        above = parent.parent() if "flows.stage" in " ".join(_command(parent)) else None
        starters += [above] if above else []
    named = os.environ.get(WATCH_VARIABLE, "")
    if named.isdigit() and psutil.pid_exists(int(named)):
        starters.append(psutil.Process(int(named)))
    return starters


def _watch_starters() -> None:
    """Stop when whoever started this run is gone.

    A killed `dvc repro` would otherwise leave the stage running, unseen, with its lock held.
    """
    starters = _starters()

    def watch() -> None:
        while all(_alive(process) for process in starters):
            time.sleep(PARENT_CHECK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    if starters:
        threading.Thread(target=watch, daemon=True, name="watch-starters").start()


def plain(value: Any) -> Any:
    """`value` as JSON has it: numpy scalars become numbers, NaN and infinities None, floats get six digits."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, str | bytes) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def write_summary(path: Path, summary: dict[str, Any], seconds: float) -> None:
    """Write `{"seconds": ..., **summary}` with a fixed layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"seconds": round(seconds, 1), **plain(summary)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _remove_outputs(stage: Stage, root: Path) -> None:
    for out in stage.outs:
        path = root / out
        if path.suffix == ".zarr":  # its arrays may lie elsewhere
            from tasks.store_location import remove_store

            remove_store(path.with_name(path.name + ".old"))
            remove_store(path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def run_stage(name: str, root: Path, fresh: bool = False) -> dict[str, Any]:
    """Run one stage in this process.

    Args:
        name: Its name in dvc.yaml.
        root: Project folder; must be the working directory, because paths in the results are relative to it.
        fresh: Throw the stage's finished outputs away first.

    Returns:
        The summary that was written.

    Raises:
        StageError: An expected failure, or another run of the stage is in progress.
        ConfigError: params.yaml or dvc.yaml does not fit.
    """
    graph = read_graph(root)
    if name not in graph:
        raise StageError(f"'{name}' is not a stage of dvc.yaml; there are: {', '.join(graph)}")
    stage = graph[name]
    params = load_params(root / "params.yaml")
    paths = Paths(Path("data"))
    with storage_errors(paths.data), _only_run(paths.data / ".locks", name):
        if fresh:
            _remove_outputs(stage, root)
        return _run(stage, params, paths, root)


@contextlib.contextmanager
def _only_run(folder: Path, name: str) -> Iterator[None]:
    """Hold the stage's lock. The system frees it when its holder ends, also by kill -9, and also on another machine.

    Raises:
        StageError: Another run holds it, or the file system knows no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / f"{name}.lock", timeout=0), folder / f"{name}.holder"
    try:
        lock.acquire()
    except Timeout:
        with contextlib.suppress(OSError):
            name += f" ({holder.read_text(encoding='utf-8')})"
        raise StageError(
            f"another run is in progress: stage '{name}' of this project; wait for it or stop it"
        ) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise StageError(
            f"the file system of {folder} knows no file locks ({error}), which keep two runs apart: put the project on "
            "another one, or let its administrator switch locks on"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _restore_demo(params: Params, paths: Paths) -> None:
    """Render the demo's videos again where `dvc pull` or `dvc checkout` brought only the list of them."""
    if "demo" in params.acquire.sources:
        from tasks.demo import demo_jobs, render_set

        jobs = demo_jobs(params.acquire, paths.raw / "demo")
        if not all(job.finished() for job in jobs):
            print("the demo's videos are not here: rendering them again", flush=True)
            render_set(jobs, params.runtime)


def _run(stage: Stage, params: Params, paths: Paths, root: Path) -> dict[str, Any]:
    started = time.monotonic()
    mark = fingerprint(stage, params, root)
    if stage.meta.get("videos"):
        _restore_demo(params, paths)
    module = importlib.import_module(f"tasks.{stage.name}")
    summary = module.run(visible(params, stage), paths, mark)
    seconds = time.monotonic() - started
    write_summary(paths.metrics / f"{stage.name}.json", summary, seconds)
    print(f"{stage.name}: done in {seconds:.1f} s", flush=True)
    return dict(summary)


def main(argv: list[str] | None = None) -> int:
    """Command line of `python -m flows.stage`."""
    parser = argparse.ArgumentParser(prog="python -m flows.stage", description="Run one stage of dvc.yaml.")
    parser.add_argument("stage", help="its name, for example crop")
    parser.add_argument("--fresh", action="store_true", help="throw the stage's finished outputs away first")
    options = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    _watch_starters()
    try:
        root = project_root()
        os.chdir(root)
        run_stage(options.stage, root, fresh=options.fresh or os.environ.get(FRESH_VARIABLE) == "1")
    except (StageError, ConfigError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and error.filename:  # the system's own, not one of our messages
            raise
        print(f"{options.stage}: {error}", file=sys.stderr)
        return 1
    except (Stopped, SystemExit) as stopped:
        print(f"{options.stage}: stopped; `dvc repro` goes on from here", file=sys.stderr)
        _stop_children()
        return stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        _stop_children()
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
