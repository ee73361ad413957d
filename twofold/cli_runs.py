"""The part of the command line that is about many runs: their table, and some side by side."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

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
    table = Table("run", "recipe", "date", "last\nstage", *headings, "seconds", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    for line in lines:
        metrics = (f"{line.metrics[name]:.4f}" if name in line.metrics else "—" for name in shown)
        table.add_row(line.name, line.recipe_digest[:8], _day(line), line.stage, *metrics, f"{line.seconds:.0f}")
    Console().print(table)


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
