"""One video through yt-dlp's Python API: the picture stream only, just the needed sections where ffmpeg is there.

yt-dlp says in prose what went wrong; `classify` turns that into one of a few kinds, which decide whether a video counts
as gone, is asked again, or stops everything.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["throttled", "private", "dead", "offline", "disk", "failed"]

STAGING = ".staging"
"""Folder of unfinished downloads, beside the finished ones."""


class DownloadTroubleError(Exception):
    """A download that did not work; `kind` says what that means, the text is yt-dlp's own."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class DownloadCancelledError(Exception):
    """The download was told to stop; what it has stays for the next run."""


@dataclass(frozen=True)
class Want:
    """A video to fetch.

    Attributes:
        video_id: Its id.
        url: Where it is.
        sections: Name of the section -> (start, end) in seconds.
        again: It failed in an earlier run: another failure says nothing about the site.
    """

    video_id: str
    url: str
    sections: dict[str, tuple[float, float]]
    again: bool = False


@dataclass(frozen=True)
class Source:
    """How videos are fetched.

    Attributes:
        folder: Where the finished files go.
        max_height_px: Of the stream; the nearest one is taken.
        cookies: Netscape cookie file of a browser session, or None.
        ffmpeg: Path of the ffmpeg on PATH: only the sections are fetched, cut exactly; None: the whole stream.
        socket_timeout_s: A server that is silent for so long has failed.
    """

    folder: Path
    max_height_px: int
    cookies: Path | None
    ffmpeg: str | None
    socket_timeout_s: float


# The order matters: YouTube puts "Video unavailable" before many other things.
_SAID: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("disk", ("no space left on device", "disk quota exceeded", "read-only file system", "file too large")),
    (
        "throttled",
        (
            "not a bot",
            "rate-limited",
            "isn't available, try again later",
            "too many requests",
            "http error 429",
            "http error 402",
            "captcha",
            "unusual traffic",
        ),
    ),
    (
        "offline",
        (
            "failed to resolve",
            "name or service not known",
            "temporary failure in name resolution",
            "nodename nor servname",
            "getaddrinfo failed",
            "network is unreachable",
            "no route to host",
            "connection refused",
            "unable to connect to proxy",
            "cannot connect to proxy",
            "certificate_verify_failed",
        ),
    ),
    (
        "failed",
        (
            "timed out",
            "connection reset",
            "connection aborted",
            "remote end closed",
            "bytes read",
            "http error 5",
            "http error 403",
            "requested format is not available",
        ),
    ),
    (
        "private",
        (
            "private video",
            "video is private",
            "confirm your age",
            "age-restricted",
            "age restricted",
            "inappropriate for some users",
            "members-only",
            "members only",
            "join this channel",
            "in your country",
            "geo restriction",
            "geo-restrict",
            "requires payment",
            "login required",
            "only available for registered users",
        ),
    ),
    (
        "dead",
        (
            "video unavailable",
            "video is unavailable",
            "video is no longer available",
            "isn't available anymore",
            "has been removed",
            "has been terminated",
            "account associated with this video",
            "video does not exist",
            "incomplete youtube id",
            "truncated url",
            "recording is not available",
        ),
    ),
)


def classify(text: str) -> Kind:
    """What an error text of yt-dlp means.

    Args:
        text: The whole message.

    Returns:
        throttled: the site wants fewer requests or a person; private: there, but not for us (also age, country,
        members); dead: gone; offline: this machine does not reach the site; disk: it cannot be written; failed:
        everything else, which is no verdict on the video.
    """
    said = text.lower().replace("’", "'")
    for kind, phrases in _SAID:
        if any(phrase in said for phrase in phrases):
            return kind
    # a plain file server (a mirror) says it by number; on YouTube a 404 may be a stale address of the stream
    if "[generic]" in said and re.search(r"http error (404|410)", said):
        return "dead"
    return "failed"


