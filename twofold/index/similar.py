"""Similar items: those with the nearest vectors, by cosine where the score of the index is an inner product.

An inner product grows with the length of a vector, and popular items have long ones: on a synthetic log of a shop, 27 %
of the items with the largest inner products were among the 20 most popular ones, 3.5 % of those with the largest
cosines.
"""

from functools import partial

import numpy as np
from jaxtyping import Float32

from twofold.index.exact import candidates_above_threshold
from twofold.index.item_index import Index
from twofold.index.item_mask import ItemMask
from twofold.index.score_kinds import pair_scores
from twofold.index.search import Neighbors, search
from twofold.ragged import Ragged
from twofold.topk import NOT_ALLOWED, best_of, exclude, tie_order


def search_similar(
    index: Index, vector: Float32[np.ndarray, "1 dim"], k: int, *, allowed: ItemMask | None, excluded: Ragged
) -> Neighbors:
    """Returns the k allowed items most similar to one vector, by cosine, or by distance where that is the score.

    Cosines of an index of inner products are computed of all items, which takes about 20 ms for a million; a vector of
    length 0 has cosine 0.
    """
    if index.score != "dot":
        return search(index, vector, k, allowed=allowed, excluded=excluded)
    unit = vector / _at_least_tiny(np.linalg.norm(vector, axis=1))[:, None]
    lengths = _at_least_tiny(index.lengths)
    cosines = unit @ index.vectors.T
    cosines /= lengths
    if allowed is not None:
        np.copyto(cosines, NOT_ALLOWED, where=~allowed.mask)
    exclude(cosines, excluded)
    # A product of matrices sums in another order for each place of an item, so equal vectors would not tie.
    slack = np.array([(index.dim + 3) * 2.0**-23], np.float32)
    _, rows = candidates_above_threshold(cosines, k, slack)
    exact = np.asarray(pair_scores(index.vectors[rows], unit, "dot") / lengths[rows], np.float32)
    rank, _ = tie_order(max(1, len(index)))
    best = best_of(rows[None], exact[None], k, rank=rank)
    return Neighbors(best.item_rows, best.scores, best.counts, is_exact=True)


_at_least_tiny = partial(np.maximum, np.finfo(np.float32).tiny)
