"""Who asks → what they are answered: the retriever finds, and the ranker, where there is one, orders what is best.

As it is judged (`twofold/evaluate/two_stages.py`): the ranker's candidates are the retriever's `top` best that may be
answered; they come first in the ranker's order, equal ones in the fixed order of ties; all others follow in the
retriever's. What the graph of the ranker computes for one request alone may differ from the same in a batch in the last
bits, unlike the retriever's scores.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from twofold.dataset.features import Queries, user_inputs
from twofold.index.item_mask import ItemMask
from twofold.index.score_kinds import items_as_products, queries_as_products
from twofold.index.search import Neighbours, search
from twofold.ragged import Ragged, chunks
from twofold.serve.bundle import Bundle
from twofold.serve.onnx_models import Ranker
from twofold.topk import NOT_ALLOWED, packed_keys, tie_order

PAIRS: Final = 2**14  # of request and candidate, ranked at once: some MB


@dataclass(frozen=True)
class EncodedUsers:
    """Requests as vectors: what the index is searched with, and what the ranker's user encoder says, if any."""

    vectors: Float32[np.ndarray, "batch dim"]
    users: Float32[np.ndarray, "batch wide"] | None


@dataclass(frozen=True)
class RankedItems:
    """Item rows by falling score, the tail -1 with score -inf, as `Neighbours`.

    With a ranker the scores are its own, and `retrieved` holds those of the retriever and its ranks, from 1. Where more
    is asked for than it ranks, the rest has scores below by as much as the retriever sees it behind its candidates.
    """

    item_rows: Int64[np.ndarray, "batch k"]
    scores: Float32[np.ndarray, "batch k"]
    counts: Int64[np.ndarray, "batch"]
    retrieved: tuple[Float32[np.ndarray, "batch k"], Int64[np.ndarray, "batch k"]] | None = None


def encode_users(bundle: Bundle, queries: Queries) -> EncodedUsers:
    """The vectors that evaluation judges, for the same histories; what both stages read is computed once."""
    inputs = user_inputs(bundle.features, bundle.user_arrays, queries)
    users = None if bundle.ranker is None else bundle.ranker.user.vectors(inputs)
    return EncodedUsers(bundle.tower.vectors(inputs), users)


def answer(
    bundle: Bundle, asked: EncodedUsers, k: int, *, allowed: ItemMask | None = None, excluded: Ragged | None = None
) -> RankedItems:
    """The k best allowed items of each request that it does not exclude."""
    found = search(bundle.index, asked.vectors, wanted_of(bundle, k), allowed=allowed, excluded=excluded)
    return rank(bundle, asked, found, k)


def wanted_of(bundle: Bundle, k: int) -> int:
    """How many the first stage must find: as many as are wanted, or as the second is to order."""
    return k if bundle.ranker is None else min(max(k, bundle.ranker.top), max(len(bundle.items), 1))


def rank(bundle: Bundle, asked: EncodedUsers, found: Neighbours, k: int) -> RankedItems:
    """The k best of what was found."""
    if bundle.ranker is None:
        return RankedItems(found.item_rows, found.scores, found.counts)
    return _cut(_ranked(bundle, bundle.ranker, asked, found), k)


def _ranked(bundle: Bundle, ranker: Ranker, asked: EncodedUsers, found: Neighbours) -> RankedItems:
    assert asked.users is not None
    score, top = bundle.index.score, min(ranker.top, found.item_rows.shape[1])
    candidates, first = np.maximum(found.item_rows[:, :top], 0), found.scores[:, :top]
    scores = np.empty(candidates.shape, np.float32)
    for part in chunks(len(candidates), max(1, PAIRS // max(1, top))):
        rows = candidates[part]
        held = items_as_products(bundle.index.vectors[rows.ravel()], score).reshape(*rows.shape, -1)
        scores[part] = ranker.scores(asked.users[part], rows, queries_as_products(asked.vectors[part], score), held)
    is_one = found.item_rows[:, :top] >= 0
    scores[~is_one] = NOT_ALLOWED
    rank, _ = tie_order(max(1, len(bundle.items)))
    order = np.argsort(packed_keys(scores, rank[candidates]), axis=1)[:, ::-1]  # those that are none come last
    # The rest stands as far below the last candidate as the retriever sees it below its own last.
    lowest = np.where(is_one, scores, np.inf).min(axis=1) - np.where(is_one, first, np.inf).min(axis=1)
    rest = np.where(found.item_rows[:, top:] >= 0, found.scores[:, top:] + lowest[:, None], NOT_ALLOWED)
    places = np.hstack([order, np.tile(np.arange(top, found.item_rows.shape[1]), (len(order), 1))])
    return RankedItems(
        np.take_along_axis(found.item_rows, places, axis=1),
        np.hstack([np.take_along_axis(scores, order, axis=1), rest]).astype(np.float32),
        found.counts,
        (np.take_along_axis(found.scores, places, axis=1), places + 1),
    )


def _cut(found: RankedItems, k: int) -> RankedItems:
    assert found.retrieved is not None
    scores, ranks = found.retrieved
    counts = np.minimum(found.counts, k)
    return RankedItems(found.item_rows[:, :k], found.scores[:, :k], counts, (scores[:, :k], ranks[:, :k]))
