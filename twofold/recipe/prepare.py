"""Parts of a recipe: logs to labelled rows. Which days teach and judge, what is positive, who is kept, what is counted.

Columns that a rule may read: those of the log; those of the items and users tables whose name the log does not have;
and what `derive` and `labels` add to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta, timezone
from typing import Annotated, Literal

from pydantic import Field, model_validator

from twofold.recipe.section import Expression, Name, Rule, Section, is_unasked
from twofold.tables import Split

# --- filters ----------------------------------------------------------------------------------------------------------


class UserFilter(Section):
    """Keeps, for training, the users whose training window holds this much."""

    kind: Literal["users"]
    min_events: int = Field(default=1, ge=1)
    """Fewer teach little."""
    max_events: int | None = Field(default=None, ge=1)
    """More are robots, or shared devices."""
    max_percentile: float | None = Field(default=None, ge=50, lt=100)
    """The same as a percentile of the events a user has: 99.9 drops the busiest thousandth."""
    min_positives: int = Field(default=0, ge=0)
    """Events where the positive rule holds."""
    min_negatives: int = Field(default=0, ge=0)
    """Events where the negative rule holds."""

    @model_validator(mode="after")
    def _one_maximum(self) -> UserFilter:
        if self.max_events is not None and self.max_percentile is not None:
            raise ValueError("max_events and max_percentile are two ways to say one thing; delete one")
        if self.max_events is not None and self.max_events < self.min_events:
            raise ValueError(f"no user has {self.min_events} or more events and at most {self.max_events}")
        return self


class ItemFilter(Section):
    """Keeps, for training, the items with at least this many events in the training window."""

    kind: Literal["items"]
    min_events: int = Field(ge=1)
    """Items with fewer are cold: they keep their attributes, but get no vector of their own."""


Filter = Annotated[UserFilter | ItemFilter, Field(discriminator="kind")]


# --- windows ----------------------------------------------------------------------------------------------------------


class Window(Section):
    """The days `first` (included) to `end` (excluded), in the recipe's own time zone."""

    first: date
    """The first day that belongs to the window."""
    end: date
    """The first day that does not."""

    @model_validator(mode="after")
    def _not_empty(self) -> Window:
        if self.first >= self.end:
            raise ValueError(
                f"the window is empty: first {self.first} must lie before end {self.end} (end is excluded)"
            )
        return self


class TemporalSplit(Section):
    """One global cut in time: what happened later never teaches what happened before. Days between windows are a
    gap.
    """

    kind: Literal["temporal"]
    train: Window
    """What the model learns from, and what everything fitted is fitted on."""
    validation: Window
    """Chooses the best epoch. May be several days."""
    test: Window
    """Is judged, once."""

    @model_validator(mode="after")
    def _in_order(self) -> TemporalSplit:
        for earlier, later in (("train", "validation"), ("validation", "test")):
            end, first = getattr(self, earlier).end, getattr(self, later).first
            if first < end:
                raise ValueError(
                    f"windows overlap: {later}.first is {first}, but {earlier}.end is {end}. "
                    f"Set {later}.first to {end} or later, so that no day is in both."
                )
        return self


class LastEvents(Section):
    """Each user's last events are judged. It looks into the future: others' later events teach what came before.

    Users with no event left over for training are trained on whole, and not judged.
    """

    kind: Literal["last_n"]
    test: int = Field(default=1, ge=1)
    """The last so many events of a user. 1, with 1 for validation, is leave-one-out."""
    validation: int = Field(default=1, ge=1)
    """The so many before those."""
    ties: str = "item_id"
    """The column that orders events of one user and one moment: the position in a published file, where there is one.
    """


SplitRule = Annotated[TemporalSplit | LastEvents, Field(discriminator="kind")]


class Sample(Section):
    """A share of the users with all they did, chosen by a hash of their id, so that it is the same on every engine."""

    users: float = Field(gt=0, le=1)
    """.3 keeps three users in ten. Averages, counters and filters of items have then seen everybody."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Another seed, other users."""


# --- watch-time labels ------------------------------------------------------------------------------------------------


class WidthBuckets(Section):
    """Lengths in buckets of equal width."""

    kind: Literal["width"]
    seconds: float = Field(gt=0)


class EqualFrequencyBuckets(Section):
    """Lengths in buckets of about equally many training events; equal lengths are never parted, so ties merge edges."""

    kind: Literal["equal_frequency"]
    n: int = Field(default=30, ge=1, le=10_000)


class ItemBuckets(Section):
    """Each item against itself. Few views: drawn towards its creator's, those towards its length's, those to all.

    Every item's mean label is then near 0: the label says nothing of how good an item is.
    """

    kind: Literal["item"]
    creator: str | None = None
    """The column that holds the creator; without it, an item is drawn towards its length bucket."""
    n: int = Field(default=30, ge=1, le=10_000)
    """Equal-frequency length buckets to fall back on."""


Buckets = Annotated[WidthBuckets | EqualFrequencyBuckets | ItemBuckets, Field(discriminator="kind")]


class WatchTimeGain(Section):
    """(watch_s - mean) / std of the events of one bucket of the training window."""

    kind: Literal["wtg"]
    buckets: Buckets
    shrink: float = Field(default=10.0, ge=0)
    """Events of the wider group that are mixed into a bucket's mean and variance. A guess, not measured."""


