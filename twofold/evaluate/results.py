"""Types of an evaluation report. `report.json` stores them; the page of the run shows them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64
from pydantic import TypeAdapter, ValidationError

from twofold.errors import RunError
from twofold.evaluate.baseline_results import Headline, LeftOut, PeerTuning
from twofold.evaluate.calibration import Calibration
from twofold.evaluate.candidate_recall import SourceSection
from twofold.evaluate.evaluation_setup import EvaluationSetup
from twofold.evaluate.in_batch import BatchSection
from twofold.evaluate.new_items import NewItemSection
from twofold.evaluate.rule_prices import RuleSection
from twofold.evaluate.sampled import Draw
from twofold.evaluate.significance import Estimate, estimates_of, json_number
from twofold.evaluate.window import PerUser, Protocol
from twofold.prepare.funnel import FunnelLine
from twofold.run_folder import write_json
from twofold.tables import ModelPart

MODEL: Final = "model"
FEW_USERS: Final = 100


@dataclass(frozen=True)
class Row:
    """A row of a table: an estimate per metric, and for a baseline the paired difference model − row per metric."""

    name: str
    metrics: dict[str, Estimate]
    model_minus: dict[str, Estimate]


def rows_of(values: Mapping[str, PerUser], users: Int64[np.ndarray, "examples"] | None = None) -> tuple[Row, ...]:
    """Returns one row per name, the model first; all intervals are paired over the same users.

    `users` has the user of each value, if users have several; `None` means one value per user.
    """
    model = values[MODEL].values
    columns = {(name, metric): column for name, each in values.items() for metric, column in each.values.items()}
    columns |= {
        (name, f"model - {metric}"): model[metric] - column
        for name, each in values.items()
        if name != MODEL
        for metric, column in each.values.items()
    }
    estimates = estimates_of(columns, users)
    rows = []
    for name, each in values.items():
        metrics = {metric: estimates[name, metric] for metric in each.values}
        metrics |= {metric: Estimate(json_number(value), None, None) for metric, value in each.pooled.items()}
        minus = {} if name == MODEL else {metric: estimates[name, f"model - {metric}"] for metric in each.values}
        rows.append(Row(name, metrics, minus))
    return tuple(rows)


@dataclass(frozen=True)
class Bounds:
    """Values of a random and a perfect order; `headroom` is the model's (value - chance) / (best - chance)."""

    chance: float | None
    best: float | None
    headroom: float | None


@dataclass(frozen=True)
class Section:
    """Results of one protocol. The model's row is first."""

    protocol: str
    candidates: str
    excluded: str
    num_items: int
    users_judged: int
    users_skipped: dict[str, int]
    rows: tuple[Row, ...]
    bounds: dict[str, Bounds]
    """Bounds by metric; empty for protocols with so many candidates that chance does not matter."""
    absent: dict[int, str] = field(default_factory=dict)
    """Reasons for each k at which no metric is given."""


@dataclass(frozen=True)
class SliceLine:
    """Results of one group: the model, the row `base` with which it is compared, and the paired difference.

    `p_value` is two-sided, by the paired t test, after Holm over all groups that are tested. `None` means that the
    group is small and not tested.
    """

    by: str
    name: str
    users: int
    model: Estimate
    base: Estimate
    minus: Estimate
    p_value: float | None
    is_small: bool
    """Whether the group has fewer than 100 users; then rely on the interval, not on the value."""


@dataclass(frozen=True)
class SliceSection:
    """Comparison of the model with one row, group by group."""

    metric: str
    base: str
    lines: tuple[SliceLine, ...]


@dataclass(frozen=True)
class DayRows:
    """Results of one test day: the model's row first."""

    day: str
    users: int
    """Number of evaluated users."""
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class DaySection:
    """Results of one trained model on several test days, each a window of its own."""

    metrics: tuple[str, ...]
    days: tuple[DayRows, ...]
    users: int
    """Number of users who are evaluated on at least one day."""
    requests: int
    """Number of evaluated pairs of user and day."""
    pooled: tuple[Row, ...]
    """Means over all requests, with intervals clustered by user; the model's row first."""
    order_changes: tuple[tuple[str, str], ...]
    """Pairs of rows of which one is above the other on one day and below it on another, by the first metric."""


@dataclass(frozen=True)
class FilterLine:
    """One metric of the model among all items, among the allowed items, and the paired difference."""

    metric: str
    whole: Estimate
    filtered: Estimate
    minus: Estimate


@dataclass(frozen=True)
class FilterSection:
    """Results of the model if only items that satisfy `where` may be recommended, compared with all relevant items."""

    where: str
    items: int
    """Number of allowed items at the time of the window's first request."""
    ceiling: Estimate
    """Share of a user's relevant items that are allowed: the highest recall under this rule."""
    lines: tuple[FilterLine, ...]


