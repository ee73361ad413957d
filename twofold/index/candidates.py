"""Candidates → the k best of them: scored anew in one fixed order, and ties decided as in `twofold/topk.py`."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer

from twofold.index.item_mask import ItemMask
from twofold.index.score_kinds import Score, pair_scores
from twofold.ragged import Ragged, chunks
from twofold.topk import NOT_ALLOWED, TopK, packed_keys, packed_scores, tie_order

SPARE: Final = 16  # candidates beyond k: without ties one would do
LINES_MARKED: Final = 64  # lines whose excluded items are marked at once, one byte an item
PAIRS: Final = 2**15  # of query and candidate, scored at once: their vectors stay in the cache
NONE: Final = packed_keys(np.array([NOT_ALLOWED]), np.zeros(1, np.int64))


def first_allowed(
    found: Float32[np.ndarray, "queries candidates"],
    candidates: Int64[np.ndarray, "queries candidates"],
    excluded: Ragged,
    *,
    count: int,
    items: int,
    eligible: ItemMask | None = None,
) -> tuple[Float32[np.ndarray, "queries"], Int64[np.ndarray, "queries kept"]]:
    """The best `count` candidates of each line that are eligible and that it does not exclude, and the last's score.

    Where there are fewer, the tail is -1 and that score -inf: none has been left out. Candidate -1 is none.
    """
    kept = np.full((len(candidates), count), -1, np.int64)
    floor = np.full(len(candidates), NOT_ALLOWED)
    for part in chunks(len(candidates), LINES_MARKED):
        stays = candidates[part] >= 0 if eligible is None else eligible.holds(candidates[part])
        own = excluded.part(part)
        if len(own.values):
            is_out = np.zeros((part.stop - part.start, items), bool)
            is_out[own.lines, own.values] = True
            stays &= ~np.take_along_axis(is_out, candidates[part], axis=1)
        first = np.argsort(~stays, axis=1, kind="stable")[:, :count]  # those that stay, in their order
        is_one = np.take_along_axis(stays, first, axis=1)
        kept[part, : first.shape[1]] = np.where(is_one, np.take_along_axis(candidates[part], first, axis=1), -1)
        if first.shape[1] == count:
            last = np.take_along_axis(found[part], first[:, -1:], axis=1)
            floor[part] = np.where(is_one[:, -1], last[:, 0], NOT_ALLOWED)
    return floor, kept


def rescore_and_sort(
    vectors: Float32[np.ndarray, "items dim"],
    queries: Float32[np.ndarray, "queries dim"],
    *,
    lines: Int64[np.ndarray, "pairs"],
    rows: Int64[np.ndarray, "pairs"],
    k: int,
    score: Score,
) -> TopK:
    """The k best of each query's candidates: pair i is query `lines[i]`, which rises, and item row `rows[i]`."""
    scores = np.empty(len(rows), np.float32)
    for part in chunks(len(rows), PAIRS):
        scores[part] = pair_scores(vectors.take(rows[part], axis=0), queries.take(lines[part], axis=0), score)
    rank, row_of_rank = tie_order(max(1, len(vectors)))
    sizes = np.bincount(lines, minlength=len(queries))
    keys = np.repeat(NONE, len(queries) * max(k, int(sizes.max(initial=0)))).reshape(len(queries), -1)
    keys[lines, np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)] = packed_keys(scores, rank[rows])
    keys = np.sort(keys, axis=1)[:, : -k - 1 : -1]
    counts = np.minimum(sizes, k)
    item_rows = np.where(np.arange(k) < counts[:, None], row_of_rank[keys & 0xFFFFFFFF], -1)
    return TopK(item_rows, packed_scores(keys), counts)


def only_where(ragged: Ragged, values: Integer[np.ndarray, "length"], keep: Bool[np.ndarray, "length"]) -> Ragged:
    """These values in the lines of `ragged`, where `keep` says so."""
    if keep.all():
        return Ragged(values, ragged.offsets)
    return Ragged(values[keep], np.concatenate([[0], np.cumsum(keep)])[ragged.offsets])
