"""Request and response schemas of the HTTP API: decoded from JSON, encoded to JSON, and listed in OpenAPI.

An invalid body gives one message: the field, its value, and the expected value. Responses use the column names of
`twofold/tables.py`.
"""

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from twofold.serve.event_store import Kind
from twofold.topk import MAX_K

MAX_BODY_BYTES: Final = 2**20
MAX_HISTORY: Final = 1_000
MAX_USERS: Final = 1_000
MAX_EVENTS: Final = 1_000
MAX_BATCH: Final = 20_000  # items of all lists of a batch: half a second of one core
MAX_BATCH_EXPLAINED: Final = 5_000  # with reasons or attributes
MAX_UPSERTS: Final = 200  # with vectors of 256 numbers they fill a body
MAX_DIM: Final = 4_096
MAX_EXPLAINED: Final = 100  # items of one request for what carries their scores

Text = Annotated[str, Meta(min_length=1, max_length=256)]
Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Id = Text | Number
Timestamp = Annotated[int, Meta(ge=0, le=253_402_300_799_999, description="UTC milliseconds, up to the year 9999.")]
K = Annotated[int, Meta(ge=1, le=MAX_K, description="Maximum number of items.")]
Filter = Annotated[
    str, Meta(max_length=2_000, description="SQL over item attributes, such as language = 'hi' AND length_s < 60")
]
Items = Annotated[list[Id], Meta(max_length=MAX_HISTORY)]
Users = Annotated[list[Id], Meta(min_length=1, max_length=MAX_USERS)]
Attributes = Annotated[Raw, Meta(description="Columns of the items table.", extra_json_schema={"type": "object"})]
Source = Literal["model", "popularity"]


# --- requests ---------------------------------------------------------------------------------------------------------


class Context(Struct, forbid_unknown_fields=True, frozen=True):
    """The context of a request. `at` is the request time: only events strictly before it are read. Default: now."""

    at: Timestamp | None = None


NO_CONTEXT: Final = Context()