@dataclass(frozen=True)
class SampledSection:
    """Results of the sampled protocol: each positive among `count` sampled items. The model's row is first.

    Compare them only with a paper's numbers of the same draw, never with another table.
    """

    draw: Draw
    count: int
    seed: int | None
    """Seed of the draw; `None` means that the negatives are published."""
    candidates: str
    """Description of the candidates in words."""
    users_judged: int
    users_skipped: dict[str, int]
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Name of the draw in names of metrics, such as popularity-100."""
        return f"{self.draw}-{self.count}" + (f"-seed{self.seed}" if self.seed else "")


@dataclass(frozen=True)
class LengthPart:
    """Results of the model on one tenth of the impressions by item length."""

    first_s: float
    last_s: float
    users: int
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class WatchSection:
    """Watch-time results on the users' own impressions. The model's row is first."""

    impressions: int
    users_judged: int
    rows: tuple[Row, ...]
    by_length: tuple[LengthPart, ...]
    absent: dict[int, str] = field(default_factory=dict)
    """Reasons for each k at which no metric is given."""


@dataclass(frozen=True)
class ListWatchSection:
    """Expected watch time of the first k items of every user's list. The model's row is first."""

    k: int
    users: int
    head: str
    """Name of the ranker's head that predicts watch time."""
    impressions: int
    """Number of impressions that its predictions are calibrated on."""
    rows: tuple[Row, ...]
    sentence: str


@dataclass(frozen=True)
class Facts:
    """Origin of a report. `seconds` are per stage."""

    recipe: str
    recipe_digest: str
    commit: str
    hardware: str
    precision: str
    """Number type of the products of the training's fused softmax."""
    versions: dict[str, str]
    seconds: dict[str, float]
    funnel: tuple[FunnelLine, ...] = ()
    model: tuple[ModelPart, ...] = ()
    served: str | None = None
    """Name of the served retriever where the recipe leaves the choice to the validation window."""
    compared: dict[str, float] = field(default_factory=dict)
    """Quality on the validation window of the retrievers that were compared, by name."""


@dataclass(frozen=True)
class Report:
    """Evaluation report of one run on one window."""

    window: str
    track: Protocol
    tie_rule: str
    interval: str
    primary_metric: str
    """Name of the metric by which slices and days are compared; it is among `headlines`."""
    badge: str
    """The result in one sentence: the best baseline on each headline metric, and the baselines that were not run."""
    headlines: tuple[Headline, ...]
    """Recall and NDCG of the catalogue, each with its own best baseline."""
    verdict: tuple[str, ...]
    beats_all: bool
    """Whether every baseline was run and, on both headline metrics, the paired interval lies above 0 for each."""
    cold_items: int
    cold_relevant_share: float
    """Share of relevant pairs whose item has no training event."""
    catalogue: Section
    impressions: Section
    in_batch: BatchSection
    facts: Facts
    tuning: PeerTuning
    """Hyperparameters of the fitted baselines, and how they were chosen."""
    question: EvaluationSetup | None = None
    slices: SliceSection | None = None
    days: DaySection | None = None
    """Results by day; `None` means that the recipe's `evaluate.windows` names no days."""
    watch_time: WatchSection | None = None
    """Watch-time results; `None` means that the log has no watch times."""
    list_watch: ListWatchSection | None = None
    """Expected watch time of the lists; `None` means that no head of the ranker predicts watch time."""
    filtered: FilterSection | None = None
    """Results among the allowed items; `None` means that the recipe allows every item."""
    baselines: tuple[str, ...] = ()
    """Names of the rows that are baselines. The others are parts or variants of the model."""
    left_out: tuple[LeftOut, ...] = ()
    """Baselines that are not among the rows, with the reasons."""
    sampled: tuple[SampledSection, ...] = ()
    """Results of each draw of negatives that the recipe's `evaluate` section contains."""
    heads: tuple[Calibration, ...] = ()
    """Calibration of the ranker's heads on impressions."""
    new_items: NewItemSection | None = None
    """Results on items without an event before the window; `None` means that nobody likes one in the window."""
    rerank: RuleSection | None = None
    """Prices of the rules after ranking; `None` means that the recipe has none."""
    candidates: SourceSection | None = None
    """Recall of the candidates of all sources; `None` means that the retriever is the only one."""

    def metrics_of(self, name: str) -> dict[str, float]:
        """Returns all values of one row by metric; metrics without a value are left out."""
        parts = (self.catalogue, self.impressions, self.watch_time, self.list_watch)
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


def write_report(report: Report, folder: Path) -> None:
    """Writes report.json into a folder."""
    write_json(folder / "report.json", asdict(report))


def load_report(path: Path) -> Report:
    """Reads a report from `report.json`; RunError if the file is not one."""
    try:
        return TypeAdapter(Report).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"there is no report {path}. Run `twofold run` with the run's recipe to make it.") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RunError(
            f"{path} is not a report: {field}: {first['msg']}. Delete its folder {path.parent} and run `twofold run` "
            "again."
        ) from None
