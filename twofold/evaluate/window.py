"""The evaluated window: its users, the items that each had seen, and the items that each is to find.

A model is a `ScoreBlock`, so popularity and a transformer are evaluated by the same code. Users are processed in
chunks: memory is bounded by `CHUNK_ELEMENTS` for any number of users, and for any number of items if the scores are
`Products`.
"""

from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.dataset.dataset import Dataset
from twofold.errors import DataError, RequestError
from twofold.evaluate.peers import PeerScores
from twofold.evaluate.scores import ScoreBlock, TwoStages
from twofold.ragged import Ragged, chunks
from twofold.recipe.features import reads_time
from twofold.tables import SPLITS, Split
from twofold.topk import Products

Protocol = Literal["time_free", "query_time"]


SEED: Final = 0  # of the random row, of iALS and of the draws of batches
CHUNK_ELEMENTS: Final = 2**22  # scores in memory at a time: about 100 MiB with sort keys; larger chunks were slower


@dataclass(frozen=True)
class EvaluationWindow:
    """The users of one evaluated window, with one request each, and their interactions in the window.

    Lists contain distinct item rows. An item that the user saw before the window is in `seen` and never in `relevant`,
    because the catalogue ranking excludes it; with `includes_seen`, nothing is in `seen`. `candidates` are the user's
    own impressions in the window, whether or not the user had seen them before.
    """

    name: str
    user_rows: Int64[np.ndarray, "users"]
    query_at: Int64[np.ndarray, "users"]
    """Time of each user's request, UTC ms."""
    seen: Ragged
    relevant: Ragged
    candidates: Ragged
    labels: Bool[np.ndarray, "length"]
    """Flags, one per entry of `candidates.values`, of pairs with a relevant event in the window."""
    num_items: int
    is_cold: Bool[np.ndarray, "items"]
    """Flags of items without an event in training."""
    track: Protocol
    includes_seen: bool = False
    """Whether items are recommended that the user has already seen."""

    @property
    def excluded(self) -> str:
        """The items that are not ranked for a user, in words."""
        return (
            "nothing; seen items stay"
            if self.includes_seen
            else "items that the user saw in any event before the request"
        )

    @property
    def why_skipped(self) -> str:
        """The reason why a user without a relevant item is not evaluated, in words."""
        return "no positive" if self.includes_seen else "no positive on an item not seen before"

    def __post_init__(self) -> None:
        users = len(self.user_rows)
        if users == 0:
            raise DataError(
                f"window {self.name!r} contains no event, so no user can be evaluated. Compare its dates in "
                "prepare.split with the days that the log covers."
            )
        for name in ("seen", "relevant", "candidates"):
            lists: Ragged = getattr(self, name)
            assert len(lists.offsets) == users + 1, f"{name} has {len(lists.offsets) - 1} lists for {users} users"
            assert lists.offsets[0] == 0, f"{name}: offsets begin at 0"
            assert lists.offsets[-1] == len(lists.values), f"{name}: offsets end at the last value"
        assert len(self.labels) == len(self.candidates.values), "a label for every candidate"
        assert len(self.is_cold) == self.num_items, "is_cold has an entry for every item"


@dataclass(frozen=True)
class DayBounds:
    """Bounds of a day that is evaluated as a window of its own: [first_at, end_at), UTC ms."""

    name: str
    first_at: int
    end_at: int


@dataclass(frozen=True)
class PerUser:
    """Metrics of one model under one protocol: name → value of each user, NaN for a skipped user."""

    values: dict[str, Float64[np.ndarray, "users"]]
    evaluated: int
    skipped: dict[str, int]
    """Number of skipped users by reason."""
    pooled: dict[str, float] = field(default_factory=dict)
    """Metrics over the pairs of all users together."""
    absent: dict[int, str] = field(default_factory=dict)
    """Reasons for each k at which no metric is given."""
    ranks: Int64[np.ndarray, "pairs"] | None = None
    """Catalogue rank at which each pair of `window.relevant` was found, 0 if it was not."""

    def mean(self, name: str) -> float:
        """Returns the mean over the users that have a value; NaN if none has."""
        known = self.values[name][~np.isnan(self.values[name])]
        return float(known.mean()) if len(known) else float("nan")


