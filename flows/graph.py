"""The graph in dvc.yaml, and its code dependencies, which nobody keeps by hand.

`python -m flows.graph --write` puts into every stage of dvc.yaml the project files that its task imports, directly or
not; `--check` only compares (`make lint` does). Other dependencies, outputs and parameters stay as they are.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tasks.source_code import NOT_RESULTS

PACKAGES = ("tasks", "models")
"""Packages whose files can be code dependencies; `flows` only runs them."""

NOT_CODE = NOT_RESULTS
"""Files that never change a result: settings count by their values, the others carry names, messages and processes."""


@dataclass(frozen=True)
class Stage:
    """One stage as dvc.yaml has it."""

    name: str
    cmd: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    desc: str = ""

    @property
    def code(self) -> tuple[str, ...]:
        """Dependencies that are files of the project's packages."""
        return tuple(dep for dep in self.deps if dep.split("/", 1)[0] in PACKAGES)

    @property
    def data(self) -> tuple[str, ...]:
        """Dependencies that other stages (or the user) made."""
        return tuple(dep for dep in self.deps if dep not in self.code)


def project_root(start: Path | None = None) -> Path:
    """The nearest folder upwards that holds a dvc.yaml.

    Raises:
        FileNotFoundError: There is none; the text says where to go.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no dvc.yaml in {here} or above it; run this inside the Head3D project")


def _names(entries: Iterable[Any] | None) -> list[str]:
    """Paths (or parameter names) of a dvc.yaml list whose entries may be `path` or `path: options`."""
    names: list[str] = []
    for entry in entries or []:
        names.extend(entry if isinstance(entry, dict) else [str(entry)])
    return names


def read_graph(root: Path) -> dict[str, Stage]:
    """Stages of dvc.yaml in the order of the file."""
    content = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8")) or {}
    stages = {}
    for name, entry in (content.get("stages") or {}).items():
        outs = [path for key in ("outs", "metrics", "plots") for path in _names(entry.get(key))]
        stages[name] = Stage(
            name=name,
            cmd=str(entry["cmd"]),
            deps=tuple(_names(entry.get("deps"))),
            params=tuple(_names(entry.get("params"))),
            outs=tuple(outs),
            meta=dict(entry.get("meta") or {}),
            desc=str(entry.get("desc") or ""),
        )
    return stages


def upstream(stages: dict[str, Stage]) -> dict[str, list[str]]:
    """Stage -> the stages whose outputs it reads, both in the order of the file."""
    makers = {out: stage.name for stage in stages.values() for out in stage.outs}
    return {
        stage.name: [other for other in stages if other in {makers.get(dep) for dep in stage.deps}]
        for stage in stages.values()
    }


def in_order(stages: dict[str, Stage], targets: Iterable[str] = ()) -> list[str]:
    """The targets (none: all stages) with everything they need, dependencies first.

    Raises:
        ValueError: A target does not exist, or the graph has a cycle.
    """
    above = upstream(stages)
    done: list[str] = []
    open_: set[str] = set()

    def visit(name: str) -> None:
        if name not in stages:
            raise ValueError(f"'{name}' is not a stage; there are: {', '.join(stages)}")
        if name in done:
            return
        if name in open_:
            raise ValueError(f"dvc.yaml has a cycle through '{name}'")
        open_.add(name)
        for other in above[name]:
            visit(other)
        done.append(name)

    for target in list(targets) or list(stages):
        visit(target)
    return done


def _module_file(root: Path, module: str) -> str | None:
    """Project path of `module`, if it is a file of our packages that is not empty."""
    if module.split(".", 1)[0] not in PACKAGES:
        return None
    base = Path(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if (root / candidate).is_file():
            return candidate.as_posix() if (root / candidate).stat().st_size else None
    return None


def imported_modules(source: str) -> set[str]:
    """Dotted names that a file imports anywhere, also inside functions; `from a import b` counts as `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError("relative imports are not used in this project: write the full name")
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@cache
def _direct(root: Path, file: str) -> frozenset[str]:
    source = (root / file).read_text(encoding="utf-8")
    found = {_module_file(root, module) for module in imported_modules(source)}
    return frozenset(name for name in found if name)


def code_closure(root: Path, file: str) -> list[str]:
    """Project files whose content can change what `file` does.

    Args:
        root: Project folder.
        file: Path in it, for example `tasks/crop.py`.

    Returns:
        Sorted paths with `file` itself, without `NOT_CODE` and empty files.
    """
    seen: set[str] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting.extend(_direct(root, current))
    return sorted(seen - NOT_CODE)


def expected_code(root: Path) -> dict[str, list[str]]:
    """Stage -> the Python files that its dependencies must name; stages without a task file yet are left out."""
    stages = [name for name in read_graph(root) if (root / "tasks" / f"{name}.py").is_file()]
    return {name: code_closure(root, f"tasks/{name}.py") for name in stages}


def differences(root: Path) -> list[str]:
    """What `--write` would change, one line per stage; empty when dvc.yaml is right."""
    lines = []
    graph = read_graph(root)
    for name, expected in expected_code(root).items():
        listed = {dep for dep in graph[name].code if dep.endswith(".py")}
        missing, extra = sorted(set(expected) - listed), sorted(listed - set(expected))
        if missing or extra:
            lines.append(f"{name}: missing {missing or 'none'}, not imported {extra or 'none'}")
    return lines


def write(root: Path) -> None:
    """Rewrite the code dependencies in dvc.yaml; comments and everything else stay."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.width = 120
    editor.indent(mapping=2, sequence=4, offset=2)
    path = root / "dvc.yaml"
    content = editor.load(path.read_text(encoding="utf-8"))
    for name, expected in expected_code(root).items():
        deps = content["stages"][name]["deps"]
        kept = [dep for dep in deps if not (dep.endswith(".py") and dep.split("/", 1)[0] in PACKAGES)]
        deps[:] = [*expected, *kept]
    with path.open("w", encoding="utf-8") as file:
        editor.dump(content, file)


def main(argv: list[str] | None = None) -> int:
    """Command line; 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m flows.graph", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="bring the code dependencies in dvc.yaml up to date")
    what.add_argument("--check", action="store_true", help="compare only; exit code 1 if they are not")
    options = parser.parse_args(argv)
    root = project_root()
    wrong = differences(root)
    if options.write and wrong:
        write(root)
        print("\n".join(["dvc.yaml was changed:", *wrong]))
    elif wrong:
        print("\n".join(["dvc.yaml: run `python -m flows.graph --write`", *wrong]), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
