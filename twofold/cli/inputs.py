"""The part of the command line that comes before a run: data sets and recipes."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twofold.errors import RecipeError, RequestError
from twofold.ingest.seen import LogProfile, taken_as
from twofold.recipe.load import load_recipe, recipe_differences, recipe_digest, recipe_schema

recipe_app = typer.Typer(help="Recipes: draft one from a log, check one, compare two.", no_args_is_help=True)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, as those in recipes/.")]
Settings = Annotated[list[str], typer.Option("--set", help="Change a field: retriever.dim=96. May be repeated.")]


def data(
    name: Annotated[str | None, typer.Argument(help="Which; without a name, the list of them.")] = None,
    origin: Annotated[Path | None, typer.Option("--from", help="Its folder or archive, if you have it.")] = None,
    to: Annotated[Path | None, typer.Option(help="The folder of the tables; default: data/NAME.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Give up the events in that folder.")] = False,
    rows: Annotated[int | None, typer.Option(min=1, help="Of a world; default: a million.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of a world; default: 0.")] = None,
) -> None:
    """A public data set, or a world with planted truth, as tables that a recipe reads."""
    from twofold.ingest.public import PUBLIC_SETS, data_block, find_set, make_tables

    if name is None:
        table = Table("name", "what", "download", "terms", box=SIMPLE_HEAD, pad_edge=False)
        for public in PUBLIC_SETS:
            table.add_row(public.name, public.about, public.size, public.terms)
        table.add_row("world", "a synthetic short-video log with planted truth, of any size (--rows)", "—", "none")
        Console().print(table)
        return
    to = to or Path("data") / name
    if name == "world":
        from twofold.ingest.world_events import World, write_world

        world = World(rows=rows or 1_000_000, seed=seed or 0)
        block = data_block(write_world(to.resolve(), world))
        _print_tables({"events": world.rows, "items": world.items, "users": world.users}, block)
        return
    public = find_set(name)
    if rows is not None or seed is not None:
        raise RequestError(f"{name} is as large as it is; --rows and --seed are for `twofold data world`.")
    made = make_tables(public, origin, to, replace=replace)
    if made.archive is not None:
        is_known = "as published" if public.md5 else "none is published to compare it with"
        print(f"{made.archive.path}  {made.archive.size:,} bytes, MD5 {made.archive.md5} ({is_known})")
    _print_tables(made.rows, data_block(made.data))
    print(f"\nterms  {public.terms}")


def _print_tables(rows: Mapping[str, int], block: str) -> None:
    for table, num_rows in rows.items():
        print(f"{table:<20}{num_rows:>14,} rows")
    print(f"\nfor a recipe:\n{block}", end="")


@recipe_app.command()
def check(
    recipe: RecipeFile,
    settings: Settings = [],  # noqa: B006
    columns: Annotated[bool, typer.Option("--columns", help="Also what its tables hold.")] = False,
) -> None:
    """Everything that can be known before a row of data is read."""
    from twofold.prepare.check import check_recipe

    loaded = load_recipe(recipe, overrides=settings)
    source = check_recipe(loaded)
    if columns:
        for path in source.files:
            print(f"{path}  {path.stat().st_size:,} bytes")
        table = Table("table", "column", "type")
        for name, held in (("events", source.events), ("items", source.items), ("users", source.users)):
            for column, kind in held.columns.items():
                table.add_row(name, column, kind)
        Console().print(table)
    print(f"{recipe} is well: recipe {recipe_digest(loaded)[:12]}, {len(source.files)} data files")


@recipe_app.command()
def new(
    log: Annotated[Path, typer.Option("--log", exists=True, help="Your log: CSV or Parquet, or a folder of either.")],
    items: Annotated[Path | None, typer.Option("--items", exists=True, help="What is known of items.")] = None,
    users: Annotated[Path | None, typer.Option("--users", exists=True, help="What is known of users.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="The log's column of users, if it is not found.")] = None,
    item: Annotated[str | None, typer.Option("--item", help="The log's column of items.")] = None,
    time: Annotated[str | None, typer.Option("--time", help="The log's column of times.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Where the recipe goes; - prints it.")] = Path("recipe.yaml"),
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a recipe.")] = False,
) -> None:
    """Looks at a log, guesses what its columns are, and writes a commented recipe that runs."""
    from twofold.ingest.column_roles import GivenColumns
    from twofold.ingest.draft_recipe import draft_recipe, recipe_name
    from twofold.ingest.inspect_log import check_draft, profile_log

    folder = None if str(out) == "-" else out.parent
    if folder and out.exists() and not replace:
        raise RecipeError(f"{out} exists. Overwrite it with --replace, or name another file with --out FILE.")
    console = Console(stderr=folder is None, highlight=False, soft_wrap=True)
    with Console(stderr=True).status("looking at every row …"):
        seen = profile_log(log, items=items, users=users, asked=GivenColumns(user, item, time))
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


def _print_seen(console: Console, seen: LogProfile) -> None:
    """The columns of every table with the parts they play, and what was counted. Names are text here, never markup."""
    from twofold.ingest.column_roles import printable, shown_values
    from twofold.ingest.draft_recipe import facts_of

    for looked in seen.tables:
        table = Table("column", "type", "NULL", "distinct", "range or commonest", "taken as", box=SIMPLE_HEAD)
        table.title, table.title_justify = f"{looked.path}: {looked.rows:,} rows", "left"
        for column in looked.columns:
            nulls, distinct = (f"{column.nulls:.1%}" if column.nulls else "", f"{column.distinct:,}")
            part = taken_as(seen, looked, column)
            cells = (printable(column.name), column.type, nulls, distinct, shown_values(column), part)
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))
        console.print(table)
    for heading, sentence in facts_of(seen):
        console.print(Text(f"{heading:<11} {sentence}"))


@recipe_app.command()
def diff(old: RecipeFile, new: RecipeFile) -> None:
    """What the second recipe asks for that the first does not: added, removed, changed."""
    table = Table("", "field", "first", "second", box=SIMPLE_HEAD, pad_edge=False)
    for change in recipe_differences(load_recipe(old), load_recipe(new)):
        before, after = ("" if value is None else json.dumps(value) for value in (change.old, change.new))
        table.add_row(change.kind, change.field, before, after)
    Console().print(table if table.row_count else "no difference")


@recipe_app.command()
def schema() -> None:
    """The JSON Schema of a recipe, for editors."""
    print(json.dumps(recipe_schema(), indent=1))
