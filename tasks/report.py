"""A folder to open in a browser: what was run, how good it is, and what it looks like.

`index.html` with its pictures, videos and heads beside it. It needs no network, works from disk, and without scripts:
then videos have the browser's own controls and heads their pictures.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml

from models.config import Params
from tasks.charts import Line, line_chart
from tasks.errors import StageError
from tasks.generated import read_pairs, records
from tasks.inspect_sheets import inspect_clip
from tasks.labels import COLOURS, NAMES
from tasks.methods import OURS
from tasks.paths import Paths
from tasks.report_attention import attention_section
from tasks.report_examples import Example, Picture, Stores, choose, make_example, small
from tasks.report_failures import failure_section
from tasks.report_files import LIMIT_MB, MEDIA, Shelf, folder_mb, shelves
from tasks.report_heads import TURNS_DEG, heads_section
from tasks.report_media import frame_indices, outlined, shrink
from tasks.report_run import device_name, duration, environment, frame_times, hashes, revision, summaries, times
from tasks.report_tables import FIGURE_NAMES, ablations, motion, paper_tables, preferences, results
from tasks.sheets import colour_labels
from tasks.stage_pictures import SAMPLES, read_picture
from tasks.stores import array, open_store

TRAINED = {
    "geometry": "Stage 1: geometry (Eq. 4)",
    "canonical": "Stage 2: canonical head (Eq. 6)",
    "fusion": "Stage 3: fusion (Eq. 8)",
}
MASKS_SHOWN, SHEETS_SHOWN, SHEET_FRAMES = 12, 2, 8
SAMPLES_PX = 1600
REFUSED_SHOWN = 100
HERE = Path(__file__).parent
VIEWER = HERE / "viewer" / "viewer.min.js"


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """Write the folder `report` anew.

    Args:
        params: All settings.
        paths: Where the data lies.
        fingerprint: Shown at the end of the report, so that a folder can be told from another run's.

    Returns:
        The folder's size and how many examples, heads and refused inputs it shows.

    Raises:
        StageError: A table that it needs is missing, or the folder would be too large.
    """
    tables = {
        "per_video": _read(paths.metrics / "per_video.csv", "evaluate"),
        "table1": _read(paths.metrics / "table1.csv", "evaluate"),
        "table3": _read(paths.metrics / "table3.csv", "evaluate"),
    }
    clips = _read(paths.clip_table, "crop")
    folder = paths.report
    shutil.rmtree(folder, ignore_errors=True)
    (folder / MEDIA).mkdir(parents=True)
    shown = _pictures(params, paths, clips, tables["per_video"], shelves(folder))
    if any(head["url"] for head in shown["heads"]["heads"]):
        shutil.copyfile(_checked_viewer(), folder / "viewer.js")
    html = _template().render({**_words(params, paths, fingerprint, clips, tables), **shown})
    (folder / "index.html").write_text(html, encoding="utf-8")
    size = folder_mb(folder)
    if size > LIMIT_MB:
        raise StageError(f"the report takes {size:.0f} MB, more than {LIMIT_MB:.0f}; make report.examples smaller")
    examples: dict[str, list[Example]] = shown["examples"]
    return {
        "report_mb": round(size, 2),
        **{f"examples_{setting}": len(items) for setting, items in examples.items()},
        **{f"examples_left_out_{setting}": count for setting, count in shown["left_out"].items() if count},
        "heads": len(shown["heads"]["heads"]),
        "inputs_refused": int((clips["status"] != "ok").sum()),
    }


def _pictures(
    params: Params, paths: Paths, clips: pd.DataFrame, per_video: pd.DataFrame, shelf: dict[str, Shelf]
) -> dict[str, Any]:
    """Everything with pictures, in the order in which it takes room on the shelves."""
    other = shelf["pictures"]
    attention = attention_section(params, paths, other)
    failures = failure_section(params, paths, other)
    masks, legend = _masks(paths, clips, other)
    sheets = _sheets(params, paths, clips, other)
    samples = _samples(paths, other)
    heads = heads_section(params, paths, shelf["heads"], other)
    examples, left_out = _examples(params, paths, clips, per_video, shelf["examples"])
    return {
        "attention": attention,
        "failures": failures,
        "masks": masks,
        "labels": legend,
        "sheets": sheets,
        "samples": samples,
        "heads": heads,
        "turns": [f"{turn:g}" for turn in TURNS_DEG],
        "examples": examples,
        "left_out": left_out,
    }


def _words(
    params: Params, paths: Paths, fingerprint: str, clips: pd.DataFrame, tables: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    """Everything without pictures."""
    said = summaries(paths)
    refused = clips[clips["status"] != "ok"]
    evaluate = said.get("evaluate", {})
    return {
        "style": (HERE / "templates" / "report.css").read_text(encoding="utf-8"),
        "script": (HERE / "templates" / "report.js").read_text(encoding="utf-8"),
        "facts": _facts(params, paths, clips),
        "tiles": _tiles(said, clips),
        "results": results(tables["table1"]),
        "paper": paper_tables(),
        "preferences": preferences(paths),
        "ablations": ablations(tables["table3"], params.generate.references),
        "motion": motion(tables["per_video"]),
        "definitions": _definitions(evaluate),
        "random_backbone": "lpips_random_backbone" in tables["table1"].columns,
        "worse_than_copy": (evaluate.get("l2_ratio_to_copy") or 0) >= 1,
        "charts": _charts(paths),
        "counts": _counts(clips),
        "refused": records(refused[["video", "status", "reason", "detail"]].head(REFUSED_SHOWN)),
        "refused_total": len(refused),
        "times": times(said),
        "frame_times": frame_times(said),
        "study": said.get("study", {}),
        "summaries": said,
        "settings": yaml.safe_dump(params.model_dump(), sort_keys=False, allow_unicode=True),
        "environment": environment(params),
        "hashes": hashes(paths, fingerprint),
        "fingerprint": fingerprint,
    }


def _checked_viewer() -> Path:
    """The viewer's file.

    Raises:
        StageError: It is not the one that belongs to this version.
    """
    wanted = VIEWER.with_name(f"{VIEWER.name}.sha256").read_text(encoding="utf-8").split()[0]
    if hashlib.sha256(VIEWER.read_bytes()).hexdigest() != wanted:
        raise StageError(f"{VIEWER} was changed; `git checkout tasks/viewer` brings it back (or see its README.md)")
    return VIEWER


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")


def _read(path: Path, stage: str) -> pd.DataFrame:
    if not path.is_file():
        raise StageError(f"{path} does not exist; `dvc repro {stage}` makes it")
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def _facts(params: Params, paths: Paths, table: pd.DataFrame) -> list[tuple[str, str]]:
    """What was run: lines of the header."""
    good = table[table["status"] == "ok"]
    people = good.groupby("split")["identity"].nunique()
    crop = params.crop
    facts = [
        ("Sources", ", ".join(params.acquire.sources)),
        ("People", ", ".join(f"{count} {split}" for split, count in people.items()) or "none"),
        ("Clips", f"{len(good)} of {crop.clip_frames} frames, {crop.size_px} x {crop.size_px} px"),
        ("Device", device_name(params)),
        ("Revision", revision(paths.data.parent)),
    ]
    return [(name, value) for name, value in facts if value]


def _tiles(summaries: dict[str, dict[str, Any]], table: pd.DataFrame) -> list[dict[str, str]]:
    """The few figures to see first."""
    evaluate = summaries.get("evaluate", {})
    seconds = sum(summary.get("seconds") or 0 for summary in summaries.values())
    tiles = []
    ours, ratio = evaluate.get(f"l2_{OURS}"), evaluate.get("l2_ratio_to_copy")
    if ours is not None:
        tiles.append({"value": small(ours), "label": "L2 of self-reconstruction (lower is better)"})
    if ratio is not None:
        tiles.append({"value": f"{ratio:.0%}", "label": "of the L2 of copying the reference frame"})
    follows = evaluate.get(f"motion_correlation_{OURS}_cross")
    if follows is not None:
        tiles.append({"value": f"{follows:.2f}", "label": "motion correlation with the driving video, cross-identity"})
    good = table[table["status"] == "ok"]
    tiles.append({"value": f"{good['video'].nunique()} / {table['video'].nunique()}", "label": "videos gave a clip"})
    tiles.append({"value": duration(seconds), "label": "for all stages"})
    return tiles


def _definitions(evaluate: dict[str, Any]) -> list[tuple[str, str]]:
    prefix = "definition_"
    names = [key.removeprefix(prefix) for key in evaluate if key.startswith(prefix)]
    return [(FIGURE_NAMES.get(name, name), str(evaluate[prefix + name])) for name in names]


def _charts(paths: Paths) -> list[dict[str, Any]]:
    """Loss curves of the training stages that left some."""
    charts = []
    for stage, title in TRAINED.items():
        path = paths.metrics / f"{stage}_loss.csv"
        if not path.is_file():
            continue
        table = pd.read_csv(path)
        terms = [name for name in table.columns if name not in ("step", "total", "lr") and not name.startswith("lr_")]
        steps = table["step"].to_numpy(float)
        lines = [Line(name, steps, table[name].to_numpy(float)) for name in ("total", *terms)]
        drops = steps[1:][np.diff(table["lr"]) < 0] if "lr" in table else np.zeros(0)
        svg = line_chart(f"{title}: loss over steps", lines, "step", [(float(x), "learning rate drops") for x in drops])
        first, last = (float(table["total"].iloc[index]) for index in (0, -1))
        note = f"total {first:.3g} to {last:.3g} in {int(steps[-1])} steps"
        charts.append({"title": title, "svg": svg, "names": [line.name for line in lines], "note": note})
    return charts


def _examples(
    params: Params, paths: Paths, table: pd.DataFrame, per_video: pd.DataFrame, shelf: Shelf
) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """Examples of both settings, and how many of each do not fit; the settings take turns, so that both are shown."""
    pairs, stores = read_pairs(paths), Stores(paths)
    rates = table.set_index("clip")["fps"].to_dict()
    per_video = per_video.astype({"pair": str})
    chosen = {setting: choose(pairs, per_video, setting, params.report.examples) for setting in ("self", "cross")}
    made: dict[str, list[Example]] = {setting: [] for setting in chosen}
    for number in range(max(map(len, chosen.values()))):
        for setting, rows in chosen.items():
            if number < len(rows) and not shelf.full:
                pair = rows[number]
                rate = float(rates.get(pair["driving_clip"], 25.0))
                figures = per_video[per_video["pair"] == pair["pair"]]
                made[setting].append(make_example(pair, stores, params, rate, figures, shelf))
    return made, {setting: len(rows) - len(made[setting]) for setting, rows in chosen.items()}


def _masks(paths: Paths, table: pd.DataFrame, shelf: Shelf) -> tuple[list[Picture], list[tuple[str, str]]]:
    """The middle frame of some clips, outlined and in label colours, and the colours' legend (name, CSS colour)."""
    store = open_store(paths.masks)
    frames, head, labels = array(open_store(paths.clips), "frames"), array(store, "head"), array(store, "labels")
    done = np.asarray(array(store, "done")[:])
    rows = [row for row in records(table[table["status"] == "ok"].sort_values("row")) if done[int(row["row"])]]
    pictures, seen = [], set()
    for index in frame_indices(len(rows), MASKS_SHOWN) if rows else []:
        clip, number = rows[index]["clip"], int(rows[index]["row"])
        middle = frames.shape[1] // 2
        mask, image = np.asarray(head[number]), np.asarray(frames[number])[middle]
        classes = np.asarray(labels[number])[middle]
        seen |= {int(label) for label in np.unique(classes)}
        outline = shrink(outlined(image[None], mask[middle][None])[0])
        colours = shrink(colour_labels(classes).repeat(2, axis=0).repeat(2, axis=1))
        both = shelf.image(np.concatenate([outline, colours], axis=1))
        pictures.append(Picture(f"{clip}, head {mask.mean():.0%}", f"head mask and labels of clip {clip}", both))
    legend = [
        (NAMES[label], "#" + bytes(COLOURS[label].tolist()).hex()) for label in sorted(seen) if label < len(NAMES)
    ]
    return pictures, legend


