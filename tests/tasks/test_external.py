"""Videos made elsewhere: taken in, checked, reported when they are missing, and named like any other method."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from PIL import Image

from models.config import ConfigError, Params, load_params
from tasks import evaluate, external
from tasks.errors import StageError
from tasks.external import UnusableError, read_video, take_in
from tasks.generated import missing_videos, read_pairs
from tasks.methods import METHODS, method_name
from tasks.pair_inputs import write_inputs
from tasks.pairs import choose_pairs
from tasks.stores import array, open_store
from tasks.video import read_frames, write_video
from tests.tasks.factory import PRESET, Project, head_clip, make_params, make_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A generated set, and a folder `elsewhere` with videos of three of the four cross pairs."""
    made = make_project(tmp_path, frames=6, cross=4)
    group = zarr.open_group(made.paths.generated / "frames.zarr", mode="a")
    for setting, count in (("self", 4), ("cross", 4)):
        group.create_array(f"fomm/{setting}", shape=(count, 6, 32, 32, 3), chunks=(1, 6, 32, 32, 3), dtype="uint8")
    for index in range(3):
        frames, _ = head_clip(index, 0.3, 6, 64)  # another size
        write_video(tmp_path / "elsewhere" / "cross" / f"cross_00{index}.mp4", frames, 30.0)
    return made


def take(project: Project, tmp_path: Path) -> dict[str, int]:
    pairs = read_pairs(project.paths)
    group = zarr.open_group(project.paths.generated / "frames.zarr", mode="a")
    fps = dict.fromkeys(pairs["driving_clip"], 25.0)
    return take_in({"fomm": str(tmp_path / "elsewhere")}, pairs, project.paths.generated, group, fps)


