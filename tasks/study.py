"""The stage `study`: everything the raters of the paired user study get (Sec. 4.1), blinded, and the key to it.

Head3D is compared with every other method of the cross-identity set that `tasks.methods` calls `in_study`, videos made
elsewhere included.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.config import Params, Study
from tasks.clip_table import read_table
from tasks.errors import StageError
from tasks.generated import missing_videos, read_pairs
from tasks.methods import METHODS, OURS
from tasks.paths import Paths
from tasks.stores import array, open_store
from tasks.study_files import equalise, remux, write_zip
from tasks.study_page import embedded, rating_page
from tasks.study_plan import KEY_COLUMNS, PAIR_COLUMNS, SETTING, SHEET_COLUMNS, Comparison, plan, sheet
from tasks.video_write import write_video

RETURNED = "returned"
"""Folder of the answers; it and `TALLY` outlive a study that is made anew, if its videos are the same."""
TALLY = "tally"
KEPT = (RETURNED, TALLY)
LETTER = """Thank you for comparing videos.

Unpack this folder, all of it, and open {rater}.html in a browser; nothing is sent anywhere. Your answers stay in that
browser until you press "Export answers". Send the file {rater}.csv that you get to whoever gave you this folder.

Without a browser: fill in {rater}.csv (choice: a or b; the same for realism, motion and identity if you like) with a
spreadsheet program and save it as CSV. The videos are in the folder videos.
"""


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """Write the study's folder: `pairs.csv`, `key.csv`; a sheet, a page and a zip per rater; and the blinded videos.

    Where there is nothing to compare the sheets are empty and the summary's `note` says why: the report still comes.
    The new folder takes the old one's place when it is complete.

    Args:
        params: All settings; `study` and `generate.methods` are used.
        paths: Where the data lies.
        fingerprint: Written into `stage.json`: a finished study of the same inputs is left as it is.

    Returns:
        Counts: comparisons, repeats, raters, videos, and what is missing to `pairs_per_method`.

    Raises:
        StageError: There are answers about other videos, or a generated video is missing.
    """
    _recover(paths.study)
    stored = _stored(paths.study)
    if stored.get("fingerprint") == fingerprint and _is_whole(paths.study, stored):
        return dict(stored["summary"])
    rivals = [method for method in params.generate.methods if METHODS[method].in_study]
    rng = random.Random(params.study.seed)
    candidates = _candidates(paths, rivals)
    note = ""
    if not any(candidates.values()):
        note = "no cross-identity pair was generated: it takes two people and generate.cross_pairs above 0"
    if OURS not in params.generate.methods or not rivals:
        known = ", ".join(method for method, row in METHODS.items() if row.in_study)
        note = (
            f"the study compares {OURS} with at least one of {known}, or with a folder of generate.external: add one "
            "to generate.methods"
        )
    comparisons = [] if note else plan(candidates, params.study, rng)
    partial = paths.study.with_name(paths.study.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "videos").mkdir(parents=True)
    digest = _write_videos(comparisons, paths, partial / "videos")
    video_bytes = equalise(partial / "videos", params.study.seed)
    content = _write_tables(comparisons, params.study, partial, digest)
    originals = Counter((item.dataset, item.rival) for item in comparisons if not item.repeat_of)
    summary = {
        "comparisons": originals.total(),
        "repeats": len(comparisons) - originals.total(),
        "raters": params.study.raters,
        "methods_compared": len(rivals),
        "videos": 2 * len(comparisons),
        "bytes_of_each_video": video_bytes,
        "pairs_missing_per_method": max(0, params.study.pairs_per_method - min(originals.values(), default=0)),
        **{f"pairs_{dataset}_{rival}": count for (dataset, rival), count in sorted(originals.items())},
        **({"note": note} if note else {}),
    }
    files = {path.relative_to(partial).as_posix(): path.stat().st_size for path in sorted(partial.rglob("*.*"))}
    if answered := _answered(paths.study):
        if stored.get("content") != content:
            shutil.rmtree(partial)
            raise StageError(
                f"{answered} has answers, and the study would be made anew with other videos; move the "
                "answers elsewhere first, with key.csv, which they need"
            )
        _keep_answers(paths.study, partial)
    stamp = {"fingerprint": fingerprint, "content": content, "summary": summary, "files": files}
    (partial / "stage.json").write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    _replace(paths.study, partial)
    return summary


def _replace(folder: Path, new: Path) -> None:
    """Put `new` in the place of `folder`; a kill between leaves one of the two under a name that `_recover` knows."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _recover(folder: Path) -> None:
    """Bring back the old folder if a run was killed before the new one had its name: it may hold answers."""
    old = folder.with_name(folder.name + ".old")
    if old.is_dir() and not (folder / "stage.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        old.rename(folder)


def _stored(folder: Path) -> dict[str, Any]:
    stamp = folder / "stage.json"
    return json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}


