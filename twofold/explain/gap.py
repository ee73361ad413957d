"""The gap between a batch of training and the service, taken apart one change at a time.

A walk leads from the hit rate in training batches to that of the served lists, over the same pairs of users and
positives. Each step changes one thing, so the steps add up to the gap. The first four describe how the two exams differ
and are no fault: a batch has fewer candidates, popular ones, and its scores are corrected by log Q. The others compare
the served index with the model; a sound system loses nothing there, so a loss above `MAX_LOSS` is a fault. One of them
is neither a fault nor a merit: the index describes items as of the end of the log, so their ages and counters know the
days of these requests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer

from twofold.errors import RequestError
from twofold.ragged import Ragged, chunks
from twofold.render.numbers import format_decimal, format_interval, format_signed, plural
from twofold.topk import Products, sortable_keys

BY_POPULARITY: Final = "batches contain popular items more often than rare ones, and training subtracts log Q"
CANDIDATES: Final = "the catalogue has more candidates than a batch"
SEEN: Final = "serving removes items that the user has seen"
OTHERS: Final = "the user's other positives compete in serving"
SCORE: Final = "the index compares vectors by another score than training"
LATER: Final = "the index describes items as of the end of the log, later than these requests"
STALE: Final = "the index holds other vectors than the model computes now"
IDS: Final = "the index returns items under other ids"
APPROXIMATE: Final = "the search misses items that the index holds"

MAX_LOSS: Final = 0.01
"""A step of serving that lowers the hit rate by more than this is a fault."""
_REBUILD: Final = "rm -r RUN/index && twofold index RUN"
_REPAIRS: Final = {
    SCORE: f"Build the index with the score of the recipe's retriever: {_REBUILD}. A vector database must be set to "
    "the same metric.",
    STALE: f"The vectors are not those of the weights in RUN/train. Build the index again: {_REBUILD}.",
    IDS: f"The ids are not in the order of the vectors. Write both again, from one run: {_REBUILD}.",
    APPROXIMATE: f"Build the index again, which measures what its search finds: {_REBUILD}. In a vector database, "
    "raise the number of lists or candidates that are searched.",
}
_MAX_PAIRS: Final = 5000  # a share of .1 is then known within .008
_MAX_SCORES: Final = 10**9  # pairs × items: a large catalogue gets fewer pairs, but at least 500
_MAX_COLUMNS: Final = 2**25  # pairs × batch: under a gigabyte; of batches above 6,700 there are fewer pairs
_CHUNK_KEYS: Final = 2**21  # keys of users × items in memory at once
_NEVER: Final = np.iinfo(np.int64).min


@dataclass(frozen=True)
class GapCase:
    """Training and serving of the same users.

    `relevant` are the item rows that each user should be recommended, `seen` those that serving removes. `trained` are
    the vectors that the model computes now, under the score of training; within a batch, training subtracts
    `correction` from the score of each item (temperature · log Q). `rescored` are the same vectors under the score of
    the index, `later` those that the model computes as of the time of the index; `stored` the vectors in the index,
    whose row i is returned as item row `returned_as[i]`. `search(users, k)` returns the item rows that the index finds
    for these users, -1 where there are fewer.
    """

    relevant: Ragged
    seen: Ragged
    trained: Products
    correction: Float32[np.ndarray, "items"]
    rescored: Products
    later: Products
    stored: Products
    returned_as: Int64[np.ndarray, "items"]
    search: Callable[[Int64[np.ndarray, "_"], int], Integer[np.ndarray, "_ _"]]


@dataclass(frozen=True)
class Step:
    """One difference between training and serving: the share of pairs found with it, and the change that it makes.

    `low` and `high` bound the change at 95 %, users being the unit.
    """

    cause: str
    share: float
    change: float
    low: float
    high: float

    @property
    def is_fault(self) -> bool:
        """True if the step loses more than `MAX_LOSS`, significantly, and not because items are described later."""
        return self.cause != LATER and self.change < -MAX_LOSS and self.high < 0


@dataclass(frozen=True)
class Gap:
    """Hit rate@k in batches, and those of the model and the service at rank K = k·N/D of the catalogue.

    N is the number of items, D the mean number of distinct items of a batch. The changes of `exam` lead from `in_batch`
    to `model`, those of `serving` from there to `served`. `faults` are the causes in `serving` that cost more than
    `MAX_LOSS`, whatever else is larger; `verdict` names each with its repair; `about_exam` sums up the rest.
    """

    k: int
    batch_size: int
    distinct_items: float
    num_items: int
    rank: float
    pairs: int
    in_batch: float
    model: float
    served: float
    exam: tuple[Step, ...]
    serving: tuple[Step, ...]
    faults: tuple[str, ...]
    verdict: tuple[str, ...]
    about_exam: str


def measure_gap(case: GapCase, *, batch_size: int, k: int = 10, seed: int = 0) -> Gap:
    """Measures each step from the in-batch hit rate@k to the service at rank K, over pairs drawn by the seed.

    Raises RequestError if there are no positives, or if a batch has k items or fewer.
    """
    relevant, num_items = case.relevant, len(case.trained.items)
    if len(relevant.values) == 0 or batch_size <= k:
        raise RequestError(
            f"the gap needs positives and batches of more than k = {k} items, not {len(relevant.values)} positives and "
            f"batches of {batch_size}. Choose a longer window, or a smaller k."
        )
    rng = np.random.default_rng(seed)
    most = min(_MAX_PAIRS, max(500, _MAX_SCORES // num_items), max(1, _MAX_COLUMNS // batch_size))
    chosen = np.sort(rng.permutation(len(relevant.values))[:most])
    columns = _draw_columns(relevant.values, rng, shape=(len(chosen), batch_size - 1), num_items=num_items)
    distinct_items = 1 + float(columns.is_first.sum(axis=1).mean())
    rank = k * num_items / distinct_items
    walk = _Walk(case, relevant.lines[chosen], relevant.values[chosen], k, min(max(1, round(rank)), num_items))
    in_batch, of_model = walk.found_in_training(columns)
    exam, serving = walk.steps(in_batch, of_model), walk.steps(of_model[OTHERS], walk.found_in_serving())
    return Gap(
        k=k,
        batch_size=batch_size,
        distinct_items=distinct_items,
        num_items=num_items,
        rank=rank,
        pairs=len(chosen),
        in_batch=float(in_batch.mean()),
        model=exam[-1].share,
        served=serving[-1].share,
        exam=exam,
        serving=serving,
        faults=tuple(step.cause for step in serving if step.is_fault),
        verdict=_verdict(exam[-1].share, serving),
        about_exam=_about_exam(exam, start=float(in_batch.mean()), k=k, batch_size=batch_size, distinct=distinct_items),
    )


@dataclass(frozen=True)
class _Columns:
    """Candidates of each pair: `popular` are drawn like the positives of a batch, `uniform` from the whole catalogue.

    `is_first` marks every distinct item of a row of `popular` once; the same columns of `uniform` hold as many distinct
    items.
    """

    popular: Int64[np.ndarray, "pairs _"]
    uniform: Int64[np.ndarray, "pairs _"]
    is_first: Bool[np.ndarray, "pairs _"]


def _draw_columns(
    positives: Int64[np.ndarray, "length"], rng: np.random.Generator, *, shape: tuple[int, int], num_items: int
) -> _Columns:
    """Draws the candidates; uniform ones are a stretch of one shuffle, in which no item occurs twice."""
    popular = np.sort(positives[rng.integers(0, len(positives), shape)], axis=1)
    is_first = np.diff(popular, axis=1, prepend=-1) != 0
    starts = rng.integers(0, num_items, (shape[0], 1))
    uniform = rng.permutation(num_items)[(starts + np.cumsum(is_first, axis=1)) % num_items]
    return _Columns(popular, uniform, is_first)


@dataclass(frozen=True)
class _Walk:
    """The drawn pairs of `users` and `items`, in the order of the users; `depth` is the rank K."""

    case: GapCase
    users: Int64[np.ndarray, "pairs"]
    items: Int64[np.ndarray, "pairs"]
    k: int
    depth: int

    def found_in_training(
        self, columns: _Columns
    ) -> tuple[Bool[np.ndarray, "pairs"], dict[str, Bool[np.ndarray, "pairs"]]]:
        """Returns the pairs found within batches, and after each step that changes only the exam."""
        names = (BY_POPULARITY, CANDIDATES, SEEN, OTHERS)
        in_batch, found = np.zeros(len(self.users), bool), {name: np.zeros(len(self.users), bool) for name in names}
        for part, users, row in self._chunks():
            scores = self.case.trained(users)
            keys, corrected = sortable_keys(scores), sortable_keys(scores - self.case.correction)
            seen, positives = self.case.seen.of(users), self.case.relevant.of(users)
            own, own_corrected = keys[row, self.items[part]], corrected[row, self.items[part]]
            keys_of_positives = keys[positives.lines, positives.values]
            keys[positives.lines, positives.values] = corrected[positives.lines, positives.values] = _NEVER
            first = columns.is_first[part]
            above = (corrected[row[:, None], columns.popular[part]] > own_corrected[:, None]) & first
            in_batch[part] = above.sum(axis=1) < self.k
            above = (keys[row[:, None], columns.uniform[part]] > own[:, None]) & first
            found[BY_POPULARITY][part] = above.sum(axis=1) < self.k
            found[CANDIDATES][part] = own >= self._threshold(keys)[row]
            keys[seen.lines, seen.values] = _NEVER
            found[SEEN][part] = own >= self._threshold(keys)[row]
            keys[positives.lines, positives.values] = keys_of_positives
            found[OTHERS][part] = own >= self._threshold(keys)[row]
        return in_batch, found

    def found_in_serving(self) -> dict[str, Bool[np.ndarray, "pairs"]]:
        """Returns the pairs found after each step from the model's vectors to the lists of the service."""
        in_order = self.case.stored.items[np.argsort(self.case.returned_as)]
        as_returned = replace(self.case.stored, items=in_order, added=self.case.later.added)
        return {
            SCORE: self._found(self.case.rescored),
            LATER: self._found(self.case.later),
            STALE: self._found(self.case.stored),
            IDS: self._found(as_returned),
            APPROXIMATE: self._found_by_index(),
        }

    def steps(
        self, start: Bool[np.ndarray, "pairs"], found: Mapping[str, Bool[np.ndarray, "pairs"]]
    ) -> tuple[Step, ...]:
        """Returns the change that each step makes to the one before it."""
        return tuple(
            _step(cause, before, after, self.users)
            for cause, (before, after) in zip(found, pairwise([start, *found.values()]), strict=True)
        )

    def _found(self, products: Products) -> Bool[np.ndarray, "pairs"]:
        """Returns the pairs whose item is among the `depth` best of the catalogue, without seen items."""
        found = np.zeros(len(self.users), bool)
        for part, users, row in self._chunks():
            keys, seen = sortable_keys(products(users)), self.case.seen.of(users)
            keys[seen.lines, seen.values] = _NEVER
            found[part] = keys[row, self.items[part]] >= np.maximum(self._threshold(keys), _NEVER + 1)[row]
        return found

    def _found_by_index(self) -> Bool[np.ndarray, "pairs"]:
        """Returns the pairs whose item the index itself finds."""
        found = np.zeros(len(self.users), bool)
        for part, users, row in self._chunks():
            item_rows = self.case.search(users, self.depth)
            found[part] = (item_rows[row] == self.items[part, None]).any(axis=1)
        return found

    def _chunks(self) -> list[tuple[slice, Int64[np.ndarray, " users"], Int64[np.ndarray, " pairs"]]]:
        """Returns chunks whose scores fit into memory: the pairs, their distinct users, and each pair's user among
        these.
        """
        distinct, user_of = np.unique(self.users, return_inverse=True)
        parts = []
        for users in chunks(len(distinct), max(1, _CHUNK_KEYS // len(self.case.trained.items))):
            first, end = np.searchsorted(user_of, (users.start, users.stop))
            parts.append((slice(int(first), int(end)), distinct[users], user_of[first:end] - users.start))
        return parts

    def _threshold(self, keys: Int64[np.ndarray, "users items"]) -> Int64[np.ndarray, "users"]:
        """Returns the key that an item must reach to be among the user's `depth` best."""
        position = max(keys.shape[1] - self.depth, 0)
        return np.asarray(np.partition(keys, position, axis=1)[:, position])


def _step(
    cause: str, before: Bool[np.ndarray, "pairs"], after: Bool[np.ndarray, "pairs"], users: Int64[np.ndarray, "pairs"]
) -> Step:
    """Returns the change and its interval: pairs of one user are not independent, so residuals are summed by user."""
    difference = after.astype(np.float64) - before
    change = float(difference.mean())
    by_user = np.bincount(np.unique(users, return_inverse=True)[1], difference - change)
    half = 1.96 * float(np.sqrt((by_user**2).sum())) / len(users)
    return Step(cause, float(after.mean()), change, change - half, change + half)


def _verdict(model: float, serving: tuple[Step, ...]) -> tuple[str, ...]:
    """Returns whether the service finds what the model finds, then each fault with its repair."""
    served = serving[-1].share
    hit_rates = f"the service finds {format_decimal(served)} of the pairs, the model alone {format_decimal(model)}"
    later = tuple(
        f"{format_signed(step.change)} of this is neither a fault nor a merit: {step.cause}, so that their ages and "
        f"counters know the days of these requests."
        for step in serving
        if step.cause == LATER and abs(step.change) > MAX_LOSS
    )
    faults = [step for step in serving if step.is_fault]
    if not faults:
        limit = format_decimal(MAX_LOSS)
        agrees = (
            f"Serving agrees with the model: {hit_rates}; score, vectors, ids and search each cost at most {limit}."
        )
        return agrees, *later
    opening = f"Serving has {plural(len(faults), 'fault')}: {hit_rates}."
    named = (
        f"Fault: {step.cause} ({format_signed(step.change)} {format_interval(step.low, step.high)}). "
        f"{_REPAIRS[step.cause]}"
        for step in faults
    )
    return opening, *later, *named


def _about_exam(exam: tuple[Step, ...], *, start: float, k: int, batch_size: int, distinct: float) -> str:
    """Returns how many pairs are found in a batch, and among as many items that are drawn uniformly."""
    uniform = exam[0].share
    return (
        f"A batch of {batch_size:,} is a different exam, not a fault: it holds {distinct:,.0f} distinct items, mostly "
        f"popular ones. {format_decimal(start)} of the pairs are among its first {k}; among as many items drawn "
        f"uniformly from the catalogue, {format_decimal(uniform)} are."
    )
