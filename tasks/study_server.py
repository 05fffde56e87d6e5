"""Shows the study's pages to this machine's browser and keeps what they send (`head3d study serve`).

It listens on the loopback interface only. A page of another site must not be able to talk to it through the visitor's
browser: requests need a Host of this machine (a name that someone rebinds to 127.0.0.1 has another), answers also an
Origin of it and the content type text/csv, which a foreign page may not send without asking first.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tasks.errors import StageError
from tasks.study import RETURNED

ADDRESS = "127.0.0.1"
LARGEST = 2 * 1024 * 1024
"""Bytes of an answered sheet; 1,000 rows with full comments take 0.6 MB."""
MOST_SHEETS = 99
READ_TIMEOUT_S = 30.0
CHUNK = 1 << 16
_RATER = re.compile(r"rater_\d{2,4}")
_VIDEO = re.compile(r"[0-9a-f]{10}\.mp4")


def raters_of(folder: Path) -> list[str]:
    """Names of the raters who have a page.

    Raises:
        StageError: Nobody has one.
    """
    found = [path.stem for path in sorted(folder.glob("rater_*.html")) if _RATER.fullmatch(path.stem)]
    if not found:
        raise StageError(f"{folder} has no rating page; `dvc repro study` makes one per rater")
    return found


def store_answer(folder: Path, rater: str, content: bytes) -> tuple[Path, bool]:
    """Keep an answered sheet: all of it or nothing, and never over another one.

    Args:
        folder: Where answers go; made if need be.
        rater: For example `rater_01`.
        content: The CSV as it came.

    Returns:
        The file, and whether it is new: the same bytes sent again change nothing. A second sheet of a rater becomes
        `rater_01_2.csv`.

    Raises:
        StageError: There are `MOST_SHEETS` sheets of this rater.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{rater}.", suffix=".partial", dir=folder)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        for number in range(1, MOST_SHEETS + 1):
            target = folder / (f"{rater}.csv" if number == 1 else f"{rater}_{number}.csv")
            if _link(Path(partial), target):
                target.chmod(0o644)
                return target, True
            if target.read_bytes() == content:
                return target, False
    finally:
        Path(partial).unlink(missing_ok=True)
    raise StageError(f"{folder} has {MOST_SHEETS} sheets of {rater} already")


def _link(partial: Path, target: Path) -> bool:
    """Give a file its name; False where another has it. A rename would replace that one."""
    try:
        os.link(partial, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: the name is taken first, then the content comes in one rename
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        partial.replace(target)
    return True


def make_server(
    folder: Path, port: int, raters: list[str], tell: Callable[[str], None] = lambda text: None
) -> ThreadingHTTPServer:
    """A server that is bound, not yet serving.

    Args:
        folder: The study.
        port: 0 takes a free one.
        raters: Whose pages are shown.
        tell: Gets a line for every sheet that comes in.

    Returns:
        Call `serve_forever()`; `server_address[1]` is the port.

    Raises:
        StageError: The port is taken.
    """
    handler = type("Handler", (_Handler,), {"folder": folder, "raters": raters, "tell": staticmethod(tell)})
    try:
        server = ThreadingHTTPServer((ADDRESS, port), handler)
    except OSError as error:
        raise StageError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from None
    server.daemon_threads = True
    handler.port = server.server_port  # type: ignore[attr-defined]
    return server


class _Handler(BaseHTTPRequestHandler):
    """`/` lists the raters, `/rater_01/` is a page, `videos/` lies below it, `answers` takes a sheet."""

    folder: Path
    raters: list[str]
    port: int
    tell: Callable[[str], None]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "study", ""
    timeout = READ_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: every video's request would be a line."""

    def do_GET(self) -> None:
        """Pages and videos."""
        self._get(body=True)

    def do_HEAD(self) -> None:
        """The same without the content."""
        self._get(body=False)

    def do_POST(self) -> None:
        """An answered sheet."""
        parts = self._parts()
        if not self._is_local(need_origin=True):
            return
        length = self.headers.get("Content-Length", "")
        if len(parts) != 2 or parts[0] not in self.raters or parts[1] != "answers":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif self.headers.get_content_type() != "text/csv":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "only CSV files are taken")
        elif not length.isascii() or not length.isdigit() or self.headers.get("Transfer-Encoding"):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the length is missing")
        elif int(length[:12]) > LARGEST or len(length) > 12:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {LARGEST // 1024} KiB")
        else:
            self._take(parts[0], int(length))

    def _take(self, rater: str, length: int) -> None:
        content = self.rfile.read(length)
        if len(content) < length:
            self.close_connection = True
            return
        if not content.strip():
            self._refuse(HTTPStatus.BAD_REQUEST, "the file is empty")
            return
        try:
            target, new = store_answer(self.folder / RETURNED, rater, content)
        except (StageError, OSError) as error:
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
            return
        if new:
            self.tell(f"{rater}: {length} bytes in {target}")
        self._answer(HTTPStatus.OK, b"Thank you: the answers have arrived." if new else b"These answers were here.")

    def _get(self, body: bool) -> None:
        parts = self._parts()
        if not self._is_local(need_origin=False):
            return
        if not parts:
            links = "".join(f'<li><a href="/{name}/">{name}</a></li>' for name in self.raters)
            page = (
                f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Video comparison</title><ul>{links}</ul>'
            )
            self._answer(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8", body)
        elif parts[0] not in self.raters:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif len(parts) == 1 and not urlsplit(self.path).path.endswith("/"):
            self.send_response(HTTPStatus.MOVED_PERMANENTLY)
            self.send_header("Location", f"/{parts[0]}/")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif len(parts) == 1:
            page_file = self.folder / f"{parts[0]}.html"
            self._answer(HTTPStatus.OK, page_file.read_bytes(), "text/html; charset=utf-8", body)
        elif len(parts) == 3 and parts[1] == "videos" and _VIDEO.fullmatch(parts[2]):
            self._video(self.folder / "videos" / parts[2], body)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def _video(self, path: Path, body: bool) -> None:
        """A file or the part of it that a player asks for: without parts, browsers do not seek."""
        if not path.is_file():
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such video")
            return
        content = path.read_bytes()
        first, last, status = 0, len(content) - 1, HTTPStatus.OK
        wanted = re.fullmatch(r"bytes=(\d{1,12})-(\d{0,12})", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(last, int(wanted[2] or last))
            status = HTTPStatus.PARTIAL_CONTENT
            if first > last:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "there is no such part")
                return
        extra = {"Accept-Ranges": "bytes"}
        if wanted:
            extra["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(status, content[first : last + 1], "video/mp4", body, extra)

    def _parts(self) -> list[str]:
        return [part for part in unquote(urlsplit(self.path).path).split("/") if part]

    def _is_local(self, need_origin: bool) -> bool:
        """Whether the request is for this machine and, if need be, from one of our own pages; refuses others."""
        hosts = {f"{ADDRESS}:{self.port}", f"localhost:{self.port}"}
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        allowed = host in hosts and (origin == f"http://{host}" if origin or need_origin else True)
        if not allowed:
            self._refuse(HTTPStatus.FORBIDDEN, f"open http://{ADDRESS}:{self.port}/ on this machine")
        return allowed

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # what else was sent is not read
        self._answer(status, f"Refused: {why}.".encode())

    def _answer(
        self,
        status: HTTPStatus,
        content: bytes,
        kind: str = "text/plain; charset=utf-8",
        body: bool = True,
        extra: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        headers |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
        headers |= {"Connection": "close"} if self.close_connection else {}
        for name, value in {**headers, **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)
