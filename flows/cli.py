"""Console script `head3d`: settings, checks, a look at the data, and the trained model at work.

The pipeline itself runs with `dvc repro` or `prefect deployment run head3d/full`.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.commands_bench import bench
from flows.commands_bench_train import train as bench_train
from flows.commands_bench_use import animate as bench_animate
from flows.commands_bench_use import store as bench_store
from flows.commands_check import check_expressions, check_geometry
from flows.commands_export import export
from flows.commands_head import attention, canonical, view
from flows.commands_parse import parse
from flows.commands_setup import doctor, preset
from flows.commands_study import study
from flows.commands_train import parser as bench_parser
from flows.commands_train import train_parser
from flows.commands_use import animate, inspect, metrics
from models.config import ConfigError
from tasks.errors import StageError

DEBUG_VARIABLE = "HEAD3D_DEBUG"


def _expected(error: BaseException) -> bool:
    """Whether the text of an error already says what to do, so that its kind need not be shown."""
    if isinstance(error, FileNotFoundError):
        return error.errno is None  # one of our messages, not the system's
    return isinstance(error, StageError | ConfigError)


class _App(typer.Typer):
    """A Typer whose errors are one message; the traceback comes with --debug."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        words = sys.argv[1:] if "args" not in kwargs else list(kwargs.pop("args"))
        debug = "--debug" in words or os.environ.get(DEBUG_VARIABLE) == "1"
        try:
            return super().__call__(*args, args=[word for word in words if word != "--debug"], **kwargs)
        except (KeyboardInterrupt, BrokenPipeError):
            sys.exit(130)
        except Exception as error:
            if debug:
                traceback.print_exc()
            else:
                kind = "" if _expected(error) else f"{type(error).__name__}: "
                hint = "" if _expected(error) else "\nRun it again with --debug for the traceback."
                Console(stderr=True, soft_wrap=True).print(f"[bold red]head3d:[/] {_escape(kind + str(error))}{hint}")
            sys.exit(1)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


app = _App(
    name="head3d",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("head3d"))
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """3D-aware talking-head video motion transfer.

    The pipeline runs with [bold]dvc repro[/] (or [bold]prefect deployment run head3d/full --watch[/]); these commands
    prepare it, look at what it made and use the trained model.
    """


app.command()(preset)
app.command()(doctor)
app.command()(inspect)
app.command()(animate)
app.command()(canonical)
app.command()(view)
app.command()(attention)
app.command()(metrics)
app.command()(check_geometry)
app.command()(check_expressions)
app.command()(parse)
app.command()(train_parser)
app.command()(export)
bench.command("parser")(bench_parser)
bench.command("train")(bench_train)
bench.command("animate")(bench_animate)
bench.command("store")(bench_store)
app.add_typer(bench, name="bench")
app.add_typer(study, name="study")

if __name__ == "__main__":
    app()
