"""Presets: whole params files that ship with the package, and writing one of them to params.yaml."""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from models.config import ConfigError, load_params
from tasks.disk import whole_file

_FOLDER = resources.files("flows") / "presets"


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(Path(item.name).stem for item in _FOLDER.iterdir() if item.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """The preset's file.

    Raises:
        ConfigError: There is none of that name; the text says which there are.
    """
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(names)}"
        raise ConfigError(f"'{name}' is not a preset{hint}")
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def preset_title(name: str) -> str:
    """What the first line of the preset's file says about it."""
    first = preset_text(name).splitlines()[0].removeprefix("#").strip()
    return first.split(":", 1)[-1].strip().rstrip(".")


def yaml_editor() -> YAML:
    """Reads and writes YAML with its comments; floats come out as every YAML reader reads them (2.0e-05, not 2e-05)."""

    def represent_float(dumper: Any, value: float) -> Any:
        mantissa, mark, exponent = repr(value).partition("e")
        text = f"{mantissa}.0e{exponent}" if mark and "." not in mantissa else repr(value)
        return dumper.represent_scalar("tag:yaml.org,2002:float", text)

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 120
    editor.representer.add_representer(float, represent_float)
    return editor


def _set(content: Any, key: str, value: Any, where: str) -> None:
    """Set a dotted key that must exist already."""
    *parents, last = key.split(".")
    for part in parents:
        content = content.get(part) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or last not in content:
        known = list(_flat(yaml.safe_load(preset_text("demo"))))
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        raise ConfigError(f"{where}: '{key}' is not a setting" + (f"; did you mean '{near[0]}'?" if near else ""))
    if isinstance(content[last], Mapping):
        raise ConfigError(f"{where}: '{key}' is a group of settings; set one of: {', '.join(content[last])}")
    if isinstance(content[last], float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # `--set crop.margin=1` means 1.0
    content[last] = value  # type: ignore[index]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line per setting that differs: `key: old -> new`."""
    old, new = _flat(before), _flat(after)
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in new:
            lines.append(f"{key}: {old[key]!r} -> (gone)")
        elif key not in old:
            lines.append(f"{key}: (new) -> {new[key]!r}")
        elif old[key] != new[key]:
            lines.append(f"{key}: {old[key]!r} -> {new[key]!r}")
    return lines


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` with the value read as YAML.

    Raises:
        ConfigError: There is no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: write it as key=value, for example --set crop.size_px=128")
    with contextlib.suppress(ValueError):
        if not value.strip().lstrip("+-").isdigit():
            return key.strip(), float(value)  # YAML would read 2e-5 as text
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: '{value}' is not a YAML value") from None


def write_preset(name: str, target: Path, settings: Mapping[str, Any] | None = None) -> list[str]:
    """Write `target` from a preset; nothing is written unless the whole is valid.

    Args:
        name: The preset.
        target: Usually params.yaml.
        settings: Dotted key -> value, put over the preset's.

    Returns:
        What changed, one line per setting.

    Raises:
        ConfigError: The preset or a setting does not exist, or a value does not fit.
    """
    text = preset_text(name)
    if settings:
        editor = yaml_editor()
        content = editor.load(text)
        for key, value in settings.items():
            _set(content, key, value, f"preset {name}")
        buffer = io.StringIO()
        editor.dump(content, buffer)
        text = buffer.getvalue()
    before: Any = {}
    if target.is_file():
        try:
            before = yaml.safe_load(target.read_text(encoding="utf-8"))
        except yaml.YAMLError:
            before = {}
    with whole_file(target) as draft:
        draft.write_text(text, encoding="utf-8")
        try:
            load_params(draft)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(draft), f"preset {name}")) from None
    return changes(before if isinstance(before, dict) else {}, yaml.safe_load(text))
