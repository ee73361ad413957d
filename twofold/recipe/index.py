"""Parts of a recipe: who may be recommended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from twofold.recipe.section import Name, Rule, Section


class Recent(Section):
    """How many events an item had in the days up to the moment asked for; in the report that is the window's first
    request, in what is served the end of the log. Events count of users that `prepare.sample` keeps.
    """

    events: Literal["events", "positives", "negatives"] = "events"
    """Which of them."""
    days: int = Field(ge=1, le=3660)
    """Days of 24 hours before the moment."""


class Index(Section):
    """Which items may be recommended."""

    recent_counts: Mapping[Name, Recent] = {}
    """Name: what is counted, `engagement_15d: {events: positives, days: 15}`; a column of the items for `where`, and
    for the filters of requests.
    """
    where: Rule | None = None
    """SQL over columns of the items and `recent_counts`, `engagement_15d >= 20`: the others are never recommended.
    The report has a section of its own for it, held against all that was to be found. Default: all may be.
    """
