"""Which project files decide about what a function does, as one hash: whether old results may be kept, and whether the
machines of a cluster run the same code."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tasks", "models")
NOT_RESULTS = frozenset(
    {"models/config.py", "models/config_rules.py"}
    | {f"tasks/{name}.py" for name in ("errors", "paths", "progress", "disk", "source_code")}
    | {f"tasks/{name}.py" for name in ("checkpoints", "interruption", "training_log")}
    | {f"tasks/{name}.py" for name in ("worker_process", "dask_jobs", "dask_worker")}
)
"""Files that many import and that change no result (settings are compared by their values)."""


def code_hash(*modules: str, files: tuple[Path, ...] = ()) -> str:
    """Hash of these modules, of every project file that they import directly or not, and of further files.

    Args:
        modules: Dotted names, for example `tasks.crop_video`.
        files: Data that counts as code, for example weights.

    Returns:
        64 hexadecimal digits.
    """
    seen: set[Path] = set()
    waiting = [path for module in modules for path in _files_of(module)]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting.extend(_imports(path))
    return _hash([path for path in seen if _name(path) not in NOT_RESULTS] + list(files))


def all_code_hash() -> str:
    """Hash of every file of `tasks` and `models`: whether another machine has the same version."""
    return _hash([path for package in PACKAGES for path in (ROOT / package).rglob("*.py")])


def _hash(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{_name(path)}={hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _files_of(module: str) -> list[Path]:
    if module.split(".", 1)[0] not in PACKAGES:
        return []
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return [path] if path.is_file() else []


def _imports(path: Path) -> list[Path]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return [file for module in sorted(modules) for file in _files_of(module)]
