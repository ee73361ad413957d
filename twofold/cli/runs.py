"""The part of the command line around runs: their table, some side by side, a search, and copies to other places."""

import os
import re
import sys
from contextlib import closing
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twofold.cli.inputs import RecipeFile, Settings
from twofold.errors import RequestError
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe
from twofold.render.numbers import format_decimal, plural
from twofold.runs import STAGES, RunSummary, list_runs, sort_runs

if TYPE_CHECKING:
    import pyarrow as pa

    from twofold.index.item_index import Index


class Database(StrEnum):
    """Where an index can be copied to."""

    qdrant = "qdrant"


Runs = Annotated[Path, typer.Option("--runs", help="The folder that holds the run folders.")]


def list_all_runs(
    runs: Runs = Path("runs"),
    by: Annotated[
        str | None, typer.Option("--by", help="The metric to sort by; default: the reports' primary metric.")
    ] = None,
) -> None:
    """The table of all runs, the best first."""
    metric, lines = sort_runs(list_runs(runs), by=by)
    if not lines:
        print(f"{runs} holds no run yet: `twofold run RECIPE` makes one, and --runs names another folder.")
        return
    metrics = dict.fromkeys((metric, "impressions/auc"))
    columns = {
        "run": [line.name for line in lines],
        "recipe": [line.recipe_digest[:8] for line in lines],
        "base": [line.base for line in lines],
        "date": [_day(line) for line in lines],
        "last\nstage": [line.stage if line.stage != STAGES[-1] else "" for line in lines],
        # Two lines: a terminal of 80 columns holds them so.
        **{name.replace("/", "/\n"): [format_decimal(line.metrics.get(name)) for line in lines] for name in metrics},
        "seconds": [f"{line.seconds:,.0f}" for line in lines],
    }
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    told = {heading: cells for heading, cells in columns.items() if any(cells)}
    for heading in told:  # names are folded where there is no room; a number or a date cut short would mislead
        is_text = heading in ("run", "recipe", "base", "date", "last\nstage")
        no_wrap = heading not in ("run", "base")
        table.add_column(heading, overflow="fold", no_wrap=no_wrap, justify="left" if is_text else "right")
    for cells in zip(*told.values(), strict=True):
        table.add_row(*map(Text, cells))
    Console().print(table)


def tracking_uri(recipe: Recipe) -> str | None:
    """MLFLOW_TRACKING_URI, or what the recipe says; RequestError, before hours of work, if MLflow is not installed."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (recipe.mlflow.uri if recipe.mlflow else None)
    if uri is not None and find_spec("mlflow") is None:
        raise RequestError(
            f"the run is to be copied to {uri}, and mlflow is not installed: pip install 'twofold[mlflow]', or unset "
            f"MLFLOW_TRACKING_URI and delete the recipe's mlflow."
        )
    return uri


def track(folder: Path, *, uri: str) -> None:
    """Copies a finished run to MLflow."""
    from twofold.mlflow_export import log_run

    print(f"mlflow           {log_run(folder, uri=uri)}  {uri}")


def _day(line: RunSummary) -> str:
    return f"{line.changed_at.astimezone():%Y-%m-%d}" if line.changed_at else "–"


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Judged run folders; the first is what the others are held against.")
    ],
    to: Annotated[Path | None, typer.Option("--to", help="Also a page of it all, such as compared.html.")] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="So many runs of each recipe, by another train.seed each.")
    ] = None,
) -> None:
    """Runs of one question: metrics with intervals paired over users, and what their recipes ask for differently.

    With `--seeds 3`, `twofold compare A0 A1 A2 B0 B1 B2` says whether recipe B is better than A, whatever the seed.
    """
    from twofold.evaluate.compare import compare_seeds
    from twofold.evaluate.compare_page import compare_run_folders, comparison_tables, seeds_table, write_page

    if seeds is not None:
        if to is not None:
            raise RequestError("--to writes a page of single runs: leave out --seeds, or --to.")
        for claims in compare_seeds(runs, seeds=seeds):
            Console().print(seeds_table(claims))
        return
    found = compare_run_folders(runs)
    if to is not None:
        write_page(found, to)
    console = Console()
    for part in comparison_tables(found):
        console.print(part)
    if to is not None:
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
        found = trial.reason if trial.value is None else format_decimal(trial.value)
        print(f"{trial.folder.name}  {found}  {' '.join(map(_rounded, trial.changes))}", file=sys.stderr)

    trials = search_recipe(search, tell=say)
    title = f"the best of {plural(len(trials), 'trial')}, by recall on the validation window"
    table = Table("trial", "recall", "changes", title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    for trial in trials[:10]:
        table.add_row(
            trial.folder.name,
            format_decimal(trial.value) if trial.value is not None else trial.reason.partition(":")[0],
            Text("\n".join(map(_rounded, trial.changes))),
        )
    Console().print(table)
    print(
        "The test window was not looked at, and the best of many looks better than it is. To judge it, run it in full:"
    )
    print(command_of(search, trials[0]))


def _rounded(change: str) -> str:
    """A change as a person reads it; the command that is printed has all digits."""
    return re.sub(r"\d+\.\d{4,}(e-?\d+)?", lambda found: f"{float(found[0]):.3g}", change)


def export(
    run_folder: Annotated[Path, typer.Argument(help="A run folder, as runs/kuairand: its index/ is copied.")],
    to: Annotated[Database, typer.Option("--to", help="The vector database.")],
    at: Annotated[str, typer.Option("--at", help="http://HOST:6333 of a Qdrant, or a folder.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new collection.")] = "items",
) -> None:
    """Copy item vectors and attributes into Qdrant, for a catalogue beyond one machine or for other programs."""
    import pyarrow.parquet as pq

    from twofold.index.item_index import load_index
    from twofold.run_folder import open_stage

    if find_spec("qdrant_client") is None:
        raise RequestError(
            f"--to {to.value} needs qdrant_client, which is not installed: pip install 'twofold[export]'"
        )
    folder = open_stage(run_folder, "index", verify=True).folder
    index, attributes = load_index(folder), pq.read_table(folder / "item_attributes.parquet")
    _into_qdrant(index, attributes, at=at, collection=name)
    print(f"{len(index):,} items  {to.value} {at}  {name}")


def _into_qdrant(index: "Index", attributes: "pa.Table", *, at: str, collection: str) -> None:
    from qdrant_client import QdrantClient
    from qdrant_client.http.exceptions import ApiException

    from twofold.index.export import export_qdrant

    try:
        where: dict[str, Any] = {"url": at, "check_compatibility": False} if "://" in at else {"path": at}
        with closing(QdrantClient(**where)) as client:
            export_qdrant(index, attributes, client, collection=collection)
    except (ApiException, OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"--at {at}: the index cannot be copied there: {error}. Give http://HOST:6333, or a folder for Qdrant's "
            f"embedded mode. If the copy had begun, delete the incomplete collection or choose another --name."
        ) from error
