"""Reranking by rules: the best candidates of each list are put into an order that satisfies limits, quotas and pins.

Each place is filled in turn with the candidate of highest value among those that the rules admit, so a shorter list is
the beginning of a longer one. Without boosts and diversity the value is the order of the ranking; ties keep it. The
evaluation, the tables of recommendations and the service call this module, so that all have the same lists.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from twofold.ragged import chunks
from twofold.recipe.rerank import Boost, Decay, Diversity, Limit, Pin, Quota, Rerank, RerankRule
from twofold.rule_counts import LimitCounts, Meetings, QuotaCounts
from twofold.topk import NOT_ALLOWED, packed_keys, tie_order

CHUNK_USERS: Final = 64  # lists reordered at a time: their vectors take 13 MB with 200 candidates of 256 dimensions

VectorsOf = Callable[[Int64[np.ndarray, "_"]], Float32[np.ndarray, "_ dim"]]


@dataclass(frozen=True)
class RuleColumns:
    """Columns of the items that rules read: row i of each belongs to item row i."""

    values: Mapping[str, Int32[np.ndarray, "items _"]]
    """Codes of an item's values by column of a limit; -1 means no value."""
    flags: Mapping[str, Bool[np.ndarray, "items"]]
    """Whether a condition is true, by the text of the condition."""


@dataclass(frozen=True)
class RuleItems:
    """Items as rules see them: their columns, and a function from item rows to vectors."""

    columns: RuleColumns
    vectors_of: VectorsOf


@dataclass(frozen=True)
class Candidates:
    """Candidates of each list: `num_ranked` columns in the order of the ranking, then those found for quotas and pins.

    Item rows are -1 and scores -inf where there is no item.
    """

    item_rows: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]
    is_guaranteed: Bool[np.ndarray, "queries k"]
    """Whether an item may be placed wherever it ranks, because a quota or a pin asks for it."""
    num_ranked: int
    hours_since: Float64[np.ndarray, "queries k"] | None = None
    """Hours since the user saw the item, as in `Meetings`; `None` means that no rule reads them."""

    def part(self, users: slice) -> "Candidates":
        """Returns the candidates of some lists."""
        hours = None if self.hours_since is None else self.hours_since[users]
        return Candidates(self.item_rows[users], self.scores[users], self.is_guaranteed[users], self.num_ranked, hours)

    def with_meetings(self, met: Meetings | None) -> "Candidates":
        """Adds the hours since the user saw each item; `None` means that no rule reads them."""
        return self if met is None else replace(self, hours_since=met.hours_since(self.item_rows))

    def take(self, positions: Int64[np.ndarray, "queries k"]) -> "Candidates":
        """Returns the candidates in another order, the first of which are the ranking's."""
        item_rows, scores, is_guaranteed = (
            np.take_along_axis(each, positions, axis=1) for each in (self.item_rows, self.scores, self.is_guaranteed)
        )
        return Candidates(item_rows, scores, is_guaranteed, self.num_ranked)


@dataclass(frozen=True)
class Reordered:
    """New order of the candidates: their positions before, -1 after the last item; and the rules that moved them."""

    positions: Int64[np.ndarray, "queries k"]
    moved_by: Int64[np.ndarray, "queries k"]
    """Bit i is set where rule i moved the item; 0 where only other items moved."""


def guaranteed(rules: Sequence[RerankRule]) -> list[tuple[str, int]]:
    """Returns each condition whose best items are candidates wherever they rank, with the number of these items.

    Items that a pin keeps for another place may be among them, so there are as many more.
    """
    counts: dict[str, int] = {}
    places = [rule.place for rule in rules if isinstance(rule, Pin) and rule.item is not None]
    for rule in rules:
        if isinstance(rule, Quota):
            later = sum(place > rule.first for place in places)
            counts[rule.when] = counts.get(rule.when, 0) + rule.at_least + later
        elif isinstance(rule, Pin):
            elsewhere = len(places) if rule.item is None else 0
            counts[rule.condition] = counts.get(rule.condition, 0) + 1 + elsewhere
    return list(counts.items())


