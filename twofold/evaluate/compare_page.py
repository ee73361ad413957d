"""Several runs against the first of them: metrics with paired intervals, recipes side by side; a table and one page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from twofold.errors import RequestError
from twofold.evaluate.compare import Compared, Comparison, SeedComparison, check_comparable, compare_runs
from twofold.evaluate.significance import LEVEL, MIN_SEEDS, Estimate
from twofold.evaluate.summary_text import format_difference
from twofold.recipe.load import Difference, load_recipe, recipe_differences
from twofold.recipe.schema import Recipe
from twofold.render.html import fill_page, setting
from twofold.render.numbers import format_decimal, format_signed, in_full, percent, plural
from twofold.run_folder import atomic_file, find_stage, open_stage

ABSENT: Final = "not there"
_SAID: Final = ("name", "about")  # of itself; the columns have the runs' names
_SHOWN: Final = ("catalogue/recall@10", "catalogue/ndcg@10", "catalogue/mrr@10", "impressions/auc")
"""Metrics of the terminal's table, beside the primary metric; the page has all."""
_MOST_LINES: Final = 8  # of a recipe's part in the terminal


@dataclass(frozen=True)
class FieldLine:
    """One field in which recipes differ; `cells` has a text for each run, empty where it is as in the first."""

    field: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class RunComparison:
    """Runs of one question. `others` are all but the first, each compared with it."""

    names: tuple[str, ...]
    others: tuple[Comparison, ...]
    fields: tuple[FieldLine, ...]
    churns: tuple[float | None, ...]
    """Of each of the others: see `churn`."""

    @property
    def primary_metric(self) -> str:
        """The metric that the verdict of a report is about."""
        return self.others[0].primary_metric

    @property
    def metrics(self) -> dict[str, tuple[Compared, ...]]:
        """What all runs have: metric → a line for each of the others, the primary metric first."""
        found = [{line.metric: line for line in other.metrics} for other in self.others]
        names = [name for name in found[0] if all(name in lines for lines in found)]
        names.sort(key=lambda name: name != self.primary_metric)
        return {name: tuple(lines[name] for lines in found) for name in names}


def compare_run_folders(folders: Sequence[Path]) -> RunComparison:
    """Judged run folders, the first of which the others are compared with.

    RequestError for fewer than two, or if one was asked something else, with the fields that differ; RunError for a
    folder that is no judged run.
    """
    if len(folders) < 2:
        raise RequestError(f"{plural(len(folders), 'run')} cannot be compared: name two or more, the base run first.")
    judged = [open_stage(folder, "evaluate").folder for folder in folders]
    for each in judged[1:]:
        check_comparable(each, judged[0])
    unique = len({folder.name for folder in folders}) == len(folders)
    return RunComparison(
        names=tuple(folder.name if unique else str(folder) for folder in folders),
        others=tuple(compare_runs(each, judged[0]) for each in judged[1:]),
        fields=_fields(folders),
        churns=tuple(churn(folders[0], each) for each in folders[1:]),
    )


def churn(before: Path, after: Path) -> float | None:
    """The share of a user's recommendations that another run no longer gives, mean over the users of both; None where
    a run gives none, or nobody is in both.
    """
    given = []
    for folder in (before, after):
        if (stage := find_stage(folder, "recommend")) is None:
            return None
        given.append(pq.read_table(stage.folder / "recommendations.parquet", columns=["user_id", "item_id"]))
    if given[0].schema != given[1].schema:
        return None  # ids of another kind: nobody is in both
    old = given[0].join(given[1].select(["user_id"]), "user_id", join_type="left semi")
    gone = old.join(given[1], ["user_id", "item_id"], join_type="left anti")
    if not len(old):
        return None
    sizes, lost = (each.group_by("user_id").aggregate([("item_id", "count")]) for each in (old, gone))
    both = sizes.join(lost, "user_id", right_suffix="_lost")
    share = pc.divide(pc.fill_null(both["item_id_count_lost"], 0).cast(pa.float64()), both["item_id_count"])
    return float(pc.mean(share).as_py())


def _fields(folders: Sequence[Path]) -> tuple[FieldLine, ...]:
    first, *rest = (load_recipe(folder / "recipe.yaml") for folder in folders)
    changes = [{change.field: change for change in recipe_differences(first, other)} for other in rest]
    lines = []
    for field in dict.fromkeys(field for changed in changes for field in changed if field not in _SAID):
        old = next(changed[field] for changed in changes if field in changed)
        before = ABSENT if old.kind == "added" else setting(first, field, old.old)
        after = (_after(recipe, changed, field) for recipe, changed in zip(rest, changes, strict=True))
        lines.append(FieldLine(field, (before, *after)))
    return tuple(lines)


