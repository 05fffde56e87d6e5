"""Table 2 from answers that are known, and from sheets that must not be believed."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.cli import app
from tasks import study
from tasks.errors import StageError
from tasks.returned_sheets import LARGEST, SheetError, rater_of, read_sheet
from tasks.tally import Table2, read_key, tally
from tasks.tally_files import guarded, markdown, write_tally
from tests.tasks.factory import make_project
from tests.tasks.study_answers import answer, originals, read_csv, write_csv

SETTINGS = {"raters": 4, "pairs_per_method": 5, "repeats": 2, "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of five comparisons and two repeats."""
    made = make_project(tmp_path_factory.mktemp("tally"), cross=5, frames=4, study=SETTINGS)
    study.run(made.params, made.paths, "f")
    return made.paths.study


def test_known_answers_are_counted(folder: Path, tmp_path: Path) -> None:
    lost = originals(folder)
    wins: dict[str, Callable[[dict[str, str]], bool]] = {
        "rater_01": lambda _: True,
        "rater_02": lambda row: row["pair"] != lost[0],
        "rater_03": lambda row: row["pair"] not in lost[:2],
    }
    sheets = [answer(folder, tmp_path / f"{name}.csv", choose) for name, choose in wins.items()]
    table = tally(sheets, folder / "key.csv")
    assert [row["rater"] for row in table.raters] == ["rater_01", "rater_02", "rater_03"]
    assert table.dropped == []
    assert table.unanswered == 0
    assert (table.repeats, table.repeats_agree) == (6, 6)
    (row,) = table.rows
    assert (row["dataset"], row["method"], row["answers"], row["preferred"]) == ("demo", "mean_canonical", 15, 12)
    assert row["percent"] == pytest.approx(80)
    assert (row["wilson_low_percent"], row["wilson_high_percent"]) == (
        pytest.approx(54.81, abs=0.01),
        pytest.approx(92.95, abs=0.01),
    )
    assert row["low_percent"] <= row["wilson_low_percent"]
    assert (row["pairs"], row["pairs_won"], row["pairs_tied"]) == (5, 4, 0)  # one is lost by 1 to 2
    assert row["p_pairs"] == pytest.approx(12 / 32)  # 4 of 5, two-sided
    assert row["kappa_pairs"] == 5
    assert table.answers == 21
    assert table.raters[2]["percent_ours"] == pytest.approx(60)
    assert table.raters[0]["median_seconds"] == pytest.approx(8.0, abs=1)


def test_sides_do_not_matter(folder: Path, tmp_path: Path) -> None:
    """Rater 2 sees every pair from the other side; who always presses A agrees with nobody, and not with themselves."""
    rows = {name: read_csv(folder / f"{name}.csv") for name in ("rater_01", "rater_02")}
    for name, lines in rows.items():
        for line in lines:
            line["choice"] = "A"
        write_csv(tmp_path / f"{name}.csv", lines)
    table = tally(sorted(tmp_path.glob("*.csv")), folder / "key.csv")
    assert table.rows[0]["percent"] == 50
    assert table.rows[0]["alpha"] < 0
    assert (table.repeats, table.repeats_agree) == (4, 0)
    assert (table.answers_a, table.answers) == (14, 14)
    assert table.p_side < 0.001


def spoil(folder: Path, tmp_path: Path) -> tuple[list[dict[str, str]], bytes]:
    """A sheet with every kind of bad row, as a spreadsheet with semicolons saves it."""
    rows = read_csv(answer(folder, tmp_path / "rater_01.csv", lambda _: True))
    rows[0]["choice"] = "both"
    rows[1]["video_a"] = "other.mp4"
    rows[2]["choice"] = ""
    rows[3]["choice"] = f" {rows[3]['choice'].upper()} "  # people and spreadsheets do this
    rows[4]["realism"], rows[4]["seconds"] = "=1+1", "1e999"
    rows[5]["video_b"] = rows[5]["video_a"]
    flipped = {**rows[6], "choice": "b" if rows[6]["choice"] == "a" else "a"}
    rows += [dict(rows[3]), flipped, {**rows[4], "pair": "p9999"}, {**rows[4], "pair": "=cmd|' /C calc'!A0"}]
    text = ";".join(rows[0]) + "\r\n" + "".join(";".join(row.values()) + "\r\n" for row in rows)
    return rows, b"\xef\xbb\xbf" + text.encode()


def test_hostile_rows_are_dropped_with_reasons(folder: Path, tmp_path: Path) -> None:
    rows, data = spoil(folder, tmp_path)
    path = tmp_path / "rater_01.csv"
    path.write_bytes(data)
    sheet = read_sheet(path, read_key(folder / "key.csv"))
    reasons: dict[int, str] = {}
    for line, reason in sheet.dropped:
        reasons[line] = f"{reasons.get(line, '')} {reason}"
    assert set(reasons) == {2, 3, 6, 7, 8, 9, 10, 11, 12}
    assert "'both'" in reasons[2]
    assert "not this pair's" in reasons[3]
    assert "realism '=1+1'" in reasons[6]
    assert "seconds '1e999'" in reasons[6]
    assert "not this pair's" in reasons[7]
    assert "differently; neither counts" in reasons[8]
    assert "the same; counted once" in reasons[9]
    assert "differently; neither counts" in reasons[10]
    assert "unknown pair 'p9999'" in reasons[11]
    assert "unknown pair \"=cmd|' /C calc'!A0\"" in reasons[12]
    assert set(sheet.answers) == {rows[3]["pair"], rows[4]["pair"]}
    assert sheet.unanswered == 1


