"""The command `twofold recipe new`: a commented recipe from a log, and what it is unsure of."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twofold.errors import RecipeError, RequestError
from twofold.local_time import check_time_zone
from twofold.render.numbers import percent

if TYPE_CHECKING:
    from twofold.ingest.column_roles import GivenColumns
    from twofold.ingest.inspect_log import Answers, LogProfile


DEFAULT_OUT: Final = "recipe.yaml"
"""File for a recipe that is named after its log; another file gives the recipe its own name."""
_LogFile = Annotated[
    Path | None, typer.Argument(metavar="[LOG]", help="Your log: Parquet, CSV or JSON; a file or a folder.")
]
_Log = Annotated[Path | None, typer.Option("--log", help="The same, as an option.")]
_Items = Annotated[Path | None, typer.Option("--items", help="Table of item attributes.")]
_Users = Annotated[Path | None, typer.Option("--users", help="Table of user attributes.")]
_User = Annotated[str | None, typer.Option("--user", help="Name of the log's user column, if it is not recognized.")]
_Item = Annotated[str | None, typer.Option("--item", help="Name of the log's item column.")]
_Time = Annotated[str | None, typer.Option("--time", help="Name of the log's time column.")]
_TimeZone = Annotated[
    str | None, typer.Option("--time-zone", help="IANA time zone of days and hours, such as Asia/Kolkata.")
]
_Positive = Annotated[
    str | None, typer.Option("--positive", help='Rule of the events that train, such as "rating >= 4".')
]
_Relevant = Annotated[
    str | None,
    typer.Option("--relevant", help="Rule of the events that count as hits in the report, if not those of --positive."),
]
_Weights = Annotated[str | None, typer.Option("--weights", help="Weights by kind of event: view=1,cart=4,purchase=10.")]
_Repeats = Annotated[
    bool | None, typer.Option("--repeats/--no-repeats", help="Recommend items again that a user has seen.")
]
_TestDays = Annotated[
    int | None, typer.Option("--test-days", min=1, help="Number of days to test; as many before them validate.")
]
_Out = Annotated[Path, typer.Option("--out", help="File for the recipe, and so the name of its runs; - prints it.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Take all guesses; ask nothing on a terminal.")]


def new(
    log_file: _LogFile = None,
    log: _Log = None,
    items: _Items = None,
    users: _Users = None,
    user: _User = None,
    item: _Item = None,
    time: _Time = None,
    time_zone: _TimeZone = None,
    positive: _Positive = None,
    relevant: _Relevant = None,
    weights: _Weights = None,
    repeats: _Repeats = None,
    test_days: _TestDays = None,
    out: _Out = Path(DEFAULT_OUT),
    overwrite: _Overwrite = False,
    yes: _Yes = False,
) -> None:
    """Read a log, guess the meaning of its columns, and write a commented recipe that runs.

    On a terminal it asks what it is unsure of. Elsewhere, and with --yes, it takes the guesses, and prints the
    questions, each with the option that answers it.
    """
    from twofold.ingest.column_roles import GivenColumns
    from twofold.ingest.event_kinds import parse_weights
    from twofold.ingest.inspect_log import Answers, LogProfile, profile_log

    answers = Answers(
        _rule(positive, "--positive"), _rule(relevant, "--relevant"), repeats, test_days, _zone(time_zone)
    )
    columns = GivenColumns(user, item, time, parse_weights(weights) if weights else {})
    path = _log_path(log_file, log)
    _check_out(out, overwrite=overwrite)

    def profile(columns: GivenColumns, answers: Answers, seen: LogProfile | None) -> LogProfile:
        with Console(stderr=True).status("reading the log …"):
            return profile_log(path, items=items, users=users, given_columns=columns, answers=answers, seen=seen)

    is_asked = not yes and str(out) != "-" and sys.stdin.isatty() and sys.stdout.isatty()
    _draft(path, profile, columns, answers, out=out, is_asked=is_asked)


def _log_path(argument: Path | None, option: Path | None) -> Path:
    """Returns the log, which is given once: as an argument or as an option."""
    if argument is not None and option is not None:
        raise RequestError(
            f"two logs are named, {argument} and --log {option}. Name one; a table of attributes is --items FILE or "
            f"--users FILE, and several files of one log are a folder."
        )
    if (found := argument or option) is None:
        raise RequestError("no log is named. Write: twofold recipe new events.csv")
    return found


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.is_dir():
        raise RequestError(f"--out {out} is a folder. Name a file in it, such as {out / 'recipe.yaml'}.")
    if str(out) != "-" and out.exists() and not overwrite:
        raise RecipeError(f"{out} exists. Overwrite it with --overwrite, or name another file with --out FILE.")


_Profile: TypeAlias = "Callable[[GivenColumns, Answers, LogProfile | None], LogProfile]"


def _draft(
    log: Path, profile: _Profile, columns: "GivenColumns", answers: "Answers", *, out: Path, is_asked: bool
) -> None:
    """Prints what was found, asks or prints the questions, and writes the recipe."""
    seen, is_printed = profile(columns, answers, None), str(out) == "-"
    console = Console(stderr=is_printed, highlight=False, soft_wrap=True)
    _print_seen(console, seen)
    if is_asked:
        seen = _with_answers(seen, columns, profile)
    _write(seen, log, None if is_printed else out)
    if not is_asked:
        _print_questions(console, seen)
    if not is_printed:
        print(f"\nrecipe  {out}")
        if cost := _cost_of_run(seen, out):
            print(f"run     {cost}")
        print(f"next    twofold run {shlex.quote(f'{out}')}")


def _cost_of_run(seen: "LogProfile", recipe: Path) -> str:
    """Says what a run of the draft takes; empty if no run like it was measured."""
    from twofold.cost_plan import cost_sentence, run_cost
    from twofold.recipe.load import load_recipe

    events = seen.events
    sizes = {"examples": events.positives, "users": events.users, "items": events.items}
    cost = run_cost(load_recipe(recipe), rows=events.rows, **sizes)
    return "" if cost is None else cost_sentence(cost, f"{events.positives:,} positives")


def _with_answers(seen: "LogProfile", columns: "GivenColumns", profile: _Profile) -> "LogProfile":
    answers, weights = ask_questions(seen)
    if (answers, weights) == (seen.answers, None):
        return seen
    return profile(replace(columns, weights=weights or columns.weights), answers, seen)


def _write(seen: "LogProfile", log: Path, out: Path | None) -> None:
    """Writes the recipe, or prints it if `out` is None."""
    from twofold.ingest.draft_recipe import draft_recipe, recipe_name, save_draft
    from twofold.ingest.inspect_log import check_draft

    if out is None:
        text = draft_recipe(seen, name=recipe_name(log), folder=None)
        check_draft(text, Path(gettempdir()))
        print(text, end="")
    else:
        save_draft(seen, out, name=recipe_name(log if out.name == DEFAULT_OUT else out))


def ask_questions(seen: "LogProfile") -> tuple["Answers", dict[str, float] | None]:
    """Asks each question of the draft on the terminal; returns the answers, and weights by kind of event if given.

    An empty line keeps the guess. An answer that cannot be read is asked for again.
    """
    from twofold.ingest.draft_questions import questions

    answers, weights, found = seen.answers, None, questions(seen)
    if found:
        print("\nUnsure of (Enter keeps the guess):")
    for number, question in enumerate(found, start=1):
        option = question.option.split()[0]
        is_yes_or_no = option in ("--repeats", "--no-repeats")
        example = "y or n" if is_yes_or_no else f"such as {shlex.split(question.option)[1]}"
        print(f"  {number}. {question.text}")
        while text := typer.prompt(f"     your answer, {example}", default="", show_default=False).strip():
            try:
                answers, weights = _with_answer(answers, weights, option, text)
            except RequestError as error:
                print(f"   {error}")
                continue
            break
    return answers, weights


def _with_answer(
    answers: "Answers", weights: dict[str, float] | None, option: str, text: str
) -> tuple["Answers", dict[str, float] | None]:
    from twofold.ingest.event_kinds import parse_weights

    match option:
        case "--weights":
            return answers, parse_weights(text)
        case "--positive":
            return replace(answers, positive=_rule(text, option)), weights
        case "--relevant":
            return replace(answers, relevant=_rule(text, option)), weights
        case "--time-zone":
            return replace(answers, time_zone=_zone(text)), weights
        case "--test-days":
            if not text.isdecimal() or int(text) == 0:
                raise RequestError(f"--test-days: {text} is no number of days. Write 1 or more.")
            return replace(answers, test_days=int(text)), weights
    if text.lower() not in ("y", "yes", "n", "no"):
        raise RequestError(f"{text} is neither y nor n.")
    return replace(answers, repeats=text.lower().startswith("y")), weights


def _zone(name: str | None) -> str | None:
    try:
        return None if name is None else check_time_zone(name)
    except ValueError as error:
        raise RequestError(f"--time-zone: {error}.") from None


def _rule(text: str | None, option: str) -> str | None:
    from twofold.sql.rules import check_rule

    if text is not None:
        try:
            check_rule(text, result="condition")
        except RecipeError as error:
            raise RequestError(f"{option}: {error}") from None
    return text


def _print_seen(console: Console, seen: "LogProfile") -> None:
    """Prints every table's columns with their roles, and what was counted. Names are text here, never markup."""
    from twofold.ingest.inspect_log import log_facts, taken_as
    from twofold.ingest.table_profile import printable, shown_values

    for profile in seen.tables:
        table = Table("column", "type", "NULL", "distinct", "range or most frequent", "role", box=SIMPLE_HEAD)
        table.title, table.title_justify = f"{profile.path}: {profile.rows:,} rows", "left"
        for column in profile.columns:
            nulls, distinct = (percent(column.nulls) if column.nulls else "", f"{column.distinct:,}")
            role = taken_as(seen, profile, column)
            cells = (printable(column.name), column.type, nulls, distinct, shown_values(column), role)
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))
        console.print(table)
    for heading, sentence in log_facts(seen):
        console.print(Text(f"{heading:<11} {sentence}"))


def _print_questions(console: Console, seen: "LogProfile") -> None:
    """Prints what the draft is unsure of, each question with the option that answers it."""
    from twofold.ingest.draft_questions import questions

    found = questions(seen)
    if found:
        console.print(Text("\nUnsure of (the recipe holds the guesses; the options change them):"))
    for number, question in enumerate(found, start=1):
        console.print(Text(f"  {number}. {question.text}\n     {question.option}"))
