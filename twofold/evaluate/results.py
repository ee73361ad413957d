"""What a judged run states, as data and in words: `report.json` is this, and `report.py` draws it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from twofold.errors import RunError
from twofold.evaluate.calibration import Calibration
from twofold.evaluate.catalogue import Protocol
from twofold.evaluate.sampled import Draw
from twofold.evaluate.significance import Intervals
from twofold.render.numbers import format_decimal, format_interval, format_signed, percent, plural

MODEL: Final = "model"
FEW_USERS: Final = 100


@dataclass(frozen=True)
class Estimate:
    """A mean over users and its 95 % bootstrap interval.

    None: no user has one, or (bounds) it is no mean over users.
    """

    value: float | None
    low: float | None
    high: float | None


def estimates(drawn: Intervals) -> list[Estimate]:
    """One for each column."""
    numbers = zip(drawn.value, drawn.low, drawn.high, strict=True)
    return [Estimate(*map(number, each)) for each in numbers]


def number(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)


@dataclass(frozen=True)
class Row:
    """One judged thing: metric → estimate, and for a baseline metric → model minus this row, paired over users."""

    name: str
    metrics: dict[str, Estimate]
    model_minus: dict[str, Estimate]


@dataclass(frozen=True)
class Bounds:
    """What a random and a perfect order reach; `headroom` is the model's (value - chance) / (1 - chance)."""

    chance: float | None
    best: float | None
    headroom: float | None


@dataclass(frozen=True)
class Section:
    """One protocol: who was judged against what. The model's row is first."""

    protocol: str
    candidates: str
    excluded: str
    num_items: int
    users_judged: int
    users_skipped: dict[str, int]
    rows: tuple[Row, ...]
    bounds: dict[str, Bounds]
    """Per metric; only where candidates are few enough that chance matters (impressions)."""


@dataclass(frozen=True)
class BatchLine:
    """Hit rate@k in batches stands for `rank` = k·N/B in the catalogue, where the same pairs reach `catalogue`."""

    k: int
    rank: float
    in_batch: Estimate
    catalogue: Estimate


@dataclass(frozen=True)
class BatchSection:
    """The in-batch protocol of the model. Its values are never comparable with the catalogue's at the same k."""

    batch_size: int
    pairs: int
    users_judged: int
    seed: int
    lines: tuple[BatchLine, ...]


@dataclass(frozen=True)
class SliceLine:
    """One group: the model, the row it is compared with, and the difference on the same users.

    `p_value` is two-sided, by the paired t test, after Holm over all lines; None where fewer than 2 users are judged.
    """

    by: str
    name: str
    users: int
    model: Estimate
    base: Estimate
    minus: Estimate
    p_value: float | None
    is_small: bool
    """Fewer than 100 users: read the interval, not the value."""


@dataclass(frozen=True)
class SliceSection:
    """The model against one row, group by group."""

    metric: str
    base: str
    lines: tuple[SliceLine, ...]


@dataclass(frozen=True)
class Day:
    """The mean of each row over the users asked on one day."""

    day: str
    users: int
    values: dict[str, float]


@dataclass(frozen=True)
class DaySection:
    """The rows day by day; `std` is over days, None for a single one."""

    metric: str
    days: tuple[Day, ...]
    mean: dict[str, float]
    std: dict[str, float | None]
    order_changes: bool
    """The rows do not stand in the same order on every day."""


@dataclass(frozen=True)
class FilterLine:
    """One metric of the model: among all items, among those that pass, and the difference on the same users."""

    metric: str
    whole: Estimate
    passing: Estimate
    minus: Estimate


@dataclass(frozen=True)
class FilterSection:
    """The model where only items that pass `where` may be recommended, held against all that was to be found."""

    where: str
    items: int
    """How many pass, as of the window's first request."""
    ceiling: Estimate
    """Share of what a user was to find that passes: no order under this rule finds more."""
    lines: tuple[FilterLine, ...]


