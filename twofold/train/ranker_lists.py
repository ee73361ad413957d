"""Candidates of the ranker's training requests, drawn anew for every step."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from twofold.candidate_sources import ranks_in
from twofold.dataset.dataset import Dataset
from twofold.recipe.ranker import Candidates
from twofold.train.ranker_examples import Requests


@dataclass(frozen=True)
class CandidateLists:
    """Candidates of some requests, one row per request, the positive first."""

    item_rows: Int64[np.ndarray, "queries length"]
    ranks: Int64[np.ndarray, "queries length _"]
    """Ranks in the list of the retriever and of each source, from 0; `top` for an item that is not there."""
    competing: Bool[np.ndarray, "queries length"]
    """False for a candidate that does not exist or that the user likes."""
    added: Float32[np.ndarray, "queries length"] | None = None
    """Additions to the retriever's scores; `None` means that the retriever has none."""


def draw_lists(
    requests: Requests,
    dataset: Dataset,
    which: Int64[np.ndarray, "queries"],
    config: Candidates,
    *,
    rng: np.random.Generator,
) -> CandidateLists:
    """Draws candidates for these requests: the positive, then `num_retrieved` items of the ranks [skip_top,
    num_candidates), uniformly and with replacement. Items that the user likes may be drawn, but do not compete.
    """
    rows = dataset.examples["train"].take(requests.examples[which])
    best = requests.best[which]
    drawn_ranks = rng.integers(config.skip_top, config.num_candidates, (len(which), config.num_retrieved))
    retrieved = np.take_along_axis(best, drawn_ranks, axis=1)
    drawn = np.hstack([rows.item_rows[:, None], retrieved]).astype(np.int64)
    lines = np.broadcast_to(np.arange(len(which))[:, None], drawn.shape)
    competing = (drawn >= 0) & ~requests.liked.of(rows.user_rows).contains(lines, drawn)
    competing[:, 0] = True
    item_rows = np.maximum(drawn, 0)
    ranks, positions, top = requests.ranks[which], ranks_in(best, item_rows)[:, :, None], config.num_candidates
    places = np.minimum(positions, top - 1)
    own, added = np.take_along_axis(ranks, places, axis=1).astype(np.int64), None
    if requests.has_additions:
        added = np.take_along_axis(requests.added[which], places[:, :, 0], axis=1) * (positions[:, :, 0] < top)
    return CandidateLists(item_rows, np.where(positions < top, own, top), competing, added)
