"""What the raters get: balance, blinding, equal files, repeatability; and that answers are not thrown away."""

from __future__ import annotations

import base64
import csv
import json
import random
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import yaml

from models.config import Params, Study
from tasks import study
from tasks.errors import StageError
from tasks.stores import array, open_store
from tasks.study_plan import SHEET_COLUMNS, Comparison, plan, sheet
from tasks.video import probe, read_frames
from tests.tasks.factory import METHODS, Project, make_project
from tests.tasks.study_answers import originals, read_csv

SETTINGS = {"raters": 3, "pairs_per_method": 3, "repeats": 2, "seed": 0}
TOLD = re.compile(
    rb"head.?3d|mean.?canonical|canonical|copy.?reference|driving.?head|cross_\d|Lavf|fomm|method_[ab]|person_0\d",
    re.IGNORECASE,
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Five cross-identity pairs of 32 px."""
    return make_project(tmp_path, cross=5, frames=6, study=SETTINGS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_plan(pairs_per_method: int, seed: int = 1) -> list[Comparison]:
    pairs = {"alpha": [f"a{i}" for i in range(20)], "beta": [f"b{i}" for i in range(7)]}
    candidates = {(dataset, rival): names for dataset, names in pairs.items() for rival in ("fomm", "mraa")}
    settings = Study(raters=4, pairs_per_method=pairs_per_method, repeats=3, seed=seed)
    return plan(candidates, settings, random.Random(seed))


def ours_left(items: list[Comparison]) -> Counter[tuple[str, str]]:
    return Counter((item.dataset, item.method_b) for item in items if item.method_a == "head3d")


def test_sides_are_balanced_in_every_group_and_over_raters() -> None:
    comparisons = make_plan(10)
    sizes = Counter((item.dataset, item.rival) for item in comparisons if not item.repeat_of)
    assert sizes == {("alpha", "fomm"): 10, ("alpha", "mraa"): 10, ("beta", "fomm"): 7, ("beta", "mraa"): 7}
    for rater in (1, 2):
        left = ours_left([item for item in sheet(comparisons, rater, 1) if not item.repeat_of])
        assert left["alpha", "fomm"] == left["alpha", "mraa"] == 5
        assert left["beta", "fomm"] in (3, 4)
        assert left["beta", "mraa"] in (3, 4)
    one, two = ({item.pair: item.method_a for item in sheet(comparisons, rater, 1)} for rater in (1, 2))
    assert all({one[pair], two[pair]} > {"head3d"} for pair in one)  # each pair is seen from both sides


def test_no_source_twice_no_name_twice_and_repeats_from_the_other_side() -> None:
    comparisons = make_plan(10)
    first = {item.pair: item for item in comparisons if not item.repeat_of}
    names = [name for item in comparisons for name in (item.video_a, item.video_b)]
    inputs = {name for item in comparisons for name in (item.subject, item.driving)}
    assert len(set(names)) == len(names)
    assert not inputs & set(names)
    shown = [(item.source_pair, item.rival) for item in first.values()]
    assert len(set(shown)) == len(shown)
    repeats = [item for item in comparisons if item.repeat_of]
    assert len(repeats) == 3
    for again in repeats:
        original = first[again.repeat_of]
        assert (again.method_a, again.method_b) == (original.method_b, original.method_a)
        assert again.source_pair == original.source_pair
    for rater in range(1, 5):
        places = {item.pair: place for place, item in enumerate(sheet(comparisons, rater, 1))}
        assert all(abs(places[item.pair] - places[item.repeat_of]) >= 9 for item in repeats)  # a quarter of 37 rows


def test_numbers_do_not_tell_repeats() -> None:
    places = [int(item.pair[1:]) / 37 for seed in range(40) for item in make_plan(10, seed) if item.repeat_of]
    assert 0.4 < float(np.mean(places)) < 0.6


def test_raters_have_orders_of_their_own_and_another_seed_another_plan() -> None:
    comparisons = make_plan(10)
    orders = {tuple(item.pair for item in sheet(comparisons, rater, 1)) for rater in range(1, 5)}
    assert len(orders) == 4
    assert make_plan(10) == comparisons
    assert {item.video_a for item in make_plan(10, seed=2)}.isdisjoint(item.video_a for item in comparisons)


def test_sheets_open_in_a_spreadsheet_and_agree_with_the_key(project: Project) -> None:
    summary = study.run(project.params, project.paths, "f1")
    assert (summary["comparisons"], summary["repeats"], summary["videos"]) == (3, 2, 10)
    assert summary["pairs_demo_mean_canonical"] == 3
    folder = project.paths.study
    pairs = read_csv(folder / "pairs.csv")
    assert list(pairs[0]) == ["pair", "dataset", "setting", "video_a", "video_b"]
    data = (folder / "rater_02.csv").read_bytes()
    assert data.startswith(
        b"\xef\xbb\xbfpair,dataset,setting,video_a,video_b,choice,realism,motion,identity,seconds,comment\r\n"
    )
    rows = read_csv(folder / "rater_02.csv")
    assert tuple(rows[0]) == SHEET_COLUMNS
    assert {row["pair"] for row in rows} == {row["pair"] for row in pairs}
    assert not any(row[name] for row in rows for name in SHEET_COLUMNS[5:])
    key = {row["pair"]: row for row in read_csv(folder / "key.csv")}
    for row in rows:
        assert {row["video_a"], row["video_b"]} == {key[row["pair"]]["video_a"], key[row["pair"]]["video_b"]}
    cells = [cell for row in rows for cell in row.values()]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for cell in cells)


def boxes(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of an mp4's outer boxes."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place + 8 : place + size]
        place += size


def test_a_raters_zip_tells_no_method(project: Project, tmp_path: Path) -> None:
    for path in (project.paths.generated / "videos").rglob("*.mp4"):  # what the generator's files say must not arrive
        titled = path.with_suffix(".titled.mp4")
        with av.open(str(path)) as inside, av.open(str(titled), "w") as outside:
            outside.metadata["title"] = outside.metadata["comment"] = f"made by {path.parts[-3]}"
            copy = outside.add_stream_from_template(inside.streams.video[0])
            copy.metadata["handler_name"] = path.parts[-3]
            for packet in inside.demux(video=0):
                if packet.dts is not None:
                    packet.stream = copy
                    outside.mux(packet)
        assert TOLD.search(titled.read_bytes())
        titled.replace(path)
    study.run(project.params, project.paths, "f1")
    archive = project.paths.study / "rater_01.zip"
    page = (project.paths.study / "rater_01.html").read_text(encoding="utf-8")
    held = re.search(r'<script type="application/json" id="videos">(.*?)</script>', page)
    assert held
    for name, coded in json.loads(held[1]).items():  # Base64 spells any short word by chance: it is looked at decoded
        assert base64.b64decode(coded) == (project.paths.study / "videos" / name).read_bytes()
    page = page.replace(held[1], "")
    everything = archive.read_bytes().replace(held[1].encode(), b"")
    assert not TOLD.search(everything)  # names, attributes, comments and stored contents at once
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        assert opened.comment == b""
        opened.extractall(tmp_path / "got")
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    assert {(info.date_time, info.external_attr, info.extra, info.comment) for info in infos} == {
        ((1980, 1, 1, 0, 0, 0), 0o644 << 16, b"", b"")
    }
    names = [info.filename for info in infos]
    assert names[:3] == ["rater_01/rater_01.csv", "rater_01/rater_01.html", "rater_01/read_me.txt"]
    assert names[3:] == sorted(names[3:])
    for path in (tmp_path / "got").rglob("*"):
        assert path.is_dir() or not TOLD.search(path.read_bytes().replace(held[1].encode(), b"")), path.name
    linked = set(re.findall(r"[0-9a-f]{10}\.mp4", page))
    assert {f"rater_01/videos/{name}" for name in linked} == set(names[3:])
    assert not re.search(r"https?:|//\w", page)


def test_a_video_tells_nothing_but_its_pictures(project: Project) -> None:
    study.run(project.params, project.paths, "f1")
    key = read_csv(project.paths.study / "key.csv")
    videos = sorted((project.paths.study / "videos").iterdir())
    assert len(videos) == 2 * len(key) + len({row[role] for row in key for role in ("subject", "driving")})
    assert len({path.stat().st_size for path in videos}) == 1
    assert len({path.read_bytes() for path in videos}) == len(videos)  # a repeat shows the same, in another file
    outer = {tuple(kind for kind, _ in boxes(path)) for path in videos}
    assert len(outer) == 1
    assert next(iter(outer))[-1] == b"free"
    infos = [probe(path) for path in videos]
    assert {(info.frames, info.fps, info.width, info.height, info.codec) for info in infos} == {
        (6, 25.0, 32, 32, "h264")
    }
    for path in videos:
        with av.open(str(path)) as container:
            assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}
            assert len(container.streams) == 1
    heads = {tuple(content[:40] for kind, content in boxes(path) if kind == b"ftyp") for path in videos}
    assert len(heads) == 1


def test_videos_are_those_that_the_key_says(project: Project) -> None:
    study.run(project.params, project.paths, "f1")
    pairs = pd.read_csv(project.paths.generated / "pairs.csv").set_index("pair")
    clips = array(open_store(project.paths.clips), "frames")
    for row in read_csv(project.paths.study / "key.csv"):
        assert {row["method_a"], row["method_b"]} == {"head3d", "mean_canonical"}
        for side in "ab":
            path = project.paths.study / "videos" / row[f"video_{side}"]
            source = project.paths.generated / "videos" / row[f"method_{side}"] / "cross" / f"{row['source_pair']}.mp4"
            assert np.array_equal(read_frames(path), read_frames(source))
        for role in ("subject", "driving"):
            truth = np.asarray(clips[int(str(pairs.at[row["source_pair"], f"{role}_row"]))]).astype(float)
            assert np.abs(read_frames(project.paths.study / "videos" / row[role]) - truth).mean() < 8


def test_same_seed_same_bytes_and_a_finished_study_is_left_alone(project: Project) -> None:
    summary = study.run(project.params, project.paths, "f1")
    before = contents(project.paths.study)
    assert {"pairs.csv", "key.csv", "stage.json", "rater_01.csv", "rater_01.html", "rater_03.zip"} <= set(before)
    stamp = project.paths.study / "rater_01.csv"
    changed = stamp.stat().st_mtime_ns
    assert study.run(project.params, project.paths, "f1") == summary
    assert stamp.stat().st_mtime_ns == changed
    study.run(project.params, project.paths, "f2")
    after = contents(project.paths.study)
    assert json.loads(after.pop("stage.json"))["fingerprint"] == "f2"
    before.pop("stage.json")
    assert after == before
    assert not list(project.paths.data.glob("study.*"))


def test_a_damaged_study_is_mended_and_one_of_a_killed_run_comes_back(project: Project) -> None:
    summary = study.run(project.params, project.paths, "f1")
    folder = project.paths.study
    before = contents(folder)
    (folder / "rater_02.zip").unlink()
    (folder / "returned").mkdir()
    (folder / "returned" / "rater_01.csv").write_text("an answer", encoding="utf-8")
    assert study.run(project.params, project.paths, "f1") == summary
    assert contents(folder) == {**before, "returned/rater_01.csv": b"an answer"}
    folder.rename(folder.with_name("study.old"))  # killed between two renames
    assert study.run(project.params, project.paths, "f1") == summary
    assert contents(folder) == {**before, "returned/rater_01.csv": b"an answer"}


def test_dvc_does_not_clear_the_folder_that_holds_the_answers() -> None:
    text = (Path(__file__).parents[2] / "dvc.yaml").read_text(encoding="utf-8")
    outs = yaml.safe_load(text)["stages"]["study"]["outs"]
    assert outs == [{"data/study": {"persist": True}}]


def test_answers_outlive_a_study_of_the_same_videos_and_stop_one_of_others(project: Project) -> None:
    study.run(project.params, project.paths, "f1")
    folder = project.paths.study
    path = folder / "rater_02.csv"
    text = path.read_text(encoding="utf-8").replace(".mp4,,", ".mp4,a,", 1)
    path.write_text(text, encoding="utf-8")
    (folder / "returned").mkdir()
    (folder / "returned" / "rater_01.csv").write_text("an answer", encoding="utf-8")
    study.run(project.params, project.paths, "f2")  # for example after a change of a comment in the code
    assert path.read_text(encoding="utf-8") == text
    assert (folder / "returned" / "rater_01.csv").read_text(encoding="utf-8") == "an answer"
    video = next((project.paths.generated / "videos" / "head3d" / "cross").iterdir())
    other = project.paths.generated / "videos" / "copy_reference" / "cross" / video.name
    video.write_bytes(other.read_bytes())
    with pytest.raises(StageError, match=r"rater_02\.csv has answers"):
        study.run(project.params, project.paths, "f3")
    path.unlink()
    with pytest.raises(StageError, match=r"returned/rater_01\.csv has answers"):
        study.run(project.params, project.paths, "f3")
    assert (folder / "returned" / "rater_01.csv").is_file()
    assert not list(project.paths.data.glob("study.partial"))


def with_methods(params: Params, *methods: str) -> Params:
    return params.model_copy(update={"generate": params.generate.model_copy(update={"methods": list(methods)})})


def test_nothing_to_compare_makes_empty_sheets_and_says_why(project: Project) -> None:
    alone = with_methods(project.params, "head3d", "head3d_n10", "copy_reference")  # no rater sees another N
    summary = study.run(alone, project.paths, "f")
    assert "at least one of mean_canonical, no_driving_head" in summary["note"]
    assert summary["comparisons"] == summary["videos"] == 0
    table = project.paths.generated / "pairs.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(",cross,", ",self,"), encoding="utf-8")
    assert "no cross-identity pair" in study.run(project.params, project.paths, "g")["note"]
    assert read_csv(project.paths.study / "rater_03.csv") == []
    assert not list(project.paths.study.glob("*.zip"))


def test_videos_made_elsewhere_are_compared_where_they_exist(project: Project) -> None:
    generated = project.paths.generated
    source = generated / "videos" / "mean_canonical" / "cross"
    target = generated / "videos" / "fomm" / "cross"
    target.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number in range(5):
        pair = f"cross_00{number}"
        if number < 2:
            (target / f"{pair}.mp4").write_bytes((source / f"{pair}.mp4").read_bytes())
        rows.append({"method": "fomm", "pair": pair, "status": "ok" if number < 2 else "missing"})
    with (generated / "external.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["method", "pair", "status", "reason", "sha256"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    params = with_methods(project.params, *METHODS, "fomm")
    summary = study.run(params, project.paths, "f")
    assert summary["pairs_demo_fomm"] == 2
    assert summary["pairs_missing_per_method"] == 1
    used = {row["source_pair"] for row in read_csv(project.paths.study / "key.csv") if "fomm" in row.values()}
    assert used == {"cross_000", "cross_001"}
    assert len(originals(project.paths.study)) == 5
