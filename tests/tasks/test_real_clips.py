"""The program behind the figures on real people: pack, the three stages and how the last is judged, as one calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from tasks.clip_data import load_clips
from tests.tasks import real_clips
from tests.tasks.test_training import held_to_parts, parsed_clips, settings


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["real_clips", *map(str, words)])
    real_clips.main()


def test_packed_clips_are_trained_on_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    paths = parsed_clips(tmp_path / "data")
    table = pd.read_parquet(paths.clip_table)  # every person's two clips are of one video
    table["video"], table["segment"], table["fps"] = table["identity"], (table["row"] - 1) // 3, 25.0
    table["source"] = table["video"] + ".mp4"
    table.to_parquet(paths.clip_table)
    (tmp_path / "split.csv").write_text("clip,split\np0.mp4,test\np1.mp4,train\np2.mp4,train\nnobody.mp4,train\n")
    preset = tmp_path / "preset.yaml"
    preset.write_text(yaml.safe_dump(held_to_parts(settings()).model_dump(mode="json")))
    file, state = tmp_path / "clips.pkl", tmp_path / "state.pt"
    call(monkeypatch, "pack", paths.data, file, "--preset", preset, "--split", tmp_path / "split.csv")
    whole = load_clips(paths, None, torch.device("cpu"), with_geometry=False)
    tested = [index for index, person in enumerate(whole.table["identity"]) if person == "p0"]
    found = real_clips.unpack(file, "test", torch.device("cpu"))
    assert found.table["clip"].tolist() == whole.table["clip"][tested].tolist()
    torch.testing.assert_close(found.head, whole.head[tested])
    assert (found.frames.float() - whole.frames[tested].float()).abs().mean() < 4
    torch.testing.assert_close(found.landmarks, whole.landmarks[tested], equal_nan=True)
    capsys.readouterr()
    call(monkeypatch, "geometry", file, state, "--preset", preset)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["geometry_steps"] == 8
    assert {"corr_yaw", "head_l1_ratio"} <= set(figures)
    call(monkeypatch, "canonical", file, state, "--seconds", 0.5)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["canonical_steps"] >= 20
    assert 0.1 < figures["sharpness"] < 1.2
    assert abs(figures["gain_percent"]) < 50
    call(monkeypatch, "fuse", file, state, "one", "fusion.parts_steps=1", "--seconds", 1, "--out", tmp_path)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["settings"] == ["fusion.parts_steps=1"]
    assert figures["fusion_steps"] > 1
    assert 0 < figures["ratio"] < 100
    assert 0.01 < figures["decoder_share"] < 0.99
    assert (tmp_path / "one.png").stat().st_size > 1000
    assert list(pd.read_pickle(tmp_path / "one.pkl")) == ["p0"]


def test_it_needs_no_library_of_stores_or_videos():
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(['zarr', 'cv2', 'decord', 'av', 'dvc', 'prefect', 'lpips']))"
    )
    subprocess.run([sys.executable, "-c", f"{blocked}; import tests.tasks.real_clips"], check=True)
