"""One self-contained HTML file: what was run, how good it is, and what it looks like."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch
import yaml

from models.config import Params
from tasks.charts import Line, line_chart
from tasks.device import choose_device
from tasks.errors import StageError
from tasks.generated import read_pairs, records
from tasks.labels import COLOURS, NAMES
from tasks.methods import OURS
from tasks.paths import Paths
from tasks.report_attention import attention_section
from tasks.report_examples import Example, Picture, Stores, choose, make_example, small
from tasks.report_failures import failure_section
from tasks.report_media import frame_indices, image_uri, outlined, shrink
from tasks.report_tables import FIGURE_NAMES, ablations, motion, results
from tasks.sheets import colour_labels
from tasks.stores import array, open_store

STAGES = ("acquire", "crop", "parse", "geometry", "canonical", "fusion", "generate", "evaluate", "study")
TRAINED = {
    "geometry": "Stage 1: geometry (Eq. 4)",
    "canonical": "Stage 2: canonical head (Eq. 6)",
    "fusion": "Stage 3: fusion (Eq. 8)",
}
PACKAGES = (
    "torch", "torchvision", "lpips", "numpy", "pandas", "zarr", "av", "decord", "facenet-pytorch", "dvc", "prefect",
)  # fmt: skip
MASKS_SHOWN = 12
REFUSED_SHOWN = 100


def run(params: Params, paths: Paths, fingerprint: str) -> dict[str, Any]:
    """Write `report/index.html`.

    Args:
        params: All settings.
        paths: Where the data lies.
        fingerprint: Shown at the end of the report, so that a file can be told from another run's.

    Returns:
        The file's size and how many examples and inputs it shows.

    Raises:
        StageError: A table that it needs is missing.
    """
    table = _read(paths.clip_table, "crop")
    per_video = _read(paths.metrics / "per_video.csv", "evaluate")
    figures = _read(paths.metrics / "table1.csv", "evaluate")
    summaries = _summaries(paths)
    examples = _examples(params, paths, table, per_video)
    masks, legend = _masks(paths, table)
    refused = table[table["status"] != "ok"]
    context = {
        "style": (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8"),
        "facts": _facts(params, paths, table),
        "tiles": _tiles(summaries, table),
        "results": results(figures),
        "ablations": ablations(_read(paths.metrics / "table3.csv", "evaluate"), params.generate.references),
        "motion": motion(per_video),
        "definitions": _definitions(summaries.get("evaluate", {})),
        "random_backbone": "lpips_random_backbone" in figures.columns,
        "worse_than_copy": (summaries.get("evaluate", {}).get("l2_ratio_to_copy") or 0) >= 1,
        "attention": attention_section(params, paths),
        "failures": failure_section(params, paths),
        "charts": _charts(paths),
        "examples": examples,
        "masks": masks,
        "labels": legend,
        "counts": _counts(table),
        "refused": records(refused[["video", "status", "reason", "detail"]].head(REFUSED_SHOWN)),
        "refused_total": len(refused),
        "times": _times(summaries),
        "study": summaries.get("study", {}),
        "summaries": summaries,
        "settings": yaml.safe_dump(params.model_dump(), sort_keys=False, allow_unicode=True),
        "environment": _environment(params),
        "fingerprint": fingerprint,
    }
    html = _template().render(context)
    shutil.rmtree(paths.report, ignore_errors=True)
    paths.report.mkdir(parents=True)
    target = paths.report / "index.html"
    target.write_text(html, encoding="utf-8")
    shown = {f"examples_{setting}": len(items) for setting, items in examples.items()}
    return {"report_mb": round(target.stat().st_size / 1e6, 2), **shown, "inputs_refused": len(refused)}


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


def _summaries(paths: Paths) -> dict[str, dict[str, Any]]:
    """What each stage said about itself, in the order of the pipeline."""
    found = {}
    for stage in STAGES:
        path = paths.metrics / f"{stage}.json"
        if path.is_file():
            found[stage] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _facts(params: Params, paths: Paths, table: pd.DataFrame) -> list[tuple[str, str]]:
    """What was run: lines of the header."""
    good = table[table["status"] == "ok"]
    people = good.groupby("split")["identity"].nunique()
    crop = params.crop
    facts = [
        ("Sources", ", ".join(params.acquire.sources)),
        ("People", ", ".join(f"{count} {split}" for split, count in people.items()) or "none"),
        ("Clips", f"{len(good)} of {crop.clip_frames} frames, {crop.size_px} x {crop.size_px} px"),
        ("Device", _device_name(params)),
        ("Revision", revision(paths.data.parent)),
    ]
    return [(name, value) for name, value in facts if value]


def revision(folder: Path) -> str:
    """Short git revision of the folder's checkout and whether tracked files are changed; empty without a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + (" + local changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _device_name(params: Params) -> str:
    device = choose_device(params.runtime.device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {os.cpu_count()} cores"


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
    tiles.append({"value": _duration(seconds), "label": "for all stages"})
    return tiles


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


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


def _examples(params: Params, paths: Paths, table: pd.DataFrame, per_video: pd.DataFrame) -> dict[str, list[Example]]:
    pairs = read_pairs(paths)
    stores = Stores(paths)
    rates = table.set_index("clip")["fps"].to_dict()
    per_video = per_video.astype({"pair": str})
    return {
        setting: [
            make_example(
                pair,
                stores,
                params,
                float(rates.get(pair["driving_clip"], 25.0)),
                per_video[per_video["pair"] == pair["pair"]],
            )
            for pair in choose(pairs, per_video, setting, params.report.examples)
        ]
        for setting in ("self", "cross")
    }


def _masks(paths: Paths, table: pd.DataFrame) -> tuple[list[Picture], list[tuple[str, str]]]:
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
        both = image_uri(np.concatenate([outline, colours], axis=1))
        pictures.append(Picture(f"{clip}, head {mask.mean():.0%}", f"head mask and labels of clip {clip}", both))
    legend = [
        (NAMES[label], "#" + bytes(COLOURS[label].tolist()).hex()) for label in sorted(seen) if label < len(NAMES)
    ]
    return pictures, legend


def _counts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the clip table by status and reason."""
    groups = table.groupby(["status", "reason"], sort=True).size().reset_index(name="count")
    return records(groups.sort_values("count", ascending=False))


def _times(summaries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    seconds = {
        stage: float(summary["seconds"]) for stage, summary in summaries.items() if summary.get("seconds") is not None
    }
    longest = max(seconds.values(), default=1.0) or 1.0
    return [
        {"stage": stage, "text": _duration(value), "bar": round(100 * value / longest, 1)}
        for stage, value in seconds.items()
    ]


def _environment(params: Params) -> list[tuple[str, str]]:
    found = [("Python", platform.python_version()), ("System", f"{platform.system()} {platform.machine()}")]
    found.append(("Device", _device_name(params)))
    for package in PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found