def _samples(paths: Paths, shelf: Shelf) -> list[Picture]:
    """What the networks of each training made of some samples at its end."""
    found = []
    for stage, title in TRAINED.items():
        files = sorted(paths.checkpoint(stage).glob(SAMPLES))
        if files:
            step = int(files[-1].stem.removeprefix("step_"))
            picture = shelf.image(read_picture(files[-1], SAMPLES_PX), 85)
            found.append(Picture(f"{title}, step {step}", f"samples of the training, {title}, step {step}", picture))
    return found


def _sheets(params: Params, paths: Paths, table: pd.DataFrame, shelf: Shelf) -> list[Picture]:
    """The sheets of `head3d inspect CLIP` of some test clips."""
    good = table[(table["status"] == "ok") & (table["split"] == "test")].sort_values("row")
    names = [str(name) for name in good["clip"]]
    return [
        Picture(
            names[index],
            f"clip {names[index]}: frames, labels, the head mask's outline, its area and change over time, measures",
            shelf.image(inspect_clip(paths, names[index], SHEET_FRAMES, params.quality), 80),
        )
        for index in (frame_indices(len(names), SHEETS_SHOWN) if names else [])
    ]


def _counts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the clip table by status and reason."""
    groups = table.groupby(["status", "reason"], sort=True).size().reset_index(name="count")
    return records(groups.sort_values("count", ascending=False))
