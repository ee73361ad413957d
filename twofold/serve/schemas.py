"""What goes over the wire: the types of questions and answers, read and written as bytes, and shown in the API's page.

A body that does not fit is one message: which field, what it holds, what would be right. Outputs use the words of
`twofold/tables.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from twofold.serve.event_store import Kind

MOST_BODY: Final = 2**20  # bytes
MOST_HISTORY: Final = 1_000
MOST_USERS: Final = 1_000
MOST_EVENTS: Final = 1_000
MOST_K: Final = 1_000
MOST_PUT: Final = 200  # vectors of 256 numbers fill a body
MOST_DIM: Final = 4_096
RETRY_AFTER_S: Final = "1"

Text = Annotated[str, Meta(min_length=1, max_length=256)]
Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Id = Text | Number
Moment = Annotated[int, Meta(ge=0, le=253_402_300_799_999, description="UTC, in milliseconds, up to the year 9999.")]
K = Annotated[int, Meta(ge=1, le=MOST_K, description="How many items at most.")]
Filter = Annotated[
    str, Meta(max_length=2_000, description="SQL over item attributes: language = 'hi' AND length_s < 60")
]
Items = Annotated[list[Id], Meta(max_length=MOST_HISTORY)]
Users = Annotated[list[Id], Meta(min_length=1, max_length=MOST_USERS)]
Question = TypeVar("Question")
Source = Literal["model", "popularity"]


# --- questions --------------------------------------------------------------------------------------------------------


class Context(Struct, forbid_unknown_fields=True, frozen=True):
    """The circumstances: `at` is the moment asked for; only events strictly before it are known. Default: now."""

    at: Moment | None = None


NO_CONTEXT: Final = Context()


class RecommendOptions(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What every question for recommendations may say."""

    k: K = 20
    filter: Filter | None = None
    exclude: Items = []
    exclude_seen: bool = True
    context: Context = NO_CONTEXT
    explain: bool = False
    describe: bool = False


class Recommend(RecommendOptions, frozen=True, kw_only=True):
    """For whom: a user by id, or someone unnamed by the items they liked, oldest first (and those they did not)."""

    user_id: Id | None = None
    history: Items | None = None
    negatives: Items = []


class RecommendBatch(RecommendOptions, frozen=True, kw_only=True):
    """The same question for many users."""

    user_ids: Users


class Similar(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The items most like one item."""

    item_id: Id
    k: K = 20
    filter: Filter | None = None
    describe: bool = False


class Event(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a user just met: liked it (positive), did not (negative), or neither (met). Default of `at`: now."""

    user_id: Id
    item_id: Id
    at: Moment | None = None
    kind: Kind = "positive"


class Events(Struct, forbid_unknown_fields=True, frozen=True):
    """Kept all or none; posted again, they count once, if their `at` is given."""

    events: Annotated[list[Event], Meta(min_length=1, max_length=MOST_EVENTS)]


class Swap(Struct, forbid_unknown_fields=True, frozen=True):
    """The run to answer from, by the name of its folder beside today's. Default: today's folder, opened anew."""

    run: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=128)] | None = None


