"""Ranker section of a recipe: the second stage, which re-ranks the candidates of the retriever."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator
from sqlglot import exp

from twofold.errors import RecipeError
from twofold.recipe.features import Features, ItemFeature, UserFeature, feature_name
from twofold.recipe.section import Expression, ItemRule, Name, Section
from twofold.recipe.train import Bce
from twofold.sql.rules import check_columns, rule_tree

# --- candidates -------------------------------------------------------------------------------------------------------

Quota = Annotated[int, Field(ge=1, le=5000)]


class ItemKnnSource(Section):
    """Items that are liked by the same users as the last items that the user liked: item-kNN (Sarwar et al., WWW 2001),
    fitted on the training window.
    """

    kind: Literal["item_knn"]
    quota: Quota
    """Number of candidates that this source brings."""
    last_likes: int = Field(default=10, ge=1, le=1000)
    """Number of newest positives of the user that are read. `features.user` must hold a history that is as long."""

    @property
    def name(self) -> str:
        """Name of the source in the report and in explained replies."""
        return f"item-kNN of {self.last_likes} like{'' if self.last_likes == 1 else 's'}"


class PopularitySource(Section):
    """Items with most positives in the last days before the first request of the window in the report, and before the
    end of the log in a served bundle.
    """

    kind: Literal["popularity"]
    quota: Quota
    """Number of candidates that this source brings."""
    days: int = Field(default=2, ge=1, le=3660)
    """Number of days, of 24 hours each."""

    @property
    def name(self) -> str:
        """Name of the source in the report and in explained replies."""
        return f"popularity of {self.days} day{'' if self.days == 1 else 's'}"


class ConditionSource(Section):
    """The retriever's best items among those for which a condition is true, such as new items: `age_days < 3`."""

    kind: Literal["condition"]
    quota: Quota
    """Number of candidates that this source brings."""
    when: ItemRule
    """SQL condition over the columns of the items, `recent_counts` and `age_days`."""

    @property
    def name(self) -> str:
        """Name of the source in the report and in explained replies."""
        return f"where {self.when}"


Source = Annotated[ItemKnnSource | PopularitySource | ConditionSource, Field(discriminator="kind")]


class Candidates(Section):
    """Training requests of the ranker. Each is a positive of the training window on an item that its user had not seen,
    and the negatives that it is ranked against, all at one point in time.
    """

    num_candidates: int = Field(default=100, ge=1, le=10_000)
    """Number of unseen items that are re-ranked, in training, evaluation and serving: the retriever's best ones, or,
    with `sources`, fewer of these and those of the sources.
    """
    sources: tuple[Source, ...] = Field(default=(), max_length=8)
    """Further sources of candidates, each with a quota. They take the last places of the retriever's candidates; what
    they leave free, the retriever fills. The ranker reads the rank of a candidate in the list of each source. The
    report compares the recall of all candidates with that of the retriever alone. An empty list means no other source.
    """
    skip_top: int = Field(default=0, ge=0, le=10_000)
    """Number of best ranks from which no negative is drawn: the user would like many of these items."""
    num_retrieved: int = Field(default=30, ge=1, le=10_000)
    """Number of negatives drawn from the ranks [skip_top, num_candidates), without positives of the user."""
    request_time: Literal["event", "day"] = "day"
    """Time of a request: `event` is the time of its positive, when the item had already been shown; `day` is the user's
    first event of that day (in the time zone `prepare.time_zone`), as in the report.
    """
    last_days: int | None = Field(default=None, ge=1)
    """Number of last days of the training window that requests are taken from. Older requests have other candidates
    than today's; where their timestamps are estimates, their counters are wrong. `null` means all days.
    """
    max_requests: int = Field(default=100_000, ge=1)
    """Maximum number of training requests; a random sample is taken where the window has more."""

    @model_validator(mode="after")
    def _ranks_remain(self) -> Candidates:
        if self.skip_top >= self.num_candidates:
            raise ValueError(
                f"skip_top is {self.skip_top} and num_candidates is {self.num_candidates}: no rank is left. Write "
                f"num_candidates above skip_top"
            )
        return self

    @model_validator(mode="after")
    def _sources_fit(self) -> Candidates:
        total, names = sum(source.quota for source in self.sources), [source.name for source in self.sources]
        if total >= self.num_candidates:
            raise ValueError(
                f"sources: their quotas are {total} together and num_candidates is {self.num_candidates}: no place is "
                f"left for the retriever. Lower the quotas, or raise num_candidates"
            )
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(
                    f"sources.{number}: `{name}` is listed twice. Delete one, and add its quota to the other"
                )
        return self

    @property
    def conditions(self) -> tuple[tuple[int, str], ...]:
        """Condition of each source that has one, with the number of the source."""
        return tuple((n, each.when) for n, each in enumerate(self.sources) if isinstance(each, ConditionSource))


class Listwise(Section):
    """Listwise loss: softmax cross-entropy of the positive against all its negatives (Cao et al., *Learning to rank:
    from pairwise approach to listwise approach*, ICML 2007, top-one probability).
    """

    kind: Literal["softmax"]


class Pairwise(Section):
    """Pairwise loss of the positive against each of its negatives (Rendle et al., *BPR*, UAI 2009)."""

    kind: Literal["bpr"]


RankerLoss = Annotated[Listwise | Bce | Pairwise, Field(discriminator="kind")]


