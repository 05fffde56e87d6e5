"""Many videos, politely: a few at a time, one rate for all, waits that grow, and an end at the first sign of a block.

What a video's trouble means is decided here once: a verdict (gone, private) settles it; a failure without a verdict is
tried again some times; throttling, a full disk and a missing network stop the whole, so that nothing is taken for gone
that is not.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from tasks.download_ytdlp import STAGING, DownloadCancelledError, DownloadTroubleError, Source, Want, fetch

Status = Literal["ok", "dead", "private", "throttled", "failed"]

DEAD_IN_A_ROW = 25
"""So many gone one after another look like a block in disguise: about a quarter of such old lists is gone."""
FAILED_IN_A_ROW = 8
TICK_S = 0.2


@dataclass(frozen=True)
class Pace:
    """How fast and how patiently.

    Attributes:
        downloads: At a time.
        per_minute: Requests for a video (or another try) that all workers together start.
        attempts: Tries of a video without a verdict.
        seed: Of the waits' jitter.
        backoff_s: The first wait; each further one is twice as long, up to a minute, times 0.5 to 1.5.
        deadline_s: One try of one video.
    """

    downloads: int
    per_minute: float
    attempts: int
    seed: int
    backoff_s: float
    deadline_s: float


@dataclass(frozen=True)
class Result:
    """What became of a video."""

    status: Status
    detail: str
    files: dict[str, Path]


@dataclass(frozen=True)
class Stopped:
    """Why the downloads ended before all videos were asked for."""

    kind: Literal["throttled", "offline", "disk", "suspicious"]
    detail: str


def download(
    wants: Sequence[Want], source: Source, pace: Pace, on_result: Callable[[Want, Result | None], None]
) -> Stopped | None:
    """Fetch videos in their order.

    Args:
        wants: Which.
        source: How one is fetched.
        pace: How many at a time, how fast.
        on_result: Called in this thread for every video that is settled; with None where an earlier result is taken
            back.

    Returns:
        None when every video was asked for, else why it stopped.
    """
    end_ffmpeg(source, psutil.process_iter())  # of a run that was killed: two must not write one file
    crew = _Crew(wants, source, pace)
    failed = 0
    dead: list[Want] = []
    with contextlib.closing(crew.results()) as results:
        for want, result in results:
            on_result(want, result)
            if result.status == "failed":
                failed += not want.again
            else:
                failed = 0
            dead = [*dead, want] if result.status == "dead" else []
            if failed >= FAILED_IN_A_ROW:
                return crew.stop("suspicious", f"{failed} videos in a row failed, the last one so: {result.detail}")
            if len(dead) >= DEAD_IN_A_ROW:
                for each in dead:
                    on_result(each, None)
                return crew.stop("suspicious", f"{len(dead)} videos in a row are said to be gone: {result.detail}")
    return crew.stopped


class _Limiter:
    """One rate for all threads."""

    def __init__(self, per_minute: float) -> None:
        self._interval = 60.0 / per_minute
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, cancelled: Callable[[], bool]) -> None:
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._interval
        _sleep(mine - now, cancelled)


class _Crew:
    """The worker threads; daemons, so that a stage that is stopped does not wait for a silent server."""

    def __init__(self, wants: Sequence[Want], source: Source, pace: Pace) -> None:
        self._waiting = deque(wants)
        self._source, self._pace = source, pace
        self._limiter = _Limiter(pace.per_minute)
        self._results: queue.Queue[tuple[Want, Result] | None] = queue.Queue()
        self._halt = threading.Event()
        self._lock = threading.Lock()
        self._offline = 0
        self._since: dict[str, float] = {}
        self.stopped: Stopped | None = None

    def results(self) -> Generator[tuple[Want, Result], None, None]:
        """Results as they come; leaving the loop, however that happens, stops the threads."""
        threads = [
            threading.Thread(target=self._work, daemon=True, name=f"download-{index}")
            for index in range(min(self._pace.downloads, len(self._waiting)))
        ]
        for thread in threads:
            thread.start()
        running = len(threads)
        try:
            while running:
                self._end_late()
                with contextlib.suppress(queue.Empty):
                    item = self._results.get(timeout=TICK_S)
                    if item is None:
                        running -= 1
                    else:
                        yield item
        finally:
            self._halt.set()
            for video_id in list(self._since):
                self._end_processes(video_id)
            for thread in threads:
                thread.join(timeout=2 * TICK_S)

    def stop(self, kind: Literal["throttled", "offline", "disk", "suspicious"], detail: str) -> Stopped:
        """Let nothing new begin; the first reason counts."""
        with self._lock:
            self._halt.set()
            self.stopped = self.stopped or Stopped(kind, detail)
            return self.stopped

    def _work(self) -> None:
        try:
            while not self._halt.is_set():
                try:
                    want = self._waiting.popleft()
                except IndexError:
                    return
                result = self._tries(want)
                if result is not None:
                    self._results.put((want, result))
        except Exception as error:  # a bug must not look like the end of the work
            self.stop("suspicious", f"{type(error).__name__}: {error}")
        finally:
            self._results.put(None)

    def _tries(self, want: Want) -> Result | None:
        """The tries of one video; None if it was stopped without a verdict."""
        chance = random.Random(f"{self._pace.seed} {want.video_id}")
        detail = ""
        for attempt in range(self._pace.attempts):
            if attempt:
                wait = min(60.0, self._pace.backoff_s * 2 ** (attempt - 1)) * chance.uniform(0.5, 1.5)
                _sleep(wait, self._halt.is_set)
            self._limiter.wait(self._halt.is_set)
            if self._halt.is_set():
                return None
            try:
                files = self._once(want)
                self._offline = 0
                return Result("ok", "", files)
            except DownloadCancelledError:
                if self._halt.is_set():
                    return None
                detail = f"not finished after {self._pace.deadline_s:g} s"
            except DownloadTroubleError as trouble:
                detail = str(trouble)
                if trouble.kind in ("dead", "private", "throttled"):
                    self._offline = 0
                    if trouble.kind == "throttled":
                        self.stop("throttled", detail)  # here, before another video is asked for
                    return Result(trouble.kind, detail, {})
                if trouble.kind == "disk":
                    self.stop("disk", detail)
                    return None
                self._offline = self._offline + 1 if trouble.kind == "offline" else 0
                if self._offline >= min(2, self._pace.attempts):
                    self.stop("offline", detail)
                    return None
        return Result("failed", f"{detail} ({self._pace.attempts} tries)", {})

    def _once(self, want: Want) -> dict[str, Path]:
        until = time.monotonic() + self._pace.deadline_s
        self._since[want.video_id] = time.monotonic()
        try:
            return fetch(want, self._source, lambda: self._halt.is_set() or time.monotonic() > until)
        finally:
            self._since.pop(want.video_id, None)

    def _end_late(self) -> None:
        """yt-dlp waits for its ffmpeg without asking anybody: end the one of a video whose time is over."""
        for video_id, since in list(self._since.items()):
            if time.monotonic() - since > self._pace.deadline_s + 1:
                self._end_processes(video_id)

    def _end_processes(self, video_id: str) -> None:
        end_ffmpeg(self._source, psutil.Process().children(recursive=True), video_id)


def end_ffmpeg(source: Source, processes: Iterable[psutil.Process], video_id: str = "") -> None:
    """End those of the processes that write below the staging folder of `source`, or that of one video."""
    if source.ffmpeg is None:
        return
    mine = f"{source.folder / STAGING / video_id}/"
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if any(mine in word for word in process.cmdline()[1:]):
                process.kill()


def _sleep(seconds: float, cancelled: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not cancelled() and (left := until - time.monotonic()) > 0:
        time.sleep(min(TICK_S, left))
