"""Where a command of `head3d` stands: the project around the working directory."""

from __future__ import annotations

import os
from pathlib import Path

from flows.graph import project_root
from models.config import Params, load_params
from tasks.paths import Paths


def enter_project() -> tuple[Params, Paths]:
    """Settings and data paths; the project's root becomes the working directory, because stored paths start there.

    Raises:
        FileNotFoundError: There is no project here.
        ConfigError: Its params.yaml does not fit.
    """
    root = project_root()
    os.chdir(root)
    return load_params(root / "params.yaml"), Paths(Path("data"))
