"""The best items of every judged user, in user × item blocks with a running top k: memory does not grow with the
catalogue.

After a first block has set each user's k-th best score, a block of items costs its product and one comparison: of N
items about k · ln(N) are ever looked at again. The whole row of scores is never held, nor sorted. Ties are decided as
in `twofold/topk.py`, so the answer equals `top_k` over the whole row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from twofold.ragged import Ragged, chunks
from twofold.topk import NOT_ALLOWED, Products, packed_keys, packed_scores, tie_order

ScoreBlock = Callable[[slice], Float32[np.ndarray, "queries items"]]
"""Scores of a slice of the judged users against the whole catalogue; the caller may overwrite the array."""

ScorePairs = Callable[
    [Int64[np.ndarray, "queries"], Int64[np.ndarray, "queries length"], Int64[np.ndarray, "queries length"]],
    Float32[np.ndarray, "queries length"],
]
"""Scores of the second stage: lines of the window, item rows of each, and where the first stage places them, from 0; as
many as it was asked for where it did not find them."""
FIRST_STAGE: Final = "retriever alone"
"""The row of a report that both stages are compared with."""
CHUNK_PAIRS: Final = 2**15  # scored at once

_Waiting = list[tuple[np.ndarray, np.ndarray]]  # lines and keys found in each block, as many of one as of the other
_ITEMS: Final = 8192  # columns of a block: with 512 users its scores take 16 MiB
_USERS: Final = 512
CHUNK_ELEMENTS: Final = 2**18  # keys sorted at once: 2 MiB, within the cache


def rank_products(products: Products, users: slice, k: int, *, excluded: Ragged) -> Int64[np.ndarray, "queries k"]:
    """Item rows of these users by falling score, without each line's `excluded`; -1 where fewer than k are left."""
    queries, num_items = products.queries[users], len(products.items)
    # One for all blocks: fresh pages cost as much as the product.
    buffer = np.empty(len(queries) * min(max(_first_items(k), _ITEMS), num_items), np.float32)

    def score_items(items: slice) -> Float32[np.ndarray, "queries block"]:
        width = items.stop - items.start
        out = buffer[: len(queries) * width].reshape(len(queries), width)
        return np.matmul(queries, products.items[items].T, out=out)

    return _running_top_k(score_items, k, num_items=num_items, excluded=excluded)


def rank_rows(
    scores: Float32[np.ndarray, "queries items"], k: int, *, excluded: Ragged
) -> Int64[np.ndarray, "queries k"]:
    """The same for whole rows of scores; writes over excluded ones."""
    return _running_top_k(lambda items: scores[:, items], k, num_items=scores.shape[1], excluded=excluded)


def user_chunks(num_users: int) -> list[slice]:
    """Blocks of users for `rank_products`."""
    return chunks(num_users, _USERS)