@dataclass(frozen=True)
class SampledSection:
    """The papers' protocol: each positive among `count` sampled items. To be held beside a paper's figure of the same
    draw and against no other table. The model's row is first.
    """

    draw: Draw
    count: int
    seed: int | None
    """None where the negatives are published."""
    candidates: str
    """The same in words."""
    users_judged: int
    users_skipped: dict[str, int]
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """What tells its metrics from those of another draw: popularity-100."""
        return f"{self.draw}-{self.count}" + (f"-seed{self.seed}" if self.seed else "")


@dataclass(frozen=True)
class LengthPart:
    """The model on the impressions of one tenth by length."""

    first_s: float
    last_s: float
    users: int
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class WatchSection:
    """Scores against watch time, on the users' own impressions. The model's row is first."""

    impressions: int
    users_judged: int
    rows: tuple[Row, ...]
    by_length: tuple[LengthPart, ...]


@dataclass(frozen=True)
class EvaluationSetup:
    """What was asked: two runs may be compared only where all of it is equal."""

    window: str
    track: Protocol
    tie_rule: str
    num_items: int
    users: int
    to_find: str
    """SHA-256 of the pairs of user and item that were to be found, by their ids."""


@dataclass(frozen=True)
class FunnelLine:
    """What a step of preparation left."""

    name: str
    rows: int
    users: int
    items: int
    positive_share: float


@dataclass(frozen=True)
class ModelPart:
    """A block or layer of a tower."""

    tower: str
    name: str
    shape: str
    parameters: int


@dataclass(frozen=True)
class Facts:
    """Where a report comes from; the pipeline knows. `seconds` are per stage."""

    recipe: str
    recipe_digest: str
    commit: str
    hardware: str
    precision: str
    """Type of the products of the training's fused softmax."""
    versions: dict[str, str]
    seconds: dict[str, float]
    funnel: tuple[FunnelLine, ...] = ()
    model: tuple[ModelPart, ...] = ()


@dataclass(frozen=True)
class Report:
    """How good one run is on one window, with everything that is needed not to misread it."""

    window: str
    track: Protocol
    tie_rule: str
    interval: str
    headline: str
    """The metric that the verdict is about."""
    verdict: tuple[str, ...]
    beats_all: bool
    """The headline's paired interval lies above 0 for every baseline."""
    cold_items: int
    cold_relevant_share: float
    """Share of what there was to find that consists of items without a training event."""
    catalogue: Section
    impressions: Section
    in_batch: BatchSection
    facts: Facts
    question: EvaluationSetup | None = None
    slices: SliceSection | None = None
    days: DaySection | None = None
    """None where the window is one day."""
    watch_time: WatchSection | None = None
    """None where the log does not say how long was watched."""
    passing: FilterSection | None = None
    """None where the recipe lets every item be recommended."""
    left_out: tuple[str, ...] = ()
    """Baselines that could not be among the rows, and why."""
    sampled: tuple[SampledSection, ...] = ()
    """One for each draw that the recipe's `judge` asks for."""
    heads: tuple[Calibration, ...] = ()
    """What the ranker says of impressions besides their order, against what came of them."""

    def metrics_of(self, name: str) -> dict[str, float]:
        """All values of one row, by metric; those that nobody could be judged on are left out."""
        parts = (self.catalogue, self.impressions, self.watch_time)
        rows = [row for part in parts if part is not None for row in part.rows if row.name == name]
        values = {metric: each.value for row in rows for metric, each in row.metrics.items()}
        if name == MODEL:
            values |= {f"in_batch/hit_rate@{line.k}": line.in_batch.value for line in self.in_batch.lines}
            values |= {line.metric: line.passing.value for line in self.passing.lines} if self.passing else {}
            values |= {f"heads/{head.name}/ece": head.ece for head in self.heads}
            values |= {f"heads/{head.name}/ratio": head.ratio for head in self.heads}
        values |= {
            metric.replace("sampled/", f"sampled/{section.name}/"): each.value
            for section in self.sampled
            for row in section.rows
            if row.name == name
            for metric, each in row.metrics.items()
        }
        return {metric: value for metric, value in values.items() if value is not None}