class RecommendOptions(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Options of every request for recommendations. Without `exclude_seen`, the recipe's `index.include_seen` decides
    whether items that the user has seen are excluded.
    """

    k: K = 20
    filter: Filter | None = None
    exclude: Items = []
    exclude_seen: bool | None = None
    context: Context = NO_CONTEXT
    explain: bool = False
    describe: bool = False


class Recommend(RecommendOptions, frozen=True, kw_only=True):
    """The user of one list: an id, or a history of liked items, oldest first, and of disliked ones (`negatives`)."""

    user_id: Id | None = None
    history: Items | None = None
    negatives: Items = []


class RecommendBatch(RecommendOptions, frozen=True, kw_only=True):
    """A request with the same options for many users."""

    user_ids: Users


class Similar(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A request for the items most similar to one item."""

    item_id: Id
    k: K = 20
    filter: Filter | None = None
    describe: bool = False


class Event(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A user event: the item was liked (positive), disliked (negative) or only seen (met). `at` defaults to now."""

    user_id: Id
    item_id: Id
    at: Timestamp | None = None
    kind: Kind = "positive"


class Events(Struct, forbid_unknown_fields=True, frozen=True):
    """Events to store, all or none. Events with `at` count once, even if they are posted again; so do all events of
    requests with the same `idempotency_key` within a day.
    """

    events: Annotated[list[Event], Meta(min_length=1, max_length=MAX_EVENTS)]
    idempotency_key: Text | None = None


class EventRemoval(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A posted event to take back. Without `at`, it is the user's newest event with the item."""

    user_id: Id
    item_id: Id
    at: Timestamp | None = None


class Swap(Struct, forbid_unknown_fields=True, frozen=True):
    """The run to serve from now on: the name of a folder beside the current run. Default: the current run, reopened."""

    run: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class ItemUpsert(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """An item to add or update. A known item keeps the values that are not given. A new item needs a vector from the
    item tower of the current bundle; its attributes that are not given are null.
    """

    item_id: Id
    vector: Annotated[list[float], Meta(min_length=1, max_length=MAX_DIM)] | None = None
    attributes: dict[str, str | int | float | bool | None] = {}


class ItemChanges(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Items to upsert; items to remove from all lists until they are restored, even if they are upserted; and items
    to restore.
    """

    upsert: Annotated[list[ItemUpsert], Meta(max_length=MAX_UPSERTS)] = []
    remove: Items = []
    restore: Items = []


# --- responses --------------------------------------------------------------------------------------------------------


class Reason(Struct, frozen=True, gc=False):
    """An item of the history similar to the recommended item; `similarity` is the cosine of their vectors, `href` the
    path of the item's facts.
    """

    item_id: Id
    similarity: float
    href: str


class Link(Struct, frozen=True):
    """A further request about a reply: its relation, path, method and body. `explain` says what carries the scores."""

    rel: Literal["explain"]
    href: str
    method: Literal["POST"]
    body: dict[str, Any]


class Retrieved(Struct, frozen=True, gc=False):
    """The retriever's score and rank (from 1) of an item, before the ranker reordered the list.

    Rank 0 means that the item was found for a quota or a pin alone, or by another source of candidates. With several
    sources, `sources` names those whose list holds the item.
    """

    score: float
    rank: int
    sources: list[str] | UnsetType = UNSET


class Moved(Struct, frozen=True, gc=False):
    """The place of an item before the rules of the recipe, and the rules that moved it: none where only others moved.

    Place 0 means that the item was found for a quota or a pin alone.
    """

    place: int
    rules: list[str]


class Item(Struct, frozen=True, gc=False):
    """A recommended item. Scores (the ranker's, if there is one) can be compared within one list only; they are those
    before the rules of the recipe, which change the order. `moved` is given for explained items with another place.
    """

    item_id: Id
    score: float
    rank: int
    reasons: list[Reason] | UnsetType = UNSET
    attributes: Attributes | UnsetType = UNSET
    retrieved: Retrieved | UnsetType = UNSET
    moved: Moved | UnsetType = UNSET


class HistoryItem(Struct, frozen=True):
    """An item of the history that the list is based on."""

    item_id: Id
    kind: Kind
    attributes: Attributes | UnsetType = UNSET


class Recommendations(Struct, frozen=True):
    """A list, best first. `source` is what ordered the list; `warnings` name what could not be used, and why.

    A list has fewer than k items if no others are eligible. `at` is the request time, `bundle` the bundle's digest.
    `is_exact` is false if the search may have missed an item, as that of a large catalogue or of Qdrant.
    """

    user_id: Id | None
    items: list[Item]
    source: Source
    is_degraded: bool
    warnings: list[str]
    unknown_items: int
    at: int
    bundle: str
    is_exact: bool
    history: list[HistoryItem] | UnsetType = UNSET
    links: list[Link] | UnsetType = UNSET


class RecommendationsBatch(Struct, frozen=True):
    """One list per user, in the order of the request."""

    answers: list[Recommendations]


class SimilarItems(Struct, frozen=True):
    """The items most similar to `item_id`, best first. `score` is the cosine of the vectors, or the negative squared
    distance where that is the score of the model.
    """

    item_id: Id
    items: list[Item]
    bundle: str
    is_exact: bool


class EventsAccepted(Struct, frozen=True):
    """Number of events that are stored durably; `unknown_items` of them are of items outside the catalogue.

    `at` is the time of the events that were posted without one.
    """

    accepted: int
    unknown_items: int
    at: int


class EventsRemoved(Struct, frozen=True):
    """Number of events that were stored and are no more."""

    removed: int


class StoredEvent(Struct, frozen=True):
    """An event of a user: the item, the time (UTC milliseconds), and the outcome."""

    item_id: Id
    at: int
    kind: Kind


class UserData(Struct, frozen=True):
    """All events of a user that the service knows: those of the bundle's log, and those posted to it.

    `is_forgotten` means that the user was deleted: the events of the log are ignored.
    """

    user_id: Id
    logged: list[StoredEvent]
    posted: list[StoredEvent]
    is_forgotten: bool


class ItemFacts(Struct, frozen=True):
    """Attributes and event counts of an item. `is_cold`: the training window has no event of the item."""

    item_id: Id
    attributes: Attributes
    is_cold: bool
    events: int
    positives: int


class Health(Struct, frozen=True):
    """The run and bundle in use, with their size."""

    run: str
    bundle: str
    items: int
    users: int


class Swapped(Struct, frozen=True):
    """The bundle in use from now on; `was_swapped` is false if it was in use before. Other workers follow soon."""

    run: str
    bundle: str
    was_swapped: bool


class ItemsChanged(Struct, frozen=True):
    """Numbers of items upserted, of items removed that could be recommended before, of items restored, and of items
    available now.

    Other workers of this service follow within a second. Upserts last until the service stops or another bundle is
    swapped in. Removals last until the items are restored, and hold for all services that share the store of events.
    """

    upserted: int
    removed: int
    restored: int
    items: int


class SomeUsers(Struct, frozen=True):
    """Some users of the log, evenly spaced."""

    user_ids: list[Id]


class Problem(Struct, frozen=True):
    """An error (RFC 9457): one sentence, the field, and the value of the field.

    `instance` is the id of the request: the trace id of its header `traceparent`, else a new one.
    """

    detail: str
    field: str | UnsetType = UNSET
    value: Any = UNSET
    type: str = "about:blank"
    title: str = ""
    status: int = 0
    instance: str = ""
