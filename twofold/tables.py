"""Names and column types of the stored tables, and constants that all packages share.

A log is three tables, `EVENTS`, `ITEMS` and `USERS`; further columns may follow the required ones, and rules and
features of the recipe read them by name. Preparation turns them into `ROWS` (the training and evaluation examples) and
`HISTORY` (every event, sorted, so that a history is a slice).
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

Json = Any
"""A value that `json` reads or writes."""

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
FIRST_S, END_S = 788_918_400, 4_102_444_800
"""1995 and 2100 in seconds. No log is older; ids and days such as 20220425 are smaller in every unit of time."""
LONG_VIEW_MS: Final = 18_000
"""A long view: 18 s of a longer item, all of a shorter one."""

INTERNAL: Final = "_tf_"
"""Prefix of the columns that preparation adds to a log; no column of a log or a recipe may have it."""

SHARD: Final = "shard"
"""Column of the prepared events that holds the number of the shard of the user."""

Side = Literal["item", "user"]
"""Table that a column belongs to."""


def split_side(name: str) -> tuple[Side | None, str]:
    """Splits a column that names its table, such as `user.language`; `None` means that it names none.

    >>> split_side("user.language"), split_side("language"), split_side("a.b")
    (('user', 'language'), (None, 'language'), (None, 'a.b'))
    """
    side, _, column = name.partition(".")
    return (side, column) if side in ("item", "user") and column else (None, name)  # type: ignore[return-value]


Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")

# SQL types, as DuckDB and Spark both spell them. An id is BIGINT or VARCHAR, as the log has it.
ID: Final = "BIGINT or VARCHAR"

# One event: a user saw an item at time `at` (UTC, integer milliseconds: floats lose order).
EVENTS: Final[dict[str, str]] = {"user_id": ID, "item_id": ID, "at": "BIGINT"}
ITEMS: Final[dict[str, str]] = {"item_id": ID}
USERS: Final[dict[str, str]] = {"user_id": ID}

# rows/split=…/shard=k.parquet, sorted by (user_id, at, item_id). `weight` is the weight of a row in the loss,
# `target` the value that a regression predicts; NULL where unknown, as are watch_s and length_s. `positives_before` and
# `negatives_before` count the user's events of that kind with a strictly earlier `at`: they are the lengths of the
# histories in `HISTORY` as of this row. `is_relevant` marks what is to be found in an evaluated window.
ROWS: Final[dict[str, str]] = {
    "user_id": ID,
    "item_id": ID,
    "at": "BIGINT",
    "label": "BOOLEAN",
    "at_is_estimated": "BOOLEAN",
    "weight": "FLOAT",
    "target": "FLOAT",
    "watch_s": "FLOAT",
    "length_s": "FLOAT",
    "positives_before": "INTEGER",
    "negatives_before": "INTEGER",
    "is_relevant": "BOOLEAN",
}

# Prefix of a FLOAT column for each of `prepare.outcomes`; the name of the outcome follows.
OUTCOME: Final = "outcome_"

# events/shard=k.parquet, every kept event of all windows, sorted by (user_id, at, item_id). `is_positive` and
# `is_negative` say which history the event belongs to; both may be false.
HISTORY: Final[dict[str, str]] = {
    "user_id": ID,
    "item_id": ID,
    "at": "BIGINT",
    "is_positive": "BOOLEAN",
    "is_negative": "BOOLEAN",
}

# Columns of recommendations in the file, on the command line, in Python and from the service.
RECOMMENDATIONS: Final[tuple[str, ...]] = ("user_id", "item_id", "score", "rank")


@dataclass(frozen=True)
class ModelPart:
    """A block or layer of a model, as the training output and the report show it."""

    tower: str
    name: str
    shape: str
    parameters: int