def load_report(path: Path) -> Report:
    """The report of a `report.json`; RunError if the file is not one."""
    try:
        return TypeAdapter(Report).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"there is no report {path}. Make it with `twofold run` and the run's recipe.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RunError(
            f"{path} is not a report: {place}: {first['msg']}. Delete its folder {path.parent} and give `twofold run` "
            "again."
        ) from None


def summary_sentences(
    catalogue: Section, impressions: Section, in_batch: BatchSection, *, headline: str
) -> tuple[str, ...]:
    """The verdict:

    the model against every baseline on the headline metric, strongest first, then what the rest says.
    """
    strongest_first = sorted(catalogue.rows[1:], key=lambda row: -(row.metrics[headline].value or 0))
    model = f"{headline.replace('/', ' ')}: the model {spread(catalogue.rows[0].metrics[headline])}"
    sentences = [
        f"{model if row is strongest_first[0] else 'It'} is {against(row, headline)}." for row in strongest_first
    ]
    if catalogue.users_judged < FEW_USERS:
        judged = plural(catalogue.users_judged, "user")
        sentences.append(f"Only {judged} could be judged: read the intervals, not the values.")
    sentences.append(_on_impressions(impressions))
    line = [line for line in in_batch.lines if line.k <= 10][-1]
    sentences.append(
        f"in-batch hit rate@{line.k}: {format_decimal(line.in_batch.value)} at batch {in_batch.batch_size:,}, standing "
        f"for catalogue rank {line.rank:,.0f}; there the same pairs reach {format_decimal(line.catalogue.value)}."
    )
    return tuple(sentences)


def filter_sentences(section: FilterSection, num_items: int, *, headline: str) -> str:
    """What the rule leaves, what could be found there, and what was."""
    (line,) = (line for line in section.lines if line.metric.partition("/")[2] == headline.partition("/")[2])
    return (
        f"index.where: {section.where} leaves {section.items:,} of {plural(num_items, 'item')}, which hold "
        f"{format_decimal(section.ceiling.value)} of what was to be found: {headline.replace('/', ' ')} is "
        f"{spread(line.passing)} there, {gained(line.minus)} against all items."
    )


def against(row: Row, metric: str) -> str:
    """How the model stands to a baseline on a metric: above, short of, or not told apart, and by how much."""
    other, gap = f"{row.name} {format_decimal(row.metrics[metric].value)}", row.model_minus[metric]
    if gap.value is None or gap.low is None or gap.high is None:
        raise AssertionError(f"nobody is judged on {metric}, so there is nothing to compare")
    if gap.low > 0:
        return f"above {other} by {spread(gap)}"
    if gap.high < 0:
        return f"short of {other} by {spread(Estimate(-gap.value, -gap.high, -gap.low))}"
    by = format_decimal(abs(gap.value))
    side = f"above it by {by}" if gap.value > 0 else f"short of it by {by}" if gap.value < 0 else "level with it"
    return f"not clearly above {other}: {side}, interval {format_interval(gap.low, gap.high)} around 0"


def _on_impressions(impressions: Section) -> str:
    metric = "impressions/auc"
    auc, bounds = impressions.rows[0].metrics[metric], impressions.bounds[metric]
    if auc.value is None or bounds.headroom is None:
        return "impressions: no user has both a positive and another one in the window: their order cannot be judged."
    strongest = max(impressions.rows[1:], key=lambda row: row.metrics[metric].value or 0)
    return (
        f"impressions auc: the model {spread(auc)} on {plural(impressions.users_judged, 'user')} is "
        f"{percent(bounds.headroom)} of the way from chance .500 to a perfect order, and {against(strongest, metric)}."
    )


def spread(estimate: Estimate) -> str:
    """The value and its interval.

    >>> spread(Estimate(0.3864, 0.37, 0.4011))
    '.386 [.370, .401]'
    """
    return f"{format_decimal(estimate.value)} {format_interval(estimate.low, estimate.high)}".rstrip()


def gained(difference: Estimate) -> str:
    """The same of a difference, with its sign.

    >>> gained(Estimate(0.0364, 0.02, 0.0511))
    '+.036 [.020, .051]'
    """
    return f"{format_signed(difference.value)} {format_interval(difference.low, difference.high)}".rstrip()
