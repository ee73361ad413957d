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

from twofold.errors import RequestError
from twofold.ragged import Ragged, chunks
from twofold.topk import NOT_ALLOWED, packed_keys, packed_scores, tie_order

ScoreBlock = Callable[[slice], Float32[np.ndarray, "queries items"]]
"""Scores of a slice of the judged users against the whole catalogue; the caller may overwrite the array."""

_Waiting = list[tuple[np.ndarray, np.ndarray]]  # lines and keys found in each block, as many of one as of the other
_ITEMS: Final = 8192  # columns of a block: with 512 users its scores take 16 MiB
_USERS: Final = 512
_CELLS: Final = 2**18  # keys sorted at once: 2 MiB, within the cache
_PAIRS: Final = 2**16  # vectors gathered at once


@dataclass(frozen=True)
class Products:
    """Scores that are inner products of users' and items' vectors: a ScoreBlock that can also be asked by item blocks.

    RequestError where a vector holds NaN or infinity.
    """

    queries: Float32[np.ndarray, "users dim"]
    factors: Float32[np.ndarray, "items dim"]

    def __post_init__(self) -> None:
        for name, vectors in (("user", self.queries), ("item", self.factors)):
            sums = vectors.sum(axis=1)
            if not np.isfinite(sums).all():
                row = int(np.argmin(np.isfinite(sums)))
                raise RequestError(
                    f"the {name} vector of line {row} holds NaN or infinity: the model has diverged. Lower "
                    f"train.learning_rate, or look for NaN in the {name}s' features."
                )

    def __call__(self, users: slice) -> Float32[np.ndarray, "queries items"]:
        """Scores of these users against everything."""
        scores: Float32[np.ndarray, "queries items"] = self.queries[users] @ self.factors.T
        return scores

    def pairs(
        self, lines: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """Scores pair by pair."""
        scores = np.empty(len(lines), np.float32)
        for part in chunks(len(lines), _PAIRS):
            scores[part] = np.vecdot(self.queries[lines[part]], self.factors[item_rows[part]])
        return scores


def rank_products(products: Products, users: slice, k: int, *, excluded: Ragged) -> Int64[np.ndarray, "queries k"]:
    """Item rows of these users by falling score, without each line's `excluded`; -1 where fewer than k are left."""
    queries, num_items = products.queries[users], len(products.factors)
    # One for all blocks: fresh pages cost as much as the product.
    buffer = np.empty(len(queries) * min(max(_first_items(k), _ITEMS), num_items), np.float32)

    def score_items(items: slice) -> Float32[np.ndarray, "queries block"]:
        width = items.stop - items.start
        out = buffer[: len(queries) * width].reshape(len(queries), width)
        return np.matmul(queries, products.factors[items].T, out=out)

    return _running_top_k(score_items, k, num_items=num_items, excluded=excluded)


def rank_rows(
    scores: Float32[np.ndarray, "queries items"], k: int, *, excluded: Ragged
) -> Int64[np.ndarray, "queries k"]:
    """The same for whole rows of scores; writes over excluded ones."""
    return _running_top_k(lambda items: scores[:, items], k, num_items=scores.shape[1], excluded=excluded)


def users_at_once(num_users: int) -> list[slice]:
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
    for part in chunks(queries, max(1, _CELLS // first)):
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