def test_hostile_files_are_reported_whole_and_good_ones_count(folder: Path, tmp_path: Path) -> None:
    good = answer(folder, tmp_path / "rater_01.csv", lambda _: True)
    text = good.read_text(encoding="utf-8")
    half = text.splitlines(keepends=True)
    files: dict[str, tuple[bytes, str]] = {
        "a_copy.csv": (good.read_bytes(), "the same content"),
        "a_copy_with_a_comment.csv": (text.replace("\n", "x\n", 2).encode(), "the same content"),
        "b_binary.csv": (b"PK\x03\x04\0\0spreadsheet", "spreadsheet?"),
        "b_empty.csv": (b" \r\n", "empty"),
        "b_huge.csv": (b"x" * (LARGEST + 1), "no sheet of this study is so large"),
        "b_nul.csv": (text.replace("demo", "de\0mo").encode(), "not a CSV file"),
        "b_nul16.csv": (text.replace("demo", "de\0mo").encode("utf-16"), "NUL"),
        "b_cut16.csv": (text.encode("utf-16")[:-1], "damaged UTF-16"),
        "b_other.csv": (b"name,age\nx,1\n", "without the column(s) pair"),
        "b_short.csv": (b"pair,choice\np0001,a\n", "without the column(s) video_a, video_b"),
        "b_twice.csv": (text.replace("comment", "choice", 1).encode(), "two columns choice"),
        "b_field.csv": ((half[0] + '"' + "y" * 200_000).encode(), "field larger"),
        "Rater_01 (2).csv": ("".join(half[:3]).encode(), "a second sheet of rater_01 with 2 answers; rater_01.csv"),
    }  # fmt: skip
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    table = tally([*tmp_path.glob("*.csv"), tmp_path / "no.csv", tmp_path], folder / "key.csv")
    whole = {item["file"]: item["reason"] for item in table.dropped if item["line"] == 0}
    for name, (_, reason) in files.items():
        assert reason in whole[name], (name, whole[name])
    assert "cannot be read" in whole["no.csv"]
    assert "cannot be read" in whole[tmp_path.name]
    assert [row["rater"] for row in table.raters] == ["rater_01"]
    assert (table.rows[0]["answers"], table.rows[0]["preferred"]) == (5, 5)


@pytest.mark.parametrize(
    ("delimiter", "encoding", "head"),
    [
        (",", "utf-8", ""),
        (";", "utf-8-sig", ""),
        (";", "utf-8-sig", "sep=;\r\n"),
        (";", "cp1252", ""),
        ("\t", "utf-16", ""),
        (",", "utf-16", ""),
    ],
)
def test_what_spreadsheets_save_is_read(folder: Path, tmp_path: Path, delimiter: str, encoding: str, head: str) -> None:
    path = answer(folder, tmp_path / "rater_02.csv", lambda _: False)
    rows = read_csv(path)
    for row in rows:
        row["comment"], row["seconds"] = 'schön, größer; "gut"', row["seconds"].replace(".", ",")
    write_csv(path, rows, delimiter, encoding)
    if head:
        path.write_text(head + path.read_text(encoding=encoding), encoding=encoding)
    sheet = read_sheet(path, read_key(folder / "key.csv"))
    assert sheet.dropped == []
    assert len(sheet.answers) == 7
    assert all(answer.seconds and answer.seconds > 5 for answer in sheet.answers.values())


def test_no_damage_makes_an_answer_that_was_not_given(folder: Path, tmp_path: Path) -> None:
    key = read_key(folder / "key.csv")
    good = answer(folder, tmp_path / "rater_01.csv", lambda _: True).read_bytes()
    rng, path = random.Random(0), tmp_path / "damaged.csv"
    pieces = [b'"', b",", b";", b"\t", b"\n", b"\r", b"\xff", b"\xef\xbb\xbf", b"=", b"p0001", b"\x1b[31m", b"sep=,\n"]
    readable = 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(120, len(data))  # behind the names of the columns
            length = rng.choice((0, 1, 20))
            data[place : place + length] = rng.choice(pieces)
        path.write_bytes(data)
        try:
            sheet = read_sheet(path, key)
        except SheetError:
            continue
        readable += 1
        for pair, given in sheet.answers.items():
            assert given.video == key[pair][f"video_{'a' if key[pair]['method_a'] == 'head3d' else 'b'}"]
    assert readable > 60


