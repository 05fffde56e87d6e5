"""VoxCeleb's list: hostile rows, the choice of clips, and files told by their names. Nothing here needs a network."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tasks import voxceleb_list
from tasks.errors import StageError
from tasks.voxceleb_files import match_files
from tasks.voxceleb_list import Clip, load_metadata, parse_metadata
from tasks.voxceleb_select import Chosen, select, selected_csv
from tests.tasks.vox_server import HEADER, row, serve, small_list

GOOD = "WMh3ye5tBsE,3657,3994,624-48-1018-553,25,1280,720,train,id10005"


def parse(*rows: str | bytes, header: str = HEADER) -> voxceleb_list.Metadata:
    lines = [line if isinstance(line, bytes) else line.encode() for line in (header, *rows)]
    return parse_metadata(b"\n".join(lines) + b"\n", "list.csv")


def test_a_row_becomes_seconds_and_fractions() -> None:
    clip = parse(GOOD).clips[0]
    assert clip.section == "146.280-159.760"
    assert clip.box_fractions == "0.48750 0.06667 0.79531 0.76806"
    assert clip.name == "id10005-WMh3ye5tBsE-003657-003994"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("../../../etc,0,40,1-1-50-50,25,128,96,train,id1", "video_id"),
        ("/etc/passwd,0,40,1-1-50-50,25,128,96,train,id1", "video_id"),
        ("short,0,40,1-1-50-50,25,128,96,train,id1", "video_id"),
        ("abc;rm -rf x,0,40,1-1-50-50,25,128,96,train,id1", "video_id"),
        ("%(title)s.mp,0,40,1-1-50-50,25,128,96,train,id1", "video_id"),
        (GOOD.replace("id10005", "../id1"), "person_id"),
        (GOOD.replace("id10005", "-x"), "person_id"),
        (GOOD.replace("id10005", ""), "person_id"),
        (GOOD.replace("train", "both"), "partition"),
        (GOOD.replace("3657", "-5"), "frames"),
        (GOOD.replace("3657", "3994"), "frames"),
        (GOOD.replace("3657", "4000"), "frames"),
        (GOOD.replace("3657", "1e3"), "frames"),
        (GOOD.replace("3657", "٣٦"), "frames"),
        (GOOD.replace("3994", "999999999"), "frames"),
        (GOOD.replace("3994", "9" * 400), "frames"),
        (GOOD.replace(",25,", ",0,"), "fps"),
        (GOOD.replace(",25,", ",nan,"), "fps"),
        (GOOD.replace("1280", "0"), "size"),
        (GOOD.replace("1280", "-1280"), "size"),
        (GOOD.replace("1280", "99999"), "size"),
        (GOOD.replace("624-48-1018-553", "624-48-1018"), "box"),
        (GOOD.replace("624-48-1018-553", "1018-48-624-553"), "box"),
        (GOOD.replace("624-48-1018-553", "624-48-624-553"), "box"),
        (GOOD.replace("624-48-1018-553", "1200-48-1500-553"), "box_outside"),
        (GOOD.replace("624-48-1018-553", "2000-800-2400-1200"), "box_outside"),
        (GOOD + ",more", "columns"),
        ("WMh3ye5tBsE,3657", "columns"),
        ('"WMh3ye5tBsE,3657,3994,624-48-1018-553,25,1280,720,train,id10005', "quotes"),
        (GOOD.replace("train", '"tr"ain'), "quotes"),
        (GOOD.replace("train", "tr\0ain"), "nul"),
        (GOOD.encode().replace(b"train", b"tr\xffain"), "encoding"),
        (GOOD, "duplicate"),
        (GOOD.replace("624", "625"), "duplicate"),
    ],
)
def test_a_hostile_row_costs_only_itself(line: str | bytes, reason: str) -> None:
    metadata = parse(GOOD, line, row("-bcdefghijk", "id2"))
    assert metadata.refused == {reason: 1}
    assert metadata.rows == 3
    assert [clip.video_id for clip in metadata.clips] == ["-bcdefghijk", "WMh3ye5tBsE"]
    assert [reason for _, reason, _ in metadata.refusals] == [reason]


def test_a_box_that_sticks_out_a_little_is_cut() -> None:
    line = GOOD.replace("624-48-1018-553", "-20-300-400-800")
    assert parse(line).clips[0].box == (0, 300, 400, 720)


def test_order_of_columns_blank_lines_and_line_ends_do_not_matter() -> None:
    content = f"\ufeff{HEADER}\r\n\r\n{GOOD}\r\n"
    swapped = (
        "person_id,video_id,start,end,bbox,fps,width,height\nid10005,WMh3ye5tBsE,3657,3994,624-48-1018-553,25,1280,720"
    )
    one = parse_metadata(content.encode(), "a").clips[0]
    other = parse_metadata(swapped.encode(), "b").clips[0]
    assert one.partition == "train"
    assert other.partition == ""
    assert (one.key, one.box) == (other.key, other.box)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no VoxCeleb list"),
        (b"<!DOCTYPE html><html>", "raw file"),
        (b"a,b,c\n1,2,3\n", "it needs the columns"),
        (HEADER.encode("utf-16") + b"\n", "is no VoxCeleb list"),
        (HEADER.encode() + b",start\n", "is no VoxCeleb list"),
        (HEADER.encode() + b"\n", "it has no rows"),
        (HEADER.encode() + b"\nx,y\n", "1 columns"),
    ],
)
def test_what_is_no_list_is_an_error(content: bytes, message: str) -> None:
    with pytest.raises(StageError, match=message):
        parse_metadata(content, "list.csv")


def test_list_from_a_url_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get(url: str) -> bytes:
        asked.append(url)
        return small_list().encode()

    monkeypatch.setattr(voxceleb_list, "_get", get)
    first = load_metadata("https://example.org/list.csv", tmp_path, tmp_path / "kept")
    assert load_metadata("https://example.org/list.csv", tmp_path, tmp_path / "kept") == first
    assert len(asked) == 1
    load_metadata("https://example.org/other.csv", tmp_path, tmp_path / "kept")
    assert len(asked) == 2


def test_url_that_does_not_answer_says_where_the_list_comes_from(tmp_path: Path) -> None:
    with serve() as site:
        site.behaviour["list"] = "404"
        with pytest.raises(StageError, match=r"404.*--voxceleb-list"):
            load_metadata(site.url.format(video_id="list"), tmp_path, tmp_path)
    with pytest.raises(StageError, match=r"cannot be fetched"):
        load_metadata(site.url.format(video_id="list"), tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["", "  ", "nowhere.csv"])
def test_missing_list_says_which_key_to_set(tmp_path: Path, place: str) -> None:
    with pytest.raises(StageError, match=r"acquire\.voxceleb\.metadata"):
        load_metadata(place, tmp_path / "data", tmp_path)


def people(chosen: list[Chosen], side: str) -> set[str]:
    return {item.clip.person for item in chosen if item.side == side}


def test_choice_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    lines = small_list(people=30, videos=3, clips=3, testing=8).splitlines()
    texts: list[str] = []
    for seed in (0, 0, 1):
        rows = lines[1:]
        random.Random(len(texts)).shuffle(rows)
        texts.append(selected_csv(select(parse(*rows).clips, 40, 12, 20, seed)))
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].count("\n") == 53


def test_no_person_and_no_video_is_on_both_sides() -> None:
    rows = small_list(people=20, testing=5).splitlines()[1:]
    rows.append(row("_vid00000-A", "id00019", 60, 100, "train"))  # a test person in a train person's video
    rows.append(row("zzzzzzzzzzz", "id00018", 0, 40, "train"))  # a test person among the train rows
    chosen = select(parse(*rows).clips, 100, 100, 20, 0)
    assert not people(chosen, "train") & people(chosen, "test")
    assert {"id00000", "id00018", "id00019"} <= people(chosen, "test")
    videos = {side: {item.clip.video_id for item in chosen if item.side == side} for side in ("train", "test")}
    assert not videos["train"] & videos["test"]


@pytest.mark.parametrize("side", ["", "train"])
def test_a_list_without_sides_is_split_by_person(side: str) -> None:
    rows = [line.replace(",train,", f",{side},") for line in small_list(people=40, testing=0).splitlines()[1:]]
    chosen = select(parse(*rows).clips, 120, 12, 20, 0)
    counts = Counter(item.side for item in chosen)
    assert counts["train"] == 120
    assert counts["test"] == 12
    assert len(people(chosen, "test")) >= 2
    assert not people(chosen, "train") & people(chosen, "test")


def test_a_short_list_without_sides_keeps_both() -> None:
    rows = [line.replace(",train,", ",,") for line in small_list(people=6, testing=0).splitlines()[1:]]
    chosen = select(parse(*rows).clips, 7500, 400, 20, 0)
    assert len(people(chosen, "test")) == 2
    assert len(people(chosen, "train")) == 4


def test_one_clip_of_every_video_comes_first_and_every_person_before_the_second_video() -> None:
    clips = parse(*small_list(people=10, videos=3, clips=4, testing=0).splitlines()[1:]).clips
    order = [item.clip for item in select(clips, 1000, 0, 20, 3)]
    assert len(order) == 120
    assert len({clip.person for clip in order[:10]}) == 10
    assert len({clip.video_id for clip in order[:30]}) == 30


def test_any_first_part_has_both_sides_and_two_test_people() -> None:
    clips = parse(*small_list(people=60, videos=3, clips=2, testing=10).splitlines()[1:]).clips
    chosen = select(clips, 300, 20, 20, 0)
    assert len(people(chosen[:4], "test")) == 2
    assert Counter(item.side for item in chosen[:160])["test"] == pytest.approx(10, abs=2)


def test_short_clips_are_left_out_and_test_clips_need_twice_the_frames() -> None:
    rows = [row("aaaaaaaaaaa", "a", 0, 39), row("bbbbbbbbbbb", "b", 0, 40), row("ccccccccccc", "c", 0, 79, "test")]
    rows.append(row("ddddddddddd", "d", 0, 80, "test"))
    assert {item.clip.person for item in select(parse(*rows).clips, 9, 9, 40, 0)} == {"b", "d"}


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_files_are_told_by_their_names(tmp_path: Path) -> None:
    names = ["aaaaaaaaaaa", "-bbbbbbbbbb", "ccccccccccc", "ddddddddddd", "eeeeeeeeeee", "fffffffffff"]
    clips = parse(
        *[row(name, f"id{index}", first, first + 40) for index, name in enumerate(names) for first in (0, 20)]
    )
    files = touch(
        tmp_path,
        "aaaaaaaaaaa.mp4",
        "sub/-bbbbbbbbbb.webm",
        "A talk, 2015 [ccccccccccc].mkv",
        "id3/ddddddddddd/video.mp4",
        "cut/eeeeeeeeeee+000020-000060.mp4",
        "train/id5#fffffffffff#000020#000060.mp4",
        "test/id77#ggggggggggg#000100#000190.mp4",
        "id8#hhhhhhhhhhh#00012.txt#003.mp4",
        "dev/mp4/id00017/01dfn2spqyE/00007.mp4",
        "notes.mp4",
        "zzzzzzzzzzz.mp4",
    )
    held, unknown = match_files(tmp_path, files, clips.clips)
    found = {item.clip.name: item for item in held}
    assert unknown == 2
    assert {name: item.kind for name, item in found.items()} == {
        **{
            f"id{index}-{names[index]}-{part}": "whole"
            for index in range(4)
            for part in ("000000-000040", "000020-000060")
        },
        "id4-eeeeeeeeeee-000020-000060": "cut",
        "id5-fffffffffff-000020-000060": "crop",
        "id77-ggggggggggg-000100-000190": "crop",
        "id8-hhhhhhhhhhh-00012-003": "crop",
        "id00017-01dfn2spqyE-00007": "crop",
    }
    assert found["id77-ggggggggggg-000100-000190"].clip.partition == "test"
    assert found["id00017-01dfn2spqyE-00007"].clip.partition == "train"
    assert found["id5-fffffffffff-000020-000060"].clip.box is not None, "the list's row"


def test_a_whole_video_goes_before_a_crop(tmp_path: Path) -> None:
    clips = parse(row("aaaaaaaaaaa", "id1")).clips
    files = touch(tmp_path, "id1#aaaaaaaaaaa#000000#000040.mp4", "x/aaaaaaaaaaa.mp4")
    held, _ = match_files(tmp_path, files, clips)
    assert [(item.kind, item.path.name) for item in held] == [("whole", "aaaaaaaaaaa.mp4")]


def test_without_a_list_crops_alone_are_known(tmp_path: Path) -> None:
    files = touch(
        tmp_path, "id1#aaaaaaaaaaa#000000#000040.mp4", "bbbbbbbbbbb.mp4", "id1#x#0#9.mp4", "id1#ccccccccccc#9#9.mp4"
    )
    held, unknown = match_files(tmp_path, files, [])
    assert [item.clip for item in held] == [Clip("aaaaaaaaaaa", 0, 40, 25.0, None, 0, 0, "id1", "")]
    assert unknown == 3
