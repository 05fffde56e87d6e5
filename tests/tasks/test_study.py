"""The study's sheets: balance, blinding, repeatability; and Table 2 from answers that are known."""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from models.config import Params, Study
from tasks import study
from tasks.errors import StageError
from tasks.study import Comparison, plan, sheet
from tasks.tally import tally, wilson
from tasks.video import read_frames
from tests.tasks.factory import METHODS, Project, make_project

SETTINGS = {"raters": 3, "pairs_per_method": 3, "repeats": 2, "seed": 0}
TOLD = ("head3d", "mean_canonical", "mean", "canonical", "copy_reference", "reference", "Lavf")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Five cross-identity pairs of 32 px."""
    return make_project(tmp_path, cross=5, frames=6, study=SETTINGS)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_plan(pairs_per_method: int, seed: int = 1) -> list[Comparison]:
    candidates = {"alpha": [f"a{i}" for i in range(20)], "beta": [f"b{i}" for i in range(7)]}
    settings = Study(raters=4, pairs_per_method=pairs_per_method, repeats=3, seed=seed)
    return plan(candidates, ["fomm", "mraa"], settings, random.Random(seed))


def ours_left(items: list[Comparison]) -> Counter[tuple[str, str]]:
    return Counter((item.dataset, item.method_b) for item in items if item.method_a == "head3d")


def test_sides_are_balanced_in_every_group_and_over_raters() -> None:
    comparisons = make_plan(10)
    first = [item for item in comparisons if not item.repeat_of]
    sizes = Counter((item.dataset, ({item.method_a, item.method_b} - {"head3d"}).pop()) for item in first)
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
    assert len(set(names)) == len(names)
    shown = [(item.source_pair, frozenset({item.method_a, item.method_b})) for item in first.values()]
    assert len(set(shown)) == len(shown)
    repeats = [item for item in comparisons if item.repeat_of]
    assert len(repeats) == 3
    for again in repeats:
        original = first[again.repeat_of]
        assert (again.method_a, again.method_b) == (original.method_b, original.method_a)
        assert again.source_pair == original.source_pair
    for rater in range(1, 5):
        order = [item.repeat_of or item.pair for item in sheet(comparisons, rater, 1)]
        assert all(one != other for one, other in itertools.pairwise(order))


def test_raters_have_orders_of_their_own_and_another_seed_another_plan() -> None:
    comparisons = make_plan(10)
    orders = {tuple(item.pair for item in sheet(comparisons, rater, 1)) for rater in range(1, 5)}
    assert len(orders) == 4
    assert make_plan(10) == comparisons
    assert {item.video_a for item in make_plan(10, seed=2)}.isdisjoint(item.video_a for item in comparisons)


def test_folder_tells_raters_nothing(project: Project) -> None:
    summary = study.run(project.params, project.paths, "f1")
    assert summary["comparisons"] == 3
    assert summary["repeats"] == 2
    assert summary["videos"] == 10
    files = contents(project.paths.study)
    assert {"pairs.csv", "key.csv", "stage.json", "rater_01.csv", "rater_02.csv", "rater_03.csv"} <= set(files)
    assert sum(name.startswith("videos/") for name in files) == 10
    for name, data in files.items():
        if name == "key.csv":
            continue
        for word in TOLD:
            assert word.encode() not in data + name.encode(), f"{name} tells {word!r}"
        assert b"cross_0" not in data, name  # nor which generated pair it is
    pairs = read_csv(project.paths.study / "pairs.csv")
    assert list(pairs[0]) == ["pair", "dataset", "setting", "video_a", "video_b"]
    rows = read_csv(project.paths.study / "rater_02.csv")
    assert list(rows[0]) == [*pairs[0], "choice", "realism", "motion", "identity", "seconds", "comment"]
    assert {row["pair"] for row in rows} == {row["pair"] for row in pairs}
    key = {row["pair"]: row for row in read_csv(project.paths.study / "key.csv")}
    for row in rows:
        assert {row["video_a"], row["video_b"]} == {key[row["pair"]]["video_a"], key[row["pair"]]["video_b"]}


def test_videos_are_those_that_the_key_says_without_metadata(project: Project) -> None:
    study.run(project.params, project.paths, "f1")
    for row in read_csv(project.paths.study / "key.csv"):
        assert {row["method_a"], row["method_b"]} == {"head3d", "mean_canonical"}
        for side in "ab":
            path = project.paths.study / "videos" / row[f"video_{side}"]
            source = project.paths.generated / "videos" / row[f"method_{side}"] / "cross" / f"{row['source_pair']}.mp4"
            assert np.array_equal(read_frames(path), read_frames(source))
            with av.open(str(path)) as container:
                assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}


def test_metadata_of_the_generated_file_does_not_reach_the_raters(project: Project) -> None:
    for path in (project.paths.generated / "videos").rglob("*.mp4"):
        method = path.parts[-3]
        titled = path.with_suffix(".titled.mp4")
        with av.open(str(path)) as inside, av.open(str(titled), "w") as outside:
            outside.metadata["title"] = outside.metadata["comment"] = f"made by {method}"
            copy = outside.add_stream_from_template(inside.streams.video[0])
            for packet in inside.demux(video=0):
                if packet.dts is not None:
                    packet.stream = copy
                    outside.mux(packet)
        assert method.encode() in titled.read_bytes()
        titled.replace(path)
    study.run(project.params, project.paths, "f1")
    for path in (project.paths.study / "videos").iterdir():
        assert not any(method.encode() in path.read_bytes() for method in METHODS)


def test_same_seed_same_bytes_and_a_finished_study_is_left_alone(project: Project) -> None:
    summary = study.run(project.params, project.paths, "f1")
    before = contents(project.paths.study)
    stamp = project.paths.study / "rater_01.csv"
    changed = stamp.stat().st_mtime_ns
    assert study.run(project.params, project.paths, "f1") == summary
    assert stamp.stat().st_mtime_ns == changed
    study.run(project.params, project.paths, "f2")
    after = contents(project.paths.study)
    assert json.loads(after.pop("stage.json"))["fingerprint"] == "f2"
    before.pop("stage.json")
    assert after == before


def test_answers_are_not_thrown_away(project: Project) -> None:
    study.run(project.params, project.paths, "f1")
    path = project.paths.study / "rater_02.csv"
    text = path.read_text(encoding="utf-8").replace(".mp4,,", ".mp4,a,", 1)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StageError, match=r"rater_02\.csv has answers"):
        study.run(project.params, project.paths, "f2")
    assert path.read_text(encoding="utf-8") == text


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


def answer(folder: Path, target: Path, prefers: dict[str, str]) -> Path:
    """Fill in a rater's sheet: for each pair the method named in `prefers` wins."""
    key = {row["pair"]: row for row in read_csv(folder / "key.csv")}
    rows = read_csv(folder / target.name)
    for row in rows:
        known = key[row["pair"]]
        methods = {known["video_a"]: known["method_a"], known["video_b"]: known["method_b"]}
        wanted = prefers.get(known["repeat_of"] or row["pair"], "head3d")
        row["choice"] = "a" if methods[row["video_a"]] == wanted else "b"
    target.parent.mkdir(exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return target


def test_tally_counts_known_answers(project: Project, tmp_path: Path) -> None:
    study.run(project.params, project.paths, "f")
    folder = project.paths.study
    first = sorted(row["pair"] for row in read_csv(folder / "pairs.csv"))[:3]
    sheets = [
        answer(folder, tmp_path / "back" / "rater_01.csv", {}),
        answer(folder, tmp_path / "back" / "rater_02.csv", {first[0]: "mean_canonical"}),
        answer(folder, tmp_path / "back" / "rater_03.csv", {first[0]: "mean_canonical", first[1]: "mean_canonical"}),
    ]
    table = tally(sheets, folder / "key.csv")
    assert table.raters == 3
    assert table.dropped == []
    assert table.unanswered == 0
    assert (table.repeats, table.repeats_agree) == (6, 6)
    (row,) = table.rows
    assert (row["dataset"], row["method"], row["answers"], row["preferred"]) == ("demo", "mean_canonical", 9, 6)
    assert row["percent"] == pytest.approx(66.667, abs=0.001)
    assert (row["low_percent"], row["high_percent"]) == (pytest.approx(35.42, abs=0.01), pytest.approx(87.94, abs=0.01))


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (72, 100, 0.6251, 0.7986)],
)
def test_wilson_against_published_values(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=1e-4)