def with_guaranteed(
    item_rows: Int64[np.ndarray, "queries k"],
    scores: Float32[np.ndarray, "queries k"],
    found: Sequence[tuple[Int64[np.ndarray, "queries _"], Float32[np.ndarray, "queries _"]]],
) -> Candidates:
    """Appends the items found for `guaranteed` conditions, each once, to the retrieved ones."""
    is_guaranteed, num_ranked = np.zeros(item_rows.shape, bool), item_rows.shape[1]
    for rows, own_scores in found:
        is_same = (item_rows[:, :, None] == rows[:, None, :]) & (rows >= 0)[:, None, :]
        is_known = is_same.any(axis=1)
        is_guaranteed = np.hstack([is_guaranteed | is_same.any(axis=2), ~is_known & (rows >= 0)])
        item_rows = np.hstack([item_rows, np.where(is_known, -1, rows)])
        scores = np.hstack([scores, np.where(is_known, NOT_ALLOWED, own_scores)])
    return Candidates(item_rows, scores, is_guaranteed, num_ranked)


def merge_stages(
    candidates: Candidates, ranker_scores: Float32[np.ndarray, "queries _"], *, num_items: int
) -> tuple[Candidates, Int64[np.ndarray, "queries k"]]:
    """Reorders the first candidates by the ranker's scores; returns them with the positions that they had.

    The other items follow in the retriever's order: their scores are as far below that of the last candidate as in the
    retriever's scores, or, where the retriever prefers them to a candidate of another source, as below the first of
    them. Equal scores keep the fixed order of ties.
    """
    top, rows = ranker_scores.shape[1], candidates.item_rows
    is_item = rows[:, :top] >= 0
    scores = np.where(is_item, ranker_scores, NOT_ALLOWED)
    tie_rank, _ = tie_order(max(1, num_items))
    order = np.argsort(packed_keys(scores, tie_rank[np.maximum(rows[:, :top], 0)]), axis=1)[:, ::-1]  # padding last
    lowest = np.where(is_item, candidates.scores[:, :top], np.inf).min(axis=1)
    lowest = np.maximum(lowest, candidates.scores[:, top:].max(axis=1, initial=NOT_ALLOWED))
    last = np.where(is_item, scores, np.inf).min(axis=1)
    distance = candidates.scores[:, top:] - lowest[:, None]  # first, so that no rounding lifts an item above the last
    rest = np.where(rows[:, top:] >= 0, last[:, None] + distance, NOT_ALLOWED)
    positions = np.hstack([order, np.tile(np.arange(top, rows.shape[1]), (len(order), 1))])
    merged_scores = np.hstack([np.take_along_axis(scores, order, axis=1), rest]).astype(np.float32)
    return replace(candidates.take(positions), scores=merged_scores), positions


def reorder(config: Rerank, items: RuleItems, candidates: Candidates, k: int, *, explain: bool = False) -> Reordered:
    """Returns the order of the first k places under the rules; blocked items are not among the candidates.

    The first `num_candidates` items and the guaranteed ones are reordered; all others follow in their order.
    `moved_by` is all 0 unless `explain`.
    """
    parts = [
        _reorder(config, items, candidates.part(part), k=k, explain=explain)
        for part in chunks(len(candidates.item_rows), CHUNK_USERS)
    ]
    if not parts:
        return Reordered(np.empty((0, k), np.int64), np.empty((0, k), np.int64))
    return Reordered(np.concatenate([p.positions for p in parts]), np.concatenate([p.moved_by for p in parts]))


def _reorder(config: Rerank, items: RuleItems, candidates: Candidates, *, k: int, explain: bool) -> Reordered:
    rows, width = candidates.item_rows, candidates.item_rows.shape[1]
    reach = min(config.num_candidates, candidates.num_ranked)
    is_candidate = (rows >= 0) & ((np.arange(width) < reach) | candidates.is_guaranteed)
    places = min(k, config.num_candidates, width)
    greedy = _Greedy(config, items, candidates, is_candidate=is_candidate, explain=explain)
    placed = greedy.places(places)
    # After them: what was not placed, in the order of the ranking.
    key = np.where(rows >= 0, places + np.arange(width), places + 2 * width)
    query, place = np.nonzero(placed >= 0)
    key[query, placed[query, place]] = place
    positions = np.argsort(key, axis=1, kind="stable")[:, :k]
    positions = np.where(np.take_along_axis(rows, positions, axis=1) >= 0, positions, -1)
    moved_by = np.take_along_axis(greedy.moved_by, np.maximum(positions, 0), axis=1)
    is_moved = (positions >= 0) & (positions != np.arange(positions.shape[1])) & explain
    return Reordered(positions, np.where(is_moved, moved_by, 0))


