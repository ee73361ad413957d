"""Comparison of several runs with the first: metrics with paired intervals and recipes, as tables and as one page."""

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
from twofold.evaluate.compare import (
    Comparison,
    MetricComparison,
    SeedComparison,
    compare_runs,
)
from twofold.evaluate.comparison_plots import group_plots, metric_plot
from twofold.evaluate.headline_metrics import deciding_metrics
from twofold.evaluate.results import FEW_USERS
from twofold.evaluate.significance import LEVEL, MIN_SEEDS, Estimate, is_significant, json_number
from twofold.evaluate.summary_text import format_difference
from twofold.recipe.diff import Difference, recipe_differences
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe
from twofold.render.html import fill_page, setting
from twofold.render.numbers import format_decimal, in_full, in_title, percent, plural
from twofold.run_folder import atomic_file, find_stage, open_stage

ABSENT: Final = "not set"
_DESCRIPTIVE: Final = ("name", "about")  # fields without effect; the columns have the runs' names
_MAIN_METRICS: Final = ("catalogue/recall@10", "catalogue/ndcg@10", "catalogue/mrr@10", "impressions/auc")
"""Metrics of the terminal's table besides the primary metric; the page has all."""
_MAX_LINES: Final = 8  # of a recipe's section in the terminal


@dataclass(frozen=True)
class FieldDifference:
    """One field in which recipes differ; `cells` has a text per run, empty if equal to that of the first."""

    field: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class RunComparison:
    """Comparison of runs with equal evaluation setups. `others` are all but the first, each compared with it."""

    names: tuple[str, ...]
    others: tuple[Comparison, ...]
    fields: tuple[FieldDifference, ...]
    churns: tuple[float | None, ...]
    """Churn of each other run, see `churn`."""

    @property
    def primary_metric(self) -> str:
        """Primary metric of the first report."""
        return self.others[0].primary_metric

    @property
    def metrics(self) -> dict[str, tuple[MetricComparison, ...]]:
        """Metrics that all runs have, each with one comparison per other run, the primary metric first."""
        found = [{line.metric: line for line in other.metrics} for other in self.others]
        names = [name for name in found[0] if all(name in lines for lines in found)]
        names.sort(key=lambda name: name != self.primary_metric)
        return {name: tuple(lines[name] for lines in found) for name in names}


def compare_run_folders(folders: Sequence[Path]) -> RunComparison:
    """Compares evaluated run folders with the first of them.

    RequestError for fewer than two, or if the evaluation setups differ, with the fields that differ; RunError for a
    folder without an evaluated run.
    """
    if len(folders) < 2:
        raise RequestError(f"{plural(len(folders), 'run')} cannot be compared: name two or more, the base run first.")
    evaluated = [open_stage(folder, "evaluate").folder for folder in folders]
    unique = len({folder.name for folder in folders}) == len(folders)
    return RunComparison(
        names=tuple(folder.name if unique else str(folder) for folder in folders),
        others=tuple(compare_runs(each, evaluated[0]) for each in evaluated[1:]),
        fields=_field_differences(folders),
        churns=tuple(churn(folders[0], each) for each in folders[1:]),
    )


def churn(before: Path, after: Path) -> float | None:
    """Returns the share of a user's recommendations that another run does not give, as a mean over the users of both.

    `None` means that a run has no recommendations, or that no user is in both.
    """
    recommended = []
    for folder in (before, after):
        if (stage := find_stage(folder, "recommend")) is None:
            return None
        recommended.append(pq.read_table(stage.folder / "recommendations.parquet", columns=["user_id", "item_id"]))
    if recommended[0].schema != recommended[1].schema:
        return None  # ids of different types: no user is in both
    old = recommended[0].join(recommended[1].select(["user_id"]), "user_id", join_type="left semi")
    gone = old.join(recommended[1], ["user_id", "item_id"], join_type="left anti")
    if not len(old):
        return None
    sizes, lost = (each.group_by("user_id").aggregate([("item_id", "count")]) for each in (old, gone))
    both = sizes.join(lost, "user_id", right_suffix="_lost")
    share = pc.divide(pc.fill_null(both["item_id_count_lost"], 0).cast(pa.float64()), both["item_id_count"])
    return float(pc.mean(share).as_py())


def _field_differences(folders: Sequence[Path]) -> tuple[FieldDifference, ...]:
    first, *rest = (load_recipe(folder / "recipe.yaml") for folder in folders)
    changes = [{change.field: change for change in recipe_differences(first, other)} for other in rest]
    lines = []
    for field in dict.fromkeys(field for changed in changes for field in changed if field not in _DESCRIPTIVE):
        old = next(changed[field] for changed in changes if field in changed)
        before = ABSENT if old.kind == "added" else setting(first, field, old.old)
        after = (_after(recipe, changed, field) for recipe, changed in zip(rest, changes, strict=True))
        lines.append(FieldDifference(field, (before, *after)))
    return tuple(lines)


def _after(recipe: Recipe, changed: Mapping[str, Difference], field: str) -> str:
    if field not in changed:
        return ""
    return ABSENT if changed[field].kind == "removed" else setting(recipe, field, changed[field].new)


def direction(line: MetricComparison) -> str:
    """Returns `better` or `worse` for a significant difference (p < 0.05), else an empty text."""
    if not line.is_significant or not line.minus.value:
        return ""
    return "better" if line.minus.value > 0 else "worse"


