"""Setup of an evaluation, with digests of what is evaluated: only runs with equal ones may be compared."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from twofold.dataset.dataset import Dataset
from twofold.evaluate.window import EvaluationWindow, Protocol
from twofold.ragged import Ragged


@dataclass(frozen=True)
class EvaluationSetup:
    """The setup of an evaluation. Two runs may be compared only if all fields but `track` are equal."""

    window: str
    dates: str
    """Days of the window in words, as in `Prepare.dates`."""
    track: Protocol
    tie_rule: str
    num_items: int
    users: int
    relevant_digest: str
    """SHA-256 of the relevant pairs of user and item, by their ids."""
    includes_seen: bool = False
    """Whether items are ranked that the user has already seen."""
    ranked_digest: str = ""
    """SHA-256 of the items that are ranked for each user, by ids: of the catalogue, and of what each user has seen.
    Empty, as `impressions_digest`, in reports of stage versions before 20.
    """
    impressions_digest: str = ""
    """SHA-256 of each user's impressions and their labels, by ids."""


@dataclass(frozen=True)
class WindowDigests:
    """SHA-256 digests of a window by ids, independent of how a run numbers its rows; empty texts mean none."""

    relevant: str = ""
    """Digest of the relevant pairs of user and item."""
    ranked: str = ""
    """Digest of the users and of the items that are ranked for each: of the catalogue, and of what each has seen."""
    impressions: str = ""
    """Digest of each user's impressions, and of which of them are relevant."""


def digests_of(dataset: Dataset, window: EvaluationWindow) -> WindowDigests:
    """Returns the digests of a window of a data set."""
    users, items = dataset.users.ids.take(pa.array(window.user_rows)), dataset.items.ids
    user_places, item_places = _places(users), _places(items)

    def keys(lists: Ragged) -> Int64[np.ndarray, "pairs"]:
        return user_places[lists.lines] * window.num_items + item_places[lists.values]

    shown = keys(window.candidates)
    order = np.argsort(shown)
    catalogue = _sorted_ids(users), _sorted_ids(items)
    return WindowDigests(
        relevant=digest_of_relevant(dataset, window),
        ranked=_digest(*catalogue, np.sort(keys(window.seen)).tobytes()),
        impressions=_digest(*catalogue, shown[order].tobytes(), window.labels[order].tobytes()),
    )


def digest_of_relevant(dataset: Dataset, window: EvaluationWindow) -> str:
    """Returns a SHA-256 of the relevant pairs by their ids, independent of how a run numbers its rows."""
    pairs = pa.table(
        {
            "user_id": dataset.users.ids.take(pa.array(window.user_rows[window.relevant.lines])).cast(pa.string()),
            "item_id": dataset.items.ids.take(pa.array(window.relevant.values)).cast(pa.string()),
        }
    ).sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    digest = hashlib.sha256()
    for column in pairs.columns:
        digest.update("\n".join(column.to_pylist()).encode())
    return digest.hexdigest()


def _places(ids: pa.Array) -> Int64[np.ndarray, "_"]:
    """Returns the place of each id among all in their order."""
    places = np.empty(len(ids), np.int64)
    places[np.asarray(pc.array_sort_indices(ids))] = np.arange(len(ids))
    return places


def _sorted_ids(ids: pa.Array) -> bytes:
    """Returns the type of ids and the ids in their order; NUL is in none of them."""
    ordered = ids.take(pc.array_sort_indices(ids))
    return "\0".join([str(ids.type), *ordered.cast(pa.string()).to_pylist()]).encode()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
