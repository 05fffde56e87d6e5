"""A project with the real runner and four stages that take no time: first -> (left, right) -> last."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]

GRAPH = """\
stages:
  first:
    cmd: python -m flows.stage first
    deps: [tasks/first.py, source.txt]
    params: [crop]
    outs: [data/first.txt]
    metrics: [data/metrics/first.json]
  left:
    cmd: python -m flows.stage left
    deps: [tasks/left.py, tasks/shared.py, data/first.txt]
    params: [parse]
    outs:
      - data/left:
          persist: true
    metrics: [data/metrics/left.json]
    meta: {gpu: true}
  right:
    cmd: python -m flows.stage right
    deps: [tasks/right.py, tasks/shared.py, data/first.txt]
    params: [study]
    outs: [data/right.txt]
    metrics: [data/metrics/right.json]
  last:
    cmd: python -m flows.stage last
    deps: [tasks/last.py, data/left, data/right.txt]
    params: [report]
    outs: [data/last.txt]
    metrics: [data/metrics/last.json]
"""

HEAD = "from pathlib import Path\nfrom tasks.errors import StageError\n"

TASKS = {
    "first": """
def run(params, paths, fingerprint):
    text = Path("source.txt").read_text().strip()
    if text == "bad":
        raise StageError("source.txt is bad; write something else")
    (paths.data / "first.txt").write_text(f"{text} {params.crop.size_px}")
    return {"letters": len(text), "share": 1 / 3, "nothing": float("nan")}
""",
    "shared": """
def copy(source, target):
    target.parent.mkdir(exist_ok=True)
    target.write_text(source.read_text())
""",
    "left": """
import os, subprocess, time
from tasks.shared import copy
def run(params, paths, fingerprint):
    folder = paths.data / "left"
    mark = folder / "mark"
    if mark.is_file() and mark.read_text() != fingerprint:
        for file in folder.iterdir():
            file.unlink()
    folder.mkdir(exist_ok=True)
    mark.write_text(fingerprint)
    resumed = (folder / "half").is_file()
    (folder / "half").write_text("half")
    if Path("slow").is_file() and not resumed:
        child = subprocess.Popen(["sleep", "60"])
        Path("pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(60)
    copy(paths.data / "first.txt", folder / "whole")
    return {"resumed": int(resumed)}
""",
    "right": """
from tasks.shared import copy
def run(params, paths, fingerprint):
    if Path("peek").is_file():
        params.fusion.lr
    copy(paths.data / "first.txt", paths.data / "right.txt")
    return {"raters": params.study.raters}
""",
    "stage_pictures": """
import numpy as np
def stage_picture(stage, paths):
    if stage == "right":
        raise ValueError("no picture of right")
    return np.full((40, 60, 3), 200, np.uint8) if stage == "left" else None
""",
    "last": """
def run(params, paths, fingerprint):
    (paths.data / "last.txt").write_text((paths.data / "right.txt").read_text() * 2)
    return {}
""",
}


class Project:
    """A folder with a copy of the runner in which commands run with this interpreter first on PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "HOME": str(root.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.env.pop("PYTHONPATH", None)

    def run(self, *command: str, code: int | None = 0, env: dict[str, str] | None = None, timeout: float = 280) -> str:
        """Run a command, return its whole output; fail with it unless the exit code is `code` (None: any but 0)."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env={**self.env, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        fits = done.returncode != 0 if code is None else done.returncode == code
        assert fits, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def start(self, *command: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command in its own session."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env={**self.env, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def python(self, *arguments: str, code: int | None = 0, env: dict[str, str] | None = None) -> str:
        """Run this interpreter."""
        return self.run(sys.executable, *arguments, code=code, env=env)

    def dvc(self, *arguments: str, code: int | None = 0, env: dict[str, str] | None = None) -> str:
        """Run DVC."""
        return self.python("-m", "dvc", *arguments, code=code, env=env)

    def git(self, *arguments: str) -> str:
        """Run git."""
        return self.run("git", "-c", "user.name=Test", "-c", "user.email=test@example.com", *arguments)

    def ran(self, output: str) -> list[str]:
        """Stages that DVC's output says were run, in order."""
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text that must occur in a file."""
        path = self.root / name
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {name}"
        path.write_text(text.replace(old, new), encoding="utf-8")


def make_copy(root: Path) -> Project:
    """Copy the whole pipeline (without its data) into the new folder `root`, with git but no commit yet."""
    root.mkdir(parents=True)
    for name in ("flows", "models", "tasks"):
        shutil.copytree(SOURCE / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SOURCE / ".dvc" / "plots", root / ".dvc" / "plots", ignore=shutil.ignore_patterns("node_modules"))
    for name in (
        ".gitignore",
        ".dvcignore",
        "pyproject.toml",
        "dvc.yaml",
        "params.yaml",
        ".dvc/config",
        ".dvc/.gitignore",
    ):
        shutil.copy(SOURCE / name, root / name)
    project = Project(root)
    project.git("init", "-q", "-b", "main")
    return project


def make_toy(root: Path) -> Project:
    """Write the toy project into the new folder `root` and commit it."""
    root.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "flows", root / "flows", ignore=skip)
    for name in ("models/__init__.py", "models/config.py", "models/config_rules.py", "tasks/__init__.py"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(SOURCE / name, root / name)
    for name in ("paths", "progress", "errors", "disk", "source_code"):
        shutil.copy(SOURCE / "tasks" / f"{name}.py", root / "tasks")
    for name, text in TASKS.items():
        (root / "tasks" / f"{name}.py").write_text(HEAD + text, encoding="utf-8")
    for name in (".gitignore", ".dvcignore", "pyproject.toml"):
        shutil.copy(SOURCE / name, root / name)
    shutil.copy(SOURCE / "flows/presets/demo.yaml", root / "params.yaml")
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(SOURCE / ".dvc" / name, root / ".dvc" / name)
    (root / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    (root / "source.txt").write_text("hello\n", encoding="utf-8")
    project = Project(root)
    project.git("init", "-q", "-b", "main")
    project.git("add", ".")
    project.git("commit", "-q", "-m", "toy")
    return project