def _running_top_k(
    score_items: Callable[[slice], Float32[np.ndarray, "queries block"]], k: int, *, num_items: int, excluded: Ragged
) -> Int64[np.ndarray, "queries k"]:
    rank, row_of_rank = tie_order(num_items)
    queries, kept, first = len(excluded.offsets) - 1, min(k, num_items), min(_first_items(k), num_items)
    by_item = np.argsort(excluded.values, kind="stable")
    left_out, lines = excluded.values[by_item], excluded.lines[by_item]

    def allowed_scores(items: slice) -> Float32[np.ndarray, "queries block"]:
        scores, (low, high) = score_items(items), np.searchsorted(left_out, (items.start, items.stop))
        scores[lines[low:high], left_out[low:high] - items.start] = NOT_ALLOWED
        return scores

    best, scores = np.empty((queries, kept), np.int64), allowed_scores(slice(0, first))
    for part in chunks(queries, max(1, CHUNK_ELEMENTS // first)):
        keys = packed_keys(scores[part], rank[:first])
        keys.partition(first - kept, axis=1)
        best[part] = keys[:, first - kept :]
    waiting: _Waiting = []
    counts = np.zeros(queries, np.int64)
    floor = packed_scores(best.min(axis=1))
    for part in chunks(num_items - first, _ITEMS):
        items = slice(first + part.start, first + part.stop)
        scores = allowed_scores(items)
        found = np.flatnonzero(scores >= floor[:, None])
        line, column = np.divmod(found, items.stop - items.start)
        waiting.append((line, packed_keys(scores.take(found), rank[items].take(column))))
        counts += np.bincount(line, minlength=queries)
        # Merging seldom is cheaper; one user whose scores rise with the row must not fill the memory meanwhile.
        if counts.sum() > queries * kept or counts.max() > max(kept, _ITEMS):
            best, waiting, counts[:] = _merged(best, waiting), [], 0
            floor = packed_scores(best.min(axis=1))
    best = np.sort(_merged(best, waiting), axis=1)[:, ::-1]
    answers = np.full((queries, k), -1)
    answers[:, :kept] = np.where(np.isneginf(packed_scores(best)), -1, row_of_rank[best & 0xFFFFFFFF])
    return answers


def _first_items(k: int) -> int:
    """Items of the first block, which is searched whole: enough that its k-th best score keeps most others out."""
    return max(16 * k, _ITEMS // 4)


def _merged(best: Int64[np.ndarray, "queries kept"], waiting: _Waiting) -> Int64[np.ndarray, "queries kept"]:
    """The largest keys of each line among those held and those that wait, in no order."""
    if not waiting:
        return best
    line, keys = (np.concatenate(each) for each in zip(*waiting, strict=True))
    order = np.argsort(line.astype(np.uint16), kind="stable")  # 16 bits: a radix sort
    counts = np.bincount(line, minlength=len(best))
    width, kept = int(counts.max(initial=0)), best.shape[1]
    place = np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(best), kept + width), np.iinfo(np.int64).min)
    table[:, :kept] = best
    table[line[order], kept + place] = keys[order]
    table.partition(width, axis=1)
    return table[:, width:]


@dataclass(frozen=True)
class TwoStages:
    """A ScoreBlock: the candidates above everything else, in the ranker's order; then all others, in the retriever's.

    So whatever the ranker says, the items it was given stay the first ones: recall at their number is the retriever's.
    """

    retrieved: Products
    found: Int64[np.ndarray, "users top"]
    """Each user's best unseen items by falling score of the retriever, -1 where fewer are left."""
    ranked: Int64[np.ndarray, "users top"]
    """The same as the ranker orders them."""
    score_pairs: ScorePairs

    def __call__(self, users: slice) -> Float32[np.ndarray, "queries items"]:
        """Scores whose order is that of both stages; their size means nothing."""
        scores, chosen = self.retrieved(users), self.ranked[users]
        above = 1 + np.abs(scores).max(initial=0)
        line, place = np.nonzero(chosen >= 0)
        scores[line, chosen[line, place]] = above * (1 + chosen.shape[1] - place)
        return scores

    def pairs(
        self, lines: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """What the ranker says of pairs, found by the retriever or not: impressions are ordered by it alone."""
        return score_impressions(self.found, self.score_pairs, lines, item_rows)


def score_impressions(
    found: Int64[np.ndarray, "users top"],
    score_pairs: ScorePairs,
    lines: Int64[np.ndarray, "pairs"],
    item_rows: Int64[np.ndarray, "pairs"],
) -> Float32[np.ndarray, "pairs"]:
    """What the second stage says of single pairs, whether the first has `found` the item or not."""
    scores = np.empty(len(lines), np.float32)
    for part in chunks(len(lines), CHUNK_PAIRS):
        asked = item_rows[part, None]
        is_it = found[lines[part]] == asked
        places = np.where(is_it.any(axis=1), is_it.argmax(axis=1), found.shape[1])
        scores[part] = score_pairs(lines[part], asked, places[:, None])[:, 0]
    return scores


def find_best(retrieved: Products, *, seen: Ragged, top: int) -> Int64[np.ndarray, "users top"]:
    """Every user's `top` best items that are not `seen`, exactly; -1 where fewer are left."""
    users = len(retrieved.queries)
    found = np.empty((users, min(top, len(retrieved.items))), np.int64)
    for part in user_chunks(users):
        found[part] = rank_products(retrieved, part, found.shape[1], excluded=seen.part(part))
    return found


def rank_in_two_stages(retrieved: Products, score_pairs: ScorePairs, *, seen: Ragged, top: int) -> TwoStages:
    """Finds every user's `top` best items that are not `seen`, exactly, and has the second stage order them.

    Equal scores of the second stage keep the fixed order of ties.
    """
    found, (rank, _) = find_best(retrieved, seen=seen, top=top), tie_order(len(retrieved.items))
    ranked = np.empty_like(found)
    for part in user_chunks(len(found)):
        there = np.maximum(found[part], 0)
        places = np.tile(np.arange(there.shape[1]), (len(there), 1))
        scores = score_pairs(np.arange(part.start, part.stop), there, places)
        order = np.lexsort((-rank[there], np.where(found[part] >= 0, -scores, np.inf)))
        ranked[part] = np.take_along_axis(found[part], order, axis=1)
    return TwoStages(retrieved, found, ranked, score_pairs)
