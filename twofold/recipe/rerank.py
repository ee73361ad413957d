"""Rerank section of a recipe: rules that change the order of each list, in the report and in the service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from twofold.recipe.section import ItemRule, Section
from twofold.sql.rules import check_item_condition

AGE: Final = "age_days"
"""Column that conditions may read beside those of the items: days since `uploaded_at`, as of the first request of the
window in the report, and as of the end of the log in a served bundle. A column of the items with this name comes first.
"""

ItemId = Annotated[str, Field(min_length=1, max_length=256)] | Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Limit(Section):
    """Maximum number of items with one value of a column, in every window of consecutive places. Items without a value
    are not limited. If no other candidate is left, the limit is exceeded rather than the list shortened.
    """

    kind: Literal["limit"]
    column: str
    """Column of the items, such as the creator. Of a column of lists, such as tags, every value counts."""
    at_most: int = Field(ge=1, le=999)
    """Maximum number of items with one value in the window."""
    window: int = Field(ge=2, le=1000)
    """Number of consecutive places."""

    @property
    def name(self) -> str:
        """Name of the rule in the report and in explained replies."""
        return f"at most {self.at_most} of one {self.column} in {self.window}"

    @model_validator(mode="after")
    def _limits_something(self) -> Limit:
        if self.at_most >= self.window:
            raise ValueError(
                f"at_most is {self.at_most} and window is {self.window}: no window holds more than that, so nothing is "
                f"limited. Write at_most below window"
            )
        return self


class Boost(Section):
    """Addition to the score of all items for which a condition is true, such as new items."""

    kind: Literal["boost"]
    when: ItemRule
    """SQL condition over the columns of the items, `recent_counts` and `age_days`."""
    add: float = Field(ge=-10, le=10)
    """Addition, where 1 is the distance from the score of the last candidate to that of the first; below 0 demotes."""

    @property
    def name(self) -> str:
        """Name of the rule in the report and in explained replies."""
        return f"boost {self.add:g} where {self.when}"

    @model_validator(mode="after")
    def _adds_something(self) -> Boost:
        if self.add == 0:
            raise ValueError("add is 0, which changes nothing. Write a share of the scores' range, such as 0.1")
        return self


class Quota(Section):
    """Minimum number of items for which a condition is true, among the first places. The best of them are found by a
    search of their own, so a list is short of its quota only if fewer eligible items satisfy the condition.
    """

    kind: Literal["quota"]
    when: ItemRule
    """SQL condition over the columns of the items, `recent_counts` and `age_days`."""
    at_least: int = Field(ge=1, le=100)
    """Minimum number of items."""
    first: int = Field(ge=1, le=1000)
    """Number of first places that the quota is about."""

    @property
    def name(self) -> str:
        """Name of the rule in the report and in explained replies."""
        return f"at least {self.at_least} of the first {self.first} where {self.when}"

    @model_validator(mode="after")
    def _fits(self) -> Quota:
        if self.at_least > self.first:
            raise ValueError(
                f"at_least is {self.at_least} and first is {self.first}: so many items do not fit into these places. "
                f"Write at_least no larger than first"
            )
        return self


class Diversity(Section):
    """Maximal marginal relevance: each place goes to the item with the highest (1 - trade_off) · score - trade_off ·
    (largest cosine with an item placed before), of the item vectors (Carbonell & Goldstein, SIGIR 1998). The score is 0
    for the last candidate and 1 for the first, before boosts.
    """

    kind: Literal["mmr"]
    trade_off: float = Field(gt=0, lt=1)
    """Weight of the similarity; the paper's λ is 1 - trade_off."""

    @property
    def name(self) -> str:
        """Name of the rule in the report and in explained replies."""
        return f"mmr {self.trade_off:g}"


class Pin(Section):
    """Item at a fixed place of every list, where the user may be recommended the item: it satisfies the filters, and
    the user has not seen it. Otherwise the place is filled as any other.
    """

    kind: Literal["pin"]
    item: ItemId | None = None
    """Id of the item. An id that is not in the catalogue is an error."""
    when: ItemRule | None = None
    """Condition instead of an id: the best item for which it is true and that no pin names."""
    place: int = Field(ge=1, le=100)
    """Place in the list, from 1."""

    @property
    def name(self) -> str:
        """Name of the rule in the report and in explained replies."""
        return f"pin {self.item if self.item is not None else self.when} at {self.place}"

    @property
    def condition(self) -> str:
        """SQL condition that is true for the item."""
        return self.when if self.when is not None else _ids_condition([self.item if self.item is not None else ""])

    @model_validator(mode="after")
    def _names_an_item(self) -> Pin:
        if (self.item is None) == (self.when is None):
            raise ValueError("a pin has either item, an id, or when, a condition. Write exactly one of them")
        check_item_condition(self.condition)
        return self


class Block(Section):
    """Items that are never recommended, by id or by a condition, beside those that `index.where` leaves out."""

    kind: Literal["block"]
    items: tuple[ItemId, ...] = Field(default=(), max_length=50)
    """Ids of the items. Ids that are not in the catalogue are ignored: they may come with the next log."""
    when: ItemRule | None = None
    """Condition instead of ids."""

    @property
    def name(self) -> str:
        """Name of the rule in the report and in explained replies."""
        return f"block {self.when if self.when is not None else ', '.join(map(str, self.items))}"

    @property
    def condition(self) -> str:
        """SQL condition that is true for the items."""
        return self.when if self.when is not None else _ids_condition(self.items)

    @model_validator(mode="after")
    def _names_items(self) -> Block:
        if (not self.items) == (self.when is None):
            raise ValueError("a block has either items, a list of ids, or when, a condition. Write exactly one of them")
        check_item_condition(self.condition)
        return self


