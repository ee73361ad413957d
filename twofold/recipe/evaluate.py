"""Evaluate section of a recipe: optional parts of the report."""

from __future__ import annotations

from datetime import date
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator

from twofold.recipe.section import Day, Section


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

    windows: tuple[Day, ...] = ()
    """Days of the test window that are also evaluated one by one, each as a window of its own: every user again at the
    first event of the day, with what is known until then, and the baselines fitted on all days before. The report has a
    row per day, all days pooled, and the differences from every baseline. The model is not trained again.
    """

    brief: bool = False
    """`true` leaves out what takes longer than training on a small log and says nothing of how two experiments differ:
    the tuned item-kNN, EASE and iALS, and the map of the items. For studies. No report then says that a model is better
    than every peer; `retriever.kind: best` needs the peers and has them anyway.
    """

    sampled: tuple[Sampled, ...] = ()
    """Sampled evaluation protocols of papers, one table each. They may order two models differently from the full
    catalogue (Krichene & Rendle, KDD 2020), so use them only to compare with papers.
    """

    @field_validator("sampled")
    @classmethod
    def _names_differ(cls, protocols: tuple[DrawnNegatives | PublishedNegatives, ...]) -> object:
        names = [f"{each.count} {each.draw}" if each.kind == "drawn" else each.kind for each in protocols]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"{name} negatives are listed {names.count(name)} times, and their metrics have one name, whatever "
                    f"the seed. Delete all but one, or give each another count"
                )
        return protocols

    @field_validator("windows")
    @classmethod
    def _two_days_in_order(cls, days: tuple[date, ...]) -> tuple[date, ...]:
        if len(days) == 1:
            raise ValueError(f"one day, {days[0]}, is no comparison of days: name two or more, or delete windows")
        for earlier, later in pairwise(days):
            if later <= earlier:
                raise ValueError(f"{later} follows {earlier}: name each day once, in the order of time")
        return days