def evaluation_window(
    dataset: Dataset, split: Split, day: DayBounds | None = None, *, includes_seen: bool = False
) -> EvaluationWindow:
    """Returns every user of the window, or of one day of it, with one request at the user's first impression in it.

    *Seen* are the items of all events strictly before the request, of every kind and window, so the ranking is of items
    that are new to the user; relevant events of the window on items already seen do not count. With `includes_seen`,
    every item is ranked and every relevant event counts.
    """
    rows, num_items = dataset.examples[split], len(dataset.items)
    at = np.asarray(rows.at)
    is_in = np.full(len(at), True) if day is None else (at >= day.first_at) & (at < day.end_at)
    user_rows, item_rows, is_relevant = (
        np.asarray(each)[is_in] for each in (rows.user_rows, rows.item_rows, rows.is_relevant)
    )
    users, first = np.unique(user_rows, return_index=True)
    query_at = at[is_in][first]
    user = np.searchsorted(users, user_rows)
    counts = np.zeros(len(users), np.int64) if includes_seen else dataset.events.before(users, query_at)
    seen_items, _ = dataset.events.slices(users, counts)
    seen = np.unique(np.repeat(np.arange(len(users)), counts) * num_items + seen_items)
    candidates, position = np.unique(user * num_items + item_rows, return_inverse=True)
    labels = np.zeros(len(candidates), bool)
    labels[position[is_relevant]] = True
    relevant = np.setdiff1d(candidates[labels], seen, assume_unique=True)
    return EvaluationWindow(
        name=split if day is None else day.name,
        user_rows=users,
        query_at=query_at,
        seen=_ragged(seen, len(users), num_items),
        relevant=_ragged(relevant, len(users), num_items),
        candidates=_ragged(candidates, len(users), num_items),
        labels=labels,
        num_items=num_items,
        is_cold=np.arange(num_items) >= dataset.items.num_known,
        track="query_time" if any(map(reads_time, dataset.features.features.user)) else "time_free",
        includes_seen=includes_seen,
    )


def without_short_lists(found: PerUser, sizes: Int64[np.ndarray, "users"]) -> PerUser:
    """Leaves out the metrics at a k above the median size of the evaluated users' lists, with the reason.

    Where most lists have at most k items, every order has nearly the same value at k.
    """
    is_evaluated = ~np.isnan(np.stack(list(found.values.values()))).all(axis=0)
    if not is_evaluated.any():
        return found
    median = float(np.median(sizes[is_evaluated]))
    k_of = {name: int(name.partition("@")[2] or 0) for name in found.values}
    reason = f"half of the lists have at most {median:g} item{'' if median == 1 else 's'}"
    absent = {k: reason for k in sorted(set(k_of.values())) if k > median}
    return replace(
        found, values={name: each for name, each in found.values.items() if k_of[name] not in absent}, absent=absent
    )


def split_of(window: EvaluationWindow) -> Split:
    return next(split for split in SPLITS if split == window.name)


def _ragged(keys: Int64[np.ndarray, "pairs"], users: int, num_items: int) -> Ragged:
    """Returns one list per user from sorted keys user · N + item."""
    return Ragged(keys % num_items, np.searchsorted(keys // num_items, np.arange(users + 1)).astype(np.int64))


def users_to_judge(window: EvaluationWindow, *, most_scores: int) -> Int64[np.ndarray, "_"]:
    """Returns the places of the users who have something to find: all, or, by chance, as many as have this many scores
    of users × items, at least one. Equal windows give equal users.
    """
    users = np.flatnonzero(window.relevant.sizes)
    most = max(1, most_scores // window.num_items)
    return users if len(users) <= most else np.sort(np.random.default_rng(SEED).choice(users, most, replace=False))


def smaller_window(window: EvaluationWindow, *, most_scores: int) -> EvaluationWindow:
    """Returns the window of `users_to_judge`; the window itself if all its users together have so few scores."""
    if len(window.user_rows) * window.num_items <= most_scores:
        return window
    users = users_to_judge(window, most_scores=most_scores)
    return replace(
        window,
        user_rows=window.user_rows[users],
        query_at=window.query_at[users],
        labels=Ragged(window.labels, window.candidates.offsets).of(users).values,
        **{name: getattr(window, name).of(users) for name in ("seen", "relevant", "candidates")},
    )


def scores_of_lists(window: EvaluationWindow, score_block: ScoreBlock, lists: Ragged) -> Float32[np.ndarray, "length"]:
    """Returns the score of every item of each user's list."""
    if isinstance(score_block, Products | TwoStages | PeerScores):
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
    """Returns the scores of some users after checking their shape and refusing NaN."""
    scores = score_block(users)
    expected = (users.stop - users.start, window.num_items)
    assert scores.shape == expected, f"scores have shape {scores.shape}, expected {expected}"
    if np.isnan(scores.min()):
        query, item_row = np.argwhere(np.isnan(scores))[0]
        raise RequestError(
            f"a score is NaN for user row {window.user_rows[users.start + query]} and item row {item_row} (window "
            f"{window.name!r}): the model has diverged. Lower train.learning_rate, or look for NaN in the items."
        )
    return scores