def comparison_tables(found: RunComparison) -> list[Text | Table]:
    """Returns the differences of the recipes, the main metrics and the differing groups, for the terminal."""
    question = found.others[0].question
    title = f"{question.window} window · {plural(question.users, 'user')}, {plural(question.num_items, 'item')}"
    metrics, recipes = Table("", title=Text(title), box=SIMPLE_HEAD), Table("recipe", box=SIMPLE_HEAD)
    headlines = " and ".join(in_full(each) for each in deciding_metrics(found.others[0].question.num_items))
    metrics.caption = (
        f"intervals of {percent(LEVEL)}, paired over users\n"
        f"* p < 0.05: {headlines} as they are, other metrics after Holm"
    )
    for name in found.names:
        metrics.add_column(Text(name if name == found.names[0] else f"{name} − {found.names[0]}"))
        recipes.add_column(Text(name))
    for metric, lines in found.metrics.items():
        if metric in _main_metrics(found):
            style = "bold" if metric == found.primary_metric else ""
            metrics.add_row(in_full(metric), format_decimal(lines[0].base.value), *map(_cell, lines), style=style)
    for field in found.fields:
        recipes.add_row(Text(field.field), *map(_shorten, field.cells))
    for table in (metrics, recipes):
        table.title_justify = table.caption_justify = "left"
        for column in table.columns:  # a shortened name may equal another one
            column.overflow = "fold"
    return [recipes if found.fields else Text("The recipes are equal."), metrics, Text(_group_sentences(found))]


def seeds_table(found: SeedComparison) -> Table:
    """Returns the main metrics over all seeds and by seed, for the terminal."""
    seeds = len(next(iter(found.claims.values())).per_seed)
    title = f"{found.run} − {found.base}, {plural(seeds, 'seed')} of each"
    table = Table("", "difference", found.run, found.base, "significant", title=Text(title), box=SIMPLE_HEAD)
    few = f"fewer than {MIN_SEEDS} seeds are too few to claim a difference"
    rule = (
        f"intervals of {percent(LEVEL)} over users and seeds; significant: p < 0.05, after Holm but for the headline "
        "metrics"
    )
    table.caption = few if seeds < MIN_SEEDS else rule
    table.title_justify = table.caption_justify = "left"
    for metric, claim in found.claims.items():
        if metric == found.primary_metric or metric in _MAIN_METRICS:
            difference = format_difference(Estimate(json_number(claim.difference), claim.low, claim.high))
            seeds_of = (map(json_number, each) for each in (claim.per_seed, claim.base_per_seed))
            by_seed = ("  ".join(map(format_decimal, each)) for each in seeds_of)
            significant = "–" if seeds < MIN_SEEDS else "yes" if is_significant(claim.p_value) else "no"
            style = "bold" if metric == found.primary_metric else ""
            table.add_row(in_full(metric), difference, *by_seed, significant, style=style)
    return table


def _shorten(cell: str) -> Text:
    """Shortens a long section of a recipe, which the page shows in full."""
    lines = cell.splitlines()
    more = len(lines) - _MAX_LINES
    return Text(
        "\n".join([*lines[:_MAX_LINES], f"… {plural(more, 'line')} more: --html PAGE.html"]) if more > 1 else cell
    )


def _group_sentences(found: RunComparison) -> str:
    """Returns one block per other run: the groups that differ significantly from the first run, and its churn."""
    lines = []
    for other, gone in zip(found.others, found.churns, strict=True):
        slices = other.slices
        significant = [line for line in slices.lines if is_significant(line.p_value)]
        tested = sum(not line.is_small for line in slices.lines)
        groups = f"{len(significant) or 'none'} of {plural(tested, 'group')} (p < 0.05 after Holm)"
        lines.append(f"{other.run}: {slices.metric} differs significantly in {groups}" if tested else f"{other.run}:")
        if tested < len(slices.lines):
            lines.append(f"  not tested: {plural(len(slices.lines) - tested, 'group')} of fewer than {FEW_USERS} users")
        lines += [
            f"  {line.by}: {line.name}: {format_difference(line.minus)} on {plural(line.users, 'user')}"
            for line in significant
        ]
        if gone is not None:
            lines.append(
                f"  {percent(gone)} of the recommendations of {other.base} to a user are no longer recommended"
            )
    return "\n".join(lines)


def _cell(line: MetricComparison) -> Text:
    color = {"better": "green", "worse": "red", "": ""}[direction(line)]
    return Text(f"{format_difference(line.minus)} *" if color else format_difference(line.minus), style=color)


def write_comparison_page(found: RunComparison, path: Path) -> None:
    """Writes one self-contained HTML page: no script, no request, all text escaped."""
    main = {name: found.metrics[name] for name in _main_metrics(found)}
    values = {
        "found": found,
        "question": found.others[0].question,
        "is_one_recipe": [each.field for each in found.fields] == ["train.seed"],
        "main": main,
        "sentences": [_sentence(line) for line in found.metrics[found.primary_metric]],
        "plots": [metric_plot([each[number] for each in main.values()]) for number in range(len(found.others))],
        "groups": [group_plots(other.slices.lines) for other in found.others],
        "headlines": [in_title(each) for each in deciding_metrics(found.others[0].question.num_items)],
        "direction": direction,
        "metric_title": in_title,
    }
    page = fill_page(("twofold.evaluate",), "compare_page.html.j2", values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _main_metrics(found: RunComparison) -> list[str]:
    return [name for name in found.metrics if name == found.primary_metric or name in _MAIN_METRICS]


def _sentence(line: MetricComparison) -> str:
    """Says by how much a run differs from the first on a metric."""
    share = percent(abs((line.minus.value or 0.0) / line.base.value)) if line.base.value else ""
    outcome = f"{share} {direction(line)}".strip() if direction(line) else "no significant difference"
    values = f"{format_decimal(line.run.value)} against {format_decimal(line.base.value)}"
    return f"{in_title(line.metric)} {values}: {outcome} ({format_difference(line.minus)})."
