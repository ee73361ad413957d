"""Commands that come before a run: data sets and recipes."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twofold.cli.draft import new
from twofold.cli.examples import example_of
from twofold.cli.options import RecipeFile, Settings
from twofold.errors import RequestError
from twofold.recipe.diff import recipe_differences, recipe_digest
from twofold.recipe.load import load_recipe, recipe_schema
from twofold.recipe.split import LastEvents
from twofold.tables import SPLITS

if TYPE_CHECKING:
    from twofold.ingest.world import World

recipe_app = typer.Typer(help="Draft a recipe from a log, check one, compare two.", no_args_is_help=True)
recipe_app.command(epilog=example_of("recipe new"))(new)


def data(
    name: Annotated[
        str | None, typer.Argument(help="Name of the data set; without it, the available ones are listed.")
    ] = None,
    origin: Annotated[
        Path | None, typer.Option("--from", help="Read this folder or archive instead of downloading.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder for the tables; default: data/NAME.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite the tables in that folder.")] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Number of events of the synthetic log `world`; default: 1,000,000.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed of the log `world`; default: 0.")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="Number of items of `world`; default: by the rows.")] = None,
    content_dim: Annotated[int | None, typer.Option(min=1, help="Length of `world`'s content vectors; 32.")] = None,
    length_style: Annotated[
        float | None,
        typer.Option(help="Share of the variance of log length that creators and content of `world` tell; default: 0."),
    ] = None,
) -> None:
    """Download and convert a public data set, or generate a synthetic log, as tables that a recipe reads."""
    if name is None:
        _print_data_sets()
        return
    to = to or Path("data") / name
    if name == "world":
        from twofold.ingest.world_events import World

        if origin is not None:
            raise RequestError(f"world is generated, not read: leave out --from {origin}.")
        world = World(rows or 1_000_000, items=items or 0, seed=seed or 0)
        world = replace(world, content_dim=content_dim or world.content_dim, length_style=length_style or 0.0)
        _write_world(world, to, overwrite=overwrite)
        return
    if any(each is not None for each in (rows, items, seed, content_dim, length_style)):
        raise RequestError(
            f"{name} has a fixed size; --rows, --items, --seed, --content-dim and --length-style are options of "
            f"`twofold data world`."
        )
    _make_public(name, origin, to, overwrite=overwrite)


def _make_public(name: str, origin: Path | None, to: Path, *, overwrite: bool) -> None:
    from twofold.ingest.public import data_block, find_set, make_tables

    public = find_set(name)
    tables = make_tables(public, origin, to, replace=overwrite)
    if (archive := tables.archive) is not None:
        comparison = "as published" if public.md5 else "none is published to compare it with"
        print(f"{archive.path}  {archive.size:,} bytes, MD5 {archive.md5} ({comparison})")
    _print_tables(tables.rows, data_block(tables.data))
    print(f"\nterms  {public.terms}")


def _write_world(world: "World", to: Path, *, overwrite: bool) -> None:
    from twofold.ingest.public import data_block
    from twofold.ingest.world_events import write_world

    block = data_block(write_world(to.resolve(), world, overwrite=overwrite))
    _print_tables({"events": world.rows, "items": world.items, "users": world.users}, block)


def _print_data_sets() -> None:
    from twofold.ingest.public import PUBLIC_SETS

    table = Table("name", "content", "download", "terms", box=SIMPLE_HEAD, pad_edge=False)
    for public in PUBLIC_SETS:
        table.add_row(public.name, public.about, public.size, public.terms)
    table.add_row("world", "a synthetic short-video log with known preferences, of any size (--rows)", "—", "none")
    Console().print(table)


def _print_tables(rows: Mapping[str, int], block: str) -> None:
    for table, num_rows in rows.items():
        print(f"{table:<20}{num_rows:>14,} rows")
    print(f"\nfor a recipe:\n{block}", end="")


@recipe_app.command(epilog=example_of("recipe check"))
def check(
    recipe: RecipeFile,
    settings: Settings,
    columns: Annotated[bool, typer.Option("--columns", help="List the files and columns of its tables, too.")] = False,
) -> None:
    """Check a recipe against its schema, and against the columns and days of its data.

    It reads the first and the last time of the log, and the first rows of a text that a rule reads as a number or as a
    condition.
    """
    from twofold.ingest.table_profile import printable
    from twofold.prepare.check import check_recipe
    from twofold.prepare.last_days import check_windows, with_dates

    loaded = load_recipe(recipe, overrides=settings)
    source = check_recipe(loaded)
    if columns:
        for path in source.files:
            print(f"{path}  {path.stat().st_size:,} bytes")
        table = Table("table", "column", "type")
        for name, columns_of in (("events", source.events), ("items", source.items), ("users", source.users)):
            for column, kind in columns_of.columns.items():
                table.add_row(name, *(Text(each, overflow="fold") for each in (printable(column), kind)))
        Console().print(table)
    check_windows(loaded)
    if not isinstance(loaded.prepare.split, LastEvents):
        dated = with_dates(loaded).prepare
        print("windows  " + "; ".join(f"{split}: {dated.dates(split)}" for split in SPLITS))
    for warning in loaded.warnings:
        print(f"note: {warning}")
    print(f"{recipe} is valid: recipe {recipe_digest(loaded)[:12]}, {len(source.files)} data files")


@recipe_app.command(epilog=example_of("recipe diff"))
def diff(old: RecipeFile, new: RecipeFile) -> None:
    """Compare two recipes: print the fields that are added, removed or changed."""
    table = Table("", "field", "first", "second", box=SIMPLE_HEAD, pad_edge=False)
    for change in recipe_differences(load_recipe(old), load_recipe(new)):
        before, after = ("" if value is None else json.dumps(value) for value in (change.old, change.new))
        table.add_row(change.kind, *(Text(each, overflow="fold") for each in (change.field, before, after)))
    Console().print(table if table.row_count else "no difference")


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    print(json.dumps(recipe_schema(), indent=1))