class Decay(Section):
    """Reduction of the score of items that the user has seen in any event, which halves with time. Lists must hold such
    items: `index.include_seen: true`.
    """

    kind: Literal["decay"]
    subtract: float = Field(gt=0, le=10)
    """Reduction for an item that was seen just now, where 1 is the distance from the score of the last candidate to
    that of the first.
    """
    half_life_hours: float = Field(gt=0, le=87_600)
    """Hours after which half of the reduction is left."""

    @property
    def name(self) -> str:
        """Name of the rule in the report and in explained replies."""
        return f"decay {self.subtract:g}, half in {self.half_life_hours:g} h"


RerankRule = Annotated[Limit | Boost | Quota | Diversity | Pin | Block | Decay, Field(discriminator="kind")]


class Rerank(Section):
    """Rules after ranking. The report has the price of each, and the service returns the lists that the report
    evaluates. Pins come before quotas, quotas before limits, and these before boosts, decay and diversity; ties keep
    the order of the ranking.
    """

    num_candidates: int = Field(default=200, ge=2, le=1000)
    """Number of best items of the ranking that are reordered; all others follow in their order. More of them give
    limits and diversity more to choose from; 200 are several pages of a feed.
    """
    rules: tuple[RerankRule, ...] = Field(min_length=1, max_length=30)
    """Rules, in any order."""

    @property
    def conditions(self) -> tuple[tuple[int, str], ...]:
        """Condition of each rule that has one, with the number of the rule."""
        found = (
            (n, getattr(rule, "condition", None) or getattr(rule, "when", None)) for n, rule in enumerate(self.rules)
        )
        return tuple((number, text) for number, text in found if text is not None)

    @model_validator(mode="after")
    def _rules_fit_together(self) -> Rerank:
        for name, count in Counter(rule.name for rule in self.rules).items():
            if count > 1:
                raise ValueError(f"rules: `{name}` is there {count} times. Delete all but one")
        if sum(isinstance(rule, Diversity) for rule in self.rules) > 1:
            raise ValueError("rules: there are two of kind mmr, and a list has one trade-off. Delete one of them")
        for number, rule in enumerate(self.rules):
            reach = {"limit": "window", "quota": "first", "pin": "place"}.get(rule.kind)
            if reach is not None and getattr(rule, reach) > self.num_candidates:
                raise ValueError(
                    f"rules.{number}: {reach} is {getattr(rule, reach)}, and num_candidates is {self.num_candidates}: "
                    f"only so many places are reordered. Raise num_candidates, or lower {reach}"
                )
        if sum(isinstance(rule, Decay) for rule in self.rules) > 1:
            raise ValueError("rules: there are two of kind decay, and an item has one reduction. Delete one of them")
        _check_places(self.rules)
        return self

    @property
    def reads_meetings(self) -> bool:
        """Returns whether a rule reads when the user saw an item."""
        return any(isinstance(rule, Decay) for rule in self.rules)


def _check_places(rules: Sequence[RerankRule]) -> None:
    """Raises ValueError if pins and quotas contradict each other."""
    pins, quotas = [r for r in rules if isinstance(r, Pin)], [r for r in rules if isinstance(r, Quota)]
    for place, count in Counter(pin.place for pin in pins).items():
        if count > 1:
            raise ValueError(f"rules: {count} items are pinned at place {place}. Give each a place of its own")
    blocked = {str(item) for rule in rules if isinstance(rule, Block) for item in rule.items}
    for pin in pins:
        if str(pin.item) in blocked:
            raise ValueError(f"rules: item {pin.item} is pinned and blocked. Delete one of the two")
    for first in sorted({quota.first for quota in quotas}):
        needed = sum(quota.at_least for quota in quotas if quota.first <= first)
        pinned = sum(pin.place <= first for pin in pins)
        if needed + pinned > first:
            pins_text = f" and {pinned} of pins" if pinned else ""
            raise ValueError(
                f"rules: the quotas of the first {first} places need {needed} of them{pins_text}, and there are "
                f"{first}. Lower at_least: an item counts as filling one quota, even if it satisfies two conditions"
            )


def _ids_condition(items: Sequence[str | int]) -> str:
    """Returns the SQL condition that is true for these ids, written as text, so that large numbers stay exact.

    >>> _ids_condition([7, "it's"])
    "item_id IN ('7', 'it''s')"
    """
    texts = ("'" + str(item).replace("'", "''") + "'" for item in items)
    return f"item_id IN ({', '.join(texts)})"


def without_blocked(where: str | None, rules: Sequence[RerankRule]) -> str | None:
    """Returns the condition `where` without the items that a rule blocks; `None` means all items."""
    blocked = [f"NOT (({rule.condition}) IS TRUE)" for rule in rules if isinstance(rule, Block)]
    parts = blocked if where is None or not blocked else [f"({where})", *blocked]
    return " AND ".join(parts) if parts else where
