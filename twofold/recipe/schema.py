"""Schema of a whole recipe: closed, frozen types.

An unknown key, a wrong type or an impossible combination is an error before any data is read. Each default is written
once, in its field. `docs/recipe.md` and `twofold recipe schema` are generated from these types. Every section has a
module of its own, named by its YAML key.
"""

from __future__ import annotations

from typing import assert_never

from pydantic import Field, model_validator

from twofold.recipe.data import Data
from twofold.recipe.evaluate import Evaluate, PublishedNegatives
from twofold.recipe.features import (
    CounterFeature,
    Features,
    HistoryFeature,
    IdFeature,
    SequenceFeature,
    history_length,
    reads_time,
)
from twofold.recipe.index import Index
from twofold.recipe.page import Page
from twofold.recipe.prepare import Prepare
from twofold.recipe.ranker import ItemKnnSource, Mlp, with_features
from twofold.recipe.rerank import Rerank
from twofold.recipe.retriever import Ials, Retriever, TwoTower, check_best, check_heads, check_reads, check_routes
from twofold.recipe.section import Section
from twofold.recipe.split import LastDays, LastEvents, TemporalSplit
from twofold.recipe.train import Train, check_objective, objective_warnings
from twofold.recipe.tune import Tune
from twofold.tables import split_side


class Mlflow(Section):
    """Copies finished runs of `twofold run` to MLflow (extra `mlflow`). It does not change the digest of a run."""

    uri: str = "sqlite:///mlflow.db"
    """Tracking URI: a SQLite file, relative to the working directory, or the address of a server. The environment
    variable MLFLOW_TRACKING_URI overrides it, and also works without this section.
    """


