"""Two-stage recommendation: the retriever finds candidates, and the ranker, if there is one, reorders the best of them.

The order is that of the evaluation (`twofold/evaluate/scores.py`): the ranker's candidates are the retriever's `top`
best allowed items; they come first in the ranker's order, with ties in the fixed order; all other items follow in the
retriever's order. The ranker's scores of one request alone may differ in the last bits from those within a batch; the
retriever's do not.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from twofold.dataset.histories import count_items
from twofold.dataset.tower_inputs import Queries, user_inputs
from twofold.index.item_mask import ItemMask
from twofold.index.score_kinds import items_as_products, queries_as_products
from twofold.index.search import Neighbors, search
from twofold.ragged import Ragged, chunks
from twofold.serve.bundle import Bundle
from twofold.serve.onnx_models import Ranker
from twofold.topk import NOT_ALLOWED, Additions, packed_keys, tie_order

CHUNK_PAIRS: Final = 2**14  # pairs of request and candidate scored by the ranker at once: a few MB


@dataclass(frozen=True)
class EncodedUsers:
    """Vectors of the users of a request: queries of the index, and outputs of the ranker's user encoder, if any."""

    vectors: Float32[np.ndarray, "batch dim"]
    ranker_vectors: Float32[np.ndarray, "batch _"] | None
    repeats: Additions | None = None
    """Additions to the scores of items that the users met before; `None` means none."""


@dataclass(frozen=True)
class RankedItems:
    """Item rows by falling score, padded with -1 and score -inf, as in `Neighbors`.

    With a ranker the scores are the ranker's, and `retrieved` holds the retriever's scores and ranks, from 1. Items
    beyond the ranker's candidates score lower than the last candidate, by as much as in the retriever's scores.
    """

    item_rows: Int64[np.ndarray, "batch k"]
    scores: Float32[np.ndarray, "batch k"]
    counts: Int64[np.ndarray, "batch"]
    retrieved: tuple[Float32[np.ndarray, "batch k"], Int64[np.ndarray, "batch k"]] | None = None


def encode_users(bundle: Bundle, queries: Queries) -> EncodedUsers:
    """Encodes users as the evaluation does; inputs that both stages read are computed once."""
    inputs = user_inputs(bundle.features, bundle.user_arrays, queries)
    ranker_vectors = None if bundle.ranker is None else bundle.ranker.user.vectors(inputs)
    return EncodedUsers(bundle.tower.vectors(inputs), ranker_vectors, _repeats_of(bundle, queries))


def _repeats_of(bundle: Bundle, queries: Queries) -> Additions | None:
    if not bundle.repeats.weight or bundle.repeats.length == 0:
        return None
    rows, met = count_items(queries.positives[:, -bundle.repeats.length :])
    return Additions(rows, np.float32(bundle.repeats.weight) * met)


def retrieve_and_rank(
    bundle: Bundle, users: EncodedUsers, k: int, *, allowed: ItemMask | None = None, excluded: Ragged | None = None
) -> RankedItems:
    """Returns the k best items of each user, among the allowed ones without the excluded."""
    depth, repeats = num_to_retrieve(bundle, k), users.repeats
    found = search(bundle.index, users.vectors, depth, allowed=allowed, excluded=excluded, added=repeats)
    return rank(bundle, users, found, k)


def num_to_retrieve(bundle: Bundle, k: int) -> int:
    """Returns how many items the retriever must find: k, or the ranker's number of candidates if that is larger."""
    return k if bundle.ranker is None else min(max(k, bundle.ranker.top), max(len(bundle.items), 1))


def rank(bundle: Bundle, users: EncodedUsers, found: Neighbors, k: int) -> RankedItems:
    """Returns the k best of the retrieved items, reordered by the ranker if there is one."""
    if bundle.ranker is None:
        return RankedItems(found.item_rows, found.scores, found.counts)
    return _truncate(_reorder(bundle, bundle.ranker, users, found), k)


def _reorder(bundle: Bundle, ranker: Ranker, users: EncodedUsers, found: Neighbors) -> RankedItems:
    assert users.ranker_vectors is not None
    score, top = bundle.index.score, min(ranker.top, found.item_rows.shape[1])
    candidates, retriever_scores = np.maximum(found.item_rows[:, :top], 0), found.scores[:, :top]
    scores = np.empty(candidates.shape, np.float32)
    for part in chunks(len(candidates), max(1, CHUNK_PAIRS // max(1, top))):
        rows = candidates[part]
        factors = items_as_products(bundle.index.vectors[rows.ravel()], score).reshape(*rows.shape, -1)
        queries = queries_as_products(users.vectors[part], score)
        scores[part] = ranker.scores(users.ranker_vectors[part], rows, queries, factors)
    is_item = found.item_rows[:, :top] >= 0
    scores[~is_item] = NOT_ALLOWED
    tie_rank, _ = tie_order(max(1, len(bundle.items)))
    order = np.argsort(packed_keys(scores, tie_rank[candidates]), axis=1)[:, ::-1]  # the padding comes last
    # The other items score as far below the last candidate as in the retriever's scores.
    shift = np.where(is_item, scores, np.inf).min(axis=1) - np.where(is_item, retriever_scores, np.inf).min(axis=1)
    rest = np.where(found.item_rows[:, top:] >= 0, found.scores[:, top:] + shift[:, None], NOT_ALLOWED)
    positions = np.hstack([order, np.tile(np.arange(top, found.item_rows.shape[1]), (len(order), 1))])
    return RankedItems(
        np.take_along_axis(found.item_rows, positions, axis=1),
        np.hstack([np.take_along_axis(scores, order, axis=1), rest]).astype(np.float32),
        found.counts,
        (np.take_along_axis(found.scores, positions, axis=1), positions + 1),
    )


def _truncate(ranked: RankedItems, k: int) -> RankedItems:
    assert ranked.retrieved is not None
    scores, ranks = ranked.retrieved
    counts = np.minimum(ranked.counts, k)
    return RankedItems(ranked.item_rows[:, :k], ranked.scores[:, :k], counts, (scores[:, :k], ranks[:, :k]))
