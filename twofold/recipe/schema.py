"""The closed, frozen types of a recipe: what can be asked for, and nothing else.

An unknown key, a wrong kind or an impossible combination is refused here, before any data is read. A default is written
once, in its field. `docs/recipe.md` and `twofold recipe schema` are generated from these types. Preparation, features
and training have files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, assert_never

from pydantic import Field, model_validator

from twofold.recipe.evaluate import Evaluate, PublishedNegatives
from twofold.recipe.features import CounterFeature, Features, with_features
from twofold.recipe.index import Index
from twofold.recipe.prepare import Prepare
from twofold.recipe.ranker import Mlp
from twofold.recipe.section import Section, is_unasked
from twofold.recipe.train import Ials, Retriever, Train, TwoTower, check_heads, check_objective, check_reads
from twofold.recipe.tune import Tune

# --- data -------------------------------------------------------------------------------------------------------------


class Table(Section):
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
    published_negatives: Path | None = None
    """Columns user_id and item_id, a list: the items that a paper judged each user's positives against."""
    vectors: Mapping[str, Path] = {}
    """Name: .npy file of vectors of items, a line for each row of the items file, in its order."""
    columns: Mapping[str, str] = {}
    """Our name: the name the tables have for it, as `user_id: uid`. Columns not named here keep their names."""
    at_unit: Literal["ms", "s", "us", "ns"] = "ms"
    """Of moments that are written as integers."""


Data = Table


class Mlflow(Section):
    """Copies finished runs of `twofold run` to MLflow (extra `mlflow`). No part of what a run is."""

    uri: str = "sqlite:///mlflow.db"
    """A SQLite file, from the folder where the command is given, or the address of a server. The variable
    MLFLOW_TRACKING_URI comes before it, and needs no recipe to say so.
    """


# --- the whole --------------------------------------------------------------------------------------------------------


class Recipe(Section):
    """One experiment, whole: `twofold run` needs nothing else."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.=,-]{0,99}$")
    """Names the run's folder: lower-case letters, digits and `_ . = , -`."""
    about: str = ""
    """What this recipe shows; free text."""
    data: Data
    prepare: Prepare
    features: Features
    retriever: Retriever
    train: Train
    ranker: Mlp | None = None
    """The second stage: orders the best of what the retriever finds. null: there is none."""
    index: Index = Index()
    """Which items may be recommended."""
    recommend_k: int = Field(default=50, ge=1, le=1000)
    """Recommendations written for every user."""
    evaluate: Evaluate = Evaluate()
    """What the report is asked besides."""
    tune: Tune | None = None
    """What `twofold tune` may change in search of something better."""
    mlflow: Mlflow | None = Field(default=None, exclude_if=is_unasked)
    """Where finished runs are copied to. null: nowhere, unless MLFLOW_TRACKING_URI is set."""

    @property
    def slice_columns(self) -> tuple[str, ...]:
        """Columns whose values are to be seen apart: those that training keeps apart, which may fold, and those that
        `evaluate.slices` names.
        """
        per = self.retriever.separate_towers_by if isinstance(self.retriever, TwoTower) else None
        return (*self.train.group_by, *((per,) if per is not None else ()), *self.evaluate.slices)

    @model_validator(mode="after")
    def _counted(self) -> Recipe:
        for field, features in self.read_features():
            for tower in ("user", "item"):
                for number, feature in enumerate(getattr(features, tower)):
                    if isinstance(feature, CounterFeature):
                        _check_counter(feature, self.prepare, tower=tower, field=f"{field}.{tower}.{number}")
        return self

    @model_validator(mode="after")
    def _one_of_each_name(self) -> Recipe:
        assert self.all_features
        return self

    @model_validator(mode="after")
    def _can_be_learned(self) -> Recipe:
        match self.retriever:
            case TwoTower():
                check_heads(self.retriever, self.features)
                check_objective(self.retriever, self.train, has_target=self.prepare.target is not None)
            case Ials():
                check_reads(self.retriever, self.features)
            case _:
                assert_never(self.retriever)
        return self

    @model_validator(mode="after")
    def _heads_have_outcomes(self) -> Recipe:
        outcomes = self.prepare.outcomes
        for number, head in enumerate(self.ranker.heads if self.ranker else ()):
            if head.outcome not in outcomes:
                raise ValueError(
                    f"ranker.heads.{number} learns {head.outcome}, and prepare.outcomes has "
                    f"{', '.join(outcomes) or 'nothing'}. Add it there, as in outcomes: {{{head.outcome}: liked}}"
                )
        return self

    def read_features(self) -> tuple[tuple[str, Features], ...]:
        """What the towers read, and what the ranker is told if it is, by the field that says so."""
        own = () if self._ranker_told is None else (("ranker.features", self._ranker_told),)
        return (("features", self.features), *own)

    @property
    def ranker_features(self) -> Features:
        """What the ranker reads: the towers' features, unless it has its own."""
        return self.features if self._ranker_told is None else self._ranker_told

    @property
    def _ranker_told(self) -> Features | None:
        own = None if self.ranker is None else self.ranker.features
        return None if own is None else Features(vectors=self.features.vectors, user=own.user, item=own.item)

    @property
    def all_features(self) -> Features:
        """What either stage reads, each once."""
        return with_features(self.features, self.ranker_features.user, self.ranker_features.item)

    @model_validator(mode="after")
    def _published(self) -> Recipe:
        asked = any(isinstance(negatives, PublishedNegatives) for negatives in self.evaluate.sampled)
        if asked and self.data.published_negatives is None:
            raise ValueError(
                "evaluate.sampled asks for published negatives, but data.published_negatives names no file. Name it "
                "there, or draw some: {kind: drawn, draw: popularity}"
            )
        return self


def _check_counter(feature: CounterFeature, prepare: Prepare, *, tower: str, field: str) -> None:
    counters = prepare.counters.get(feature.key)
    if counters is None:
        raise ValueError(
            f"{field} reads counters by {feature.key}, but prepare.counters counts by "
            f"{', '.join(prepare.counters) or 'nothing'}. Add it there."
        )
    if feature.statistic not in (names := ("events", *counters.rates, *counters.means)):
        raise ValueError(
            f"{field}: prepare.counters.{feature.key} has no {feature.statistic}; it has {', '.join(names)}"
        )
    if (feature.key == "user_id") != (tower == "user"):
        raise ValueError(
            f"{field} counts by {feature.key}: the user tower reads counters by user_id, the item tower all others"
        )
