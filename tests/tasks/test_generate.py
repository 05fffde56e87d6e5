"""Pairs, generated frames, and the trained model on files of its own."""

from __future__ import annotations

import json
import shutil
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
import zarr
from PIL import Image

from models.canonical import HeadLayer
from models.config import MethodName, Params
from models.engine import Engine
from tasks import canonical, fusion, generate, geometry, parse
from tasks.animate import Limits, Wanted, animate
from tasks.clip_data import load_clips
from tasks.errors import StageError
from tasks.export_head import export_head
from tasks.frames import to_uint8
from tasks.generated import SECONDS
from tasks.methods import METHODS
from tasks.novel_view import ON_BLACK, novel_views
from tasks.pairs import choose_pairs
from tasks.paths import Paths
from tasks.stores import array
from tasks.trained import load_model, load_without_head
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


def test_a_larger_n_only_adds_frames_and_s_ref_is_always_the_first():
    for reference in (0, 7, 39):
        sets = [generate.reference_frames(reference, 40, count, seed=0).tolist() for count in (1, 3, 5, 10)]
        assert sets[0] == [reference]
        assert [len(set(frames)) for frames in sets] == [1, 3, 5, 10]
        for small, large in pairwise(sets):
            assert large[: len(small)] == small
    other = generate.reference_frames(7, 40, 10, seed=1).tolist()
    assert other[0] == 7
    assert other != generate.reference_frames(7, 40, 10, seed=0).tolist()
    assert sorted(generate.reference_frames(2, 4, 10, seed=0).tolist()) == [0, 1, 2, 3]


def with_methods(params: Params, *methods: MethodName) -> Params:
    return params.model_copy(update={"generate": params.generate.model_copy(update={"methods": list(methods)})})


FIRST: tuple[MethodName, ...] = ("head3d", "head3d_n1", "mean_canonical", "no_driving_head", "copy_reference")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Paths]:
    """A trained model of a few steps and what it generates."""
    paths = make_clip_store(tmp_path_factory.mktemp("generate"), 6, set(), frames=4, size_px=48)
    rows = pd.read_parquet(paths.clip_table)
    rows["segment"], rows["fps"] = (rows["row"] - 1) // 3, 25.0
    rows["video"] = rows["identity"]
    rows.to_parquet(paths.clip_table)
    params = with_methods(settings(), *FIRST)
    params = params.model_copy(update={"fusion": params.fusion.model_copy(update={"without_head_steps": 2})})
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
    for method in FIRST:
        for pair in pairs.to_dict("records"):
            setting, name = str(pair["setting"]), str(pair["pair"])
            if setting not in METHODS[method].settings:
                assert f"{method}/{setting}" not in frames
                continue
            video = paths.generated / "videos" / method / setting / f"{name}.mp4"
            assert probe(video).frames == 4
            assert np.asarray(array(frames, f"{method}/{setting}")[int(pair["index"])]).std() > 1
            head = paths.generated / "canonical" / method / setting / f"{name}.png"
            assert head.is_file() == (method not in ("copy_reference", "no_driving_head"))


def test_the_copy_is_the_reference_frame_bit_for_bit(finished: tuple[Params, Paths]):
    _, paths = finished
    pairs = pd.read_csv(paths.generated / "pairs.csv")
    clips = load_clips(paths, None, torch.device("cpu"), with_geometry=False)
    frames = zarr.open_group(paths.generated / "frames.zarr", mode="r")
    pair = pairs[pairs["setting"] == "self"].iloc[0]
    reference = clips.frames[clips.index_of(pair["subject_clip"]), pair["reference_frame"]].permute(1, 2, 0).numpy()
    stored = np.asarray(array(frames, "copy_reference/self")[int(pair["index"])])
    assert (stored == reference).all()


def test_the_engines_videos_are_those_of_the_plain_model(finished: tuple[Params, Paths]):
    params, paths = finished
    clips = load_clips(paths, None, torch.device("cpu"), with_geometry=False)
    model = load_model(paths.data / "checkpoints", torch.device("cpu"))
    models = {True: model, False: load_without_head(model, paths.data / "checkpoints")}
    frames = zarr.open_group(paths.generated / "frames.zarr", mode="r")
    pair = pd.read_csv(paths.generated / "pairs.csv").query("setting == 'self'").iloc[0]
    subject, driving = (clips.index_of(pair[name]) for name in ("subject_clip", "driving_clip"))
    for method in ("head3d", "no_driving_head"):
        one = models[METHODS[method].driving_head]
        state = generate.make_subject(
            Engine(one), clips, subject, int(pair["reference_frame"]), params.generate, method
        )
        expected = to_uint8(one.drive(state, clips.images(driving), clips.head[driving].float()).image)
        stored = np.asarray(array(frames, f"{method}/self")[int(pair["index"])])
        assert np.abs(stored.astype(int) - expected).max() <= 1