class ItemUpsert(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """An item to be answered from now on. Of an item that is known, what is not given stays as it is; a new one needs a
    vector, made by the item tower of the bundle that answers, and attributes that are not given are null.
    """

    item_id: Id
    vector: Annotated[list[float], Meta(min_length=1, max_length=MOST_DIM)] | None = None
    attributes: dict[str, str | int | float | bool | None] = {}


class Changes(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """All of it or nothing: items to put, then items that are not to be answered until they are put again."""

    put: Annotated[list[ItemUpsert], Meta(max_length=MOST_PUT)] = []
    withdraw: Items = []


# --- answers ----------------------------------------------------------------------------------------------------------


class Reason(Struct, frozen=True, gc=False):
    """An item of the history that is like the answer; `similarity` is the cosine of their vectors."""

    item_id: Id
    similarity: float


class Retrieved(Struct, frozen=True, gc=False):
    """What the retriever said of an answer that the ranker then put in its place: its score and its rank, from 1."""

    score: float
    rank: int


class Item(Struct, frozen=True, gc=False):
    """One answer. The score, which is the ranker's where there is one, compares answers of one list only."""

    item_id: Id
    score: float
    rank: int
    because: list[Reason] | UnsetType = UNSET
    attributes: dict[str, Any] | UnsetType = UNSET
    retrieved: Retrieved | UnsetType = UNSET


class HistoryItem(Struct, frozen=True):
    """One item of a history that was taken into account."""

    item_id: Id
    kind: Kind
    attributes: dict[str, Any] | UnsetType = UNSET


class Recommendations(Struct, frozen=True):
    """A list, best first. `source` says what ordered it; `remarks` say what is missing from it, and why.

    Fewer than k items: no others are eligible. `at` is the moment it was made for, `bundle` what answered.
    """

    user_id: Id | None
    items: list[Item]
    source: Source
    is_degraded: bool
    remarks: list[str]
    unknown_items: int
    at: int
    bundle: str
    history: list[HistoryItem] | UnsetType = UNSET


class RecommendationsBatch(Struct, frozen=True):
    """One list a user, in the order asked."""

    answers: list[Recommendations]


class SimilarItems(Struct, frozen=True):
    """The items most like `item_id`, most alike first."""

    item_id: Id
    items: list[Item]
    bundle: str


class EventsAccepted(Struct, frozen=True):
    """How many events are safe now; `unknown_items` of them are of items that the catalogue does not hold."""

    kept: int
    unknown_items: int


class ItemFacts(Struct, frozen=True):
    """What is known of an item. `is_cold`: no event of the training window taught the model anything of it."""

    item_id: Id
    attributes: dict[str, Any]
    is_cold: bool
    events: int
    positives: int


class Health(Struct, frozen=True):
    """The service answers, and from this."""

    run: str
    bundle: str
    items: int
    users: int


class Swapped(Struct, frozen=True):
    """What answers from now on; `was_swapped` is false if it did before. Other workers follow within seconds."""

    run: str
    bundle: str
    was_swapped: bool


class Changed(Struct, frozen=True):
    """How many were put, how many of those withdrawn had been answered before, and how many items may be answered now.

    Other workers of this service follow within a second; one of another machine must be told itself. Until the service
    stops, or another bundle is swapped in: that one leaves out what was withdrawn, and knows nothing of what was put.
    """

    put: int
    withdrawn: int
    items: int


class SomeUsers(Struct, frozen=True):
    """Some users of the log, evenly picked."""

    user_ids: list[Id]


class Problem(Struct, frozen=True):
    """What is wrong with a request: one sentence, the field, and the value it holds."""

    detail: str
    field: str | UnsetType = UNSET
    value: Any = UNSET


QUESTIONS: Final = (Recommend, RecommendBatch, Similar, Events, Swap, Changes)
ANSWERS: Final = (
    Recommendations,
    RecommendationsBatch,
    SimilarItems,
    EventsAccepted,
    ItemFacts,
    Health,
    Swapped,
    Changed,
    SomeUsers,
    Problem,
)


def components() -> dict[str, Any]:
    """JSON schemas of all of them, for the API's page."""
    _, found = msgspec.json.schema_components((*QUESTIONS, *ANSWERS), ref_template="#/components/schemas/{name}")
    return found


UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


# --- bytes → questions ------------------------------------------------------------------------------------------------


class WireError(Exception):
    """A request that cannot be answered as it stands: the problem to reply with, its status and headers."""

    def __init__(self, problem: Problem, *, status: int = 422, headers: Mapping[str, str] | None = None) -> None:
        """`status` is 4xx, 500, or 503 with the header Retry-After."""
        super().__init__(problem.detail)
        self.problem = problem
        self.status = status
        self.headers = {"content-type": "application/json", **(headers or {})}


def unavailable(why: str) -> WireError:
    """Nothing is wrong with the request."""
    detail = f"The service is at its limit ({why}): try again in {RETRY_AFTER_S} s."
    return WireError(Problem(detail), status=503, headers={"retry-after": RETRY_AFTER_S})


def internal_error() -> WireError:
    """Our own mistake: what it was is not for clients."""
    return WireError(Problem("The service failed; its log says how."), status=500)


def invalid_field(detail: str, *, field: str, value: Any, status: int = 422) -> WireError:
    """A field that holds what cannot be."""
    return WireError(Problem(detail, field, value if len(repr(value)) <= 200 else UNSET), status=status)


def read_body(decoder: msgspec.json.Decoder[Question], body: bytes) -> Question:
    """The question in a body; WireError says what is wrong with it, and what the value is there."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        field = path.rstrip("`").removeprefix("$").removeprefix(".")
        value = _value_at(body, field)
        shown = "" if value is UNSET or isinstance(value, list | dict) else f" is {str(value)[:80]!r}"
        detail = f"{field or 'The body'}{shown}: {text[0].lower()}{text[1:]}. What is right is listed in /docs."
        raise invalid_field(detail, field=field, value=value) from None
    except UNREADABLE as error:
        raise WireError(Problem(f"The body is not JSON: {error}. Send a JSON object."), status=400) from None


def _value_at(body: bytes, field: str) -> Any:
    """What stands at a path such as `events[3].at`; UNSET where the path is not that plain."""
    try:
        value: Any = msgspec.json.decode(body)
    except UNREADABLE:  # further on than the first mistake: a number too large, brackets too deep, no UTF-8
        return UNSET
    for part in field.replace("[", ".[").split(".") if field else ():
        name = part.strip("[]")
        match value:
            case list() if name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            case Mapping() if name in value:
                value = value[name]
            case _:
                return UNSET
    return value
