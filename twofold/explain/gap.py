"""The gap between in-batch and catalogue hit rates, taken apart one change at a time.

If G is the distribution of the rank percentile of a positive, in-batch hit rate@k is about G(k / B) and the catalogue's
hit rate@K is G(K / N). At K = k·N/B both measure the same; to compare them at one k is an error of arithmetic, not a
fault of the model. The remaining difference is measured over the same pairs of users and positives, on a walk from
training to serving. Each step changes one thing, so the steps add up to the gap.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
from jaxtyping import Bool, Int64, Integer

from twofold.errors import RequestError
from twofold.ragged import Ragged, chunks
from twofold.render.numbers import format_decimal, format_interval, format_signed, plural
from twofold.topk import Products, sortable_keys

BY_POPULARITY: Final = "batches contain popular items more often than rare ones"
CANDIDATES: Final = "the catalogue has more candidates than a batch"
SEEN: Final = "serving removes items that the user has seen"
OTHERS: Final = "the user's other positives compete in serving"
SCORE: Final = "the index compares vectors by another score than training"
STALE: Final = "the index holds other vectors than the model computes now"
IDS: Final = "the index returns items under other ids"
APPROXIMATE: Final = "the index searches approximately"

_MAX_PAIRS: Final = 5000  # a share of .1 is then known within .008
_MAX_SCORES: Final = 10**9  # pairs × items: a large catalogue gets fewer pairs, but at least 500
_CHUNK_KEYS: Final = 2**21  # keys of users × items in memory at once
_PERMUTATIONS: Final = 99
_NEVER: Final = np.iinfo(np.int64).min


@dataclass(frozen=True)
class GapCase:
    """Training and serving of the same users.

    `relevant` are the item rows that each user should be recommended, `seen` those that serving removes. `trained` are
    the vectors that the model computes now, under the score of training; `rescored` the same vectors under the score of
    the index; `stored` the vectors in the index, whose row i is returned as item row `returned_as[i]`. `search(users,
    k)` returns the item rows that the index finds for these users, -1 where there are fewer.
    """

    relevant: Ragged
    seen: Ragged
    trained: Products
    rescored: Products
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
    def is_clear(self) -> bool:
        """True if the change is significant: its interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Gap:
    """Hit rate@k in batches and of the service at rank K = k·N/B, with the steps, whose changes add up to the gap.

    `id_map_p` is the p-value that item ids shuffled at random find as much as the service: large where the id map is
    broken.
    """

    k: int
    batch_size: int
    num_items: int
    rank: float
    pairs: int
    in_batch: float
    served: float
    steps: tuple[Step, ...]
    id_map_p: float
    largest: str | None
    verdict: str