def _is_whole(folder: Path, stored: dict[str, Any]) -> bool:
    """Whether every file that was written is still there; a rater's sheet may have been filled in."""
    return "files" in stored and all(
        (folder / name).is_file()
        and ((folder / name).stat().st_size == size or (name.startswith("rater_") and name.endswith(".csv")))
        for name, size in stored["files"].items()
    )


def _answered(folder: Path) -> Path | None:
    """A file with answers that a new study would throw away."""
    for path in sorted(folder.glob("rater_*.csv")):
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                if any((row.get("choice") or "").strip() for row in csv.DictReader(stream)):
                    return path
        except (UnicodeDecodeError, csv.Error):  # a spreadsheet program has saved it
            return path
    return next((path for path in sorted(folder.glob(f"{RETURNED}/[!.]*")) if path.is_file()), None)


def _keep_answers(old: Path, new: Path) -> None:
    """Copy what the raters gave, and what was made of it."""
    for name in KEPT:
        if (old / name).is_dir():
            shutil.copytree(old / name, new / name)
    for path in old.glob("rater_*.csv"):
        shutil.copyfile(path, new / path.name)


def _candidates(paths: Paths, rivals: list[str]) -> dict[tuple[str, str], list[str]]:
    """(dataset, rival) -> names of the cross-identity pairs of which there is a video."""
    pairs = read_pairs(paths)
    good = pairs[(pairs["status"] == "ok") & (pairs["setting"] == SETTING)]
    missing = missing_videos(paths)
    return {
        (str(dataset), rival): [str(name) for name in rows["pair"] if (rival, name) not in missing]
        for dataset, rows in good.groupby("dataset")
        for rival in rivals
    }


def _write_videos(comparisons: list[Comparison], paths: Paths, folder: Path) -> str:
    """Write every video under its blinded name, in the names' order, so that dates of files say nothing.

    Returns:
        A hash of all pictures.
    """
    sources: dict[str, Path | tuple[int, float]] = {}
    if comparisons:
        rows = {str(row["pair"]): row for row in read_pairs(paths).to_dict("records")}
        rates = read_table(paths.clip_table).set_index("clip")["fps"]
    for item in comparisons:
        row = rows[item.source_pair]
        for name, method in ((item.video_a, item.method_a), (item.video_b, item.method_b)):
            sources[name] = paths.generated / "videos" / method / SETTING / f"{item.source_pair}.mp4"
        for name, role in ((item.subject, "subject"), (item.driving, "driving")):
            sources[name] = int(row[f"{role}_row"]), float(rates[row[f"{role}_clip"]])
    frames = array(open_store(paths.clips), "frames") if sources else None
    digest = hashlib.sha256()
    for name in sorted(sources):
        source = sources[name]
        if isinstance(source, Path):
            if not source.is_file():
                raise StageError(f"{source} does not exist; run `dvc repro --force --single-item generate`")
            digest.update(f"{name}={remux(source, folder / name)}\n".encode())
        else:
            assert frames is not None
            write_video(folder / name, np.asarray(frames[source[0]]), source[1])
            digest.update(f"{name}={hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _write_tables(comparisons: list[Comparison], study: Study, folder: Path, videos: str) -> str:
    """Write pairs, key, and each rater's sheet, page and zip.

    Returns:
        A hash of the key and the videos: answers are worth something for this study only.
    """
    listed = sorted(comparisons, key=lambda item: item.pair)
    key = _csv(KEY_COLUMNS, [item.known() for item in listed])
    content = hashlib.sha256(videos.encode() + key).hexdigest()
    (folder / "pairs.csv").write_bytes(_csv(PAIR_COLUMNS, [item.shown() for item in listed]))
    (folder / "key.csv").write_bytes(key)
    width, inside = max(2, len(str(study.raters))), embedded(folder / "videos")
    for number in range(1, study.raters + 1):
        rater, rows = f"rater_{number:0{width}d}", sheet(comparisons, number, study.seed)
        texts = {f"{rater}.csv": _csv(SHEET_COLUMNS, [item.shown() for item in rows], for_spreadsheets=True)}
        if rows:
            texts[f"{rater}.html"] = rating_page(rater, content[:12], rows, inside).encode()
        for name, text in texts.items():
            (folder / name).write_bytes(text)
        if rows:
            texts["read_me.txt"] = LETTER.format(rater=rater).encode()
            write_zip(folder / f"{rater}.zip", texts, (folder / "videos").iterdir(), rater)
    return content


def _csv(columns: tuple[str, ...], rows: Iterable[Mapping[str, str]], for_spreadsheets: bool = False) -> bytes:
    """CSV in UTF-8; for spreadsheets with their line ends, and with the mark without which they take it for Latin-1."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\r\n" if for_spreadsheets else "\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8-sig" if for_spreadsheets else "utf-8")
