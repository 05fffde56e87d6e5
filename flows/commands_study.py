"""`head3d study`: the raters' pages on this machine, and Table 2 from what they sent back."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.project import enter_project
from tasks.errors import StageError
from tasks.output import check_output

study = typer.Typer(
    help="The user study: show its pages, count its answers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_FOLDER = typer.Option("--study", help="The study's folder. None: data/study.", file_okay=False)


@study.callback()
def _study() -> None:
    """The user study: show its pages, count its answers.

    `dvc repro study` makes data/study: send each rater their rater_NN.zip and keep key.csv.
    """


@study.command()
def serve(
    rater: Annotated[
        str | None, typer.Argument(metavar="RATER", help="For example 1 or rater_01. None: a list of all.")
    ] = None,
    folder: Annotated[Path | None, _FOLDER] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8740,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
) -> None:
    """Show the rating pages on this machine and keep the answers that they send.

    It listens on 127.0.0.1 only. Answers come into data/study/returned/, each as a new file.

    Examples:

      head3d study serve

      head3d study serve 3 --open
    """
    from tasks.study_server import make_server, raters_of

    place = _study_folder(folder)
    raters = raters_of(place)
    chosen = raters if rater is None else [_find_rater(rater, raters)]
    server = make_server(place, port, chosen, typer.echo)
    address = f"http://127.0.0.1:{server.server_port}/" + (f"{chosen[0]}/" if rater else "")
    typer.echo(f"{address}\nAnswers come into {place / 'returned'}; Ctrl-C ends.")
    if open_browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("stopped")
    finally:
        server.server_close()


def _find_rater(wanted: str, raters: list[str]) -> str:
    """`3`, `03` or `rater_03`."""
    digits = wanted.lower().removeprefix("rater_")
    for name in raters:
        if digits.isascii() and digits.isdigit() and int(digits) == int(name.removeprefix("rater_")):
            return name
    raise StageError(f"there is no rater '{wanted}'; there are {raters[0]} to {raters[-1]}")


@study.command()
def tally(
    returned: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CSV", help="The raters' files. None: all of data/study/returned.", dir_okay=False),
    ] = None,
    folder: Annotated[Path | None, _FOLDER] = None,
    key: Annotated[Path | None, typer.Option(help="The study's key. None: key.csv of its folder.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where the files go. None: tally/ in it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Count the answers: Table 2 with intervals, tests and agreement, as CSV, Markdown and picture.

    Rows and files that do not fit are listed with their reasons and never counted.

    Examples:

      head3d study tally data/study/returned/*.csv

      head3d study tally ~/Downloads/rater_0*.csv -o table2
    """
    from tasks.tally import tally as count
    from tasks.tally_files import facts, write_tally

    files = [path.resolve() for path in returned or []]
    target = out.resolve() if out else None
    given_key = key.resolve() if key else None
    place = _study_folder(folder)
    if not files:
        files = sorted(path for path in place.glob("returned/*.csv") if not path.name.startswith("."))
        if not files:
            raise StageError(f"{place / 'returned'} has no CSV file: put there what the raters sent, or name the files")
    table = count(files, given_key or place / "key.csv")
    written = write_tally(table, target or place / "tally")
    if as_json:
        typer.echo(next(path for path in written if path.suffix == ".json").read_text(encoding="utf-8"))
        return
    _print(table.rows)
    for text in facts(table):
        typer.echo(text)
    for item in table.dropped:
        where = f"{item['file']}, line {item['line']}" if item["line"] else item["file"]
        typer.echo(f"not counted: {json.dumps(where)[1:-1]}: {json.dumps(item['reason'])[1:-1]}", err=True)
    typer.echo(str(written[0].parent))


