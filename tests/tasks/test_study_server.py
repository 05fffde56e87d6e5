"""The study's server: what it shows, what it takes, and whom it refuses."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from flows.cli import app
from flows.commands_study import _find_rater
from tasks import study_server
from tasks.errors import StageError
from tasks.study_server import make_server, raters_of, store_answer

VIDEO = "0123456789.mp4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As much of a study as the server looks at."""
    place = tmp_path / "study"
    (place / "videos").mkdir(parents=True)
    (place / "videos" / VIDEO).write_bytes(bytes(range(100)))
    for name in ("rater_01", "rater_02"):
        (place / f"{name}.html").write_text(f"<p>{name}", encoding="utf-8")
    (place / "key.csv").write_text("the key", encoding="utf-8")
    return place


@pytest.fixture
def server(folder: Path) -> Iterator[ThreadingHTTPServer]:
    running = make_server(folder, 0, ["rater_01"])
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def ask(
    server: ThreadingHTTPServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """One request; `Host` and the headers of a form of ours unless others are given (an empty one is left out)."""
    host = f"127.0.0.1:{server.server_port}"
    given = {"Host": host, **({"Origin": f"http://{host}", "Content-Type": "text/csv"} if body is not None else {})}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in given.items():
        if value:
            connection.putheader(name, value)
    if body is not None and "Content_Length" not in headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body or None)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, {name.lower(): value for name, value in response.getheaders()}


def test_pages_and_videos_are_shown_and_nothing_else(server: ThreadingHTTPServer) -> None:
    assert b'href="/rater_01/"' in ask(server, "GET", "/")[1]
    status, page, headers = ask(server, "GET", "/rater_01/")
    assert (status, page) == (200, b"<p>rater_01")
    assert headers["x-content-type-options"] == "nosniff"
    assert ask(server, "GET", "/rater_01")[2]["location"] == "/rater_01/"
    assert ask(server, "GET", f"/rater_01/videos/{VIDEO}")[1] == bytes(range(100))
    assert ask(server, "HEAD", f"/rater_01/videos/{VIDEO}")[2]["content-length"] == "100"
    for path in (
        "/key.csv", "/rater_01/key.csv", "/rater_01/../key.csv", "/rater_01/videos/../key.csv", "/rater_02/",
        "/rater_01/videos/%2e%2e%2fkey.csv", "/rater_01/videos/..%5ckey.csv", "/rater_01/videos/9999999999.mp4",
        "/rater_01/answers", "//key.csv",
    ):  # fmt: skip
        assert ask(server, "GET", path)[0] == 404, path


def test_parts_of_a_video_can_be_asked_for(server: ThreadingHTTPServer) -> None:
    path = f"/rater_01/videos/{VIDEO}"
    status, content, headers = ask(server, "GET", path, Range="bytes=10-19")
    assert (status, content, headers["content-range"]) == (206, bytes(range(10, 20)), "bytes 10-19/100")
    assert ask(server, "GET", path, Range="bytes=90-")[1] == bytes(range(90, 100))
    assert ask(server, "GET", path, Range="bytes=90-500")[1] == bytes(range(90, 100))
    assert ask(server, "GET", path, Range="bytes=100-")[0] == 416
    assert ask(server, "GET", path, Range="bytes=0-1,5-6")[:2] == (200, bytes(range(100)))