def fetch(want: Want, source: Source, cancelled: Callable[[], bool]) -> dict[str, Path]:
    """Fetch a video.

    Args:
        want: Which; section names and the id are safe as file names.
        source: How.
        cancelled: Asked between two blocks; True ends the download.

    Returns:
        Name of a section -> its file in `source.folder`; without ffmpeg one file, under the video's id, which has all.
        With it, a section that begins after the video's end has none.

    Raises:
        DownloadTroubleError: It did not work.
        DownloadCancelledError: It was told to stop.
    """
    import yt_dlp

    staging = source.folder / STAGING / want.video_id
    staging.mkdir(parents=True, exist_ok=True)
    before = _part_sizes(staging)
    with tempfile.TemporaryDirectory() as scratch:
        options = _options(want, source, staging, cancelled)
        if source.cookies is not None:  # yt-dlp writes the file back when it is done
            options["cookiefile"] = shutil.copy(source.cookies, Path(scratch) / "cookies.txt")
        try:
            with yt_dlp.YoutubeDL(options) as downloader:
                info = downloader.extract_info(want.url, download=True) or {}
        except DownloadCancelledError:
            raise
        except Exception as error:  # yt-dlp's own, or an extractor's bug, which is no verdict either
            if cancelled():
                raise DownloadCancelledError from None
            if before and _part_sizes(staging) == before:  # nothing came: what is there may be what is wrong
                shutil.rmtree(staging, ignore_errors=True)
            raise DownloadTroubleError(_kind(error), _plain(str(error) or type(error).__name__)) from None
    files = sorted(path for path in staging.iterdir() if path.suffix not in (".part", ".ytdl") and path.stat().st_size)
    if not files and (source.ffmpeg is None or _ranges(want, info)):
        raise DownloadTroubleError("failed", "yt-dlp ended without an error and without a file")
    names = list(want.sections)
    result = {}
    for path in files:
        if source.ffmpeg is None:
            name = want.video_id
        elif path.stem.isdigit() and int(path.stem) < len(names):
            name = names[int(path.stem)]
        else:
            continue
        result[name] = path.replace(source.folder / f"{name}{_suffix(path)}")
    shutil.rmtree(staging, ignore_errors=True)
    return result


def _options(want: Want, source: Source, staging: Path, cancelled: Callable[[], bool]) -> dict[str, Any]:
    def stop_if_told(_progress: dict[str, Any]) -> None:
        if cancelled():
            raise DownloadCancelledError

    name = "%(section_number)d" if source.ffmpeg else "whole"
    options: dict[str, Any] = {
        "quiet": True,
        "noprogress": True,
        "logger": _Silent(),
        "format": "bv/b",
        "format_sort": [f"res:{source.max_height_px}", "vcodec:h264", "proto:https", "ext:mp4"],
        "outtmpl": {"default": str(staging).replace("%", "%%") + f"/{name}.%(ext)s"},
        "noplaylist": True,
        "continuedl": True,
        "overwrites": True,
        "retries": 0,  # download.py counts the attempts
        "extractor_retries": 0,
        "fragment_retries": 3,
        "file_access_retries": 0,
        "socket_timeout": source.socket_timeout_s,
        "progress_hooks": [stop_if_told],
        "cachedir": False,
        "updatetime": False,
        "fixup": "never",
        "js_runtimes": {"deno": {}, "node": {}, "bun": {}, "quickjs": {}},  # whichever is there
    }
    if source.ffmpeg:
        options["download_ranges"] = lambda info, _downloader: _ranges(want, info)
        options["force_keyframes_at_cuts"] = True  # else a section begins at the key frame before it
        options["external_downloader_args"] = {"ffmpeg_o": ["-crf", "17", "-an"]}  # that encodes it again: well
    return options


def _ranges(want: Want, info: dict[str, Any]) -> list[dict[str, float]]:
    """The sections in yt-dlp's form; without those after the end of a video that is shorter than it was."""
    duration = info.get("duration") or float("inf")
    return [
        {"start_time": start, "end_time": end, "index": index}
        for index, (start, end) in enumerate(want.sections.values())
        if start < duration
    ]


class _Silent:
    """yt-dlp's messages: the error that counts is raised as well."""

    def debug(self, text: str) -> None:
        """Nothing."""

    info = warning = error = debug


def _kind(error: Exception) -> Kind:
    import yt_dlp

    exc_info = getattr(error, "exc_info", None)
    for each in (error, exc_info[1] if exc_info else None):
        if isinstance(each, yt_dlp.utils.GeoRestrictedError):
            return "private"
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return "disk"
    return classify(str(error))


def _part_sizes(staging: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in staging.glob("*.part")}


def _plain(text: str) -> str:
    """yt-dlp's message as one line without colours and its advice on reporting bugs."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.split(r"; please report this issue|\(caused by ", text)[0]
    return " ".join(text.removeprefix("ERROR: ").split())[:300]


def _suffix(path: Path) -> str:
    """The file's own, if it is plain: it comes from a server."""
    return path.suffix.lower() if re.fullmatch(r"\.[A-Za-z0-9]{2,5}", path.suffix) else ".mp4"