def test_hostile_rows_are_dropped_with_reasons(project: Project, tmp_path: Path) -> None:
    study.run(project.params, project.paths, "f")
    folder = project.paths.study
    sheet_path = answer(folder, tmp_path / "back" / "rater_01.csv", {})
    rows = read_csv(sheet_path)
    rows[0]["choice"] = "both"
    rows[1]["video_a"], rows[1]["video_b"] = "other.mp4", rows[1]["video_b"]
    rows[2]["choice"] = ""
    rows[3]["choice"] = " A "  # spreadsheets and people do this
    rows += [dict(rows[4]), {**rows[4], "pair": "p9999"}, {**rows[4], "pair": "=cmd()", "comment": "x" * 5000}]
    text = ";".join(rows[0]) + "\r\n" + "".join(";".join(row.values()) + "\r\n" for row in rows)
    sheet_path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    others = {
        "rater_02.csv": b"",
        "rater_03.csv": b"pair,choice\np0001,a\n",
        "rater_04.csv": b"PK\x03\x04\0\0spreadsheet",
        "copy_of_01.csv": sheet_path.read_bytes(),
    }
    for name, data in others.items():
        (tmp_path / "back" / name).write_bytes(data)
    again = tmp_path / "again" / "rater_01.csv"
    again.parent.mkdir()
    again.write_bytes(text.encode() + b"\n")
    table = tally(
        [sheet_path, *(tmp_path / "back" / n for n in others), again, tmp_path / "no.csv"], folder / "key.csv"
    )
    lines = {item["line"]: item["reason"] for item in table.dropped if item["file"] == "rater_01.csv" and item["line"]}
    assert set(lines) == {2, 3, 7, 8, 9}
    assert "'both'" in lines[2]
    assert "not this pair's" in lines[3]
    assert "second answer" in lines[7]
    assert "unknown pair 'p9999'" in lines[8]
    assert "unknown pair '=cmd()'" in lines[9]
    whole = {item["file"]: item["reason"] for item in table.dropped if item["line"] == 0}
    assert "without the column" in whole["rater_02.csv"]
    assert "video_a" in whole["rater_03.csv"]
    assert "spreadsheet" in whole["rater_04.csv"]
    assert "same content" in whole["copy_of_01.csv"]
    assert "second sheet" in whole["rater_01.csv"]
    assert "cannot be read" in whole["no.csv"]
    assert table.unanswered == 1
    assert table.raters == 1
    assert sum(row["answers"] for row in table.rows) + table.repeats <= 2  # five pairs, three of them spoilt


def test_tally_without_answers_or_key_says_what_to_do(project: Project) -> None:
    study.run(project.params, project.paths, "f")
    folder = project.paths.study
    with pytest.raises(StageError, match="column `choice`"):
        tally([folder / "rater_01.csv"], folder / "key.csv")
    with pytest.raises(StageError, match="not a study's key"):
        tally([folder / "rater_01.csv"], folder / "pairs.csv")
    with pytest.raises(StageError, match="does not exist"):
        tally([folder / "rater_01.csv"], folder / "none.csv")
