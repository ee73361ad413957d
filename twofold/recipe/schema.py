"""The closed, frozen types of a recipe: what can be asked for, and nothing else.

An unknown key, a wrong kind or an impossible combination is refused here, before any data is read. A default is written
once, in its field. `docs/recipe.md` and `twofold recipe schema` are generated from these types. Preparation and
features have files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from twofold.recipe.features import CounterFeature, Features
from twofold.recipe.part import Part
from twofold.recipe.preparation import Prepare

# --- data -------------------------------------------------------------------------------------------------------------


class Table(Part):
    """A log as tables: Parquet or CSV. `twofold data` makes them of public data sets, `twofold recipe new` looks at
    yours.
    """

    kind: Literal["table"]
    events: Path
    """A file, or a folder of files of one kind. Columns user_id, item_id, at (UTC), and whatever the rules read."""
    items: Path | None = None
    """Column item_id, and whatever the item tower reads. Without it, the items are those of the events."""
    users: Path | None = None
    """Column user_id and attributes."""
    vectors: Mapping[str, Path] = {}
    """Name: .npy file of vectors of items, a line for each row of the items file, in its order."""
    columns: Mapping[str, str] = {}
    """Our name: the name the tables have for it, as `user_id: uid`. Columns not named here keep their names."""
    at_unit: Literal["ms", "s", "us", "ns"] = "ms"
    """Of moments that are written as integers."""


Data = Table


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

    @model_validator(mode="after")
    def _counted(self) -> Recipe:
        for tower, features in (("user", self.features.user), ("item", self.features.item)):
            for number, feature in enumerate(features):
                if isinstance(feature, CounterFeature):
                    _check_counter(feature, self.prepare, tower=tower, field=f"features.{tower}.{number}")
        return self


def _check_counter(feature: CounterFeature, prepare: Prepare, *, tower: str, field: str) -> None:
    counters = prepare.counters.get(feature.by)
    if counters is None:
        raise ValueError(
            f"{field} reads counters by {feature.by}, but prepare.counters counts by "
            f"{', '.join(prepare.counters) or 'nothing'}. Add it there."
        )
    if feature.of not in (names := (*counters.rates, *counters.means)):
        raise ValueError(f"{field}: prepare.counters.{feature.by} has no {feature.of}; it has {', '.join(names)}")
    if (feature.by == "user_id") != (tower == "user"):
        raise ValueError(
            f"{field} counts by {feature.by}: the user tower reads counters by user_id, the item tower all others"
        )
