"""Commands that come before a run: data sets and recipes."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twofold.cli.options import RecipeFile, Settings
from twofold.errors import RecipeError, RequestError
from twofold.local_time import check_time_zone
from twofold.recipe.diff import recipe_differences, recipe_digest
from twofold.recipe.load import load_recipe, recipe_schema
from twofold.render.numbers import percent

if TYPE_CHECKING:
    from twofold.ingest.inspect_log import LogProfile

recipe_app = typer.Typer(help="Draft a recipe from a log, check one, compare two.", no_args_is_help=True)


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
) -> None:
    """Download and convert a public data set, or generate a synthetic log, as tables that a recipe reads."""
    from twofold.ingest.public import data_block, find_set, make_tables

    if name is None:
        _print_data_sets()
        return
    to = to or Path("data") / name
    if name == "world":
        from twofold.ingest.world_events import World, write_world

        if origin is not None:
            raise RequestError(f"world is generated, not read: leave out --from {origin}.")
        world = World(rows=rows or 1_000_000, seed=seed or 0)
        block = data_block(write_world(to.resolve(), world, overwrite=overwrite))
        _print_tables({"events": world.rows, "items": world.items, "users": world.users}, block)
        return
    public = find_set(name)
    if rows is not None or seed is not None:
        raise RequestError(f"{name} has a fixed size; --rows and --seed are options of `twofold data world`.")
    tables = make_tables(public, origin, to, replace=overwrite)
    if (archive := tables.archive) is not None:
        comparison = "as published" if public.md5 else "none is published to compare it with"
        print(f"{archive.path}  {archive.size:,} bytes, MD5 {archive.md5} ({comparison})")
    _print_tables(tables.rows, data_block(tables.data))
    print(f"\nterms  {public.terms}")


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


@recipe_app.command()
def check(
    recipe: RecipeFile,
    settings: Settings,
    columns: Annotated[bool, typer.Option("--columns", help="List the files and columns of its tables, too.")] = False,
) -> None:
    """Check a recipe against its schema and against the columns of its data; no rows are read."""
    from twofold.prepare.check import check_recipe

    loaded = load_recipe(recipe, overrides=settings)
    source = check_recipe(loaded)
    if columns:
        for path in source.files:
            print(f"{path}  {path.stat().st_size:,} bytes")
        table = Table("table", "column", "type")
        for name, columns_of in (("events", source.events), ("items", source.items), ("users", source.users)):
            for column, kind in columns_of.columns.items():
                table.add_row(name, column, kind)
        Console().print(table)
    print(f"{recipe} is valid: recipe {recipe_digest(loaded)[:12]}, {len(source.files)} data files")


@recipe_app.command()
def new(
    log: Annotated[
        Path, typer.Option("--log", exists=True, help="Your log: Parquet, CSV or JSON; a file or a folder.")
    ],
    items: Annotated[Path | None, typer.Option("--items", exists=True, help="Table of item attributes.")] = None,
    users: Annotated[Path | None, typer.Option("--users", exists=True, help="Table of user attributes.")] = None,
    user: Annotated[
        str | None, typer.Option("--user", help="Name of the log's user column, if it is not recognized.")
    ] = None,
    item: Annotated[str | None, typer.Option("--item", help="Name of the log's item column.")] = None,
    time: Annotated[str | None, typer.Option("--time", help="Name of the log's time column.")] = None,
    time_zone: Annotated[
        str, typer.Option("--time-zone", help="IANA time zone of days and hours, such as Asia/Kolkata.")
    ] = "UTC",
    out: Annotated[Path, typer.Option("--out", help="File for the recipe; - prints it.")] = Path("recipe.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
) -> None:
    """Read a log, guess the meaning of its columns, and write a commented recipe that runs."""
    from twofold.ingest.column_roles import GivenColumns
    from twofold.ingest.draft_recipe import draft_recipe, recipe_name
    from twofold.ingest.inspect_log import check_draft, profile_log

    zone = _zone(time_zone)
    folder = None if str(out) == "-" else out.parent
    if folder and out.exists() and not overwrite:
        raise RecipeError(f"{out} exists. Overwrite it with --overwrite, or name another file with --out FILE.")
    console = Console(stderr=folder is None, highlight=False, soft_wrap=True)
    with Console(stderr=True).status("reading the log …"):
        seen = profile_log(log, items=items, users=users, given_columns=GivenColumns(user, item, time), time_zone=zone)
    _print_seen(console, seen)
    text = draft_recipe(seen, name=recipe_name(log), folder=folder)
    if folder is None:
        check_draft(text, Path(gettempdir()))
        print(text, end="")
        return
    folder.mkdir(parents=True, exist_ok=True)
    check_draft(text, folder)
    out.write_text(text, encoding="utf-8")
    print(f"\nrecipe  {out}\nnext    twofold run {out}")


def _zone(name: str) -> str:
    try:
        return check_time_zone(name)
    except ValueError as error:
        raise RequestError(f"--time-zone: {error}.") from None


def _print_seen(console: Console, seen: "LogProfile") -> None:
    """Prints every table's columns with their roles, and what was counted. Names are text here, never markup."""
    from twofold.ingest.draft_recipe import facts_of
    from twofold.ingest.inspect_log import taken_as
    from twofold.ingest.log_profile import printable, shown_values

    for profile in seen.tables:
        table = Table("column", "type", "NULL", "distinct", "range or most frequent", "role", box=SIMPLE_HEAD)
        table.title, table.title_justify = f"{profile.path}: {profile.rows:,} rows", "left"
        for column in profile.columns:
            nulls, distinct = (percent(column.nulls) if column.nulls else "", f"{column.distinct:,}")
            role = taken_as(seen, profile, column)
            cells = (printable(column.name), column.type, nulls, distinct, shown_values(column), role)
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))
        console.print(table)
    for heading, sentence in facts_of(seen):
        console.print(Text(f"{heading:<11} {sentence}"))


@recipe_app.command()
def diff(old: RecipeFile, new: RecipeFile) -> None:
    """Compare two recipes: print the fields that are added, removed or changed."""
    table = Table("", "field", "first", "second", box=SIMPLE_HEAD, pad_edge=False)
    for change in recipe_differences(load_recipe(old), load_recipe(new)):
        before, after = ("" if value is None else json.dumps(value) for value in (change.old, change.new))
        table.add_row(change.kind, change.field, before, after)
    Console().print(table if table.row_count else "no difference")


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    print(json.dumps(recipe_schema(), indent=1))