def measure_gap(case: GapCase, *, batch_size: int, k: int = 10, seed: int = 0) -> Gap:
    """Measures each step from the in-batch hit rate@k to the service at K = k·N/B, over pairs drawn by the seed.

    Raises RequestError if there are no positives, or if a batch has k items or fewer.
    """
    relevant, num_items = case.relevant, len(case.trained.items)
    if len(relevant.values) == 0 or batch_size <= k:
        raise RequestError(
            f"the gap needs positives and batches of more than k = {k} items, not {len(relevant.values)} positives and "
            f"batches of {batch_size}. Choose a longer window, or a smaller k."
        )
    rng = np.random.default_rng(seed)
    most = min(_MAX_PAIRS, max(500, _MAX_SCORES // num_items))
    chosen = np.sort(rng.permutation(len(relevant.values))[:most])
    rank = k * num_items / batch_size
    walk = _Walk(case, relevant.lines[chosen], relevant.values[chosen], k, max(1, round(rank)))
    shape = (len(chosen), batch_size - 1)
    in_batch, found = walk.found_in_training(
        relevant.values[rng.integers(0, len(relevant.values), shape)], rng.integers(0, num_items, shape)
    )
    as_returned = replace(case.stored, items=case.stored.items[np.argsort(case.returned_as)])
    found |= {
        SCORE: walk.found(case.rescored),
        STALE: walk.found(case.stored),
        IDS: walk.found(as_returned),
        APPROXIMATE: walk.found_by_index(),
    }
    steps = tuple(
        _step(cause, before, after, walk.users)
        for cause, (before, after) in zip(found, pairwise([in_batch, *found.values()]), strict=True)
    )
    served, start = float(found[APPROXIMATE].mean()), float(in_batch.mean())
    id_map_p = _id_map_p(walk, as_returned, served, rng)
    largest = max((step for step in steps if step.is_clear), key=lambda step: abs(step.change), default=None)
    cause = largest.cause if largest else None
    gap = Gap(k, batch_size, num_items, rank, len(chosen), start, served, steps, id_map_p, cause, verdict="")
    return replace(gap, verdict=_sentences(gap, largest))


@dataclass(frozen=True)
class _Walk:
    """The drawn pairs of `users` and `items`, in the order of the users; `depth` is the rank K."""

    case: GapCase
    users: Int64[np.ndarray, "pairs"]
    items: Int64[np.ndarray, "pairs"]
    k: int
    depth: int

    def found_in_training(
        self, by_popularity: Int64[np.ndarray, "pairs _"], uniform: Int64[np.ndarray, "pairs _"]
    ) -> tuple[Bool[np.ndarray, "pairs"], dict[str, Bool[np.ndarray, "pairs"]]]:
        """Returns the pairs found within batches, and after each step that changes only the candidates."""
        names = (BY_POPULARITY, CANDIDATES, SEEN, OTHERS)
        in_batch, found = np.zeros(len(self.users), bool), {name: np.zeros(len(self.users), bool) for name in names}
        for part, users, row in self._chunks():
            keys = self._keys(self.case.trained, users)
            own, seen, positives = keys[row, self.items[part]], self.case.seen.of(users), self.case.relevant.of(users)
            keys_of_positives = keys[positives.lines, positives.values]
            keys[positives.lines, positives.values] = _NEVER
            in_batch[part] = (keys[row[:, None], by_popularity[part]] > own[:, None]).sum(axis=1) < self.k
            found[BY_POPULARITY][part] = (keys[row[:, None], uniform[part]] > own[:, None]).sum(axis=1) < self.k
            found[CANDIDATES][part] = own >= self._threshold(keys)[row]
            keys[seen.lines, seen.values] = _NEVER
            found[SEEN][part] = own >= self._threshold(keys)[row]
            keys[positives.lines, positives.values] = keys_of_positives
            found[OTHERS][part] = own >= self._threshold(keys)[row]
        return in_batch, found

    def found(self, products: Products) -> Bool[np.ndarray, "pairs"]:
        """Returns the pairs whose item is among the `depth` best of the catalogue, without seen items."""
        return np.asarray(self.found_of(products, self.items[None])[0])

    def found_of(self, products: Products, items: Int64[np.ndarray, "_ pairs"]) -> Bool[np.ndarray, "_ pairs"]:
        """Returns the same for other items of the same users; each row of `items` is one variant."""
        found = np.zeros(items.shape, bool)
        for part, users, row in self._chunks():
            keys, seen = self._keys(products, users), self.case.seen.of(users)
            keys[seen.lines, seen.values] = _NEVER
            found[:, part] = keys[row, items[:, part]] >= np.maximum(self._threshold(keys), _NEVER + 1)[row]
        return found

    def found_by_index(self) -> Bool[np.ndarray, "pairs"]:
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

    def _keys(self, products: Products, users: Int64[np.ndarray, "users"]) -> Int64[np.ndarray, "users items"]:
        return sortable_keys(products.queries[users] @ products.items.T)

    def _threshold(self, keys: Int64[np.ndarray, "users items"]) -> Int64[np.ndarray, "users"]:
        """Returns the key that an item must reach to be among the user's `depth` best."""
        position = max(keys.shape[1] - self.depth, 0)
        return np.asarray(np.partition(keys, position, axis=1)[:, position])


def _id_map_p(walk: _Walk, products: Products, served: float, rng: np.random.Generator) -> float:
    """Returns the p-value of the permutation test in which item ids are shuffled."""
    shuffled = np.stack([rng.permutation(len(products.items))[walk.items] for _ in range(_PERMUTATIONS)])
    shares = walk.found_of(products, shuffled).mean(axis=1)
    return float((1 + (shares >= served).sum()) / (1 + _PERMUTATIONS))


def _step(
    cause: str, before: Bool[np.ndarray, "pairs"], after: Bool[np.ndarray, "pairs"], users: Int64[np.ndarray, "pairs"]
) -> Step:
    """Returns the change and its interval: pairs of one user are not independent, so residuals are summed by user."""
    difference = after.astype(np.float64) - before
    change = float(difference.mean())
    by_user = np.bincount(np.unique(users, return_inverse=True)[1], difference - change)
    half = 1.96 * float(np.sqrt((by_user**2).sum())) / len(users)
    return Step(cause, float(after.mean()), change, change - half, change + half)


def _sentences(gap: Gap, largest: Step | None) -> str:
    opening = (
        f"Of {plural(gap.pairs, 'pair')} of a user and a positive item, {format_decimal(gap.in_batch)} are in the top "
        f"{gap.k} of a batch of {gap.batch_size:,}. The equivalent rank in the catalogue is "
        f"K = {gap.k} · {gap.num_items:,} / {gap.batch_size:,} = {gap.rank:,.0f}; there the service finds "
        f"{format_decimal(gap.served)}."
    )
    ids = " Shuffled item ids find as much: check the id map first." if gap.id_map_p > 0.05 else ""
    if largest is None:
        return f"{opening}{ids} No single cause is significant."
    change = f"{format_signed(largest.change)} {format_interval(largest.low, largest.high)}"
    return f"{opening}{ids} The largest cause: {largest.cause} ({change})."
