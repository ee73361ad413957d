"""Tables of study C on the length of items, from what study_length.py measured."""

from collections.abc import Mapping
from typing import Any, Final

from study_cells import difference, head, line
from study_rows import Saved

from twofold.render.numbers import format_decimal, format_interval

LOG: Final[Mapping[str, str]] = {
    "views": "shown",
    "completion": "completion",
    "long views": "long_view",
    "seconds watched": "seconds",
}
"""Figures of the log in each tenth of its views by length: name in the table → name in the results."""
MODELS: Final[Mapping[str, str]] = {"positives": "positives", "first five": "first", "lists": "served"}
"""Figures of an experiment in each tenth: the share of positives, the shares of the best five of each user's own
impressions, and the shares of the first ten places of the lists.
"""
WATCHED: Final[Mapping[str, str]] = {
    "gain": "gain", "completion": "completion", "long views": "long_view", "seconds watched": "seconds",
    "length, s": "length_s",
}  # fmt: skip
VECTORS: Final[Mapping[str, str]] = {
    "R² of length, ridge": "ridge_r2",
    "R² of length, network": "network_r2",
    "error of the network": "network_rmse",
    "label between items": "between_items",
    "lists of known items": "served_known",
}
DAILY: Final = ("impressions/recall@5", "impressions/auc")


def length_tables(saved: Saved) -> list[str]:
    """Returns the tables of length, of watching, of the vectors and of the days, each after a sentence on it."""
    return [*_tenths_table(saved), "", *_watched_table(saved), "", *_vectors_table(saved), "", *_days_table(saved)]


def _tenths_table(saved: Saved) -> list[str]:
    base = saved["rows"][0]
    ends = ", ".join(format_decimal(each) for each in base["length"]["edges_s"])
    lines = head("of each tenth", [f"tenth {each + 1}" for each in range(10)])
    parts = [(base, name, key) for name, key in LOG.items()]
    parts += [(row, name, key) for name, key in MODELS.items() for row in saved["rows"]]
    for row, name, key in parts:
        lines.append(line(row, row["name"], name, [format_decimal(each) for each in row["length"]["tenths"][key]]))
    return [
        "By length, the shortest tenth of the views first; the tenths end at "
        f"{ends} s. `positives` is the share of positives among the training examples of a tenth, `first five` and "
        "`lists` are the shares of a tenth among the best five of each user's own impressions and among the first ten "
        "places of all lists:",
        "",
        *lines,
    ]


def _watched_table(saved: Saved) -> list[str]:
    lines = head("", list(WATCHED))
    for row in saved["rows"]:
        lines.append(
            line(row, row["name"], "", [_cell(row, row["length"]["watching"][key]) for key in WATCHED.values()])
        )
    return ["How the best five of each user's own impressions were watched:", "", *lines]


def _cell(row: Saved, found: Mapping[str, Any]) -> str:
    value, low, high = found["value"]
    return "<br>".join([f"{format_decimal(value)} {format_interval(low, high)}", *difference(row, found["minus"])])


def _vectors_table(saved: Saved) -> list[str]:
    lines = head("", list(VECTORS))
    for row in saved["rows"]:
        numbers = row["length"]["numbers"]
        cells = [format_decimal(numbers[key]) for key in VECTORS.values()]
        cells[0] += f" {format_interval(numbers['ridge_low'], numbers['ridge_high'])}"
        lines.append(line(row, row["name"], "", cells))
    numbers = saved["rows"][0]["length"]["numbers"]
    return [
        f"What item vectors tell of log(length), fitted without the item, on {numbers['probed_items']:.0f} items; the "
        f"content vectors alone have an R² of {format_decimal(numbers['content_r2'])}, and log(length) a deviation of "
        f"{format_decimal(numbers['length_std'])}. `label between items` is the share of the label's variance that the "
        "item explains, `lists of known items` the share of places of lists with items that have a training event:",
        "",
        *lines,
    ]


def _days_table(saved: Saved) -> list[str]:
    columns = [(day, metric) for metric in DAILY for day in saved["rows"][0]["length"]["days"]]
    lines = head("", [f"{day} {metric}" for day, metric in columns])
    for row in saved["rows"]:
        lines.append(
            line(row, row["name"], "", [_cell(row, row["length"]["days"][day][metric]) for day, metric in columns])
        )
    return ["Day by day:", "", *lines]
