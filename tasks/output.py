"""Where a command writes, looked at before anything is read: no run is computed and lost, no input is overwritten."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import StageError


def check_output(
    out: Path, what: str, kinds: Sequence[str], example: str, *sources: Path | None, option: str = "-o"
) -> None:
    """Refuse a file that cannot be written, or that the command reads itself.

    Args:
        out: The file to write; it and its folder need not exist.
        what: What goes there, with its verb, for example "the sheet is".
        kinds: The endings that are written, with their dots.
        example: A good name.
        sources: Files that the command reads; None: not given.
        option: Where it was named.

    Raises:
        StageError: Another ending, a folder, one of the sources, or a place where nothing can be written.
    """
    if out.is_dir():
        raise StageError(f"{option} {out} is a folder; name a file in it, for example {option} {out / example}")
    if out.suffix.lower() not in kinds:
        listed = ", ".join(kinds[:-1]) + (" or " if len(kinds) > 1 else "") + kinds[-1]
        raise StageError(f"{out.name}: {what} written as {listed}; for example {option} {example}")
    for source in sources:
        check_apart(out, source, option)
    check_place(out.parent, option)


def check_apart(out: Path, source: Path | None, option: str = "-o") -> None:
    """Refuse to write over what is read.

    Args:
        out: The file to write.
        source: A file that is read; None: there is none.
        option: Where the first was named.

    Raises:
        StageError: They are the same file, under whatever names.
    """
    if source is not None and out.exists() and source.exists() and out.samefile(source):
        raise StageError(f"{option} {out} is read by this command and would be overwritten; give another name")


def check_place(folder: Path, option: str = "-o") -> None:
    """Refuse a folder that is none, or in which nothing can be written.

    Args:
        folder: It is made later if it is missing.
        option: Where it was named.

    Raises:
        StageError: It, or the nearest folder above it that exists, does not take files.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise StageError(f"{there} is a file, so nothing can be written below it; name another place with {option}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StageError(f"{there} cannot be written to; name another place with {option}, or change its permissions")
