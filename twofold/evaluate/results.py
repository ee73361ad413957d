"""Types of an evaluation report. `report.json` stores them; `report_page.py` renders them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from twofold.errors import RunError
from twofold.evaluate.calibration import Calibration
from twofold.evaluate.sampled import Draw
from twofold.evaluate.significance import Estimate, estimates_of, json_number
from twofold.evaluate.window import PerUser, Protocol
from twofold.tables import ModelPart

MODEL: Final = "model"
FEW_USERS: Final = 100


@dataclass(frozen=True)
class Row:
    """One judged thing: metric → estimate, and for a baseline metric → model minus this row, paired over users."""

    name: str
    metrics: dict[str, Estimate]
    model_minus: dict[str, Estimate]


def rows_of(values: Mapping[str, PerUser]) -> tuple[Row, ...]:
    """Returns one row per name, the model first; all intervals and differences come from the same draws of users."""
    model = values[MODEL].values
    columns = {(name, metric): column for name, each in values.items() for metric, column in each.values.items()}
    columns |= {
        (name, f"model - {metric}"): model[metric] - column
        for name, each in values.items()
        if name != MODEL
        for metric, column in each.values.items()
    }
    estimates = estimates_of(columns)
    rows = []
    for name, each in values.items():
        metrics = {metric: estimates[name, metric] for metric in each.values}
        metrics |= {metric: Estimate(json_number(value), None, None) for metric, value in each.pooled.items()}
        minus = {} if name == MODEL else {metric: estimates[name, f"model - {metric}"] for metric in each.values}
        rows.append(Row(name, metrics, minus))
    return tuple(rows)


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
    filtered: Estimate
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
    relevant_digest: str
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
    primary_metric: str
    """The metric that the verdict is about."""
    verdict: tuple[str, ...]
    beats_all: bool
    """The primary metric's paired interval lies above 0 for every baseline."""
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
    filtered: FilterSection | None = None
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
            values |= {line.metric: line.filtered.value for line in self.filtered.lines} if self.filtered else {}
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