def count_renders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the videos that are rendered from now on."""
    made: list[str] = []
    real = generate.render_pair

    def counted(*words: Any) -> Any:
        made.append(words[5])
        return real(*words)

    monkeypatch.setattr(generate, "render_pair", counted)
    return made


def test_n_changes_the_canonical_head_and_never_s_ref(finished: tuple[Params, Paths], monkeypatch: pytest.MonkeyPatch):
    params, paths = finished
    engine = Engine(load_model(paths.data / "checkpoints", torch.device("cpu")))
    clips = load_clips(paths, None, torch.device("cpu"), with_geometry=False)
    names: tuple[MethodName, ...] = ("head3d_n1", "head3d_n3", "head3d", "mean_canonical")
    config = params.generate.model_copy(update={"references": 2})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default, which must not reach a figure
    rounded: list[bool] = []
    engine.model.depth.register_forward_hook(lambda *_: rounded.append(torch.backends.cudnn.allow_tf32))
    one, three, two, mean = (generate.make_subject(engine, clips, 0, 3, config, name) for name in names)
    assert rounded == 4 * [False]
    for state in (one, three, two, mean):
        assert torch.equal(state.reference, clips.images(0, slice(3, 4)))
        assert torch.allclose(state.reference_pose.angles_deg, one.reference_pose.angles_deg, atol=1e-4)
    heads = [one.head.image, two.head.image, three.head.image, mean.head.image]
    for first, second in combinations(heads, 2):
        assert (first - second).abs().max() > 1e-4
    more = config.model_copy(update={"references": 3})
    mean_of_three = generate.make_subject(engine, clips, 0, 3, more, "mean_canonical")
    assert (mean_of_three.head.mask >= mean.head.mask).all()  # a frame more sees more of the head


def test_without_the_driving_head_nothing_of_it_reaches_the_output(finished: tuple[Params, Paths]):
    _, paths = finished
    model = load_model(paths.data / "checkpoints", torch.device("cpu"))
    without = load_without_head(model, paths.data / "checkpoints")
    *images, reference, driving = torch.rand(4, 1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    head, other = (HeadLayer(image, torch.ones(1, 1, 48, 48)) for image in images)
    with torch.no_grad():
        one, two = (without.fusion(image, reference, driving) for image in (head, other))
        assert torch.equal(one.image, two.image)
        assert (one.maps.attention[:, 0] == 0).all()
        assert torch.allclose(one.maps.attention.sum(1), torch.ones(1), atol=1e-5)
        assert not torch.equal(without.fusion(head, reference, images[1]).image, one.image)
        assert not torch.equal(model.fusion(head, reference, driving).image, one.image)
        assert not torch.equal(
            model.fusion(head, reference, driving).image, model.fusion(other, reference, driving).image
        )


def test_every_video_has_its_seconds(finished: tuple[Params, Paths]):
    params, paths = finished
    seconds = pd.read_csv(paths.metrics / SECONDS)
    pairs = pd.read_csv(paths.generated / "pairs.csv")
    own = pairs[pairs["setting"] == "self"]
    assert len(seconds) == len(pairs) * (len(FIRST) - 1) + len(own)
    assert (seconds["seconds_per_frame"] > 0).all()
    summary = generate.run(params, paths, "generate")  # everything is there: what was measured stays
    assert pd.read_csv(paths.metrics / SECONDS).equals(seconds)
    middle = seconds[seconds["method"] == "head3d"]["seconds_per_frame"].median()
    assert summary["seconds_per_frame_head3d"] == pytest.approx(middle, rel=1e-4)


def test_an_added_method_makes_only_its_own_videos_and_one_taken_out_goes(
    finished: tuple[Params, Paths], monkeypatch: pytest.MonkeyPatch
):
    params, paths = finished
    kept = {path: path.stat().st_mtime_ns for path in (paths.generated / "videos" / "head3d").rglob("*.mp4")}
    made = count_renders(monkeypatch)
    changed: list[MethodName] = [name for name in FIRST if name != "mean_canonical"]
    generate.run(with_methods(params, *changed, "head3d_n3"), paths, "generate")
    own = len(pd.read_csv(paths.generated / "pairs.csv").query("setting == 'self'"))
    assert made == ["head3d_n3"] * own
    assert not list(paths.generated.rglob("mean_canonical"))
    assert "mean_canonical" not in zarr.open_group(paths.generated / "frames.zarr", mode="r")
    assert set(pd.read_csv(paths.metrics / SECONDS)["method"]) == {*changed, "head3d_n3"}
    generate.run(params, paths, "generate")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_only_the_clips_of_the_pairs_are_read(
    finished: tuple[Params, Paths], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    params, paths = finished
    everything = load_clips(paths, None, torch.device("cpu"), with_geometry=False)
    two = load_clips(paths, None, torch.device("cpu"), with_geometry=False, only={"clip5_0", "clip3_0"})
    assert two.table["clip"].tolist() == ["clip3_0", "clip5_0"]
    for name in two.table["clip"]:
        one, same = two.index_of(name), everything.index_of(name)
        for part in ("frames", "head", "landmarks"):
            assert torch.equal(getattr(two, part)[one], getattr(everything, part)[same])
    read: list[int] = []
    made: list[np.ndarray] = []
    for pairs_only in (True, False):

        def counted(where: Paths, split: None, device: torch.device, pairs_only: bool = pairs_only, **more: Any) -> Any:
            clips = load_clips(where, split, device, **(more if pairs_only else {**more, "only": None}))
            read.append(len(clips))
            return clips

        monkeypatch.setattr(generate, "load_clips", counted)
        without = shutil.ignore_patterns("generated")
        fresh = Paths(shutil.copytree(paths.data, tmp_path / str(pairs_only), ignore=without))
        changes = {"methods": ["head3d", "copy_reference"], "self_pairs": 1, "cross_pairs": 0}
        section = params.generate.model_copy(update=changes)
        generate.run(params.model_copy(update={"generate": section}), fresh, "one pair")
        frames = zarr.open_group(fresh.generated / "frames.zarr", mode="r")
        made.append(np.stack([array(frames, f"{method}/self")[0] for method in ("head3d", "copy_reference")]))
    assert read == [2, len(everything)]
    assert (made[0] == made[1]).all()


def test_videos_made_elsewhere_join_and_nothing_is_made_again(
    finished: tuple[Params, Paths], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    params, paths = finished
    made = count_renders(monkeypatch)
    pairs = pd.read_csv(paths.generated / "pairs.csv")
    for name in pairs.query("setting == 'cross'")["pair"][1:]:
        write_video(tmp_path / "cross" / f"{name}.mp4", np.full((4, 48, 48, 3), 90, np.uint8), 25.0)
    with_external = with_methods(params, *FIRST)
    changes = {"methods": [*FIRST, "fomm"], "external": {"fomm": str(tmp_path)}}
    section = params.generate.model_copy(update=changes)
    summary = generate.run(with_external.model_copy(update={"generate": section}), paths, "generate")
    assert made == []
    counts = pairs["setting"].value_counts()
    assert summary["external_videos_fomm"] == counts["cross"] - 1
    assert summary["external_missing_fomm"] == counts["self"] + 1
    frames = zarr.open_group(paths.generated / "frames.zarr", mode="r")
    assert abs(float(np.asarray(array(frames, "fomm/cross")[1]).mean()) - 90) < 3
    generate.run(params, paths, "generate")
    assert made == []
    assert not list(paths.generated.rglob("fomm"))


def test_a_killed_run_goes_on_with_the_next_video(finished: tuple[Params, Paths], monkeypatch: pytest.MonkeyPatch):
    params, paths = finished
    lost = paths.generated / "videos" / "head3d" / "cross" / "cross_001.mp4"
    before = lost.read_bytes()
    lost.unlink()
    made = count_renders(monkeypatch)
    generate.run(params, paths, "generate")
    assert made == ["head3d"]
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
            wanted=Wanted("cpu", mode, 3, "spread" if mode == "relative" else "even"),
            limits=LIMITS,
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
            wanted=Wanted("cpu", "absolute", 3),
            limits=LIMITS,
        )


@pytest.mark.parametrize(
    ("weight", "on_backdrop", "told"), [(0.0, False, False), (1.0, True, False), (1.0, False, True)]
)
def test_a_head_on_black_is_not_to_be_trusted_where_regions_are_held_to_parts(
    finished: tuple[Params, Paths], tmp_path: Path, weight: float, on_backdrop: bool, told: bool
):
    checkpoints = shutil.copytree(finished[1].data / "checkpoints", tmp_path / "checkpoints")
    file = checkpoints / "fusion" / "config.json"
    config = json.loads(file.read_text())
    config["fusion"]["parts_weight"] = weight
    file.write_text(json.dumps(config))
    video = tmp_path / "subject.mp4"
    write_video(video, rendered_clip(4, 4, 160).frames, 25.0)
    options: dict[str, Any] = {"checkpoints": checkpoints, "device": "cpu", "references": 3, "limits": LIMITS}
    summary = novel_views(video, tmp_path / "one.png", {"yaw": "5"}, on_backdrop=on_backdrop, **options)
    assert (ON_BLACK in summary["notices"]) == told


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
    novel_views(video, tmp_path / "plain.png", {"yaw": "20:-20:10"}, on_backdrop=False, **options)
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "turn.png").read_bytes()
    assert Image.open(tmp_path / "turn.png").width > 5 * 128
    with pytest.raises(StageError, match=r"turn\.gif: views are written as"):
        novel_views(video, tmp_path / "turn.gif", {"yaw": "0"}, **options)
