"""Names and column types of the three tables, and of the prepared ones: the words all packages share.

A source turns a public log into `EVENTS`, `ITEMS` and `USERS`; further columns may follow the required ones, with
the names a rule or a feature of the recipe calls them by. Preparation turns them into `ROWS` (what is trained on and
judged) and `HISTORY` (every event, sorted, so that a history is a slice).
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

Json = Any
"""A value that `json` reads or writes."""

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
LONG_VIEW_MS: Final = 18_000
"""A long view: 18 s of a longer item, all of a shorter one."""

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")

# SQL types, as DuckDB and Spark both spell them. An id is BIGINT or VARCHAR, as the log has it.
ID: Final = "BIGINT or VARCHAR"

# One event: a user met an item at a moment (UTC, integer milliseconds: floats lose order).
EVENTS: Final[dict[str, str]] = {"user_id": ID, "item_id": ID, "at": "BIGINT"}
ITEMS: Final[dict[str, str]] = {"item_id": ID}
USERS: Final[dict[str, str]] = {"user_id": ID}

# rows/split=…/shard=k.parquet, sorted by (user_id, at, item_id). `weight` is how much a row counts, `target` what a
# regression learns; NULL where unknown, as are watch_s and length_s. `positives_before` and `negatives_before`
# count the user's events of that kind with a strictly earlier `at`: they cut the histories of `HISTORY` without storing
# lists.
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
}

# Then, of type FLOAT, a column for each of `prepare.outcomes`, whose name follows.
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

# What twofold answers with, everywhere: the file, the CLI, Python and the service.
RECOMMENDATIONS: Final[tuple[str, ...]] = ("user_id", "item_id", "score", "rank")


@dataclass(frozen=True)
class ModelPart:
    """A block or layer of a model, as the summary of a training and the report show it."""

    tower: str
    name: str
    shape: str
    parameters: int
