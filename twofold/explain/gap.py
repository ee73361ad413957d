"""Why in-batch looks fine and the catalogue does not: the difference taken apart, one change at a time.

For the rank percentile of a positive with distribution G, in-batch hit rate@k is about G(k / B) and that of the
catalogue@K about G(K / N): at K = k·N/B both say the same, and to compare them at one k is arithmetic, no fault. What
remains is walked from training to serving over the same pairs of users and positives. Every step changes one thing, so
the steps add up to the gap.
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

BY_POPULARITY: Final = "batches hold popular items more often than rare ones"
CANDIDATES: Final = "the catalogue holds more candidates than a batch"
SEEN: Final = "serving leaves out items the user has seen"
OTHERS: Final = "the user's other positives compete in serving"
SCORE: Final = "the index compares vectors by another score than training"
STALE: Final = "the index holds other vectors than the model gives now"
IDS: Final = "the index answers items under other ids"
APPROXIMATE: Final = "the index searches approximately"

_MOST_PAIRS: Final = 5000  # a share of .1 is then known within .008
_MOST_CELLS: Final = 10**9  # of pairs × items: fewer pairs of a large catalogue, but never fewer than 500
_BLOCK: Final = 2**21  # keys at once
_PERMUTATIONS: Final = 99
_NEVER: Final = np.iinfo(np.int64).min


@dataclass(frozen=True)
class GapCase:
    """One question put to training and to serving.

    `relevant` are the item rows that each user was to find, `seen` those that serving leaves out. `trained`: what the
    model gives now, under the score of training; `rescored`: the same vectors under the score of the index; `stored`:
    the vectors that the index holds. Its line i is answered as item row `answered_as[i]`. `search(users, k)`: the item
    rows it answers these users with, -1 where there are fewer.
    """

    relevant: Ragged
    seen: Ragged
    trained: Products
    rescored: Products
    stored: Products
    answered_as: Int64[np.ndarray, "items"]
    search: Callable[[Int64[np.ndarray, "asked"], int], Integer[np.ndarray, "asked k"]]


@dataclass(frozen=True)
class Step:
    """One difference on the way from training to serving: the share of pairs found with it, and by how much it changed.

    `low` and `high` bound the change at 95 %, users being the unit.
    """

    cause: str
    share: float
    change: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the change is more than the chance of who was asked."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Gap:
    """In-batch hit rate@k and what is served at rank K = k·N/B, with the steps between, whose changes add up to it.

    `id_map_p`: how likely ids shuffled at random find as much as what is served; large where the id map is broken.
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
    """Walks from the in-batch hit rate@k to what the index answers at K = k·N/B, over pairs drawn by the seed.

    RequestError without a positive to find, or for batches of k items or fewer.
    """
    relevant, num_items = case.relevant, len(case.trained.items)
    if len(relevant.values) == 0 or batch_size <= k:
        raise RequestError(
            f"the gap needs positives to find and batches of more than k = {k} items, not {len(relevant.values)} "
            f"positives and batches of {batch_size}. Choose a longer window, or a smaller k."
        )
    rng = np.random.default_rng(seed)
    most = min(_MOST_PAIRS, max(500, _MOST_CELLS // num_items))
    chosen = np.sort(rng.permutation(len(relevant.values))[:most])
    rank = k * num_items / batch_size
    walk = _Walk(case, relevant.lines[chosen], relevant.values[chosen], k, max(1, round(rank)))
    shape = (len(chosen), batch_size - 1)
    in_batch, found = walk.in_training(
        relevant.values[rng.integers(0, len(relevant.values), shape)], rng.integers(0, num_items, shape)
    )
    as_answered = replace(case.stored, items=case.stored.items[np.argsort(case.answered_as)])
    found |= {
        SCORE: walk.found(case.rescored),
        STALE: walk.found(case.stored),
        IDS: walk.found(as_answered),
        APPROXIMATE: walk.answered(),
    }
    steps = tuple(
        _step(cause, before, after, walk.users)
        for cause, (before, after) in zip(found, pairwise([in_batch, *found.values()]), strict=True)
    )
    shuffled = walk.found_of(
        as_answered, np.stack([rng.permutation(num_items)[walk.items] for _ in range(_PERMUTATIONS)])
    )
    served = float(found[APPROXIMATE].mean())
    id_map_p = float((1 + (shuffled.mean(axis=1) >= served).sum()) / (1 + _PERMUTATIONS))
    largest = max((step for step in steps if step.is_clear), key=lambda step: abs(step.change), default=None)
    cause = largest.cause if largest else None
    start = float(in_batch.mean())
    gap = Gap(k, batch_size, num_items, rank, len(chosen), start, served, steps, id_map_p, cause, verdict="")
    return replace(gap, verdict=_in_words(gap, largest))


@dataclass(frozen=True)
class _Walk:
    """The pairs asked about: `users` and `items`, in the order of the users."""

    case: GapCase
    users: Int64[np.ndarray, "pairs"]
    items: Int64[np.ndarray, "pairs"]
    k: int
    depth: int

    def in_training(
        self, by_popularity: Int64[np.ndarray, "pairs _"], uniform: Int64[np.ndarray, "pairs _"]
    ) -> tuple[Bool[np.ndarray, "pairs"], dict[str, Bool[np.ndarray, "pairs"]]]:
        """Found in batches, and after each step that is of the candidates alone."""
        names = (BY_POPULARITY, CANDIDATES, SEEN, OTHERS)
        in_batch, found = np.zeros(len(self.users), bool), {name: np.zeros(len(self.users), bool) for name in names}
        for part, asked, line in self._parts():
            keys = self._keys(self.case.trained, asked)
            own, seen, positives = keys[line, self.items[part]], self.case.seen.of(asked), self.case.relevant.of(asked)
            kept = keys[positives.lines, positives.values]
            keys[positives.lines, positives.values] = _NEVER
            in_batch[part] = (keys[line[:, None], by_popularity[part]] > own[:, None]).sum(axis=1) < self.k
            found[BY_POPULARITY][part] = (keys[line[:, None], uniform[part]] > own[:, None]).sum(axis=1) < self.k
            found[CANDIDATES][part] = own >= self._least(keys)[line]
            keys[seen.lines, seen.values] = _NEVER
            found[SEEN][part] = own >= self._least(keys)[line]
            keys[positives.lines, positives.values] = kept
            found[OTHERS][part] = own >= self._least(keys)[line]
        return in_batch, found

    def found(self, products: Products) -> Bool[np.ndarray, "pairs"]:
        """Among the `depth` best of the catalogue without seen items."""
        return np.asarray(self.found_of(products, self.items[None])[0])

    def found_of(
        self, products: Products, items: Int64[np.ndarray, "variants pairs"]
    ) -> Bool[np.ndarray, "variants pairs"]:
        """The same, had each user been to find other items."""
        found = np.zeros(items.shape, bool)
        for part, asked, line in self._parts():
            keys, seen = self._keys(products, asked), self.case.seen.of(asked)
            keys[seen.lines, seen.values] = _NEVER
            found[:, part] = keys[line, items[:, part]] >= np.maximum(self._least(keys), _NEVER + 1)[line]
        return found

    def answered(self) -> Bool[np.ndarray, "pairs"]:
        """Among what the index itself answers."""
        found = np.zeros(len(self.users), bool)
        for part, asked, line in self._parts():
            answers = self.case.search(asked, self.depth)
            found[part] = (answers[line] == self.items[part, None]).any(axis=1)
        return found

    def _parts(self) -> list[tuple[slice, Int64[np.ndarray, " asked"], Int64[np.ndarray, " part"]]]:
        """Pairs whose users' rows fit into memory at once: the pairs, their users, the place of each pair's user."""
        asked, line = np.unique(self.users, return_inverse=True)
        parts = []
        for users in chunks(len(asked), max(1, _BLOCK // len(self.case.trained.items))):
            first, end = np.searchsorted(line, (users.start, users.stop))
            parts.append((slice(int(first), int(end)), asked[users], line[first:end] - users.start))
        return parts

    def _keys(self, products: Products, asked: Int64[np.ndarray, "asked"]) -> Int64[np.ndarray, "asked items"]:
        return sortable_keys(products.queries[asked] @ products.items.T)

    def _least(self, keys: Int64[np.ndarray, "asked items"]) -> Int64[np.ndarray, "asked"]:
        """The key that an item must reach to be among the `depth` best of its line."""
        place = max(keys.shape[1] - self.depth, 0)
        return np.asarray(np.partition(keys, place, axis=1)[:, place])


def _step(
    cause: str, before: Bool[np.ndarray, "pairs"], after: Bool[np.ndarray, "pairs"], users: Int64[np.ndarray, "pairs"]
) -> Step:
    """The change and its interval: pairs of one user are not independent, so residuals are summed by user."""
    difference = after.astype(np.float64) - before
    change = float(difference.mean())
    by_user = np.bincount(np.unique(users, return_inverse=True)[1], difference - change)
    half = 1.96 * float(np.sqrt((by_user**2).sum())) / len(users)
    return Step(cause, float(after.mean()), change, change - half, change + half)


def _in_words(gap: Gap, largest: Step | None) -> str:
    opening = (
        f"In batches of {gap.batch_size:,} the share found among {gap.k} is {format_decimal(gap.in_batch)}, of "
        f"{plural(gap.pairs, 'pair')} of a user and an item; what is served at the rank this stands for, "
        f"K = {gap.k} · {gap.num_items:,} / {gap.batch_size:,} = {gap.rank:,.0f}, is {format_decimal(gap.served)}."
    )
    broken = gap.id_map_p > 0.05
    ids = " Shuffled ids find as much: look at the id map first." if broken else ""
    if largest is None:
        return f"{opening}{ids} No single cause is told apart from chance."
    change = f"{format_signed(largest.change)} {format_interval(largest.low, largest.high)}"
    return f"{opening}{ids} The largest cause: {largest.cause} ({change})."
