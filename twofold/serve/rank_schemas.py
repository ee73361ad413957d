"""Request and response schemas of `/v1/rank`: given items, and their order for a user."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from twofold.serve.schemas import MAX_HISTORY, NO_CONTEXT, Context, HistoryItem, Id, Item, Items, Link, Source


class Rank(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Items to put in order for a user or a history. Items that the user has seen are ranked, too."""

    user_id: Id | None = None
    history: Items | None = None
    negatives: Items = []
    item_ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_HISTORY)]
    context: Context = NO_CONTEXT
    explain: bool = False
    describe: bool = False


class LeftOut(Struct, frozen=True):
    """A given item without a place: no item has the id, it was withdrawn, or a rule of the recipe excludes it."""

    item_id: Id
    why: Literal["unknown", "withdrawn", "excluded"]


class Ranked(Struct, frozen=True):
    """Each given item once, best first, in the order of the ranker or, without one, of the retriever's scores; then
    by the rules of the recipe, if it has any. All other fields are as in `Recommendations`.
    """

    user_id: Id | None
    items: list[Item]
    left_out: list[LeftOut]
    source: Source
    is_degraded: bool
    warnings: list[str]
    at: int
    bundle: str
    history: list[HistoryItem] | UnsetType = UNSET
    links: list[Link] | UnsetType = UNSET