@study.command()
def inputs(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.", file_okay=False)],
    frames: Annotated[
        bool, typer.Option("--frames", help="Folders of PNG frames, which lose nothing, in place of mp4 files.")
    ] = False,
) -> None:
    """Write subject, driving video and reference frame of every pair, for a method that runs elsewhere.

    Its videos come back through generate.external: a folder with self/self_000.mp4, cross/cross_000.mp4 and so on, or
    with folders self/self_000/ of PNG frames.

    Examples:

      head3d study inputs pairs/

      head3d preset demo --set 'generate.external={fomm: videos/fomm}' --set 'generate.methods=[head3d, fomm]'
    """
    from tasks.pair_inputs import write_inputs

    target = out.resolve()
    _, paths = enter_project()
    for name, count in write_inputs(paths, target, frames).items():
        typer.echo(f"{name}: {count}")
    typer.echo(str(target))


@study.command()
def simulate(
    raters: Annotated[int, typer.Option(min=1, help="Of the study to come.")] = 10,
    pairs: Annotated[int, typer.Option(min=2, help="Of one dataset and baseline.")] = 100,
    percent: Annotated[float, typer.Option(min=1, max=99, help="True preference for ours.")] = 57.0,
    pair_sd: Annotated[float, typer.Option(min=0, max=5, help="How much pairs differ (logit).")] = 1.0,
    rater_sd: Annotated[float, typer.Option(min=0, max=5, help="How much raters differ (logit).")] = 0.5,
    studies: Annotated[int, typer.Option(min=10, help="How many are simulated.")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also draw it (.png or .svg).")] = None,
) -> None:
    """Before asking people: what would a study of this size show?

    Simulates raters with a known preference, once with independent answers and once with the spreads that are named.

    Examples:

      head3d study simulate

      head3d study simulate --raters 30 --pairs 50 --percent 60 -o power.png
    """
    from tasks.study_power import Design, draw_outcomes
    from tasks.study_power import simulate as run

    if out:
        check_output(out, "the picture is", (".png", ".svg"), "power.png")
    spreads = [(0.0, 0.0)] + ([(pair_sd, rater_sd)] if pair_sd or rater_sd else [])
    outcomes = [run(Design(raters, pairs, percent / 100, *spread), studies, seed) for spread in spreads]
    shown = Table("spread of pairs, raters", "alpha", f"interval holds {percent:g}%", "Wilson's does", "half width",
                  "Wilson's", "50% is ruled out", box=None, header_style="bold")  # fmt: skip
    for one in outcomes:
        shown.add_row(
            f"{one.design.pair_sd:g}, {one.design.rater_sd:g}",
            f"{one.alpha:.2f}",
            f"{one.coverage:.1%}",
            f"{one.coverage_wilson:.1%}",
            f"{100 * one.half_width:.1f}",
            f"{100 * one.half_width_wilson:.1f}",
            f"{one.noticed:.0%}",
        )
    Console(width=120).print(shown)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(draw_outcomes(outcomes, out.suffix.lower().removeprefix(".")))
        typer.echo(str(out))


def _print(rows: list[dict[str, object]]) -> None:
    from tasks.methods import method_name
    from tasks.tally_files import p_value

    shown = Table("dataset", "compared with", "preferred", "95% interval", "Wilson 95%", "p (pairs)", "answers",
                  box=None, header_style="bold")  # fmt: skip
    for row in rows:
        shown.add_row(
            escape(str(row["dataset"])),
            escape(method_name(str(row["method"]))),
            f"{row['percent']:.1f}%",
            f"{row['low_percent']:.1f} to {row['high_percent']:.1f}",
            f"{row['wilson_low_percent']:.1f} to {row['wilson_high_percent']:.1f}",
            p_value(float(str(row["p_pairs"]))),
            str(row["answers"]),
        )
    Console().print(shown)


def _study_folder(folder: Path | None) -> Path:
    """The folder that is named, else the project's."""
    if folder is not None:
        place = folder.resolve()
    else:
        _, paths = enter_project()
        place = paths.study
    if not (place / "key.csv").is_file() and not list(place.glob("rater_*.html")):
        raise StageError(f"{place} holds no study; `dvc repro study` makes one")
    return place