class _Greedy:
    """Lists that are being filled, place by place. Arrays have a row per list and a column per candidate."""

    def __init__(
        self,
        config: Rerank,
        items: RuleItems,
        candidates: Candidates,
        *,
        is_candidate: Bool[np.ndarray, "queries k"],
        explain: bool,
    ) -> None:
        """Reads the columns of the candidates; no place is filled yet."""
        rows, numbered, columns = np.maximum(candidates.item_rows, 0), list(enumerate(config.rules)), items.columns
        self._free, self._explain, self._lists = is_candidate.copy(), explain, np.arange(len(rows))
        self.moved_by = np.zeros(rows.shape, np.int64)
        self._worth = _relevance(candidates, min(config.num_candidates, candidates.num_ranked))
        for number, rule in numbered:
            if isinstance(rule, Boost):
                flags = columns.flags[rule.when][rows]
                self._worth += rule.add * flags
                self.moved_by |= flags.astype(np.int64) << number
            elif isinstance(rule, Decay) and candidates.hours_since is not None:  # else nothing was seen
                self._worth -= rule.subtract * np.exp2(-candidates.hours_since / rule.half_life_hours)
                self.moved_by |= np.isfinite(candidates.hours_since).astype(np.int64) << number
        self._limits = [
            (n, LimitCounts(r, columns.values[r.column][rows])) for n, r in numbered if isinstance(r, Limit)
        ]
        self._quotas = [(n, QuotaCounts(r, columns.flags[r.when][rows])) for n, r in numbered if isinstance(r, Quota)]
        self._pins = {r.place: (n, columns.flags[r.condition][rows]) for n, r in numbered if isinstance(r, Pin)}
        self._own_places = [r.place for r in config.rules if isinstance(r, Pin) and r.item is not None]
        reserved = [self._pins[place][1] for place in self._own_places]
        self._reserved = np.any(reserved, axis=0) if reserved else None
        self._mmr = next(((n, r.trade_off) for n, r in numbered if isinstance(r, Diversity)), None)
        if self._mmr is not None:
            vectors = np.ascontiguousarray(items.vectors_of(rows.ravel()), np.float32).reshape(*rows.shape, -1)
            length = np.sqrt(np.vecdot(vectors, vectors))[..., None]
            self._vectors = vectors / np.maximum(length, np.finfo(np.float32).tiny)
            self._nearest = np.zeros(rows.shape, np.float32)

    def places(self, count: int) -> Int64[np.ndarray, "queries _"]:
        """Fills the first places; returns the position of the candidate of each, -1 if none is left.

        Where no rule but boosts is left, the rest is sorted at once: a place takes 5 µs and more, one by one.
        """
        last = max([quota.first for _, quota in self._quotas] + [*self._pins], default=0)
        one_by_one = count if self._limits or self._mmr is not None else min(last, count)
        placed = [self._fill(place)[:, None] for place in range(one_by_one)]
        order = np.argsort(np.where(self._free, -self._worth, np.inf), axis=1, kind="stable")[:, : count - one_by_one]
        return np.hstack([*placed, np.where(np.take_along_axis(self._free, order, axis=1), order, -1)])

    def _fill(self, place: int) -> Int64[np.ndarray, "queries"]:
        """Fills the place, from 0; returns the position of the candidate that each list gets, -1 if none is left."""
        value = self._worth
        if self._mmr is not None:
            value = (1 - self._mmr[1]) * value - self._mmr[1] * self._nearest
        ordinary = self._free if self._reserved is None else self._free & ~self._reserved
        full = [limit.is_full() for _, limit in self._limits]
        unlimited = ordinary & ~np.logical_or.reduce(full) if full else ordinary
        needed, is_urgent = self._needed(place)
        pin = self._pins.get(place + 1)
        options = [] if pin is None else [(self._free if place + 1 in self._own_places else ordinary) & pin[1]]
        options += [] if needed is None else [unlimited & needed, ordinary & needed]
        options += [unlimited, ordinary, self._free] if full else [ordinary, self._free]
        chosen = np.where(_first_possible(options), value, -np.inf).argmax(axis=1)
        is_filled = np.asarray(self._free.any(axis=1))
        if self._explain:
            pin = (0, np.zeros_like(self._free)) if pin is None else pin
            self._explain_choice(chosen, value, full=full, unlimited=unlimited, pin=pin, is_urgent=is_urgent)
        self._place(chosen, is_filled, is_first=place == 0)
        return np.where(is_filled, chosen, -1)

    def _needed(self, place: int) -> tuple[Bool[np.ndarray, "queries k"] | None, list[Bool[np.ndarray, "queries"]]]:
        """Returns the candidates that quotas admit to this place (`None` means all), and for each quota the lists where
        it decides: once as many places are left as it, and those that end earlier, still need.
        """
        is_urgent = [np.zeros(len(self._lists), bool) for _ in self._quotas]
        open_ = [quota for _, quota in self._quotas if quota.first > place]
        left = min((self._places_left(place, quota.first) for quota in open_), default=1)
        if sum(quota.most_missing for quota in open_) < left:  # whatever candidates there are
            return None, is_urgent
        admitted = np.ones_like(self._free)
        missing = [quota.missing(self._free) * (place < quota.first) for _, quota in self._quotas]
        for end in sorted({quota.first for quota in open_}, reverse=True):
            within = [number for number, (_, quota) in enumerate(self._quotas) if quota.first <= end]
            decides = np.sum([missing[n] for n in within], axis=0) >= self._places_left(place, end)
            wanted = [self._quotas[number][1].flags & (missing[number] > 0)[:, None] for number in within]
            admitted = np.where(decides[:, None], np.any(wanted, axis=0), admitted)
            for number in within:
                is_urgent[number] |= decides & (missing[number] > 0)
        return admitted, is_urgent

    def _places_left(self, place: int, end: int) -> int:
        return max(end - place - sum(place < each <= end for each in self._pins), 1)

    def _place(
        self, chosen: Int64[np.ndarray, "queries"], is_filled: Bool[np.ndarray, "queries"], *, is_first: bool
    ) -> None:
        self._free[self._lists, chosen] = False
        for _, limit in self._limits:
            limit.place(chosen, is_filled)
        for _, quota in self._quotas:
            quota.place(chosen, is_filled)
        if self._mmr is not None:
            cosines = np.vecdot(self._vectors, self._vectors[self._lists, chosen][:, None])
            self._nearest = cosines if is_first else np.maximum(self._nearest, cosines)

    def _explain_choice(
        self,
        chosen: Int64[np.ndarray, "queries"],
        value: Float64[np.ndarray, "queries k"],
        *,
        full: list[Bool[np.ndarray, "queries k"]],
        unlimited: Bool[np.ndarray, "queries k"],
        pin: tuple[int, Bool[np.ndarray, "queries k"]],
        is_urgent: list[Bool[np.ndarray, "queries"]],
    ) -> None:
        """Marks the rules by which a candidate got the place, or did not although its value is higher."""
        own = value[self._lists, chosen][:, None]
        is_passed_over = self._free & (value > own)
        bits = np.zeros(len(chosen), np.int64)
        for (number, _), is_full in zip(self._limits, full, strict=True):
            self.moved_by |= (is_passed_over & is_full).astype(np.int64) << number
        is_pinned = pin[1][self._lists, chosen]
        bits |= is_pinned.astype(np.int64) << pin[0]
        has_better = (is_passed_over & unlimited).any(axis=1) & ~is_pinned
        for (number, quota), urgent in zip(self._quotas, is_urgent, strict=True):
            bits |= (urgent & has_better & quota.flags[self._lists, chosen]).astype(np.int64) << number
        if self._mmr is not None:
            is_less_alike = self._free & (self._worth > self._worth[self._lists, chosen][:, None]) & (value <= own)
            self.moved_by |= is_less_alike.astype(np.int64) << self._mmr[0]
            bits |= is_less_alike.any(axis=1).astype(np.int64) << self._mmr[0]
        self.moved_by[self._lists, chosen] |= bits


def _relevance(candidates: Candidates, num_candidates: int) -> Float64[np.ndarray, "queries k"]:
    """Returns the scores, scaled to 1 for the first and 0 for the last of `num_candidates`; further items are below."""
    scores, is_item = candidates.scores.astype(np.float64), candidates.item_rows >= 0
    first, is_first = scores[:, :num_candidates], is_item[:, :num_candidates]
    low = np.where(is_first, first, np.inf).min(axis=1, keepdims=True)
    high = np.where(is_first, first, -np.inf).max(axis=1, keepdims=True)
    return np.where(is_item, (scores - low) / np.where(high > low, high - low, 1.0), 0.0)


def _first_possible(options: Sequence[Bool[np.ndarray, "queries k"]]) -> Bool[np.ndarray, "queries k"]:
    """Returns for each list the first of these sets of candidates that is not empty; the last one if all are."""
    chosen = options[0]
    for option in options[1:]:
        is_empty = np.asarray(~chosen.any(axis=1))
        if not is_empty.any():
            break
        chosen = np.where(is_empty[:, None], option, chosen)
    return chosen