def test_videos_become_a_method_like_any_other(project: Project, tmp_path: Path) -> None:
    assert take(project, tmp_path) == {"external_videos_fomm": 3, "external_missing_fomm": 5}
    frames = array(zarr.open_group(project.paths.generated / "frames.zarr", mode="r"), "fomm/cross")
    wanted, _ = head_clip(1, 0.3, 6, 64)
    small = wanted.reshape(6, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(np.asarray(frames[1]).astype(float) - small).mean() < 6  # it went through H.264
    video = project.paths.generated / "videos" / "fomm" / "cross" / "cross_001.mp4"
    assert read_frames(video).shape == (6, 32, 32, 3)
    assert ("fomm", "cross_003") in missing_videos(project.paths)
    assert ("fomm", "cross_001") not in missing_videos(project.paths)
    table = pd.read_csv(project.paths.generated / "external.csv", dtype=str, keep_default_na=False)
    assert set(table.loc[table["status"] == "missing", "reason"]) == {"missing"}


def test_unchanged_videos_stay_and_late_ones_are_taken_in(project: Project, tmp_path: Path) -> None:
    take(project, tmp_path)
    folder = project.paths.generated / "videos" / "fomm" / "cross"
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    other, _ = head_clip(7, 0.1, 6, 32)
    write_video(tmp_path / "elsewhere" / "cross" / "cross_000.mp4", other, 25.0)
    write_video(tmp_path / "elsewhere" / "cross_003.mp4", other, 25.0)  # without the folder `cross`
    (tmp_path / "elsewhere" / "cross" / "cross_002.mp4").unlink()
    assert take(project, tmp_path)["external_videos_fomm"] == 3
    assert {path.name for path in folder.iterdir()} == {"cross_000.mp4", "cross_001.mp4", "cross_003.mp4"}
    assert (folder / "cross_001.mp4").stat().st_mtime_ns == stamps["cross_001.mp4"]
    assert np.abs(read_frames(folder / "cross_000.mp4").astype(float) - other).mean() < 9  # H.264 twice


@pytest.mark.parametrize(
    ("frames", "width", "reason"), [(5, 32, "5 frames"), (7, 32, "more than the 6"), (6, 48, "48 x 32 pixels")]
)
def test_a_video_that_does_not_fit_is_refused(tmp_path: Path, frames: int, width: int, reason: str) -> None:
    path = tmp_path / "one.mp4"
    write_video(path, np.zeros((frames, 32, width, 3), np.uint8), 25.0)
    with pytest.raises(UnusableError, match=reason):
        read_video(path, 6, 32)
    path.write_bytes(b"\0not a video")
    with pytest.raises(UnusableError, match="cannot be read"):
        read_video(path, 6, 32)


def test_a_folder_that_is_not_there_says_what_to_do(project: Project, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"generate\.external\.fomm: .* is not a folder"):
        external.take_in({"fomm": str(tmp_path / "none")}, read_pairs(project.paths), tmp_path, zarr.group(), {})


def test_only_what_is_there_is_measured(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    take(project, tmp_path)
    section = project.params.generate.model_copy(update={"methods": ["head3d", "fomm", "copy_reference"]})
    evaluate.run(project.params.model_copy(update={"generate": section}), project.paths, "f")
    table = pd.read_csv(project.paths.metrics / "per_video.csv")
    assert table[table["method"] == "fomm"]["pair"].tolist() == ["cross_000", "cross_001", "cross_002"]


def test_inputs_are_what_another_method_needs(project: Project, tmp_path: Path) -> None:
    counts = write_inputs(project.paths, tmp_path / "out", as_frames=False)
    assert counts == {"pairs": 7, "cross": 4, "self": 3}  # one pair failed
    truth = array(open_store(project.paths.clips), "frames")
    for row in pd.read_csv(tmp_path / "out" / "pairs.csv").to_dict("records"):
        pair = read_pairs(project.paths).set_index("pair").loc[row["pair"]]
        made = read_frames(tmp_path / "out" / "driving" / f"{row['pair']}.mp4").astype(float)
        assert np.abs(made - np.asarray(truth[int(pair["driving_row"])])).mean() < 8  # colours at half size
        with Image.open(tmp_path / "out" / "reference" / f"{row['pair']}.png") as image:
            assert (np.asarray(image) == np.asarray(truth[int(pair["subject_row"])])[row["reference_frame"]]).all()
    assert len(list((tmp_path / "out" / "subject").iterdir())) == 7


def test_frames_go_out_and_come_back_without_loss(project: Project, tmp_path: Path) -> None:
    write_inputs(project.paths, tmp_path / "out", as_frames=True)
    shutil.rmtree(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "out" / "driving", tmp_path / "elsewhere")  # a method that copies the driving video
    assert take(project, tmp_path) == {"external_videos_fomm": 7, "external_missing_fomm": 1}
    row = read_pairs(project.paths).set_index("pair").at["cross_002", "driving_row"]
    truth = np.asarray(array(open_store(project.paths.clips), "frames")[int(str(row))])
    group = zarr.open_group(project.paths.generated / "frames.zarr", mode="r")
    assert (np.asarray(array(group, "fomm/cross")[2]) == truth).all()
    (tmp_path / "elsewhere" / "cross_002" / "0003.png").write_bytes(b"no picture")
    with pytest.raises(UnusableError, match="5 frames"):
        read_video(tmp_path / "elsewhere" / "cross_002", 6, 32)


@pytest.mark.parametrize("name", ["{}.png", "{:04d}.png", "frame_{}_of_12.png"])
def test_frames_are_read_in_the_order_of_their_numbers(tmp_path: Path, name: str) -> None:
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(tmp_path / name.format(number))
    assert (read_video(tmp_path, 12, 8)[:, 0, 0, 0] // 20).tolist() == list(range(12))


def settings_with(tmp_path: Path, methods: str, folders: str) -> Params:
    text = PRESET.read_text(encoding="utf-8").replace("  external: {}", f"  external: {folders}")
    first = next(line for line in text.splitlines() if line.startswith("  methods: "))
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(first, f"  methods: {methods}"), encoding="utf-8")
    return load_params(path)


def test_names_stand_in_both_lists_and_hide_none_of_ours(tmp_path: Path) -> None:
    params = settings_with(tmp_path, "[head3d, fomm]", "{fomm: elsewhere}")
    assert json.loads(params.model_dump_json())["generate"]["external"] == {"fomm": "elsewhere"}
    assert METHODS["fomm"].in_study
    assert method_name("fomm") == "fomm"
    for methods, folders, wrong in (
        ("[head3d, fom]", "{fomm: elsewhere}", "did you mean 'fomm'"),
        ("[head3d]", "{fomm: elsewhere}", "add it to generate.methods"),
        ("[head3d, mean_canonical]", "{mean_canonical: elsewhere}", "must be a new name"),
        ("[head3d, ../up]", "{../up: elsewhere}", "must be a new name"),
    ):
        with pytest.raises(ConfigError, match=wrong):
            settings_with(tmp_path, methods, folders)


def test_cross_pairs_are_of_one_dataset_and_as_many_of_each() -> None:
    rows = [
        {"clip": f"{dataset}{n}_0", "video": f"{dataset}{n}", "segment": 0, "row": n, "dataset": dataset,
         "identity": f"{dataset}{n}", "split": "test"}
        for dataset, people in (("alpha", 5), ("beta", 3))
        for n in range(people)
    ]  # fmt: skip
    config = make_params(generate={"cross_pairs": 7}).generate
    pairs = choose_pairs(pd.DataFrame(rows), 6, config)
    assert pairs["dataset"].value_counts().to_dict() == {"alpha": 7, "beta": 7}
    assert (pairs["subject_clip"].str[:4] == pairs["driving_clip"].str[:4]).all()
    lonely = choose_pairs(pd.DataFrame([rows[0], rows[-1]]), 6, config)
    assert len(lonely) == 7
