"""The evaluated window: its users, what each had seen, and what each was to find."""

import hashlib
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.dataset.dataset import Dataset
from twofold.errors import DataError, RequestError
from twofold.evaluate.scores import ScoreBlock, TwoStages
from twofold.ragged import Ragged, chunks
from twofold.recipe.features import reads_time
from twofold.tables import SPLITS, Split
from twofold.topk import Products

Protocol = Literal["time_free", "query_time"]


CHUNK_ELEMENTS: Final = 2**22  # scores held at once: about 100 MiB with their sort keys; larger blocks were slower


@dataclass(frozen=True)
class EvaluationWindow:
    """The users of one evaluated window, asked once each, and what they did then.

    Lists hold distinct item rows. An item met before the window is in `seen`, and then never in `relevant`: the
    catalogue ranking excludes it. `candidates` are the user's own impressions in the window, seen before or not.
    """

    name: str
    user_rows: Int64[np.ndarray, "users"]
    query_at: Int64[np.ndarray, "users"]
    """Moment of the request, UTC ms."""
    seen: Ragged
    relevant: Ragged
    candidates: Ragged
    labels: Bool[np.ndarray, "length"]
    """Aligned with `candidates.values`: the pair has a positive event in the window."""
    num_items: int
    is_cold: Bool[np.ndarray, "items"]
    """The item has no event in training."""
    track: Protocol

    def __post_init__(self) -> None:
        users = len(self.user_rows)
        if users == 0:
            raise DataError(
                f"window {self.name!r} holds no event, so nobody can be judged in it. Check its dates in prepare.split "
                "against the days that the log covers."
            )
        for name in ("seen", "relevant", "candidates"):
            lists: Ragged = getattr(self, name)
            assert len(lists.offsets) == users + 1, f"{name} has {len(lists.offsets) - 1} lists for {users} users"
            assert lists.offsets[0] == 0, f"{name}: offsets begin at 0"
            assert lists.offsets[-1] == len(lists.values), f"{name}: offsets end at the last value"
        assert len(self.labels) == len(self.candidates.values), "a label for every candidate"
        assert len(self.is_cold) == self.num_items, "is_cold has an entry for every item"


@dataclass(frozen=True)
class PerUser:
    """Numbers of one model under one protocol: name → value of each judged user, NaN where the user is skipped."""

    values: dict[str, Float64[np.ndarray, "users"]]
    judged: int
    skipped: dict[str, int]
    """Why users were skipped → how many."""
    pooled: dict[str, float] = field(default_factory=dict)
    """Numbers over all pairs at once, which no user has alone."""
    ranks: Int64[np.ndarray, "pairs"] | None = None
    """Catalogue: the rank at which each pair of `window.relevant` was found, 0 where it was not."""

    def mean(self, name: str) -> float:
        """The mean over the users that have a value; NaN if nobody has."""
        known = self.values[name][~np.isnan(self.values[name])]
        return float(known.mean()) if len(known) else float("nan")


def evaluation_window(dataset: Dataset, split: Split) -> EvaluationWindow:
    """Every user of the window, asked once, at their first impression in it.

    What is *seen* are all events strictly before that moment, of every kind and window, so the ranking is of items
    that are new to the user; positives of the window on items already seen do not count as relevant.
    """
    rows, num_items = dataset.examples[split], len(dataset.items)
    users, first = np.unique(rows.user_rows, return_index=True)
    query_at = np.asarray(rows.at)[first]
    line = np.searchsorted(users, rows.user_rows)
    counts = dataset.events.before(users, query_at)
    seen_items, _ = dataset.events.slices(users, counts)
    seen = np.unique(np.repeat(np.arange(len(users)), counts) * num_items + seen_items)
    candidates, place = np.unique(line * num_items + rows.item_rows, return_inverse=True)
    labels = np.zeros(len(candidates), bool)
    labels[place[rows.label]] = True
    relevant = np.setdiff1d(candidates[labels], seen, assume_unique=True)
    return EvaluationWindow(
        name=split,
        user_rows=users,
        query_at=query_at,
        seen=_ragged(seen, len(users), num_items),
        relevant=_ragged(relevant, len(users), num_items),
        candidates=_ragged(candidates, len(users), num_items),
        labels=labels,
        num_items=num_items,
        is_cold=np.arange(num_items) >= dataset.items.num_known,
        track="query_time" if any(map(reads_time, dataset.features.features.user)) else "time_free",
    )


def digest_of_relevant(dataset: Dataset, window: EvaluationWindow) -> str:
    """SHA-256 of the pairs to be found, by ids: equal for runs that ask the same, however they number their rows."""
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


def split_of(window: EvaluationWindow) -> Split:
    return next(split for split in SPLITS if split == window.name)


def _ragged(keys: Int64[np.ndarray, "pairs"], users: int, num_items: int) -> Ragged:
    """Sorted keys user · N + item → one list a user."""
    return Ragged(keys % num_items, np.searchsorted(keys // num_items, np.arange(users + 1)).astype(np.int64))


def scores_of_lists(window: EvaluationWindow, score_block: ScoreBlock, lists: Ragged) -> Float32[np.ndarray, "length"]:
    """The score of every item of each user's list."""
    if isinstance(score_block, Products | TwoStages):
        return score_block.pairs(lists.lines, lists.values)
    scores = []
    for users in window_chunks(window):
        part = lists.part(users)
        scores.append(checked_scores(window, score_block, users)[part.lines, part.values])
    return np.concatenate(scores)


def window_chunks(window: EvaluationWindow) -> list[slice]:
    return chunks(len(window.user_rows), max(1, CHUNK_ELEMENTS // window.num_items))


def checked_scores(
    window: EvaluationWindow, score_block: ScoreBlock, users: slice
) -> Float32[np.ndarray, "queries items"]:
    """The scores of a block of users, with the two mistakes a model can make told apart from a bad model."""
    scores = score_block(users)
    expected = (users.stop - users.start, window.num_items)
    assert scores.shape == expected, f"scores of shape {scores.shape} where {expected} were asked for"
    if np.isnan(scores.min()):
        line, item_row = np.argwhere(np.isnan(scores))[0]
        raise RequestError(
            f"a score is NaN for user row {window.user_rows[users.start + line]} and item row {item_row} (window "
            f"{window.name!r}): the model has diverged. Lower train.learning_rate, or look for NaN in the items."
        )
    return scores
