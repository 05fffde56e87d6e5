"""dvc.yaml, params.yaml, the presets and the settings' classes say the same."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
import yaml

from flows.fingerprint import section_of
from flows.graph import code_closure, differences, in_order, read_graph, upstream, write
from flows.preset_files import preset_names, preset_text, write_preset
from models.config import ConfigError, Params, load_params

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["acquire", "crop", "parse", "geometry", "canonical", "fusion", "generate", "evaluate", "study", "report"]


def test_stages_are_the_ten_in_their_order() -> None:
    graph = read_graph(ROOT)
    assert list(graph) == ORDER
    assert in_order(graph) == ORDER
    for name, stage in graph.items():
        assert stage.cmd == f"python -m flows.stage {name}"
        assert f"data/metrics/{name}.json" in stage.outs


def test_stage_1_2_3_follow_each_other() -> None:
    above = upstream(read_graph(ROOT))
    assert above["acquire"] == []
    assert above["crop"] == ["acquire"]
    assert "geometry" in above["canonical"]
    assert "canonical" in above["fusion"]
    assert "fusion" in above["generate"]
    assert set(above["report"]) == set(ORDER) - {"report"}


def test_data_dependencies_are_made_by_a_stage() -> None:
    graph = read_graph(ROOT)
    outs = {out for stage in graph.values() for out in stage.outs}
    assert {dep for stage in graph.values() for dep in stage.data} <= outs


def test_code_dependencies_are_what_the_tasks_import() -> None:
    assert differences(ROOT) == [], "run `python -m flows.graph --write`"


def test_every_file_that_ships_with_tasks_or_models_is_a_dependency() -> None:
    listed = {dep for stage in read_graph(ROOT).values() for dep in stage.deps}
    for package in ("tasks", "models"):
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and file.suffix not in (".py", ".pyc", ".md"):
                name = file.relative_to(ROOT).as_posix()
                assert any(name == dep or name.startswith(f"{dep}/") for dep in listed), f"no stage depends on {name}"


def test_parameters_exist_and_runtime_is_none_of_them() -> None:
    params = load_params(ROOT / "params.yaml")
    used = set()
    for stage in read_graph(ROOT).values():
        for name in stage.params:
            section_of(params, name)
            used.add(name.split(".")[0])
        for name in stage.meta.get("additive", []):
            section_of(params, name)
            assert name.split(".")[0] in stage.params
    assert used == set(Params.model_fields) - {"runtime"}


@pytest.mark.parametrize("name", ORDER)
def test_parameters_that_a_task_reads_are_listed(name: str) -> None:
    tree = ast.parse((ROOT / "tasks" / f"{name}.py").read_text(encoding="utf-8"))
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    sections = read & set(Params.model_fields)
    assert sections - {"runtime"} <= set(read_graph(ROOT)[name].params)


def test_resumable_outputs_persist() -> None:
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name in ("geometry", "canonical", "fusion"):
        kept = {path for entry in content[name]["outs"] + content[name]["plots"] for path in entry}
        assert {f"data/checkpoints/{name}", f"data/metrics/{name}_loss.csv"} <= kept
    options = [
        value
        for stage in content.values()
        for key in ("outs", "metrics", "plots")
        for entry in stage.get(key, [])
        if isinstance(entry, dict)
        for value in entry.values()
    ]
    assert all(value.get("cache", True) for value in options), "everything in data/ travels with dvc push"


def test_params_yaml_is_the_demo_preset() -> None:
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == preset_text("demo")


@pytest.mark.parametrize("name", preset_names())
def test_preset_is_valid_and_a_whole_file(name: str, tmp_path: Path) -> None:
    settings = {"acquire.folder.path": "videos"} if "sources: [folder]" in preset_text(name) else {}
    write_preset(name, tmp_path / "params.yaml", settings)
    params = load_params(tmp_path / "params.yaml")
    for stage in (params.geometry, params.canonical, params.fusion):
        assert stage.train.lr_drop_step <= stage.train.steps


@pytest.mark.parametrize("name", ["paper", "paper-256", "paper-512"])
def test_paper_presets_keep_section_4_2(name: str, tmp_path: Path) -> None:
    write_preset(name, tmp_path / "params.yaml", {"acquire.folder.path": "videos"})
    params = load_params(tmp_path / "params.yaml")
    epoch = 7500 // 5
    schedule = {
        stage: (section.train.batch_videos, section.train.references, section.train.steps / epoch)
        for stage, section in (("1", params.geometry), ("2", params.canonical), ("3", params.fusion))
    }
    assert schedule == {"1": (5, 5, 10), "2": (5, 5, 20), "3": (5, 5, 50)}
    assert params.geometry.train.lr_drop_step == 5 * epoch
    assert params.canonical.train.lr_drop_step == 10 * epoch
    assert params.fusion.train.lr_drop_step == params.fusion.train.steps
    rates = (params.geometry.lr_depth, params.geometry.lr_pose, params.canonical.lr, params.fusion.lr)
    assert rates == (2e-4, 2e-5, 2e-4, 2e-4)
    assert (params.geometry.lambda_sym, params.geometry.lambda_depth) == (0.1, 0.1)


def test_closure_follows_imports_and_stops_at_settings(tmp_path: Path) -> None:
    files = {
        "tasks/a.py": "import tasks.b\nfrom models.config import Params\n",
        "tasks/b.py": "def f():\n    from models import c\n    import numpy\n",
        "tasks/unused.py": "x = 1\n",
        "models/c.py": "y = 2\n",
        "models/config.py": "from models.hidden import z\n",
        "models/hidden.py": "z = 3\n",
        "tasks/__init__.py": "",
        "models/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    closure = code_closure(tmp_path, "tasks/a.py")
    assert closure == ["models/c.py", "models/hidden.py", "tasks/a.py", "tasks/b.py"]


def test_write_repairs_dvc_yaml_and_keeps_the_rest(tmp_path: Path) -> None:
    for package in ("tasks", "models"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    write(tmp_path)
    text = (tmp_path / "dvc.yaml").read_text(encoding="utf-8")
    broken = text.replace("      - tasks/study.py\n", "      - tasks/gone.py\n", 1)
    assert broken != text
    (tmp_path / "dvc.yaml").write_text(broken, encoding="utf-8")
    assert any("tasks/gone.py" in line for line in differences(tmp_path))
    write(tmp_path)
    assert differences(tmp_path) == []
    assert (tmp_path / "dvc.yaml").read_text(encoding="utf-8") == text


def test_unknown_parameter_in_dvc_yaml_is_named() -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ConfigError, match=r"crop\.sise_px"):
        section_of(params, "crop.sise_px")
