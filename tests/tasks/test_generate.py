"""Pairs, generated frames, and the trained model on files of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
import zarr
from PIL import Image

from models.config import Params
from tasks import canonical, fusion, generate, geometry, parse
from tasks.animate import Limits, animate
from tasks.clip_data import load_clips
from tasks.errors import StageError
from tasks.export_head import export_head
from tasks.novel_view import novel_views
from tasks.pairs import choose_pairs
from tasks.paths import Paths
from tasks.stores import array
from tasks.video import iterate_frames, probe, write_video
from tests.tasks.rendered import make_clip_store, rendered_clip
from tests.tasks.test_training import settings

LIMITS = Limits(settings().quality, settings().notices)


def table(videos: int, segments: int, test: int) -> pd.DataFrame:
    rows = [
        {
            "clip": f"v{v}_{s}",
            "video": f"v{v}",
            "segment": s,
            "row": v * segments + s,
            "dataset": "demo",
            "identity": f"p{v // 2}",
            "split": "test" if v // 2 < test else "train",
        }
        for v in range(videos)
        for s in range(segments)
    ]
    return pd.DataFrame(rows)


def config(**changes: object):
    return settings().generate.model_copy(update={"self_pairs": 0, "cross_pairs": 7, **changes})


def test_self_pairs_are_two_clips_of_one_video():
    pairs = choose_pairs(table(8, 2, test=2), 40, config())
    own = pairs[pairs["setting"] == "self"]
    assert len(own) == 4
    assert (own["subject_clip"].str[:-2] == own["driving_clip"].str[:-2]).all()
    assert (own["subject_clip"] != own["driving_clip"]).all()
    assert own["seen_in_training"].sum() == 0


def test_cross_pairs_are_different_people_and_nobody_comes_too_often():
    pairs = choose_pairs(table(12, 2, test=3), 40, config())
    cross = pairs[pairs["setting"] == "cross"]
    assert len(cross) == 7
    assert (cross["subject_identity"] != cross["driving_identity"]).all()
    assert cross["subject_identity"].value_counts().max() <= 3
    assert cross["index"].tolist() == list(range(7))


def test_pairs_are_seeded():
    one, two, other = (choose_pairs(table(12, 2, 3), 40, config(seed=seed)) for seed in (1, 1, 2))
    assert one.equals(two)
    assert not one.equals(other)


def test_without_test_people_training_clips_are_marked():
    pairs = choose_pairs(table(2, 2, test=0), 40, config())
    assert (pairs["seen_in_training"] == 1).all()
    assert set(pairs["setting"]) == {"self"}  # one person only: nothing to cross


def test_the_reference_is_first_and_frames_do_not_repeat():
    for reference in (0, 7, 39):
        frames = generate.references_with(reference, 40, 5).tolist()
        assert frames[0] == reference
        assert len(set(frames)) == 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Paths]:
    """A trained model of a few steps and what it generates."""
    paths = make_clip_store(tmp_path_factory.mktemp("generate"), 6, set(), frames=4, size_px=48)
    rows = pd.read_parquet(paths.clip_table)
    rows["segment"], rows["fps"] = (rows["row"] - 1) // 3, 25.0
    rows["video"] = rows["identity"]
    rows.to_parquet(paths.clip_table)
    params = settings()
    for stage, run in (("parse", parse.run), ("geometry", geometry.run), ("canonical", canonical.run)):
        run(params, paths, stage)
    fusion.run(params, paths, "fusion")
    generate.run(params, paths, "generate")
    return params, paths


def test_every_pair_has_frames_video_and_head(finished: tuple[Params, Paths]):
    _, paths = finished
    pairs = pd.read_csv(paths.generated / "pairs.csv")
    frames = zarr.open_group(paths.generated / "frames.zarr", mode="r")
    assert set(pairs["setting"]) == {"self", "cross"}
    for method in ("head3d", "mean_canonical", "copy_reference"):
        for pair in pairs.to_dict("records"):
            setting, name = str(pair["setting"]), str(pair["pair"])
            video = paths.generated / "videos" / method / setting / f"{name}.mp4"
            assert probe(video).frames == 4
            assert np.asarray(array(frames, f"{method}/{setting}")[int(pair["index"])]).std() > 1
            head = paths.generated / "canonical" / method / setting / f"{name}.png"
            assert head.is_file() == (method != "copy_reference")


def test_the_copy_is_the_reference_frame_bit_for_bit(finished: tuple[Params, Paths]):
    _, paths = finished
    pairs = pd.read_csv(paths.generated / "pairs.csv")
    clips = load_clips(paths, None, torch.device("cpu"), with_geometry=False)
    frames = zarr.open_group(paths.generated / "frames.zarr", mode="r")
    pair = pairs[pairs["setting"] == "self"].iloc[0]
    reference = clips.frames[clips.index_of(pair["subject_clip"]), pair["reference_frame"]].permute(1, 2, 0).numpy()
    stored = np.asarray(array(frames, "copy_reference/self")[int(pair["index"])])
    assert (stored == reference).all()


def test_a_killed_run_goes_on_with_the_next_video(finished: tuple[Params, Paths], monkeypatch: pytest.MonkeyPatch):
    params, paths = finished
    lost = paths.generated / "videos" / "head3d" / "cross" / "cross_001.mp4"
    before = lost.read_bytes()
    lost.unlink()
    made: list[str] = []
    real = generate.render_pair

    def counted(*words: Any) -> Any:
        made.append("one")
        return real(*words)

    monkeypatch.setattr(generate, "render_pair", counted)
    generate.run(params, paths, "generate")
    assert len(made) == 1
    assert lost.read_bytes() == before


def test_animate_moves_a_new_video(finished: tuple[Params, Paths], tmp_path: Path):
    _, paths = finished
    for name, person in (("subject", 4), ("driving", 5)):
        write_video(tmp_path / f"{name}.mp4", np.repeat(rendered_clip(person, 4, 160).frames, 3, axis=0), 25.0)
    for mode in ("absolute", "relative"):
        out = tmp_path / f"{mode}.mp4"
        summary = animate(
            tmp_path / "subject.mp4",
            tmp_path / "driving.mp4",
            out,
            checkpoints=paths.data / "checkpoints",
            device="cpu",
            mode=mode,
            references=3,
            limits=LIMITS,
            pick="spread" if mode == "relative" else "even",
        )
        frames = np.concatenate(list(iterate_frames(out)))
        assert frames.shape == (12, 48, 48, 3)
        assert summary["frames"] == 12
    with pytest.raises(StageError, match="is not trained"):
        animate(
            tmp_path / "subject.mp4",
            tmp_path / "driving.mp4",
            tmp_path / "x.mp4",
            checkpoints=tmp_path,
            device="cpu",
            mode="absolute",
            references=3,
            limits=LIMITS,
        )


def test_a_new_video_becomes_a_mesh_and_novel_views(finished: tuple[Params, Paths], tmp_path: Path):
    _, paths = finished
    video = tmp_path / "subject.mp4"
    write_video(video, np.repeat(rendered_clip(4, 4, 160).frames, 2, axis=0), 25.0)
    options: dict[str, Any] = {
        "checkpoints": paths.data / "checkpoints",
        "device": "cpu",
        "references": 3,
        "limits": LIMITS,
    }
    summary = export_head(video, tmp_path / "head.glb", **options, pick="spread")
    mesh = trimesh.load_mesh(tmp_path / "head.glb")
    assert summary["triangles"] == len(mesh.faces) > 100
    visual: Any = mesh.visual
    assert np.asarray(visual.material.baseColorTexture.convert("RGB")).std() > 5
    assert novel_views(video, tmp_path / "turn.mp4", {"yaw": "-20:20:10", "pitch": "5"}, **options)["views"] == 5
    frames = np.concatenate(list(iterate_frames(tmp_path / "turn.mp4")))
    assert frames.shape == (5, 48, 48, 3)
    novel_views(video, tmp_path / "turn.png", {"yaw": "20:-20:10"}, **options)
    assert Image.open(tmp_path / "turn.png").width > 5 * 128
    with pytest.raises(StageError, match=r"turn\.gif: views are written as"):
        novel_views(video, tmp_path / "turn.gif", {"yaw": "0"}, **options)
