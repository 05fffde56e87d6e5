"""Settings: strict, whole, and helpful when wrong."""

import copy
from pathlib import Path

import pytest
import yaml

from models.config import ConfigError, Params, build, load_params

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
        ({"parts_weight": 1.0}, 5, 0, "flow_net.regions of at least 8"),
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


def test_settings_cannot_be_changed_in_passing():
    params = load_params(SHIPPED)
    with pytest.raises(Exception, match="frozen"):
        params.crop.size_px = 128  # type: ignore[misc]


def test_a_bench_may_read_a_preset_whose_videos_are_not_named():
    file = Path(__file__).parents[2] / "flows" / "presets" / "local.yaml"
    with pytest.raises(ConfigError, match=r"acquire\.folder\.path is empty"):
        load_params(file)
    assert load_params(file, complete=False).crop.size_px == 128