def test_a_better_sheet_of_a_rater_replaces_a_half_filled_one(folder: Path, tmp_path: Path) -> None:
    whole = answer(folder, tmp_path / "rater_03.csv", lambda _: True)
    rows = read_csv(whole)
    whole.rename(tmp_path / "rater_03_2.csv")
    rows[0]["choice"] = "b" if rows[0]["choice"] == "a" else "a"
    write_csv(tmp_path / "rater_03.csv", [rows[0], *({**row, "choice": ""} for row in rows[1:])])
    table = tally(sorted(tmp_path.glob("*.csv")), folder / "key.csv")
    assert (table.rows[0]["answers"], table.rows[0]["preferred"]) == (5, 5)
    assert table.unanswered == 0
    assert table.dropped[0]["file"] == "rater_03.csv"
    assert "(1 answers differ)" in table.dropped[0]["reason"]


def test_whose_sheet_a_file_is() -> None:
    names = {"rater_01.csv": "rater_01", "rater_01 (2).csv": "rater_01", "RATER_07_3.csv": "rater_07",
             "rater_010.csv": "rater_010", "anna.csv": "anna", "rater_1x.csv": "rater_1x"}  # fmt: skip
    assert {name: rater_of(Path(name)) for name in names} == names


def test_without_answers_or_key_it_says_what_to_do(folder: Path) -> None:
    with pytest.raises(StageError, match="column `choice`"):
        tally([folder / "rater_01.csv"], folder / "key.csv")
    with pytest.raises(StageError, match="not a study's key"):
        tally([folder / "rater_01.csv"], folder / "pairs.csv")
    with pytest.raises(StageError, match="does not exist"):
        tally([folder / "rater_01.csv"], folder / "none.csv")
    with pytest.raises(SheetError, match="cannot be read"):
        read_sheet(folder / "none.csv", {})


def test_files_are_the_same_every_time_and_run_nothing(folder: Path, tmp_path: Path) -> None:
    _, data = spoil(folder, tmp_path)
    (tmp_path / "rater_01.csv").write_bytes(data)
    (tmp_path / "=evil`|.csv").write_bytes(b"x")
    table = tally(sorted(tmp_path.glob("*.csv")), folder / "key.csv")
    paths = write_tally(table, tmp_path / "out")
    first = {path.name: path.read_bytes() for path in paths}
    assert {path.name: path.read_bytes() for path in write_tally(table, tmp_path / "out")} == first
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(first)
    for name in ("table2.csv", "raters.csv", "dropped.csv"):
        cells = [cell for row in csv.reader(io.StringIO(first[name].decode())) for cell in row]
        assert not any(cell.startswith(("=", "+", "@", "\t")) for cell in cells), name
    assert "'=evil`|.csv" in first["dropped.csv"].decode()
    text = first["table2.md"].decode()
    assert "`=evil'/.csv`" in text
    assert len({line.count("|") for line in text.split("## Not counted")[1].splitlines() if line}) == 1
    assert json.loads(first["table2.json"])["rows"][0]["answers"] == table.rows[0]["answers"]
    with Image.open(io.BytesIO(first["table2.png"])) as image:
        assert image.width > 700
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert first["table2.svg"].startswith(b"<?xml")


def test_the_papers_figure_stands_beside_ours() -> None:
    row = dict.fromkeys(("answers", "preferred", "pairs", "pairs_won", "pairs_tied", "raters", "kappa_pairs"), 1)
    ends = ("low_percent", "high_percent", "wilson_low_percent", "wilson_high_percent")
    shares = dict.fromkeys(("percent", *ends), 57.0)
    rest = {"p_pairs": 0.04, "p_answers": 0.04, "alpha": 0.1, "kappa": 0.1}
    aspects = {f"{kind}_{name}": 0 for kind in ("percent", "answers") for name in ("realism", "motion", "identity")}
    line = {"dataset": "voxceleb", "method": "fomm", **row, **shares, **rest, **aspects}
    assert re.search(r"\| voxceleb \| fomm \| \*\*57\.0%\*\* .* 72% \|", markdown(Table2(rows=[line])))


def test_cells_for_spreadsheets() -> None:
    assert [guarded(value) for value in ("=1", " +1", "@x", "-x", -1.5, None, float("nan"), "a\nb")] == [
        "'=1", "' +1", "'@x", "'-x", "-1.5", "", "", "a b"
    ]  # fmt: skip


def test_command_counts_and_says_what_it_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    answer(folder, tmp_path / "rater_01.csv", lambda _: True)
    (tmp_path / "junk.csv").write_bytes(b"\0")
    with pytest.raises(SystemExit) as ended:
        app(args=["study", "tally", "rater_01.csv", "junk.csv", "--study", str(folder), "-o", "out"])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert re.search(r"demo +Mean canonical head +100\.0%", said.out)
    assert "not counted: junk.csv: not a CSV file" in said.err
    assert (tmp_path / "out" / "table2.png").is_file()
    with pytest.raises(SystemExit) as ended:
        app(args=["study", "tally", "--study", str(folder)])
    assert ended.value.code == 1
    assert "returned has no CSV file" in capsys.readouterr().err
