"""Settings: strict, whole, and helpful when wrong."""

import copy
from pathlib import Path

import pytest
import yaml

from models.config import ConfigError, Params, build, load_params
from models.config_rules import broken_rules

SHIPPED = Path(__file__).parents[2] / "params.yaml"


def values() -> dict:
    return copy.deepcopy(yaml.safe_load(SHIPPED.read_text()))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("crop", "sizepx", 64, "did you mean 'crop.size_px'"),
        ("geometry", "lambda_symm", 0.1, "did you mean 'geometry.lambda_sym'"),
        ("crop", "size_px", "64", "crop.size_px"),
        ("acquire", "test_fraction", 1.5, "acquire.test_fraction"),
        ("parse", "parser", "magic", "parse.parser"),
    ],
)
def test_a_wrong_key_or_value_is_named(section: str, key: str, value: object, message: str):
    wrong = values()
    wrong[section][key] = value
    with pytest.raises(ConfigError, match=message):
        build(Params, wrong)


def test_a_wrong_unit_names_the_right_one():
    wrong = values()
    wrong["geometry"]["camera"]["depth_min_cm"] = wrong["geometry"]["camera"].pop("depth_min_m")
    with pytest.raises(ConfigError, match=r"depth_min_cm.*depth_min_m"):
        build(Params, wrong)


def test_a_missing_key_is_no_default():
    wrong = values()
    del wrong["study"]["seed"]
    with pytest.raises(ConfigError, match=r"'study.seed' is missing"):
        build(Params, wrong)


def test_rules_across_settings(tmp_path: Path):
    wrong = values()
    wrong["crop"]["size_px"] = 60
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError, match="multiple of 16"):
        load_params(file)
    with pytest.raises(ConfigError, match="head3d preset"):
        load_params(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("generate", "methods", ["head3d", "no_driving_head"], r"set fusion\.without_head_steps"),
        ("generate", "methods", ["head3d", "head3d"], "twice"),
        ("crop", "clip_frames", 8, r"10 reference frames.*clip_frames = 8"),
    ],
)
def test_methods_that_cannot_be_generated_are_refused(
    tmp_path: Path, section: str, key: str, value: object, message: str
):
    wrong = values()
    wrong[section][key] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError, match=message):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("fusion", "regions", "parts", "message"),
    [
        ({"parts_weight": 1.0}, 14, 0, r"parts_weight above 0 needs.*parts\.regions = 8"),
        ({"parts_weight": 1.0}, 14, 3, r"parts\.regions = 3 must be 0 or 8"),
        ({"parts_weight": 0.0}, 14, 8, "nothing else trains them"),
        ({"parts_weight": 1.0}, 8, 8, "must be more than the 8"),
        ({"parts_steps": 5}, 14, 0, r"parts_steps above 0 needs.*parts\.regions"),
    ],
)
def test_held_regions_need_what_trains_them(
    tmp_path: Path, fusion: dict[str, float], regions: int, parts: int, message: str
):
    wrong = values()
    wrong["fusion"] |= fusion
    wrong["fusion"]["flow_net"]["regions"] = regions
    wrong["fusion"]["flow_net"]["parts"]["regions"] = parts
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError, match=message):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("fusion.parts_steps", 350, r"fusion\.parts_steps = 350 must be less than fusion\.train\.steps = 350"),
        ("fusion.without_head_steps", 9, r"parts_steps = 10 must be less than fusion\.without_head_steps = 9"),
        ("geometry.train.references", 40, r"geometry\.train\.references = 40 leaves no frame.*clip_frames = 40"),
        ("canonical.train.references", 41, r"canonical\.train\.references = 41 leaves no frame"),
        ("fusion.train.references", 40, r"fusion\.train\.references = 40 leaves no frame"),
        ("canonical.train.average", 1.0, r"canonical\.train\.average = 1 must be less than 1"),
        ("fusion.perceptual.layer_weights", [10.0] * 4, r"layer_weights has 4 values and needs 5"),
    ],
)
def test_trainings_that_cannot_work_are_refused(tmp_path: Path, setting: str, value: object, message: str):
    file, right = tmp_path / "params.yaml", values()
    right["fusion"] |= {"parts_weight": 1.0, "parts_steps": 10, "without_head_steps": 11}
    right["fusion"]["flow_net"]["regions"], right["fusion"]["flow_net"]["parts"]["regions"] = 14, 8
    file.write_text(yaml.safe_dump(right))
    load_params(file)
    *path, key = setting.split(".")
    section = right
    for name in path:
        section = section[name]
    section[key] = value
    file.write_text(yaml.safe_dump(right))
    with pytest.raises(ConfigError, match=message):
        load_params(file)


@pytest.mark.parametrize("file", sorted((SHIPPED.parent / "flows" / "presets").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_preset_keeps_the_rules(file: Path):
    broken = list(broken_rules(load_params(file, complete=False)))
    assert all(text.startswith("acquire.folder.path is empty") for text in broken)


def test_references_may_come_from_more_than_one_clip(tmp_path: Path):
    wide = values()
    wide["geometry"]["train"] |= {"span": "video", "references": 40}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(wide))
    assert load_params(tmp_path / "params.yaml").geometry.train.references == 40


def test_settings_cannot_be_changed_in_passing():
    params = load_params(SHIPPED)
    with pytest.raises(Exception, match="frozen"):
        params.crop.size_px = 128  # type: ignore[misc]


def test_a_bench_may_read_a_preset_whose_videos_are_not_named():
    file = Path(__file__).parents[2] / "flows" / "presets" / "local.yaml"
    with pytest.raises(ConfigError, match=r"acquire\.folder\.path is empty"):
        load_params(file)
    assert load_params(file, complete=False).crop.size_px == 128
