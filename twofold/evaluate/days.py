"""Evaluation of one trained model on several test days: each day as a window of its own, and all days pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from jaxtyping import Int64
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.headline_metrics import headline_of
from twofold.evaluate.results import MODEL, DayRows, DaySection, Report, rows_of
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.summary_text import compared_with, format_difference, format_estimate
from twofold.evaluate.window import EvaluationWindow, PerUser
from twofold.render.numbers import format_decimal, in_full, in_short, plural


@dataclass(frozen=True)
class DayValues:
    """Catalogue metrics of every row on one day, per user; the model first.

    `users` identifies each user by a number that is the same on all days.
    """

    day: str
    users: Int64[np.ndarray, "users"]
    rows: Mapping[str, PerUser]


def evaluate_day(window: EvaluationWindow, sources: Mapping[str, ScoreBlock], metrics: Sequence[str]) -> DayValues:
    """Evaluates every row by these catalogue metrics on the window of one day, which has the day as its name."""
    ks = sorted({int(metric.partition("@")[2]) for metric in metrics})
    rows = {}
    for name, source in sources.items():
        found = evaluate_catalogue(window, source, ks=ks)
        values = {metric: found.values[metric] for metric in metrics}
        rows[name] = PerUser(values, found.evaluated, found.skipped)
    return DayValues(window.name, window.user_rows, rows)


def pool_days(days: Sequence[DayValues]) -> DaySection:
    """Returns the rows of each day and of all days together, whose intervals are clustered by user.

    A pooled value is the mean over all pairs of a user and a day, so a day counts by its number of users. Rows that
    some day does not have are left out.
    """
    names = [name for name in days[0].rows if all(name in day.rows for day in days)]
    metrics = tuple(days[0].rows[MODEL].values)
    users = np.concatenate([day.users for day in days])
    pooled = {
        name: PerUser(
            {metric: np.concatenate([day.rows[name].values[metric] for day in days]) for metric in metrics},
            evaluated=sum(day.rows[name].evaluated for day in days),
            skipped={},
        )
        for name in names
    }
    is_evaluated = ~np.isnan(pooled[MODEL].values[metrics[0]])
    return DaySection(
        metrics=metrics,
        days=tuple(
            DayRows(day.day, day.rows[MODEL].evaluated, rows_of({name: day.rows[name] for name in names}))
            for day in days
        ),
        users=len(np.unique(users[is_evaluated])),
        requests=int(is_evaluated.sum()),
        pooled=rows_of(pooled, users),
        order_changes=_order_changes(days, names, metrics[0]),
    )


def headline_first(report: Report) -> tuple[str, ...]:
    """Returns the headline metrics of a report, the primary one first."""
    return tuple(sorted((each.metric for each in report.headlines), key=lambda name: name != report.primary_metric))


def with_days(report: Report, days: Sequence[DayValues]) -> Report:
    """Returns the report with the section and the sentences of these days, if there are any."""
    if not days:
        return report
    section = pool_days(days)
    return replace(report, days=section, verdict=(*report.verdict, *day_sentences(section, report.baselines)))


def _order_changes(days: Sequence[DayValues], names: Sequence[str], metric: str) -> tuple[tuple[str, str], ...]:
    """Returns the pairs of rows of which one is above the other on one day and below it on another."""
    means = {name: np.array([day.rows[name].mean(metric) for day in days]) for name in names}
    return tuple(
        (one, other)
        for one, other in combinations(names, 2)
        if (means[one] > means[other]).any() and (means[one] < means[other]).any()
    )


def day_sentences(section: DaySection, baselines: Sequence[str]) -> tuple[str, ...]:
    """Compares the model with the best baseline over all days, by every metric, and names changes of their order."""
    model, *others = section.pooled
    where = f"Pooled over {plural(len(section.days), 'test day')} ({plural(section.requests, 'request')} of "
    where += plural(section.users, "user")
    sentences = []
    for metric in section.metrics:
        best = headline_of(model, [row for row in others if row.name in baselines], metric)
        value = format_estimate(model.metrics[metric])
        sentences.append(f"{where}), {in_full(metric)} of the model is {value}, {compared_with(best)}.")
    return (*sentences, order_sentence(section))


def order_sentence(section: DaySection) -> str:
    """Says whether the rows have the same order on every day, and names the pairs that do not."""
    what = f"by {in_full(section.metrics[0])}"
    if not section.order_changes:
        return f"The order of the rows {what} is the same on every day."
    pairs = "; ".join(f"{one} and {other}" for one, other in section.order_changes)
    return f"The order of these rows {what} changes between the days: {pairs}."


def days_table(section: DaySection) -> Table:
    """Returns the first metric of every row by day, and pooled with the paired difference, for the terminal."""
    metric = section.metrics[0]
    table = Table("", title=Text(f"days · {in_full(metric)}"), box=SIMPLE_HEAD, title_justify="left")
    for day in section.days:
        table.add_column(Text(day.day), justify="right")
    table.add_column("all days", justify="right")
    table.add_column(f"model − row, {in_short(metric)}", justify="right")
    for number, row in enumerate(section.pooled):
        cells = [format_decimal(day.rows[number].metrics[metric].value) for day in section.days]
        minus = Text(format_difference(row.model_minus[metric])) if row.model_minus else ""
        style = "bold" if row.name == MODEL else ""
        table.add_row(row.name, *cells, format_decimal(row.metrics[metric].value), minus, style=style)
    return table
