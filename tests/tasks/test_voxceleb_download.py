"""The source voxceleb against a local site, through the real yt-dlp: verdicts, stops, resuming, folders."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yt_dlp

from models.config import Params
from tasks import acquire, download, voxceleb
from tasks.download_ytdlp import DownloadTroubleError, Source, Want, classify, fetch
from tasks.errors import StageError
from tasks.paths import Paths
from tasks.video import probe, read_frames
from tests.tasks.factory import make_params
from tests.tasks.videos import green_x
from tests.tasks.vox_server import HEADER, Site, row, serve, small_list, video_bytes, video_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with serve() as site:
        yield site


@pytest.fixture
def site(server: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The local site in place of the real one, without ffmpeg, with short waits."""
    server.behaviour.clear()
    server.asked.clear()
    server.ranges.clear()
    monkeypatch.setattr(voxceleb, "WATCH_URL", server.url)
    monkeypatch.setattr(voxceleb, "BACKOFF_S", 0.01)
    monkeypatch.setattr(voxceleb, "SOCKET_TIMEOUT_S", 15.0)
    monkeypatch.setattr(voxceleb, "find_ffmpeg", lambda: None)
    return server


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "project" / "data").mkdir(parents=True)
    (tmp_path / "project" / "list.csv").write_text(small_list(), encoding="utf-8")
    return Paths(tmp_path / "project" / "data")


def params(**changes: Any) -> Params:
    settings = {"metadata": "list.csv", "requests_per_minute": 60000.0, "attempts": 2, "downloads": 2, **changes}
    return make_params(acquire={"sources": ["voxceleb"], "voxceleb": settings}, crop={"clip_frames": 20})


def rows(paths: Paths) -> list[dict[str, str]]:
    with paths.manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def statuses(paths: Paths) -> dict[str, str]:
    """Video -> status (of its last clip)."""
    with (paths.raw / "voxceleb" / "status.csv").open(encoding="utf-8", newline="") as file:
        return {entry["video_id"]: entry["status"] for entry in csv.DictReader(file)}


