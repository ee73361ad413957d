"""Request and response schemas of the live page: columns and their statistics, the map, what carries an answer."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from twofold.serve.schemas import MAX_EXPLAINED, NO_CONTEXT, Context, Id, Items


class ShownColumns(Struct, frozen=True):
    """Columns of the items that the page shows as heading, second line, picture and link."""

    title: str | None = None
    subtitle: str | None = None
    image: str | None = None
    link: str | None = None


class ValueCount(Struct, frozen=True):
    """A value of a column, and the number of items that have it."""

    value: str | bool
    items: int


class ItemColumn(Struct, frozen=True):
    """Statistics of a column of the items that filters read.

    A column of numbers has `steps`: rising values that divide the items evenly, from the smallest to the largest. A
    column of texts, or of lists of texts, has its most frequent `values`.
    """

    name: str
    kind: Literal["number", "values", "lists", "other"]
    steps: list[float]
    values: list[ValueCount]
    distinct: int


class PageFacts(Struct, frozen=True):
    """Facts with which the page begins: columns, whether there is a map, and the name of the second run."""

    shown: ShownColumns
    columns: list[ItemColumn]
    has_map: bool
    beside: str | None


class Explain(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Items to explain for a user or a history."""

    user_id: Id | None = None
    history: Items | None = None
    negatives: Items = []
    item_ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_EXPLAINED)]
    context: Context = NO_CONTEXT


class Carried(Struct, frozen=True):
    """An item of the history, and by how much the score falls without it; a rise is negative."""

    item_id: Id
    change: float


class Explanation(Struct, frozen=True):
    """The retriever's score of an item, and the items of the history that carry it, largest change first."""

    item_id: Id
    score: float
    carried_by: list[Carried]


class Explanations(Struct, frozen=True):
    """Explanations in the order of the request; `left_out` is the number of history items that were left out in turn,
    `at` the request time.
    """

    items: list[Explanation]
    left_out: int
    at: int


class ItemMap(Struct, frozen=True):
    """The map of the items: ids, positions, the number of each item's cluster, and the names of the clusters."""

    item_ids: list[str]
    x: list[float]
    y: list[float]
    cluster: list[int]
    clusters: list[str]
