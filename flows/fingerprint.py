"""What a stage's result depends on, as one hash: settings, code and the content of its inputs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from flows.graph import Stage
from models.config import ConfigError, Params, Section
from tasks.errors import StageError

SAMPLE_BYTES = 1 << 16
"""Of a longer file only its size and this much of both ends are read.

A Zarr shard ends with the index of its chunks' compressed sizes, a zip archive with its members' checksums
and weights with the last layer, so another content shows there; reading 15 GB of clips before each stage would take a
minute.
"""


def file_hash(path: Path) -> str:
    """Hash of a file's content (of a long one: of its size and both ends)."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= 4 * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(f"{size}:".encode())
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(-SAMPLE_BYTES, 2)
            digest.update(file.read())
    return digest.hexdigest()


def content_hash(path: Path) -> str:
    """Hash of a file, or of a folder's file names and contents."""
    if path.is_file():
        return file_hash(path)
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file() and item.suffix != ".partial"):
        digest.update(f"{file.relative_to(path).as_posix()}={file_hash(file)}\n".encode())
    return digest.hexdigest()


def section_of(params: Params, name: str) -> Any:
    """The settings that a `params:` entry of dvc.yaml names, for example `crop` or `geometry.camera`.

    Raises:
        ConfigError: There is no such setting.
    """
    value: Any = params
    for part in name.split("."):
        if not isinstance(value, Section) or part not in type(value).model_fields:
            raise ConfigError(f"dvc.yaml names the parameter '{name}', which models/config.py does not have")
        value = getattr(value, part)
    return value


def fingerprint(stage: Stage, params: Params, root: Path) -> str:
    """Hash of everything that decides whether what `stage` left may be kept.

    That is all it depends on, but for the settings that dvc.yaml calls `additive` in the stage's `meta`: they say what
    is made, not how, so the stage runs when they change and makes only what is missing.

    Args:
        stage: The stage as dvc.yaml has it.
        params: All settings; only the sections that dvc.yaml lists count.
        root: Project folder.

    Returns:
        64 hexadecimal digits.

    Raises:
        StageError: An input does not exist.
        ConfigError: dvc.yaml names a parameter that does not exist.
    """
    digest = hashlib.sha256()
    additive = stage.meta.get("additive") or []
    for name in additive:
        section_of(params, name)
    for name in sorted(stage.params):
        value = section_of(params, name)
        if isinstance(value, Section):
            kept = {key: item for key, item in value.model_dump().items() if f"{name}.{key}" not in additive}
            value = json.dumps(kept, sort_keys=True)
        digest.update(f"{name}={value}\n".encode())
    for dep in sorted(stage.deps):
        path = root / dep
        if not path.exists():
            raise StageError(f"{dep} does not exist; `dvc repro {stage.name}` makes what this stage needs first")
        digest.update(f"{dep}={content_hash(path)}\n".encode())
    return digest.hexdigest()


class Undeclared:
    """Stands for a section that dvc.yaml does not list for a stage: using it is an error, not a stale result."""

    def __init__(self, stage: str, section: str) -> None:
        self._message = f"stage '{stage}' uses the settings '{section}': list them under its `params:` in dvc.yaml"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise StageError(self._message)


def visible(params: Params, stage: Stage) -> Params:
    """`params` as the stage may see them: `runtime` and what dvc.yaml lists; anything else raises when it is used."""
    listed = {name.split(".", 1)[0] for name in stage.params} | {"runtime"}
    hidden = {name: Undeclared(stage.name, name) for name in Params.model_fields if name not in listed}
    return params.model_copy(update=hidden)
