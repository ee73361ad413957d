"""Evaluate section of a recipe: optional parts of the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twofold.recipe.section import Section


class DrawnNegatives(Section):
    """Sampled evaluation: ranks each positive among items drawn for it, without replacement, that its user has neither
    seen nor likes.
    """

    kind: Literal["drawn"]
    draw: Literal["popularity", "uniform"]
    """Distribution of the negatives: by the number of positives before the window, as in BERT4Rec (Sun et al., CIKM
    2019) and nanoRecSys; or uniform, as in NCF (He et al., WWW 2017) and SASRec (Kang & McAuley, ICDM 2018).
    """
    count: int = Field(default=100, ge=1, le=10_000)
    """Number of negatives for each positive. Papers use 50 to 1,000, most of them 100."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the draw: runs with the same log and seed are evaluated on the same negatives."""


class PublishedNegatives(Section):
    """Sampled evaluation: ranks each positive among the negatives of its user in `data.published_negatives`."""

    kind: Literal["published"]


Sampled = Annotated[DrawnNegatives | PublishedNegatives, Field(discriminator="kind")]


class Evaluate(Section):
    """Optional parts of the report. None of them changes the model or which epoch is chosen."""

    slices: tuple[str, ...] = ()
    """Columns of the items or users whose values are evaluated separately, besides the categories of the towers; at
    most the twelve most frequent values. Columns of items are also probed for folding and add a baseline: the most
    popular items with the value that the user likes most, such as a language.
    """

    sampled: tuple[Sampled, ...] = ()
    """Sampled evaluation protocols of papers, one table each. They may order two models differently from the full
    catalogue (Krichene & Rendle, KDD 2020), so use them only to compare with papers.
    """
