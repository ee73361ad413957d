"""Prepare section of a recipe: from a log to labeled, split examples; filters, samples and counters.

A rule may read the columns of the log, those of the items and users tables with names that the log does not have, and
the columns that `derive` and `labels` add.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from twofold.local_time import midnight_ms
from twofold.recipe.labels import Label, WatchQuantile
from twofold.recipe.section import Expression, Name, Rule, Section, TimeZone
from twofold.recipe.split import LastDays, LastEvents, SplitRule, TemporalSplit, Window
from twofold.sql.portable import Kind
from twofold.tables import Split


def _check_case(names: Sequence[str]) -> None:
    """Raises ValueError if two names differ in case alone."""
    for number, name in enumerate(names):
        for other in names[:number]:
            if other.lower() == name.lower():
                raise ValueError(
                    f"{other} and {name} differ in case alone, which SQL does not tell apart; rename one of them"
                )


# --- filters ----------------------------------------------------------------------------------------------------------


class UserFilter(Section):
    """Keeps, for training only, users by their events in the training window."""

    kind: Literal["users"]
    min_events: int = Field(default=1, ge=1)
    """Minimum number of events: users with fewer add little to train on."""
    max_events: int | None = Field(default=None, ge=1)
    """Maximum number of events: users with more are often bots or shared devices. `null` means no maximum."""
    max_percentile: float | None = Field(default=None, ge=50, lt=100)
    """Maximum as a percentile of the number of events of a user: 99.9 drops the most active 0.1 %. `null` means
    none."""
    min_positives: int = Field(default=0, ge=0)
    """Minimum number of events for which the positive rule is true."""
    min_negatives: int = Field(default=0, ge=0)
    """Minimum number of events for which the positive rule is not true, whatever the rule `negative` says."""

    @model_validator(mode="after")
    def _one_maximum(self) -> UserFilter:
        if self.max_events is not None and self.max_percentile is not None:
            raise ValueError("max_events and max_percentile both set a maximum; delete one")
        if self.max_events is not None and self.max_events < self.min_events:
            raise ValueError(f"no user has {self.min_events} or more events and at most {self.max_events}")
        return self


class ItemFilter(Section):
    """Keeps, for training only, items by their events in the training window."""

    kind: Literal["items"]
    min_events: int = Field(ge=1)
    """Minimum number of events. Items with fewer are cold: they keep their attributes and get no id embedding."""


Filter = Annotated[UserFilter | ItemFilter, Field(discriminator="kind")]


# --- sample -----------------------------------------------------------------------------------------------------------


class Sample(Section):
    """Sample of users with all their events, chosen by a hash of the user id, so that it is equal on all SQL
    engines."""

    users: float = Field(gt=0, le=1)
    """Share of users to keep. Labels, counters and item filters are computed on all users before."""


# --- counters ---------------------------------------------------------------------------------------------------------


class Counters(Section):
    """Hourly counters of all events with the same key, for features of kind counter."""

    rates: Mapping[Name, Rule] = {}
    """Rules by name. Each gives a rate: the share of events for which the rule is true."""
    means: Mapping[Name, Expression] = {}
    """Expressions by name. Each gives a mean over all events, in whole thousandths; NULL counts as 0."""

    @model_validator(mode="after")
    def _not_empty(self) -> Counters:
        if not self.rates and not self.means:
            raise ValueError("no counter is defined; write rates: {like: liked}")
        for name in sorted({"events"} & {*self.rates, *self.means}):
            raise ValueError(f"{name} is always counted; choose another name")
        for name in sorted(set(self.rates) & set(self.means)):
            raise ValueError(f"{name} is both a rate and a mean; rename one")
        _check_case([*self.rates, *self.means])
        return self


# --- the whole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrepareRule:
    """A rule of the section `prepare`: its field in the recipe, its text, and whether it is a condition or a number."""

    field: str
    text: str
    result: Kind


_RULES: Final[Mapping[str, Kind]] = {
    "where": "condition",
    "positive": "condition",
    "relevant": "condition",
    "negative": "condition",
    "weight": "number",
    "target": "number",
}
"""Fields of `prepare` that hold one rule each, in the order in which they are checked."""


class Prepare(Section):
    """Preparation of a log, in this order: derived columns, windows, labels, filters, samples."""

    where: Rule | None = None
    """SQL condition on the events to read, such as language = 'hi'; others are ignored everywhere. `null` means all."""
    time_zone: TimeZone = "UTC"
    """Time zone of days and hours, by its IANA name, such as Asia/Kolkata or Europe/Berlin. A day begins at its
    midnight, summer time included.
    """
    split: SplitRule
    """Split of the events into training, validation and test."""
    derive: Mapping[Name, Expression] = {}
    """Number columns by name, as `watch_fraction: watch_s / length_s`. Each may read those above it."""
    labels: Mapping[Name, Label] = {}
    """Watch-time labels by name, computed from watch_s and length_s and fitted on the training window."""
    positive: Rule
    """SQL condition that makes an event positive; NULL counts as false. A number is a condition only if its values are
    0 and 1: write rating >= 4, not rating.
    """
    relevant: Rule | None = None
    """SQL condition of the events that are to be found in the validation and test windows, if they are others than
    those that train: `event = 'purchase'` where views train as well. `null` means `positive`.
    """
    negative: Rule | None = None
    """SQL condition that puts an event into the negative history, unless it is positive. `null` means all events that
    are not positive.
    """
    weight: Expression | None = None
    """Weight of an example in training, such as `LEAST(SQRT(watch_s), 8)`. NULL counts as 0. `null` means 1."""
    target: Expression | None = None
    """Target of a regression, such as `LEAST(GREATEST(wtg, -3), 3)` of a label wtg. `null` means 1 for a positive and 0
    otherwise.
    """
    outcomes: Mapping[Name, Expression] = {}
    """Outcomes of an event by name, each a condition or a number from 0 to 1, for the heads of the ranker:
    `{long: long_view, watch: d2q}`, where d2q is a label of kind quantile. NULL means unknown.
    """
    counters: Mapping[str, Counters] = {}
    """Counters by key column: user_id, item_id, or another. They count all events, before the filters."""
    filters: tuple[Filter, ...] = ()
    """Filters of the training window, applied in this order."""
    filter_rounds: int = Field(default=1, ge=1, le=20)
    """Number of times that all filters are applied, since each may undo the condition of another: more rounds approach
    a k-core.
    """
    sample: Sample | None = None
    """Sample of the users. `null` means all users."""
    new_items: float | None = Field(default=None, gt=0, le=0.5)
    """Share of the items that are made new for a study of new items, such as .05: all their events before the test
    window (with `last_n`, each user's own) are removed, from training, histories, counters, labels and baselines alike,
    and the report's new items are these. The share is chosen by a hash of the item id. `null` means none: the service
    should learn from every item.
    """
    positive_share: float | None = Field(default=None, gt=0, le=1)
    """Share of positives in the training window, reached by dropping random negatives: .7 means 7 : 3, and 1 positives
    alone. `null` means as logged.
    """

    @model_validator(mode="after")
    def _names_are_unique(self) -> Prepare:
        for name in sorted(set(self.derive) & set(self.labels)):
            raise ValueError(f"{name} is both in derive and in labels; rename one")
        _check_case([*self.derive, *self.labels])
        _check_case(list(self.outcomes))
        return self

    def rules(self) -> Iterator[PrepareRule]:
        """Yields every rule of the section; the derived columns come first, in their order."""
        for name, text in self.derive.items():
            yield PrepareRule(f"prepare.derive.{name}", text, "number")
        for name, result in _RULES.items():
            if (text := getattr(self, name)) is not None:
                yield PrepareRule(f"prepare.{name}", text, result)
        for name, text in self.outcomes.items():
            yield PrepareRule(f"prepare.outcomes.{name}", text, "number")
        for key, counters in self.counters.items():
            for name, text in counters.rates.items():
                yield PrepareRule(f"prepare.counters.{key}.rates.{name}", text, "condition")
            for name, text in counters.means.items():
                yield PrepareRule(f"prepare.counters.{key}.means.{name}", text, "number")

    def quantile_of(self, outcome: str) -> str | None:
        """Returns the name of the quantile label that an outcome equals, or None."""
        name = self.outcomes[outcome].strip()
        return name if isinstance(self.labels.get(name), WatchQuantile) else None

    def dates(self, split: Split) -> str:
        """Returns the days of a window in words: 2022-05-08, or 2022-05-08 to 2022-05-10, the last day included."""
        if isinstance(self.split, LastEvents):
            test, both = self.split.test, self.split.test + self.split.validation
            windows = {
                "test": "last event of each user" if test == 1 else f"last {test} events of each user",
                "validation": f"of the last {both} events of each user, the first {self.split.validation}",
                "train": f"events of each user before the last {both}",
            }
            return windows[split]
        if isinstance(self.split, LastDays):
            return self.split.describe(split)
        window: Window = getattr(self.split, split)
        last = window.end - timedelta(days=1)
        return f"{window.first}" if last == window.first else f"{window.first} to {last}"

    def bounds_ms(self, split: Split) -> tuple[int, int] | None:
        """Returns [first, end) of a window in UTC milliseconds, or None where each user has another window."""
        if isinstance(self.split, LastEvents):
            return None
        assert isinstance(self.split, TemporalSplit), "windows of last_days get their dates before anything is read"
        window: Window = getattr(self.split, split)
        return midnight_ms(window.first, self.time_zone), midnight_ms(window.end, self.time_zone)

    def day_ms(self, day: date) -> tuple[int, int]:
        """Returns [first, end) of a day in UTC milliseconds."""
        return midnight_ms(day, self.time_zone), midnight_ms(day + timedelta(days=1), self.time_zone)
