"""The closed, frozen types of a recipe: what can be asked for, and nothing else.

An unknown key, a wrong kind or an impossible combination is refused here, before any data is read. A default is written
once, in its field. `docs/recipe.md` and `twofold recipe schema` are generated from this file.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from twofold.errors import RecipeError
from twofold.recipe.rules import check_rule
from twofold.tables import Split


class Part(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def _vetted(text: str) -> str:
    try:
        check_rule(text, result="condition")
    except RecipeError as error:
        raise ValueError(str(error)) from error  # what pydantic turns into an error of this field
    return text


Rule = Annotated[str, AfterValidator(_vetted)]


# --- data -------------------------------------------------------------------------------------------------------------


class KuaiRand(Part):
    """KuaiRand-Pure as shipped in `data/kuairand-pure` (Gao et al., CIKM 2022)."""

    kind: Literal["kuairand"]
    path: Path
    """The folder of the Parquet files, relative to the recipe file."""


class Table(Part):
    """Any log whose columns already carry the names of `twofold/tables.py`: Parquet or CSV files."""

    kind: Literal["table"]
    events: Path
    """Columns user_id, item_id, at (UTC milliseconds), and whatever the rules read."""
    items: Path | None = None
    """Column item_id, and whatever the item tower reads. Without it, the items are those of the events."""
    users: Path | None = None
    """Column user_id and attributes."""


Data = Annotated[KuaiRand | Table, Field(discriminator="kind")]


# --- prepare ----------------------------------------------------------------------------------------------------------


class UserFilter(Part):
    """Keeps, for training, the users whose training window holds this much."""

    kind: Literal["users"]
    min_events: int = Field(default=1, ge=1)
    """Fewer teach little."""
    max_events: int | None = Field(default=None, ge=1)
    """More are robots, or shared devices."""
    min_positives: int = Field(default=0, ge=0)
    """Events where the positive rule holds."""
    min_negatives: int = Field(default=0, ge=0)
    """Events where the negative rule holds."""


class ItemFilter(Part):
    """Keeps, for training, the items with at least this many events in the training window."""

    kind: Literal["items"]
    min_events: int = Field(ge=1)
    """Items with fewer are cold: they keep their attributes, but get no vector of their own."""


Filter = Annotated[UserFilter | ItemFilter, Field(discriminator="kind")]


class Window(Part):
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


class TemporalSplit(Part):
    """One global cut in time: what happened later never teaches what happened before."""

    kind: Literal["temporal"]
    utc_offset_h: int = Field(default=0, ge=-12, le=14)
    """Where a day begins: 8 for Beijing."""
    train: Window
    """What the model learns from, and what everything fitted is fitted on."""
    validation: Window
    """Chooses the best epoch."""
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

    def bounds_ms(self, split: Split) -> tuple[int, int]:
        """[first, end) of a window as UTC milliseconds."""
        window: Window = getattr(self, split)
        zone = timezone(timedelta(hours=self.utc_offset_h))
        first, end = (datetime(day.year, day.month, day.day, tzinfo=zone) for day in (window.first, window.end))
        return int(first.timestamp()) * 1000, int(end.timestamp()) * 1000


class Prepare(Part):
    """Logs to labelled rows: what counts as positive, who is kept, what is trained on and what is judged."""

    positive: Rule
    """An event is positive where this holds; NULL counts as no."""
    negative: Rule | None = None
    """Which events enter the negative history. Default: all that are not positive."""
    filters: tuple[Filter, ...] = ()
    """Applied to the training window in this order, once."""
    split: TemporalSplit
    """Which days teach, choose and judge."""


# --- features ---------------------------------------------------------------------------------------------------------


class HistoryFeature(Part):
    """The mean of the embeddings of the user's last events of one kind, strictly before the moment asked for."""

    kind: Literal["history"]
    of: Literal["positives", "negatives"]
    """Which events: those of the positive or of the negative rule."""
    last: int = Field(default=100, ge=1, le=10_000)
    """How many of them, the newest."""