class Recipe(Section):
    """A complete experiment: `twofold run` needs nothing else."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.=,-]{0,99}$")
    """Name of the run's folder: lower-case letters, digits and `_ . = , -`."""
    about: str = ""
    """Free text: what this recipe shows."""
    data: Data
    prepare: Prepare
    features: Features
    retriever: Retriever
    train: Train
    ranker: Mlp | None = None
    """Second stage: re-ranks the best candidates of the retriever. `null` means retrieval only."""
    rerank: Rerank | None = None
    """Rules after ranking: limits, quotas, boosts, decay of repeats, diversity, pinned and blocked items. `null` means
    none.
    """
    index: Index = Index()
    """Items that may be recommended."""
    page: Page = Page()
    """Columns that the live page of the service shows."""
    recommend_k: int = Field(default=50, ge=1, le=1000)
    """Number of recommendations written for each user."""
    evaluate: Evaluate = Evaluate()
    """Optional parts of the report."""
    tune: Tune | None = None
    """Search space of `twofold tune`. `null` means there is none."""
    mlflow: Mlflow | None = None
    """MLflow server that finished runs are copied to. `null` means none, unless MLFLOW_TRACKING_URI is set."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on settings that can be trained but cost something."""
        return objective_warnings(self.retriever, self.train) if isinstance(self.retriever, TwoTower) else ()

    @property
    def slice_columns(self) -> tuple[str, ...]:
        """Columns whose values the report evaluates separately: those of `evaluate.slices`, and those by which batches
        are grouped or towers are separate, where embeddings of different values may overlap.
        """
        column = self.retriever.separate_towers_by if isinstance(self.retriever, TwoTower) else None
        grouped = (split_side(name)[1] for name in self.train.group_by)
        return tuple(dict.fromkeys((*grouped, *((column,) if column is not None else ()), *self.evaluate.slices)))

    @model_validator(mode="after")
    def _counters_exist(self) -> Recipe:
        for field, features in self.read_features():
            for tower in ("user", "item"):
                for number, feature in enumerate(getattr(features, tower)):
                    if isinstance(feature, CounterFeature):
                        _check_counter(feature, self.prepare, tower=tower, field=f"{field}.{tower}.{number}")
        return self

    @model_validator(mode="after")
    def _feature_names_are_unique(self) -> Recipe:
        assert self.all_features
        return self

    @model_validator(mode="after")
    def _limited_ids_are_read(self) -> Recipe:
        _check_id_rows(self.all_features, self.retriever)
        return self

    @model_validator(mode="after")
    def _retriever_can_train(self) -> Recipe:
        match self.retriever:
            case TwoTower():
                check_heads(self.retriever, self.features)
                check_best(self.retriever, self.features)
                check_routes(self.retriever, self.features)
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
                    f"ranker.heads.{number} predicts {head.outcome}, and prepare.outcomes has "
                    f"{', '.join(outcomes) or 'nothing'}. Add it there, as in outcomes: {{{head.outcome}: liked}}"
                )
        return self

    @model_validator(mode="after")
    def _goal_can_be_predicted(self) -> Recipe:
        if self.tune is None or self.tune.goal == "recall":
            return self
        outcomes = [head.outcome for head in self.ranker.heads] if self.ranker else []
        if not any(self.prepare.quantile_of(name) for name in outcomes):
            raise ValueError(
                "tune.goal is watch_time, and no head of the ranker predicts a quantile of watch time. Add labels: "
                "{d2q: {kind: quantile}} and outcomes: {watch: d2q} to prepare, and heads: [{outcome: watch}] to "
                "ranker, or write goal: recall"
            )
        return self

    @model_validator(mode="after")
    def _sources_can_read(self) -> Recipe:
        features = (*self.features.user, *self.ranker_features.user)
        longest = max((history_length(each, "positives") for each in features), default=0)
        for number, source in enumerate(self.ranker.candidates.sources if self.ranker else ()):
            if isinstance(source, ItemKnnSource) and source.last_likes > longest:
                raise ValueError(
                    f"ranker.candidates.sources.{number}: item_knn reads the last {source.last_likes} likes, and the "
                    f"longest history of positives in features.user has {longest}. Lower last_likes, or add {{kind: "
                    f"history, events: positives, max_length: {source.last_likes}}}"
                )
        return self

    @model_validator(mode="after")
    def _decay_has_repeats(self) -> Recipe:
        for number, rule in enumerate(self.rerank.rules if self.rerank else ()):
            if rule.kind == "decay" and not self.index.include_seen:
                raise ValueError(
                    f"rerank.rules.{number}: decay lowers items that the user has seen, and the lists hold none of "
                    f"these. Write index: {{include_seen: true}}, or delete the rule"
                )
        return self

    def read_features(self) -> tuple[tuple[str, Features], ...]:
        """Returns the features of the towers, and of the ranker if it has its own, each with the name of its field."""
        own = self._own_ranker_features
        return (("features", self.features), *(() if own is None else (("ranker.features", own),)))

    @property
    def ranker_features(self) -> Features:
        """Features of the ranker: its own, or those of the towers."""
        return self._own_ranker_features or self.features

    @property
    def _own_ranker_features(self) -> Features | None:
        own = None if self.ranker is None else self.ranker.features
        if own is None:
            return None
        return Features.model_validate({**dict(self.features), "user": own.user, "item": own.item})

    @property
    def all_features(self) -> Features:
        """Features that either stage reads, each once."""
        return with_features(self.features, self.ranker_features.user, self.ranker_features.item)

    @model_validator(mode="after")
    def _item_times_are_those_of_the_requests(self) -> Recipe:
        """Checks that items are never described as of a time that is years from the request."""
        for field, features in self.read_features() if isinstance(self.prepare.split, LastEvents) else ():
            for number, feature in enumerate(features.item):
                if reads_time(feature):
                    raise ValueError(
                        f"{field}.item.{number} of kind {feature.kind} depends on the time of the request, and items "
                        "are evaluated as of one time. With prepare.split of kind last_n, requests are at any time of "
                        "the log, so ages and counters would be wrong. Delete the feature, or choose a temporal split."
                    )
        return self

    @model_validator(mode="after")
    def _evaluated_days_are_tested(self) -> Recipe:
        split, days = self.prepare.split, self.evaluate.windows
        if days and isinstance(split, LastEvents):
            raise ValueError(
                "evaluate.windows names days, and prepare.split of kind last_n has none, since each user is tested at "
                "another time. Delete windows, or choose a split of kind temporal."
            )
        if days and isinstance(split, LastDays):
            raise ValueError(
                "evaluate.windows names days, and those of prepare.split of kind last_days move with the log. Delete "
                "windows, or choose a split of kind temporal."
            )
        for day in days:
            if isinstance(split, TemporalSplit) and not split.test.first <= day < split.test.end:
                raise ValueError(
                    f"evaluate.windows names {day}, and prepare.split.test covers {self.prepare.dates('test')}. Name "
                    "days of the test window, or make that window longer."
                )
        return self

    @model_validator(mode="after")
    def _published_negatives_exist(self) -> Recipe:
        is_published = any(isinstance(negatives, PublishedNegatives) for negatives in self.evaluate.sampled)
        if is_published and self.data.published_negatives is None:
            raise ValueError(
                "evaluate.sampled asks for published negatives, but data.published_negatives names no file. Name it "
                "there, or draw some: {kind: drawn, draw: popularity}"
            )
        return self


def histories_of_ids(features: Features) -> list[HistoryFeature | SequenceFeature]:
    """Returns the features that read a table of item ids for each event of a history."""
    return [
        each
        for each in features.user
        if isinstance(each, SequenceFeature) or (isinstance(each, HistoryFeature) and each.vectors is None)
    ]


def _check_id_rows(features: Features, retriever: TwoTower | Ials) -> None:
    """Raises ValueError if rows of ids are limited that no table has."""
    reads_users = any(isinstance(each, IdFeature) for each in features.user)
    reads_items = any(isinstance(each, IdFeature) for each in features.item) or bool(histories_of_ids(features))
    for name, is_read in (("item_ids", reads_items), ("user_ids", reads_users)):
        if getattr(features, name) is not None and not is_read:
            raise ValueError(f"features.{name} limits the rows of a table that no feature reads: delete it")
    if isinstance(retriever, Ials) and features.item_ids is not None:
        raise ValueError(
            "features.item_ids limits the rows of tables, and a retriever of kind ials has a vector for each item of "
            "the training window: delete it, or choose kind: two_tower"
        )


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
