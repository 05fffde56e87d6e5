"""Ctrl-C and SIGTERM held back until a training step is done, so that what is saved is never half a step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

AGAIN_S = 2.0


class Interruption:
    """Context in which the first SIGINT or SIGTERM is only noted; one that comes more than `AGAIN_S` later ends the run
    at once, without saving. (The same stop may come twice: to the process group, and handed on by the parent.)

    Outside the main thread, where Python delivers no signals, it does nothing; a signal that is ignored stays so.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, listen: bool = True) -> None:
        """Prepare.

        Args:
            listen: False: do nothing, whatever comes (a process that follows another one).
        """
        self.number, self._noted, self._listen = 0, 0.0, listen
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if self._listen and threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and time.monotonic() - self._noted > AGAIN_S:
            self._pass_on(number, frame)
        if not self.number:
            self.number, self._noted = number, time.monotonic()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        before: Callable[[int, FrameType | None], Any] | Any = self._before[number]
        if callable(before):
            before(number, frame)
        raise SystemExit(128 + number)

    def leave(self) -> None:
        """End the run as the noted signal would have.

        Raises:
            KeyboardInterrupt: Or what else the handler of before raises.
            SystemExit: There was no handler.
        """
        self._pass_on(self.number, None)
