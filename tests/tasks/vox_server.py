"""A local stand-in for the video site, and small lists in the form of VoxCeleb's, made here."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks.video import write_video
from tests.tasks.videos import corners

HEADER = "video_id,start,end,bbox,fps,width,height,partition,person_id"
FRAMES = 75


@cache
def video_bytes(seed: int = 0, frames: int = FRAMES) -> bytes:
    """A small mp4 of 25 frames a second; another seed, other bytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        images = corners(frames)
        images[:, 40:50, 40:50] = 17 * seed % 256
        write_video(path, images, 25)
        return path.read_bytes()


def row(video: str, person: str, start: int = 0, end: int = 40, side: str = "train", box: str = "20-10-80-70") -> str:
    """A row whose frame is that of `video_bytes`."""
    return f"{video},{start},{end},{box},25,128,96,{side},{person}"


def video_name(index: int) -> str:
    """An id of eleven characters; every other one begins with a dash."""
    return f"{'-' if index % 2 else '_'}vid{index:05d}-A"


def small_list(people: int = 6, videos: int = 2, clips: int = 2, testing: int = 2) -> str:
    """A list of people with videos of overlapping clips; the last `testing` people are for testing."""
    rows = [
        row(video_name(person * videos + video), f"id{person:05d}", 10 * clip, 10 * clip + 40, side)
        for person in range(people)
        for video in range(videos)
        for clip in range(clips)
        for side in ["test" if person >= people - testing else "train"]
    ]
    return "\n".join([HEADER, *rows]) + "\n"


@dataclass
class Site:
    """What the server does: behaviour of an id, and how often it was asked."""

    port: int
    behaviour: dict[str, str] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Template of an address."""
        return f"http://127.0.0.1:{self.port}/{{video_id}}.mp4"


def _answer(handler: BaseHTTPRequestHandler, site: Site) -> None:
    video = handler.path.strip("/").removesuffix(".mp4")
    if handler.command == "GET":
        site.asked[video] += 1
    how = site.behaviour.get(video, "fine")
    if how.isdigit():
        handler.send_error(int(how))
        return
    if how == "hang":
        time.sleep(4)
        return
    data = _content(video, how)
    first = 0
    if asked := handler.headers.get("Range"):
        site.ranges.append(asked)
        first = int(asked.removeprefix("bytes=").split("-")[0] or 0)
        if first >= len(data):
            handler.send_error(416)
            return
    handler.send_response(206 if asked else 200)
    handler.send_header("Content-Type", "video/mp4")
    handler.send_header("Content-Length", str(len(data) - first))
    handler.send_header("Accept-Ranges", "bytes")
    if asked:
        handler.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
    handler.end_headers()
    if handler.command != "HEAD":
        _send(handler, data[first:], how, site.asked[video])


def _content(video: str, how: str) -> bytes:
    if how == "garbage":
        return b"this is no video" * 500
    if how == "short":
        return video_bytes(1, 12)
    return video_bytes(int(video[4:9]) if video[4:9].isdigit() else 0)


def _send(handler: BaseHTTPRequestHandler, data: bytes, how: str, times: int) -> None:
    if how == "slow":
        for position in range(0, len(data), 256):
            handler.wfile.write(data[position : position + 256])
            handler.wfile.flush()
            time.sleep(0.2)
    elif how == "cut" and times < 3:  # the connection ends in the middle, until somebody comes back
        handler.wfile.write(data[: len(data) // 2])
    else:
        handler.wfile.write(data)


@contextlib.contextmanager
def serve() -> Iterator[Site]:
    """The server, while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                _answer(self, site)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site = Site(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