def _after(recipe: Recipe, changed: Mapping[str, Difference], field: str) -> str:
    if field not in changed:
        return ""
    return ABSENT if changed[field].kind == "removed" else setting(recipe, field, changed[field].new)


def side(line: Compared) -> str:
    """`better` or `worse` where chance does not explain the difference (p < .05 after Holm), else nothing."""
    if line.p_value is None or line.p_value >= 1 - LEVEL or not line.minus.value:
        return ""
    return "better" if line.minus.value > 0 else "worse"


def comparison_tables(found: RunComparison) -> list[Text | Table]:
    """For the terminal: what the recipes ask for differently, the main metrics, and the groups that differ."""
    question = found.others[0].question
    who = f"{question.window} window · {plural(question.users, 'user')}, {plural(question.num_items, 'item')}"
    metrics, recipes = Table("", title=Text(who), box=SIMPLE_HEAD), Table("recipe", box=SIMPLE_HEAD)
    metrics.caption = f"intervals of {LEVEL:.0%}, paired over users\n* p < .05 after Holm"
    for name in found.names:
        metrics.add_column(Text(name if name == found.names[0] else f"{name} − {found.names[0]}"))
        recipes.add_column(Text(name))
    for metric, lines in found.metrics.items():
        if metric == found.primary_metric or metric in _SHOWN:
            style = "bold" if metric == found.primary_metric else ""
            metrics.add_row(in_full(metric), format_decimal(lines[0].base.value), *map(_cell, lines), style=style)
    for field in found.fields:
        recipes.add_row(Text(field.field), *map(_cut, field.cells))
    for table in (metrics, recipes):
        table.title_justify = table.caption_justify = "left"
        for column in table.columns:  # a name cut short may be another's
            column.overflow = "fold"
    return [recipes if found.fields else Text("The recipes ask for the same."), metrics, Text(_in_words(found))]


def seeds_table(found: SeedComparison) -> Table:
    """For the terminal: the main metrics, over all seeds and by each."""
    first = next(iter(found.claims.values()))
    title = f"{found.run} − {found.base}, {plural(len(first.per_seed), 'seed')} of each"
    table = Table("", "difference", "by seed", "holds", title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    few = f"nothing is claimed of fewer than {MIN_SEEDS} seeds"
    rule = f"it holds where the interval ({LEVEL:.0%}, over users) and every seed lie on one side of 0"
    table.caption, table.caption_justify = few if first.holds is None else rule, "left"
    for metric, claim in found.claims.items():
        if metric == found.primary_metric or metric in _SHOWN:
            difference = format_difference(Estimate(claim.difference, claim.low, claim.high))
            by_seed = "  ".join(map(format_signed, claim.per_seed))
            said = "–" if claim.holds is None else "yes" if claim.holds else "no"
            table.add_row(in_full(metric), difference, by_seed, said, style="bold" * (metric == found.primary_metric))
    return table


def _cut(cell: str) -> Text:
    """A part of a recipe may be long; the page has all of it."""
    shown = cell.splitlines()
    more = len(shown) - _MOST_LINES
    return Text(
        "\n".join([*shown[:_MOST_LINES], f"… {plural(more, 'line')} more: --html PAGE.html"]) if more > 1 else cell
    )


def _in_words(found: RunComparison) -> str:
    """What of each of the others' lists and groups is told apart from the first run."""
    lines = []
    for other, gone in zip(found.others, found.churns, strict=True):
        slices = other.slices
        clear = [line for line in slices.lines if line.p_value is not None and line.p_value < 1 - LEVEL]
        groups = f"{len(clear) or 'none'} of {plural(len(slices.lines), 'group')} (p < .05 after Holm)"
        lines.append(f"{other.run}: {slices.metric} differs in {groups}")
        lines += [
            f"  {line.by}: {line.name}: {format_difference(line.minus)} on {plural(line.users, 'user')}"
            for line in clear
        ]
        if gone is not None:
            lines.append(f"  {percent(gone)} of what {other.base} recommends to a user is not recommended any more")
    return "\n".join(lines)


def _cell(line: Compared) -> Text:
    colour = {"better": "green", "worse": "red", "": ""}[side(line)]
    return Text(f"{format_difference(line.minus)} *" if colour else format_difference(line.minus), style=colour)


def write_page(found: RunComparison, path: Path) -> None:
    """One page that needs nothing but a browser: no script, no request, all text escaped."""
    main = [name for name in found.metrics if name == found.primary_metric or name in _SHOWN]
    values = {"found": found, "question": found.others[0].question, "main": main, "side": side}
    page = fill_page("twofold.evaluate", "compare_page.html.j2", values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
