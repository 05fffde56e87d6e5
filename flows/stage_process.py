"""Runs a stage through DVC in a session of its own, so that it can be heard, waited for and stopped as a whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

LOCKED = ("Unable to acquire lock", "is busy, it is being blocked by", "another run is in progress")
"""What DVC prints when another command holds its repository or path lock, and what a stage prints for its own."""

LOCK_PATIENCE_S = float(os.environ.get("HEAD3D_LOCK_PATIENCE_S", "600"))
"""How long to wait in all for another run to let go."""

STOP_GRACE_S = 10.0
WATCH_VARIABLE = "HEAD3D_WATCH_PID"
"""Names the process whose end also ends the stage: nobody can signal the children of a process that was killed."""


class Outcome(StrEnum):
    """How a stage ended well; the values are the state names in Prefect."""

    RAN = "Completed"
    CACHED = "Cached"


class StageRunError(RuntimeError):
    """A stage did not end well; the text is its last lines."""


class StoppedError(RuntimeError):
    """The run was cancelled."""


def environment(root: Path) -> dict[str, str]:
    """Environment in which `python` is the interpreter that runs now, which is what the commands in dvc.yaml call."""
    env = dict(os.environ)
    own = Path(sys.executable).parent
    folders = [str(folder) for folder in (root / ".venv" / "bin", own) if folder.is_dir()]
    env["PATH"] = os.pathsep.join([*reversed(folders), env.get("PATH", "")])
    env["PYTHONUNBUFFERED"] = "1"
    env[WATCH_VARIABLE] = str(os.getpid())
    return env


class StageProcesses:
    """The DVC processes of one run; `stop` ends all of them with everything they started."""

    def __init__(self, root: Path, patience_s: float = LOCK_PATIENCE_S) -> None:
        self.root = root
        self._patience_s = patience_s
        self._running: set[subprocess.Popen[str]] = set()
        self._guard = threading.Lock()
        self._stopping = threading.Event()

    def changed_stages(self, log: Callable[[str], None]) -> set[str]:
        """Stages that DVC says are not up to date (one look for the whole graph).

        Raises:
            StageRunError: DVC could not tell.
        """
        lines: list[str] = []
        self._patiently(["status", "--json"], lines, log, listen=None)
        text = "\n".join(lines)
        return set(json.loads(text[text.index("{") :]))

    def run(self, stage: str, log: Callable[[str], None]) -> Outcome:
        """Bring one stage up to date; everything it needs must be.

        Args:
            stage: Its name in dvc.yaml.
            log: Called with each line of its output.

        Raises:
            StageRunError: It ended with an error.
            StoppedError: `stop` was called.
        """
        lines: list[str] = []
        self._patiently(["repro", "--single-item", stage], lines, log, listen=log)
        return Outcome.RAN if f"Running stage '{stage}':" in lines else Outcome.CACHED

    def stop(self) -> None:
        """End every process of this run: SIGTERM to each group, SIGKILL to what is left after a while."""
        self._stopping.set()
        with self._guard:
            running = list(self._running)
        for process in running:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(process, signal.SIGKILL)

    def _patiently(
        self,
        arguments: list[str],
        lines: list[str],
        log: Callable[[str], None],
        listen: Callable[[str], None] | None,
    ) -> None:
        """Run DVC; while another run holds a lock, wait longer and longer and try again."""
        waited, pause = 0.0, 1.0
        while True:
            lines.clear()
            code = self._once(arguments, lines, listen)
            if self._stopping.is_set():
                raise StoppedError("stopped; the next run goes on from here")
            if code == 0:
                return
            text = "\n".join(lines)
            if not any(mark in text for mark in LOCKED):
                raise StageRunError("\n".join(lines[-20:]) or f"dvc ended with code {code}")
            if waited >= self._patience_s:
                raise StageRunError(f"another run is in progress, still after {waited:.0f} s; wait for it or stop it")
            log(f"another run is in progress; trying again in {pause:.0f} s")
            self._stopping.wait(pause)
            waited, pause = waited + pause, min(2 * pause, 30.0)

    def _once(self, arguments: list[str], lines: list[str], listen: Callable[[str], None] | None) -> int:
        with self._guard:
            if self._stopping.is_set():
                return 1
            process = subprocess.Popen(
                [sys.executable, "-m", "dvc", *arguments],
                cwd=self.root,
                env=environment(self.root),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if listen else subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        try:
            if listen is None:
                out, err = process.communicate()
                lines.extend((out if process.returncode == 0 else out + err).splitlines())
            else:
                assert process.stdout is not None
                for line in process.stdout:
                    text = line.rstrip()
                    if text:
                        lines.append(text)
                        listen(text)
            return process.wait()
        finally:
            with self._guard:
                self._running.discard(process)


def _signal_group(process: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