# --- models -----------------------------------------------------------------------------------------------------------


class RankerFeatures(Section):
    """Features of the ranker, which may differ from those of the towers."""

    user: tuple[UserFeature, ...] = Field(min_length=1)
    """Features of the user and the request."""
    item: tuple[ItemFeature, ...] = Field(min_length=1)
    """Features of each candidate item."""


def with_features(features: Features, user: tuple[UserFeature, ...], item: tuple[ItemFeature, ...]) -> Features:
    """Adds features to both towers, each once; raises ValueError where two of one name differ."""
    sides: dict[str, tuple[UserFeature | ItemFeature, ...]] = {}
    for tower, old, new in (("user", features.user, user), ("item", features.item, item)):
        by_name = {feature_name(feature): feature for feature in old}
        for feature in new:
            if by_name.setdefault(feature_name(feature), feature) != feature:
                raise ValueError(
                    f"the {tower} feature {feature_name(feature)} is defined twice, with different settings: write it "
                    f"in ranker.features as in features.{tower}"
                )
        sides[tower] = tuple(by_name.values())
    return Features.model_validate({**dict(features), **sides})


class Head(Section):
    """Prediction head: the probability of one of `prepare.outcomes` when the item is shown, trained by cross-entropy on
    the impressions of the requests' days. Impressions are not weighted, so that the prediction is a probability.
    """

    outcome: Name
    """Name of one of `prepare.outcomes`: for a condition, the head predicts its probability; for a label of kind
    quantile, a watch-time quantile, which the report turns back into seconds.
    """
    weight: float = Field(default=1.0, gt=0)
    """Weight of the loss of this head; the loss of the ranked lists has weight 1."""


RELEVANCE: Final = "relevance"
"""Name of the score trained on the ranked lists, in a formula."""


class Mlp(Section):
    """Neural ranker of a user and an item. Its inputs are encoders of its own features, the two vectors of the
    retriever, the elementwise products of both pairs, and the retrieval score and rank. Without a formula, the order is
    by a mean of its score and the retriever's, with the weights that have the best NDCG on validation.
    """

    kind: Literal["mlp"]
    features: RankerFeatures | None = None
    """Features of the ranker. `null` means those of the towers."""
    dim: int = Field(default=32, ge=1, le=1024)
    """Width of its id embeddings and of the encoded user and item."""
    hidden: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = (128, 64)
    """Widths of the hidden layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate of the hidden layers."""
    candidates: Candidates = Candidates()
    """Training requests and their negatives."""
    loss: RankerLoss = Listwise(kind="softmax")
    """Loss of the ranked lists."""
    heads: tuple[Head, ...] = ()
    """Additional predictions of the same network; the report compares them with the outcomes of impressions. They train
    on up to `candidates.max_requests` random impressions, an equal part of them in each step.
    """
    formula: Expression | None = None
    """Score that orders the candidates, an expression of `relevance` (the score trained on the ranked lists) and of the
    outcomes of the heads: `relevance + 0.5 * LN(long / (1 - long))`. A name that is a keyword of SQL, such as like, is
    written in double quotes. Items with a NULL score come last. `null` means `relevance`.
    """
    epochs: int = Field(default=3, ge=1, le=1000)
    """Number of passes over the requests. The best epoch on validation is used."""
    best_epoch_by: Literal["ndcg", "xauc"] = "ndcg"
    """Metric on the validation window by which the best epoch is chosen: NDCG@10 of both stages in the full ranking, or
    XAUC, the share of pairs of a user's own impressions that the score orders as their watch times do. The latter suits
    a formula whose goal is watch time, which the NDCG of positives does not measure.
    """
    batch_size: int = Field(default=256, ge=1, le=100_000)
    """Number of requests in a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate, reached after 5 % of the steps."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the initial weights, of the negatives and of the order of the batches."""

    @model_validator(mode="after")
    def _heads_are_unique(self) -> Mlp:
        names = [head.outcome for head in self.heads]
        for name in names:
            if name == RELEVANCE or names.count(name) > 1:
                why = "is the score of the ranked lists" if name == RELEVANCE else "is predicted twice"
                raise ValueError(f"heads: {name} {why}. Give each head an outcome, and a name, of its own")
        if self.formula is not None:
            _check_formula(self.formula, (RELEVANCE, *names))
        return self


def _check_formula(text: str, names: Collection[str]) -> None:
    """Raises ValueError if the formula reads a name that the ranker does not predict, or is more than arithmetic."""
    try:
        check_columns(text, names, field="formula")
    except RecipeError as error:
        raise ValueError(f"{error} Add what it lacks to heads") from None
    for node in rule_tree(text, result="number").walk():
        if not isinstance(node, _CALCULATES):
            raise ValueError(
                f"formula: {text} holds {type(node).__name__}, and a formula is arithmetic only. Write it with "
                f"numbers, + - * /, LN, EXP, SQRT, POWER, ABS, LEAST, GREATEST, COALESCE and NULLIF"
            )


_CALCULATES: Final = (
    *(exp.Column, exp.Identifier, exp.Literal, exp.Paren, exp.Cast, exp.DataType),
    *(exp.Neg, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Pow, exp.Ln, exp.Exp, exp.Sqrt, exp.Abs),
    *(exp.Least, exp.Greatest, exp.Coalesce, exp.Nullif),
)
