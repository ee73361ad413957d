"""Commands about many runs: list, compare, tune, and copies to MLflow."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twofold.cli.options import RecipeFile, Runs, Settings
from twofold.errors import RequestError
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe
from twofold.render.numbers import format_decimal, plural
from twofold.runs import RunGroup, RunSummary, group_runs, list_runs


def list_all_runs(
    runs: Runs = Path("runs"),
    sort: Annotated[
        str | None,
        typer.Option("--sort", help="Metric to sort by; default: the primary metric of most reports of a window."),
    ] = None,
) -> None:
    """List all runs by test window, the best first: values of different windows cannot be compared."""
    groups = group_runs(list_runs(runs), metric=sort)
    if not groups:
        print(f"{runs} holds no run yet: `twofold run RECIPE` makes one, and --runs names another folder.")
        return
    for group in groups:
        Console().print(_runs_table(group))


def _runs_table(group: RunGroup) -> Table:
    """Returns the table of one test window; it fits a terminal of 80 columns."""
    metrics = dict.fromkeys((group.metric, "impressions/auc") if group.window else (group.metric,))
    progress = {
        "date": [_day(run) for run in group.runs],
        "last stage": [run.stage for run in group.runs],
    }
    columns = {
        "run": [run.name for run in group.runs],
        "base": [run.base for run in group.runs],
        "recipe": [run.recipe_digest[:8] for run in group.runs],
        **({} if group.window else progress),
        **{name: [format_decimal(run.metrics.get(name)) for run in group.runs] for name in metrics},
    }
    title = f"tested on {group.window}" if group.window else "not evaluated"
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    filled = {heading: cells for heading, cells in columns.items() if any(cells) and set(cells) != {"–"}}
    for heading, cells in filled.items():  # names fold where there is no room; a cut number or date would mislead
        is_name = heading in ("run", "base")
        width = min(max(map(len, cells)), 32 if heading == "run" else 10) if is_name else None
        table.add_column(
            heading.rpartition("/")[2],
            overflow="fold",
            no_wrap=not is_name,
            min_width=width,
            justify="right" if heading in metrics else "left",
        )
    for row in zip(*filled.values(), strict=True):
        table.add_row(*map(Text, row))
    return table


def tracking_uri(recipe: Recipe) -> str | None:
    """Returns MLFLOW_TRACKING_URI, else the recipe's `mlflow.uri`; `None` means that the run is not copied to MLflow.

    RequestError if MLflow is not installed: better before a run than after hours of work.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (recipe.mlflow.uri if recipe.mlflow else None)
    if uri is not None and find_spec("mlflow") is None:
        raise RequestError(
            f"the run is to be copied to {uri}, and mlflow is not installed: pip install 'twofold[mlflow]', or unset "
            f"MLFLOW_TRACKING_URI and delete the recipe's mlflow."
        )
    return uri


def copy_to_mlflow(folder: Path, *, uri: str) -> None:
    """Copies a finished run to MLflow."""
    from twofold.mlflow_export import log_run

    print(f"mlflow           {log_run(folder, uri=uri)}  {uri}")


def _day(run: RunSummary) -> str:
    return f"{run.changed_at.astimezone():%Y-%m-%d}" if run.changed_at else "–"


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run folders; the others are compared with the first.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write a page, such as compared.html, too.")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds",
            min=1,
            help="Number of runs of each recipe, each with its own train.seed; with an ensemble of E, seeds 0, E, 2E.",
        ),
    ] = None,
) -> None:
    """Compare runs on one test window: metrics with intervals of the differences, and what differs in the recipes.

    With `--seeds 3`, `twofold compare A0 A1 A2 B0 B1 B2` tests whether recipe B is better than A over all seeds.
    """
    from twofold.evaluate.compare import compare_seeds
    from twofold.evaluate.compare_page import compare_run_folders, comparison_tables, seeds_table, write_comparison_page

    if seeds is not None:
        if html is not None:
            raise RequestError("--html writes a page of single runs: leave out --seeds, or --html.")
        for claims in compare_seeds(runs, seeds=seeds):
            Console().print(seeds_table(claims))
        return
    comparison = compare_run_folders(runs)
    if html is not None:
        write_comparison_page(comparison, html)
    console = Console()
    for part in comparison_tables(comparison):
        console.print(part)
    if html is not None:
        print(f"page  {html}")


def tracker(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders of run folders such as runs.")],
    to: Annotated[Path, typer.Option("--to", help="File for the page.")] = Path("tracker.html"),
    table: Annotated[Path | None, typer.Option("--table", help="Write the rows as Parquet, too.")] = None,
) -> None:
    """Write all runs as one page with a row for each: changes, data, drawing, metrics; sort, filter, pin, compare."""
    from twofold.page.tracker_page import write_tracker

    written = write_tracker(folders, to, table=table)
    for folder, reason in written.unreadable.items():
        print(f"note: {folder} was left out: {reason}", file=sys.stderr)
    print(f"{plural(len(written.runs), 'run')}  {to}{f'  {table}' if table is not None else ''}")


def tune(
    recipe: RecipeFile,
    settings: Settings,
    runs: Runs = Path("runs"),
    name: Annotated[
        str | None, typer.Option("--run", help="Name of the search's folder; default: RECIPE.tune.")
    ] = None,
) -> None:
    """Search over the ranges in the recipe's section `tune` on the validation window; resume a stopped search."""
    from twofold.tune import Search, Trial, command_of
    from twofold.tune import tune as search_recipe

    loaded = load_recipe(recipe, overrides=settings)
    search = Search(recipe, tuple(settings), runs / (name or f"{loaded.name}.tune"))
    epochs_by = {"recall": "recall", "ndcg": "NDCG", "auc": "AUC on shown items"}[loaded.train.best_epoch_by]
    metric = epochs_by if loaded.tune is None or loaded.tune.goal == "recall" else "expected seconds"

    def print_trial(trial: Trial) -> None:
        result = trial.reason if trial.value is None else format_decimal(trial.value)
        print(f"{trial.folder.name}  {result}  {' '.join(map(_rounded, trial.changes))}", file=sys.stderr)

    trials = search_recipe(search, on_trial_done=print_trial)
    title = f"the best of {plural(len(trials), 'trial')}, by {metric} on the validation window"
    table = Table("trial", metric, "changes", title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    for trial in trials[:10]:
        table.add_row(
            trial.folder.name,
            format_decimal(trial.value) if trial.value is not None else trial.reason.partition(":")[0],
            Text("\n".join(map(_rounded, trial.changes))),
        )
    Console().print(table)
    print(
        "The test window was not used. The best of many trials looks better than it is; to evaluate it, run it fully:"
    )
    print(command_of(search, trials[0]))


def _rounded(change: str) -> str:
    """Returns a change with few digits, for reading; the printed command has all digits."""
    return re.sub(r"\d+\.\d{4,}(e-?\d+)?", lambda found: f"{float(found[0]):.3g}", change)
