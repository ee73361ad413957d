"""Index section of a recipe: the items that may be recommended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from twofold.recipe.section import ItemRule, Name, Section


class Recent(Section):
    """Number of events of an item in the last days before a point in time: in the report, the first request of the
    window; in a served bundle, the end of the log. Only users that `prepare.sample` keeps are counted.
    """

    events: Literal["events", "positives", "negatives"] = "events"
    """Events that are counted."""
    days: int = Field(ge=1, le=3660)
    """Number of days, of 24 hours each."""


class Index(Section):
    """Items that may be recommended."""

    recent_counts: Mapping[Name, Recent] = {}
    """Counts of recent events by name, as `engagement_15d: {events: positives, days: 15}`. Each is a column of the
    items for `where` and for the filters of requests.
    """
    include_seen: bool = False
    """`true`: items that the user has already seen may be recommended again, as music is heard again and groceries are
    bought again. The report then ranks all items, and everything served includes them unless a request excludes them.
    """
    where: ItemRule | None = None
    """SQL condition over item columns and `recent_counts`, such as `engagement_15d >= 20`; other items are never
    recommended. The report evaluates it in a section of its own, against all relevant items. `null` means all items.
    """