def test_everything_is_fetched_once_and_listed(site: Site, paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    summary = acquire.run(params(), paths, "f")
    listed = rows(paths)
    assert len(listed) == summary["videos"] == 24
    assert all(count == 2 for count in site.asked.values()), "yt-dlp looks and fetches; a video serves all its clips"
    assert len(site.asked) == 12
    first = listed[0]
    assert first["video"] == "id00000--vid00001-A-000000-000040"
    assert first["path"] == "data/raw/voxceleb/videos/-vid00001-A.mp4"
    assert (first["dataset"], first["identity"], first["split"]) == ("voxceleb", "id00000", "train")
    assert first["section"] == "0.000-1.600"
    assert first["box"] == "0.15625 0.10417 0.62500 0.72917"
    assert {item["identity"] for item in listed if item["split"] == "test"} == {"id00004", "id00005"}
    figures = summary["voxceleb"]
    assert figures["coverage"]["train"]["ok"] == 16
    assert figures["coverage"]["test"]["people_ok"] == 2
    assert "7900 clips are wanted, there are 24" in capsys.readouterr().out
    kept = (paths.raw / "voxceleb" / "selected.csv").read_bytes()

    before = paths.manifest.read_bytes()
    asked = site.asked.copy()
    assert acquire.run(params(), paths, "g") == summary
    assert paths.manifest.read_bytes() == before
    assert (paths.raw / "voxceleb" / "selected.csv").read_bytes() == kept
    (paths.raw / "voxceleb" / "status.csv").unlink()
    acquire.run(params(), paths, "h")
    assert paths.manifest.read_bytes() == before
    assert site.asked == asked, "what is here is recognised without asking"


def test_verdicts(site: Site, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxceleb, "SOCKET_TIMEOUT_S", 2.0)
    names = [video_name(index) for index in range(6)]
    site.behaviour = dict(zip(names, ("404", "410", "garbage", "short", "503", "hang"), strict=True))
    acquire.run(params(), paths, "f")
    expected = dict(zip(names, ("dead", "dead", "bad_video", "bad_video", "failed", "failed"), strict=True))
    found = statuses(paths)
    assert {name: found[name] for name in names} == expected
    assert len(rows(paths)) == 12
    assert site.asked[names[4]] == 2, "as many tries as acquire.voxceleb.attempts says"
    files = {path.stem for path in (paths.raw / "voxceleb" / "videos").iterdir()}
    assert not files & set(names), "a file that serves no clip is not kept"
    table = (paths.raw / "voxceleb" / "coverage.md").read_text(encoding="utf-8")
    assert "| dead      | 4" in table

    site.asked.clear()
    site.behaviour.clear()
    acquire.run(params(), paths, "f")
    assert set(site.asked) == {names[4], names[5]}, "what is settled is not asked again, a failure is"
    assert len(rows(paths)) == 16


def test_throttling_stops_at_once_and_loses_nothing(site: Site, paths: Paths) -> None:
    last = list(dict.fromkeys(line.split(",")[1] for line in _chosen(paths)))[-1]
    site.behaviour[last] = "429"
    with pytest.raises(
        StageError, match=r"asks for a pause.*429.*22 of 24 clips are here.*requests_per_minute"
    ) as error:
        acquire.run(params(downloads=1), paths, "f")
    assert "set acquire.voxceleb.videos to data/raw/voxceleb/videos" in str(error.value)
    assert statuses(paths)[last] == "throttled"
    assert site.asked[last] == 1
    assert "dead" not in statuses(paths).values()
    assert not paths.manifest.exists()

    part = acquire.run(params(videos="data/raw/voxceleb/videos"), paths, "g")
    assert part["videos"] == 22
    asked = site.asked.copy()
    site.behaviour.clear()
    assert acquire.run(params(), paths, "f")["videos"] == 24
    assert {name for name in site.asked if site.asked[name] > asked[name]} == {last}


def _chosen(paths: Paths) -> list[str]:
    """Lines of the choice, before anything is fetched."""
    from tasks.voxceleb_list import load_metadata
    from tasks.voxceleb_select import select, selected_csv

    clips = load_metadata("list.csv", paths.data, paths.raw).clips
    return selected_csv(select(clips, 7500, 400, 20, 0)).splitlines()[1:]


def test_no_network_ends_soon_and_nothing_is_dead(site: Site, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxceleb, "WATCH_URL", "http://127.0.0.1:9/{video_id}.mp4")
    start = time.monotonic()
    with pytest.raises(StageError, match=r"cannot be reached from here.*Check the network"):
        acquire.run(params(), paths, "f")
    assert time.monotonic() - start < 10
    assert not (paths.raw / "voxceleb" / "status.csv").exists()


def test_many_dead_in_a_row_are_not_believed(site: Site, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "DEAD_IN_A_ROW", 5)
    site.behaviour = {video_name(index): "404" for index in range(12)}
    with pytest.raises(StageError, match="5 videos in a row are said to be gone"):
        acquire.run(params(downloads=1), paths, "f")
    assert set(statuses(paths).values()) == {"not_tried"}


def test_many_failures_in_a_row_stop(site: Site, paths: Paths) -> None:
    site.behaviour = {video_name(index): "503" for index in range(12)}
    with pytest.raises(StageError, match="8 videos in a row failed"):
        acquire.run(params(downloads=1, attempts=1), paths, "f")
    assert set(statuses(paths).values()) == {"failed"}


def test_failures_of_an_earlier_run_do_not_keep_the_next_from_its_end(site: Site, paths: Paths) -> None:
    chosen = list(dict.fromkeys(line.split(",")[1] for line in _chosen(paths)))
    site.behaviour = dict.fromkeys(chosen[4:], "503")
    with pytest.raises(StageError, match="8 videos in a row failed"):
        acquire.run(params(downloads=1, attempts=1), paths, "f")
    assert acquire.run(params(downloads=1, attempts=1), paths, "f")["videos"] == 8
    site.asked.clear()
    site.behaviour.clear()
    (paths.raw / "voxceleb" / "videos" / f"{chosen[0]}.mp4").unlink()
    assert acquire.run(params(downloads=1), paths, "f")["videos"] == 24
    assert next(iter(site.asked)) == chosen[0], "what failed before comes last"


def test_a_connection_that_breaks_is_taken_up_where_it_broke(site: Site, paths: Paths) -> None:
    (paths.data.parent / "list.csv").write_text(f"{HEADER}\n{row('-vid00003-A', 'id1')}\n", encoding="utf-8")
    site.behaviour["-vid00003-A"] = "cut"
    acquire.run(params(), paths, "f")
    assert (paths.raw / "voxceleb" / "videos" / "-vid00003-A.mp4").read_bytes() == video_bytes(3)
    assert site.ranges == [f"bytes={len(video_bytes(3)) // 2}-"]


def test_a_download_that_takes_too_long_is_given_up(site: Site, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxceleb, "DEADLINE_S", 2.0)
    site.behaviour[video_name(0)] = "slow"
    acquire.run(params(attempts=1), paths, "f")
    assert statuses(paths)[video_name(0)] == "failed"
    assert len(rows(paths)) == 22


def test_all_downloads_share_one_rate(site: Site, paths: Paths) -> None:
    start = time.monotonic()
    acquire.run(params(requests_per_minute=600.0, downloads=4), paths, "f")
    assert time.monotonic() - start > 11 * 0.1


def test_limit_takes_the_first_of_the_chosen(site: Site, paths: Paths) -> None:
    summary = acquire.run(params(limit=6), paths, "f")
    chosen = _chosen(paths)
    assert summary["videos"] == 6
    assert {item["video"] for item in rows(paths)} == {line.split(",")[0] for line in chosen[:6]}
    assert len({item["identity"] for item in rows(paths) if item["split"] == "test"}) == 2
    assert (paths.raw / "voxceleb" / "selected.csv").read_text(encoding="utf-8").splitlines()[1:] == chosen
    assert acquire.run(params(limit=9), paths, "g")["videos"] == 9


def test_another_height_is_fetched_anew(site: Site, paths: Paths) -> None:
    acquire.run(params(limit=4), paths, "f")
    before = sum(site.asked.values())
    acquire.run(params(limit=4, max_height_px=360), paths, "g")
    assert sum(site.asked.values()) == 2 * before


def test_a_full_disk_stops(site: Site, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise DownloadTroubleError("disk", "unable to write data: [Errno 28] No space left on device")

    monkeypatch.setattr(download, "fetch", full)
    with pytest.raises(StageError, match="disk is full"):
        acquire.run(params(), paths, "f")


def test_ydl_errors_of_the_site_are_understood(site: Site, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    says = {
        video_name(0): "Private video. Sign in if you've been granted access to this video",
        video_name(1): "Video unavailable. This video has been removed by the uploader",
        video_name(2): "Sign in to confirm you’re not a bot. Use --cookies-from-browser or --cookies",
    }
    real = yt_dlp.YoutubeDL.extract_info

    def extract(self: Any, url: str, *args: Any, **options: Any) -> Any:
        for name, text in says.items():
            if name in url:
                error = yt_dlp.utils.ExtractorError(text, expected=True, video_id=name, ie="youtube")
                self.report_error(str(error), tb="")
        return real(self, url, *args, **options)

    monkeypatch.setattr(yt_dlp.YoutubeDL, "extract_info", extract)
    with pytest.raises(StageError, match="takes us for a bot"):
        acquire.run(params(downloads=1), paths, "f")
    del says[video_name(2)]
    acquire.run(params(), paths, "f")
    found = statuses(paths)
    assert (found[video_name(0)], found[video_name(1)], found[video_name(2)]) == ("private", "dead", "ok")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("throttled", "[youtube] x: Sign in to confirm you’re not a bot. Use --cookies-from-browser"),
        ("throttled", "[youtube] x: Unable to download webpage: HTTP Error 429: Too Many Requests"),
        (
            "throttled",
            "[youtube] x: Video unavailable. This content isn't available, try again later. The current session has "
            "been rate-limited by YouTube for up to an hour",
        ),
        ("throttled", "[youtube] x: Playback. YouTube is requiring a captcha challenge before playback"),
        ("private", "[youtube] x: Private video. Sign in if you've been granted access to this video"),
        ("private", "[youtube] x: Sign in to confirm your age. This video may be inappropriate for some users"),
        ("private", "[youtube] x: Join this channel to get access to members-only content like this video"),
        ("private", "[youtube] x: Video unavailable. The uploader has not made this video available in your country"),
        ("dead", "[youtube] x: Video unavailable"),
        ("dead", "[youtube] x: Video unavailable. This video has been removed by the uploader"),
        ("dead", "[youtube] x: Video unavailable. The YouTube account associated with this video has been terminated."),
        ("dead", "[youtube] x: This video is no longer available because of a copyright claim: Video unavailable"),
        ("dead", "[youtube:truncated_id] x: Incomplete YouTube ID x. URL x looks truncated."),
        ("offline", "[youtube] x: Unable to download API page: Failed to resolve 'www.youtube.com' ([Errno -2])"),
        ("offline", "[youtube] x: Unable to download webpage: [Errno 101] Network is unreachable"),
        ("failed", "[youtube] x: The read operation timed out"),
        ("failed", "unable to download video data: HTTP Error 403: Forbidden"),
        ("failed", "[youtube] x: Unable to download API page: HTTP Error 404: Not Found"),
        ("failed", "[youtube] x: Requested format is not available. Use --list-formats"),
        ("failed", "[youtube] x: Unable to extract initial player response"),
        ("disk", "unable to write data: [Errno 28] No space left on device"),
    ],
)
def test_what_the_site_says(kind: str, text: str) -> None:
    assert classify(text) == kind


def test_killed_midway_goes_on(site: Site, paths: Paths) -> None:
    """kill -9 while videos come in: the next run asks for the rest only and ends with the same manifest."""
    settings = params(requests_per_minute=240.0)
    (paths.data.parent / "settings.json").write_text(settings.model_dump_json(), encoding="utf-8")
    script = (
        "import sys, json, pathlib\n"
        "from models.config import Params\nfrom tasks import voxceleb, acquire\nfrom tasks.paths import Paths\n"
        "root = pathlib.Path(sys.argv[1])\nvoxceleb.WATCH_URL = sys.argv[2]\nvoxceleb.find_ffmpeg = lambda: None\n"
        "settings = Params.model_validate(json.loads((root / 'settings.json').read_text()))\n"
        "acquire.run(settings, Paths(root / 'data'), 'f')\n"
    )
    status = paths.raw / "voxceleb" / "status.csv"
    command = [sys.executable, "-c", script, str(paths.data.parent), site.url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not status.is_file() or status.read_text(encoding="utf-8").count(",ok,") < 6:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    done = {name for name, what in statuses(paths).items() if what == "ok"}
    assert 3 <= len(done) < 12
    site.asked.clear()
    summary = acquire.run(params(), paths, "f")
    assert not done & set(site.asked)
    manifest = paths.manifest.read_bytes()
    shutil.rmtree(paths.raw)
    assert acquire.run(params(), paths, "f") == summary
    assert paths.manifest.read_bytes() == manifest


# -- folders -----------------------------------------------------------------------------------------------------------


def test_folder_of_whole_videos_and_crops(site: Site, paths: Paths) -> None:
    folder = paths.data.parent / "mine"
    (folder / "id00000" / "_vid00000-A").mkdir(parents=True)
    (folder / "id00000" / "_vid00000-A" / "talk.mkv").write_bytes(video_bytes(0))
    (folder / "-vid00009-A.mp4").write_bytes(video_bytes(9))
    (folder / "id00003#_vid00006-A#000000#000040.mp4").write_bytes(video_bytes(6, 40))
    (folder / "id00004#_vid00008-A#000000#000040.mp4").write_bytes(b"broken")
    summary = acquire.run(params(videos="mine"), paths, "f")
    assert site.asked == {}
    listed = {item["video"]: item for item in rows(paths)}
    assert summary["videos"] == len(listed) == 5
    assert summary["voxceleb"]["coverage"]["test"]["bad_video"] == 1
    whole, crop = listed["id00000-_vid00000-A-000010-000050"], listed["id00003-_vid00006-A-000000-000040"]
    assert (whole["path"], whole["section"]) == ("mine/id00000/_vid00000-A/talk.mkv", "0.400-2.000")
    assert whole["box"].startswith("0.15625")
    assert (crop["section"], crop["box"], crop["split"]) == ("", "", "train")
    assert {item["split"] for item in listed.values() if item["identity"] == "id00004"} == {"test"}


def test_folder_of_crops_needs_no_list(site: Site, paths: Paths) -> None:
    folder = paths.data.parent / "crops"
    for side, person in (("train", "id1"), ("train", "id2"), ("test", "id3")):
        (folder / side).mkdir(parents=True, exist_ok=True)
        (folder / side / f"{person}#_vid00006-{person[2]}#000000#000040.mp4").write_bytes(video_bytes(int(person[2])))
    acquire.run(params(videos="crops", metadata=""), paths, "f")
    assert [(item["identity"], item["split"]) for item in rows(paths)] == [
        ("id1", "train"),
        ("id2", "train"),
        ("id3", "test"),
    ]


def _nowhere(root: Path) -> None:
    pass


def _empty(root: Path) -> None:
    (root / "mine").mkdir()


def _other(root: Path) -> None:
    (root / "mine").mkdir()
    (root / "mine" / "holiday.mp4").write_bytes(video_bytes(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [(_nowhere, "is not a directory"), (_empty, "holds 0 videos"), (_other, "none with a name that says")],
)
def test_folder_that_cannot_be_used(paths: Paths, make: Callable[[Path], None], message: str) -> None:
    make(paths.data.parent)
    with pytest.raises(StageError, match=message):
        acquire.run(params(videos="mine"), paths, "f")


def test_settings_that_choose_nothing(paths: Paths) -> None:
    with pytest.raises(StageError, match="both 0"):
        acquire.run(params(train_clips=0, test_clips=0), paths, "f")
    long = make_params(acquire=json.loads(params().acquire.model_dump_json()), crop={"clip_frames": 500})
    with pytest.raises(StageError, match=r"crop\.clip_frames"):
        acquire.run(long, paths, "f")
    with pytest.raises(StageError, match="cookies"):
        acquire.run(params(cookies="no.txt"), paths, "f")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg here")
def test_ffmpeg_fetches_the_sections_alone(site: Site, tmp_path: Path) -> None:
    wanted = {"a": (0.2, 1.2), "b": (1.2, 2.8)}
    source = Source(tmp_path, 720, None, shutil.which("ffmpeg"), 5.0)
    files = fetch(Want("_vid00002-A", site.url.format(video_id="_vid00002-A"), wanted), source, lambda: False)
    assert [probe(files[name]).frames for name in wanted] == [25, 40]
    first = read_frames(files["b"])[0]
    x = green_x(30, 75)
    assert first[48, x + 8, 1] > 150, "the cut is exact"
    assert first[48, x + 26, 1] < 100
    broken = replace(source, folder=tmp_path / "other")
    site.behaviour["_vid00002-A"] = "garbage"
    with pytest.raises(DownloadTroubleError):
        fetch(Want("_vid00002-A", site.url.format(video_id="_vid00002-A"), wanted), broken, lambda: False)