def test_it_listens_on_the_loopback_interface_only(server: ThreadingHTTPServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.socket.family == socket.AF_INET


def test_answers_are_kept_and_never_overwritten(server: ThreadingHTTPServer, folder: Path) -> None:
    for body, said in ((b"one", "arrived"), (b"one", "were here"), (b"two", "arrived"), (b"two", "were here")):
        status, content, _ = ask(server, "POST", "/rater_01/answers", body)
        assert status == 200
        assert said in content.decode()
    kept = {path.name: path.read_bytes() for path in (folder / "returned").iterdir()}
    assert kept == {"rater_01.csv": b"one", "rater_01_2.csv": b"two"}


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (403, {"Host": "evil.example:80"}),  # a name that was rebound to 127.0.0.1
        (403, {"Host": "127.0.0.1:1"}),
        (403, {"Host": ""}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": ""}),
        (415, {"Content_Type": "text/plain"}),  # what a form of another site could send
        (411, {"Content_Length": ""}),
        (411, {"Content_Length": "-5"}),
        (413, {"Content_Length": str(3 * 1024 * 1024)}),
        (413, {"Content_Length": "9" * 30}),
        (411, {"Transfer_Encoding": "chunked"}),
    ],
)
def test_strangers_and_odd_requests_are_refused(
    server: ThreadingHTTPServer, folder: Path, status: int, changes: dict[str, str]
) -> None:
    got, content, headers = ask(server, "POST", "/rater_01/answers", b"x", **changes)
    assert got == status
    assert b"Refused" in content
    assert headers["connection"] == "close"
    assert not (folder / "returned").exists()
    assert ask(server, "GET", "/rater_01/")[0] == 200  # it still works


def test_other_raters_empty_bodies_and_cut_ones_leave_nothing(server: ThreadingHTTPServer, folder: Path) -> None:
    assert ask(server, "POST", "/rater_02/answers", b"x")[0] == 404
    assert ask(server, "POST", "/rater_01/../x/answers", b"x")[0] == 404
    assert ask(server, "POST", "/rater_01/answers", b" \n")[0] == 400
    host = f"127.0.0.1:{server.server_port}"
    with socket.create_connection(("127.0.0.1", server.server_port)) as cut:
        head = f"POST /rater_01/answers HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
        cut.sendall(f"{head}Content-Type: text/csv\r\nContent-Length: 50\r\n\r\nhalf".encode())
        cut.shutdown(socket.SHUT_WR)
        assert cut.recv(100) == b""
    assert not (folder / "returned").exists()


def test_reads_need_our_host_too(server: ThreadingHTTPServer) -> None:
    assert ask(server, "GET", "/rater_01/", Host="evil.example")[0] == 403
    assert ask(server, "GET", "/rater_01/", Origin="http://evil.example")[0] == 403
    assert ask(server, "GET", "/rater_01/", Host=f"localhost:{server.server_port}")[0] == 200


def test_many_at_once_are_all_kept(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=store_answer, args=(tmp_path, "rater_01", f"{number}".encode() * 1000))
        for number in range(10, 30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = sorted(path.read_bytes() for path in tmp_path.iterdir())
    assert kept == sorted(f"{number}".encode() * 1000 for number in range(10, 30))


def test_without_links_nothing_is_overwritten_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("this file system has no links")

    monkeypatch.setattr(study_server.os, "link", refuse)
    assert store_answer(tmp_path, "rater_01", b"one")[0].name == "rater_01.csv"
    assert store_answer(tmp_path, "rater_01", b"two")[0].name == "rater_01_2.csv"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "rater_01.csv": b"one", "rater_01_2.csv": b"two"
    }  # fmt: skip


def test_command_finds_a_rater_by_number_or_says_who_there_is(
    folder: Path, server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [_find_rater(name, ["rater_01", "rater_02"]) for name in ("2", "02", "rater_02")] == ["rater_02"] * 3
    for words, said in (
        (["9"], "there is no rater '9'; there are rater_01 to rater_02"),
        (["1", "--port", str(server.server_port)], "choose another with --port"),
    ):
        with pytest.raises(SystemExit) as ended:
            app(args=["study", "serve", *words, "--study", str(folder)])
        assert ended.value.code == 1
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", ["serve", "tally", "inputs", "simulate"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app(args=["study", command, "--help"])
    assert f"head3d study {command}" in capsys.readouterr().out


def test_what_cannot_be_served_says_what_to_do(folder: Path, server: ThreadingHTTPServer, tmp_path: Path) -> None:
    assert raters_of(folder) == ["rater_01", "rater_02"]
    with pytest.raises(StageError, match="dvc repro study"):
        raters_of(tmp_path)
    with pytest.raises(StageError, match="choose another with --port"):
        make_server(folder, server.server_port, ["rater_01"])