class TimeFeature(Part):
    """Hour of day or day of week of the request, in the split's time zone, as an embedding."""

    kind: Literal["time"]
    of: Literal["hour", "weekday"]
    """0 to 23, or Monday to Sunday."""
    dim: int = Field(default=8, ge=1, le=1024)


class IdFeature(Part):
    """One trained vector an item. Items the training window does not hold share one `unknown` row."""

    kind: Literal["id"]


class CategoryFeature(Part):
    """One trained vector a value of a column of the items table."""

    kind: Literal["category"]
    column: str
    dim: int = Field(default=16, ge=1, le=1024)


class BagFeature(Part):
    """The mean of the trained vectors of a list column's values: tags, genres."""

    kind: Literal["bag"]
    column: str
    dim: int = Field(default=16, ge=1, le=1024)


class NumberFeature(Part):
    """A column of the items table, standardised on the training items (`log`: after log(1 + x)); NULL becomes the
    mean.
    """

    kind: Literal["number"]
    column: str
    scale: Literal["standard", "log"]
    """`log` for what spans orders of magnitude, as lengths do."""


class AgeFeature(Part):
    """log(1 + days) between `uploaded_at` of the item and the moment asked for, standardised on the training rows."""

    kind: Literal["age"]


UserFeature = Annotated[HistoryFeature | TimeFeature, Field(discriminator="kind")]
ItemFeature = Annotated[
    IdFeature | CategoryFeature | BagFeature | NumberFeature | AgeFeature, Field(discriminator="kind")
]


class Features(Part):
    """What each tower reads."""

    user: tuple[UserFeature, ...] = Field(min_length=1)
    """The user tower's; no user id, so that it serves users it never saw."""
    item: tuple[ItemFeature, ...] = Field(min_length=1)
    """The item tower's."""

    @model_validator(mode="after")
    def _no_twins(self) -> Features:
        for tower in ("user", "item"):
            names = [feature_name(feature) for feature in getattr(self, tower)]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"the {tower} tower reads {name!r} twice; delete one")
        return self


def feature_name(feature: UserFeature | ItemFeature) -> str:
    """The name a feature goes by in arrays, in the drawing of the model and in the served graph."""
    match feature:
        case HistoryFeature() | TimeFeature():
            return feature.of
        case CategoryFeature() | BagFeature() | NumberFeature():
            return feature.column
        case IdFeature() | AgeFeature():
            return feature.kind


# --- model and training -----------------------------------------------------------------------------------------------


class TwoTower(Part):
    """Two encoders whose outputs are compared by cosine / temperature."""

    kind: Literal["two_tower"]
    dim: int = Field(default=64, ge=1, le=4096)
    """Width of the id embeddings and of both towers' outputs."""
    hidden: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = ()
    """Widths of the hidden layers of both towers; none means one linear layer."""
    temperature: float = Field(default=0.1, gt=0)
    """Divides the cosine in the loss: smaller is sharper. Measured on the shipped log: .05 loses .035 recall@100, .2
    loses .007.
    """


class Train(Part):
    """In-batch softmax with logQ correction and masks; Adam; warm-up and cosine; the best epoch on validation is
    kept.
    """

    epochs: int = Field(default=4, ge=1, le=10_000)
    """Passes over the positives of the training window."""
    batch_size: int = Field(default=1024, ge=2, le=1_000_000)
    """Positives a step; the others of a batch are each one's negatives."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """The peak, reached after 5 % of the steps."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of initial weights and of the order of the batches."""


class Recipe(Part):
    """One experiment, whole: `twofold run` needs nothing else."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.=,-]{0,99}$")
    """Names the run's folder: lower-case letters, digits and `_ . = , -`."""
    about: str = ""
    """What this recipe shows; free text."""
    data: Data
    prepare: Prepare
    features: Features
    retriever: TwoTower
    train: Train
    recommend_k: int = Field(default=50, ge=1, le=1000)
    """Recommendations written for every user."""