class Completion(Section):
    """min(watch_s, length_s) / length_s, the share that was watched (PCC)."""

    kind: Literal["pcc"]
    uncapped: bool = False
    """Replays count in full: 2.0 is watched twice."""


class WatchQuantile(Section):
    """Share of training events of like length that were watched less (ties half): D2Q, Zhan et al., KDD 2022."""

    kind: Literal["quantile"]
    n: int = Field(default=30, ge=1, le=10_000)
    """Equal-frequency length buckets."""


class LongView(Section):
    """The field's long view: watched to the end, or, of what is longer than 18 s, at least 18 s."""

    kind: Literal["long_view"]


class BelowMean(Section):
    """TRUE where a value is below its average over the training events of the same item: skipped sooner than others do.

    Values are compared in whole thousandths, exactly.
    """

    kind: Literal["below_mean"]
    column: str = "watch_s"
    """The column that is averaged."""
    key: str = "item_id"
    """The column whose equal values are averaged over."""


Label = Annotated[
    WatchTimeGain | Completion | WatchQuantile | LongView | BelowMean,
    Field(discriminator="kind"),
]


# --- counters ---------------------------------------------------------------------------------------------------------


class Counters(Section):
    """What is counted by the hour of everything that shares a key, for `features` of kind counter."""

    rates: Mapping[Name, Rule] = {}
    """Name: rule. The rate is the share of events where the rule holds."""
    means: Mapping[Name, Expression] = {}
    """Name: number. The mean is over all events, NULL being 0, in whole thousandths."""

    @model_validator(mode="after")
    def _something(self) -> Counters:
        if not self.rates and not self.means:
            raise ValueError("counts nothing; write rates: {like: liked}")
        for name in sorted({"events"} & {*self.rates, *self.means}):
            raise ValueError(f"{name} is what is counted anyway; choose another name")
        for name in sorted(set(self.rates) & set(self.means)):
            raise ValueError(f"{name} is a rate and a mean; rename one")
        return self


# --- the whole --------------------------------------------------------------------------------------------------------


class Prepare(Section):
    """Logs to labelled rows, in this order: columns, windows, labels, filters, samples."""

    where: Rule | None = None
    """Which events of the log are taken at all: language = 'hi'. Others are as if never logged."""
    utc_offset_h: int = Field(default=0, ge=-12, le=14)
    """Where a day begins, and what hour it is for the user: 8 for Beijing."""
    split: SplitRule
    """Which events teach, choose and judge."""
    derive: Mapping[Name, Expression] = {}
    """Columns of your own, each a number: `watch_fraction: watch_s / length_s`. May read those above."""
    labels: Mapping[Name, Label] = {}
    """Columns made of watch_s and length_s, fitted on the training window, for the rules below."""
    positive: Rule
    """An event is positive where this holds; NULL counts as no."""
    negative: Rule | None = None
    """Which events enter the negative history, unless they are positive. Default: all that are not positive."""
    weight: Expression | None = None
    """How much a row counts in training: `LEAST(SQRT(watch_s), 8)`. NULL counts 0. Default: 1."""
    target: Expression | None = None
    """The number a regression learns: a label's name, as `LEAST(GREATEST(wtg, -3), 3)`. Default: 1 if positive, else
    0.
    """
    outcomes: Mapping[Name, Expression] = Field(default={}, exclude_if=is_unasked)
    """Name: what else came of an event, as a condition or a number from 0 to 1, for the ranker's heads to learn:
    `{long: long_view, watch: d2q}`, where d2q is a label of kind quantile. NULL is not known.
    """
    counters: Mapping[str, Counters] = {}
    """By column: user_id, item_id, or another. Counted on all events, whatever is filtered."""
    filters: tuple[Filter, ...] = ()
    """Applied to the training window, in this order."""
    filter_rounds: int = Field(default=1, ge=1, le=20)
    """How often all filters are applied: each may break what another ensured."""
    sample: Sample | None = None
    """Take a share of the users."""
    positive_share: float | None = Field(default=None, gt=0, lt=1)
    """Drop negatives of the training window at random until positives are this share: .7 is 7 : 3."""

    @model_validator(mode="after")
    def _one_name_each(self) -> Prepare:
        for name in sorted(set(self.derive) & set(self.labels)):
            raise ValueError(f"{name} is both in derive and in labels; rename one")
        return self

    def quantile_of(self, outcome: str) -> str | None:
        """The label of kind quantile that an outcome is; None where it is something else."""
        name = self.outcomes[outcome].strip()
        return name if isinstance(self.labels.get(name), WatchQuantile) else None

    def bounds_ms(self, split: Split) -> tuple[int, int] | None:
        """[first, end) of a window as UTC milliseconds; None where users have windows of their own."""
        if isinstance(self.split, LastEvents):
            return None
        window: Window = getattr(self.split, split)
        zone = timezone(timedelta(hours=self.utc_offset_h))
        first, end = (datetime(day.year, day.month, day.day, tzinfo=zone) for day in (window.first, window.end))
        return int(first.timestamp()) * 1000, int(end.timestamp()) * 1000
