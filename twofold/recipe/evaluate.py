"""Parts of a recipe: what the report asks beside the catalogue, the impressions and the batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twofold.recipe.section import Section


class DrawnNegatives(Section):
    """Each positive among items drawn for it that its user neither met nor likes, no item twice."""

    kind: Literal["drawn"]
    draw: Literal["popularity", "uniform"]
    """By the number of positives before the window, as BERT4Rec (Sun et al., CIKM 2019) and nanoRecSys draw; or each
    item as likely, as NCF (He et al., WWW 2017) and SASRec (Kang & McAuley, ICDM 2018) do.
    """
    count: int = Field(default=100, ge=1, le=10_000)
    """How many a positive."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the draw: runs of one log and seed are judged against the same items."""


class PublishedNegatives(Section):
    """Each positive among the items that `data.published_negatives` gives its user."""

    kind: Literal["published"]


Sampled = Annotated[DrawnNegatives | PublishedNegatives, Field(discriminator="kind")]


class Evaluate(Section):
    """What the report holds besides; none of it decides anything."""

    slices: tuple[str, ...] = ()
    """Columns of the items or users whose values are judged apart, beside what the towers read as categories: the
    twelve commonest at most. Of items, they are probed for folding too, and make a baseline: what is popular in the
    value that a user likes most, a language say.
    """

    sampled: tuple[Sampled, ...] = ()
    """The papers' protocol, each in a table of its own: a positive among a hundred sampled items. It may order two
    models otherwise than the catalogue does (Krichene & Rendle, KDD 2020): for comparing with papers alone.
    """
