"""Parts of a recipe: the second stage, which orders what the retriever finds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator
from sqlglot import exp

from twofold.errors import RecipeError
from twofold.recipe.features import ItemFeature, UserFeature
from twofold.recipe.section import Expression, Name, Section, is_unasked
from twofold.recipe.train import Bce
from twofold.sql.rules import check_columns, rule_tree

# --- what it is taught on ---------------------------------------------------------------------------------------------


class Candidates(Section):
    """What a request is: a positive of the training window on an item that was new to its user; and what it is ranked
    against in training, all at one moment.
    """

    num_candidates: int = Field(default=100, ge=1, le=10_000)
    """The retriever's best unseen items: what is ranked anew, in training, in the report and when served."""
    skip_top: int = Field(default=0, ge=0, le=10_000)
    """The best ranks that no negative is drawn from: they hold what the user would like and did not meet yet."""
    num_retrieved: int = Field(default=30, ge=1, le=10_000)
    """Negatives drawn from the retriever's ranks [skip_top, num_candidates), without the user's training positives."""
    request_time: Literal["event", "day"] = "day"
    """The moment of a request: that of its positive, when the item had been shown already; or, as reports ask, of the
    user's first event on that day (of `prepare.utc_offset_h`).
    """
    last_days: int | None = Field(default=None, ge=1)
    """Requests are of so many last days of the training window; null: of all. An older one is answered by other items
    than those of today, and where its moment was estimated, by counters that are wrong.
    """
    max_requests: int = Field(default=100_000, ge=1)
    """Requests to learn from: drawn at random, where the window has more."""

    @model_validator(mode="after")
    def _ranks_remain(self) -> Candidates:
        if self.skip_top >= self.num_candidates:
            raise ValueError(
                f"skip_top is {self.skip_top} and num_candidates is {self.num_candidates}: no rank is left. Write "
                f"num_candidates above skip_top"
            )
        return self


class Listwise(Section):
    """The positive against all its negatives: softmax cross-entropy (Cao et al., *Learning to rank: from pairwise
    approach to listwise approach*, ICML 2007, top-one probability).
    """

    kind: Literal["softmax"]


class Pairwise(Section):
    """The positive against each of its negatives (Rendle et al., *BPR*, UAI 2009)."""

    kind: Literal["bpr"]


RankerLoss = Annotated[Listwise | Bce | Pairwise, Field(discriminator="kind")]


# --- what it is -------------------------------------------------------------------------------------------------------


class RankerFeatures(Section):
    """What the ranker reads of either side; it may be more than the towers read, or less."""

    user: tuple[UserFeature, ...] = Field(min_length=1)
    item: tuple[ItemFeature, ...] = Field(min_length=1)


class Head(Section):
    """What else the network says of a pair: how likely one of `prepare.outcomes` is where the item is shown. It learns,
    by cross-entropy, from impressions of the requests' days. Each counts alike, so that a chance is one.
    """

    outcome: Name
    """Of `prepare.outcomes`. Of a condition it is the chance; of a label of kind quantile, the share of views of items
    as long that were shorter, which the report turns back into seconds.
    """
    weight: float = Field(default=1.0, gt=0)
    """How much its loss counts beside that of the lists."""


RELEVANCE: Final = "relevance"
"""What a formula calls the score that is learned from the lists."""


class Mlp(Section):
    """A network over the user, one item, and how they meet: encoders of the ranker's own features, the retriever's two
    vectors and the products of both pairs, the retrieval score and rank.
    """

    kind: Literal["mlp"]
    features: RankerFeatures | None = None
    """null: what the towers read."""
    dim: int = Field(default=32, ge=1, le=1024)
    """Width of its id embeddings and of what either side is encoded to."""
    hidden: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = (128, 64)
    """Widths of the hidden layers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the hidden layers' outputs that a training step leaves out."""
    id_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the candidates of a training step whose id nobody knows: neither the ranker, which reads the unknown
    row, nor the retriever, whose vector is the one of an unknown id. What cold items are ranked by.
    """
    candidates: Candidates = Candidates()
    loss: RankerLoss = Listwise(kind="softmax")
    heads: tuple[Head, ...] = Field(default=(), exclude_if=is_unasked)
    """What it says besides, from the same layers; the report holds it against what came of the impressions. They learn
    from up to `candidates.max_requests` impressions, drawn at random: an equal part of them beside the lists of each
    step.
    """
    formula: Expression | None = Field(default=None, exclude_if=is_unasked)
    """What candidates are ordered by, over `relevance`, the score learned from the lists, and what the heads are of:
    `relevance + 0.5 * LN(long / (1 - long))`. A name that is a word of SQL, as like, stands in double quotes. Where it
    is NULL, an item comes last. null: `relevance`.
    """
    epochs: int = Field(default=3, ge=1, le=1000)
    """Passes over the requests. The best one on validation is kept: NDCG@10 of both stages."""
    batch_size: int = Field(default=256, ge=1, le=100_000)
    """Requests a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The peak, reached after 5 % of the steps."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of initial weights, of the negatives drawn, and of the order of the batches."""

    @model_validator(mode="after")
    def _said_once(self) -> Mlp:
        names = [head.outcome for head in self.heads]
        for name in names:
            if name == RELEVANCE or names.count(name) > 1:
                why = "is what the lists teach" if name == RELEVANCE else "is asked for twice"
                raise ValueError(f"heads: {name} {why}. Give each head an outcome, and a name, of its own")
        if self.formula is not None:
            _check_formula(self.formula, (RELEVANCE, *names))
        return self


def _check_formula(text: str, names: Collection[str]) -> None:
    """ValueError where it reads what the ranker does not say, or does more than to calculate."""
    try:
        check_columns(text, names, field="formula")
    except RecipeError as error:
        raise ValueError(f"{error} Add what it lacks to heads") from None
    for node in rule_tree(text, result="number").walk():
        if not isinstance(node, _CALCULATES):
            raise ValueError(
                f"formula: {text} holds {type(node).__name__}, and a formula calculates. Write it with numbers, "
                f"+ - * /, LN, EXP, SQRT, POWER, ABS, LEAST, GREATEST, COALESCE and NULLIF"
            )


_CALCULATES: Final = (
    *(exp.Column, exp.Identifier, exp.Literal, exp.Paren, exp.Cast, exp.DataType),
    *(exp.Neg, exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Pow, exp.Ln, exp.Exp, exp.Sqrt, exp.Abs),
    *(exp.Least, exp.Greatest, exp.Coalesce, exp.Nullif),
)
