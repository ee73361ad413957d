"""The part of the command line that is about many runs: their table, some side by side, and a search."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twofold.cli_input import RecipeFile, Settings
from twofold.errors import RequestError
from twofold.recipe.load import load_recipe
from twofold.runs import RunSummary, list_runs, sort_runs

Runs = Annotated[Path, typer.Option("--runs", help="The folder that holds the run folders.")]


def list_all_runs(
    runs: Runs = Path("runs"),
    by: Annotated[
        str | None, typer.Option("--by", help="The metric to sort by; default: the reports' headline.")
    ] = None,
) -> None:
    """The table of all runs, the best first."""
    metric, lines = sort_runs(list_runs(runs), by=by)
    shown = list(dict.fromkeys((metric, "impressions/auc")))
    headings = (name.replace("/", "/\n") for name in shown)  # two lines: a terminal of 80 columns holds them so
    table = Table("run", "recipe", "base", "date", "last\nstage", *headings, "seconds", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    for line in lines:
        metrics = (f"{line.metrics[name]:.4f}" if name in line.metrics else "—" for name in shown)
        table.add_row(
            line.name, line.recipe_digest[:8], line.base, _day(line), line.stage, *metrics, f"{line.seconds:.0f}"
        )
    Console().print(table)


def tracking_uri() -> str | None:
    """MLFLOW_TRACKING_URI if it is set; RequestError, before hours of work, if what it needs is not installed."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or None
    if uri is not None and find_spec("mlflow") is None:
        raise RequestError(
            f"MLFLOW_TRACKING_URI is {uri}, and mlflow is not installed: pip install 'twofold[mlflow]', or unset it."
        )
    return uri


def track(folder: Path, *, uri: str) -> None:
    """Copies a finished run to MLflow."""
    from twofold.track import log_run

    print(f"mlflow           {log_run(folder, uri=uri)}  {uri}")


def _day(line: RunSummary) -> str:
    return f"{line.changed_at.astimezone():%Y-%m-%d}" if line.changed_at else "—"


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Judged run folders; the first is what the others are held against.")
    ],
    to: Annotated[Path | None, typer.Option("--to", help="Also a page of it all, such as compared.html.")] = None,
) -> None:
    """Runs of one question: metrics with intervals paired over users, and what their recipes ask for differently."""
    from twofold.evaluate.side_by_side import put_side_by_side, side_by_side_lines, write_page

    found = put_side_by_side(runs)
    console = Console()
    for part in side_by_side_lines(found):
        console.print(part)
    if to is not None:
        write_page(found, to)
        print(f"page  {to}")


def tune(
    recipe: RecipeFile,
    settings: Settings = [],  # noqa: B006 - typer copies it
    runs: Runs = Path("runs"),
    name: Annotated[str | None, typer.Option("--run", help="Name of the search's folder; default: NAME.tune.")] = None,
) -> None:
    """Tries values in the ranges of the recipe's part `tune`, judged on the validation window; goes on if stopped."""
    from twofold.tune import Search, Trial, command_of
    from twofold.tune import tune as search_recipe

    search = Search(recipe, tuple(settings), runs / (name or f"{load_recipe(recipe, overrides=settings).name}.tune"))

    def say(trial: Trial) -> None:
        found = f"failed: {trial.failure}" if trial.value is None else f"{trial.value:.4f}"
        print(f"{trial.folder.name}  {found}  {' '.join(trial.changes)}", file=sys.stderr)

    trials = search_recipe(search, tell=say)
    table = Table("trial", "validation recall", "changes", title=f"the best of {len(trials)} trials", box=SIMPLE_HEAD)
    for trial in trials[:10]:
        table.add_row(
            trial.folder.name,
            f"{trial.value:.4f}" if trial.value is not None else "failed",
            Text("\n".join(trial.changes)),
        )
    Console().print(table)
    print(
        "The test window was not looked at, and the best of many looks better than it is. To judge it, run it in full:"
    )
    print(command_of(search, trials[0]))
