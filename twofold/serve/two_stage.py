"""Two-stage recommendation: the retriever finds candidates, the ranker, if there is one, reorders the best of them, and
the recipe's rules, if it has any, reorder the result.

The order is that of the evaluation (`twofold/evaluate/scores.py`): the ranker's candidates are the retriever's `top`
best allowed items, or the union of fewer of them with those of further sources (`twofold/candidate_sources.py`). They
come first in the ranker's order, with ties in the fixed order; all other items follow in the retriever's order. The
ranker's scores of one request alone may differ in the last bits from those within a batch; the retriever's do not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from twofold.candidate_sources import MergedCandidates, SourceQueries, merge_sources, ranks_in, source_lists
from twofold.dataset.tower_inputs import Queries, user_inputs
from twofold.index.item_mask import ItemMask
from twofold.index.score_kinds import items_as_products, pair_scores, queries_as_products
from twofold.index.search import Neighbors, search
from twofold.ragged import Ragged, chunks
from twofold.reranking import Candidates, guaranteed, merge_stages, reorder, with_guaranteed
from twofold.rule_counts import Meetings
from twofold.serve.bundle import Bundle, BundleRules
from twofold.serve.onnx_models import Ranker
from twofold.topk import NOT_ALLOWED, Additions, with_additions

CHUNK_PAIRS: Final = 2**14  # pairs of request and candidate scored by the ranker at once: a few MB


@dataclass(frozen=True)
class EncodedUsers:
    """Vectors of the users of a request: queries of the index, and outputs of the ranker's user encoder, if any."""

    vectors: Float32[np.ndarray, "batch dim"]
    ranker_vectors: Float32[np.ndarray, "batch _"] | None
    added: Additions | None = None
    """Additions of the users' histories to the scores of some items; `None` means none."""
    likes: Int32[np.ndarray, "batch length"] | None = None
    """Newest positives, as in `SourceQueries`; `None` means that no source of candidates reads them."""
    met: Meetings | None = None
    """Events of the users; `None` means that no rule reads them."""


@dataclass(frozen=True)
class RankedItems:
    """Item rows, best first, padded with -1 and score -inf, as in `Neighbors`.

    With a ranker the scores are the ranker's, and `retrieved` holds the retriever's scores and ranks, from 1. Items
    beyond the ranker's candidates score lower than the last candidate, by as much as in the retriever's scores. Rules
    change the order, not the scores.
    """

    item_rows: Int64[np.ndarray, "batch k"]
    scores: Float32[np.ndarray, "batch k"]
    counts: Int64[np.ndarray, "batch"]
    retrieved: tuple[Float32[np.ndarray, "batch k"], Int64[np.ndarray, "batch k"]] | None = None
    moved: tuple[Int64[np.ndarray, "batch k"], Int64[np.ndarray, "batch k"]] | None = None
    """Place of each item before the rules, from 1, and the rules that moved it, as `Reordered.moved_by`. An item that
    was found for a quota or a pin alone has place 0, and retrieved rank 0. `None` means that no rule is explained."""
    listed_by: Int64[np.ndarray, "batch k"] | None = None
    """Bit i is set where list i holds the item: the retriever's, then those of the sources. `None` means that there is
    no source but the retriever. An item that only other sources list has retrieved rank 0."""
    is_exact: bool = True
    """False if the search may have missed an item."""


Find = Callable[[int, str | None], Neighbors | RankedItems]
"""The k best items of each user under the request's filters and, if it is given, a further SQL condition."""


@dataclass(frozen=True)
class FoundCandidates:
    """The candidates of the ranker and the rules; for the ranker, the lists in which they were found."""

    candidates: Candidates
    retrieved: Int64[np.ndarray, "batch _"]
    """Item rows that the retriever found, best first."""
    merged: MergedCandidates | None
    """The items of the retriever and of the sources; `None` means that no source was read."""

    @property
    def retrieved_ranks(self) -> Int64[np.ndarray, "batch k"]:
        """Rank of each candidate in what the retriever found, from 1; 0 for one of a rule or another source alone."""
        ranks, width = np.zeros(self.candidates.item_rows.shape, np.int64), self.retrieved.shape[1]
        if self.merged is None:
            ranks[:, :width] = np.arange(1, width + 1)
        else:
            places = ranks_in(self.retrieved, self.merged.item_rows)
            ranks[:, :width] = np.where(places < width, places + 1, 0)
        return ranks


@dataclass(frozen=True)
class Ranking:
    """All candidates in the order of the ranking; with a ranker, the other fields are as in `RankedItems`."""

    candidates: Candidates
    retrieved: tuple[Float32[np.ndarray, "batch k"], Int64[np.ndarray, "batch k"]] | None
    listed_by: Int64[np.ndarray, "batch k"] | None = None


def encode_users(bundle: Bundle, queries: Queries) -> EncodedUsers:
    """Encodes users as the evaluation does; inputs that both stages read are computed once."""
    inputs = user_inputs(bundle.features, bundle.user_arrays, queries)
    ranker_vectors = None if bundle.ranker is None else bundle.ranker.user.vectors(inputs)
    likes = None if bundle.sources is None else queries.positives
    added = None if bundle.added is None else bundle.added.of(queries.positives)
    return EncodedUsers(bundle.tower.vectors(inputs), ranker_vectors, added, likes)


def retrieve_and_rank(
    bundle: Bundle, users: EncodedUsers, k: int, *, allowed: ItemMask | None = None, excluded: Ragged | None = None
) -> RankedItems:
    """Returns the k best items of each user, among the allowed ones without the excluded, in the order of the rules."""

    def find(k: int, when: str | None) -> Neighbors:
        mask = allowed
        if when is not None:
            mask = bundle.filters.eligible(when) if mask is None else mask.intersection(bundle.filters.eligible(when))
        return search(bundle.index, users.vectors, k, allowed=mask, excluded=excluded, added=users.added)

    found = find_candidates(bundle, find, k, users=users, queries=source_queries(users, allowed, excluded))
    return apply_rules(bundle.rules, rank(bundle, users, found), k, met=users.met)


def source_queries(
    users: EncodedUsers, allowed: ItemMask | Bool[np.ndarray, "items"] | None, excluded: Ragged | None
) -> SourceQueries | None:
    """Returns what the sources of candidates read; `None` means that there is no source but the retriever."""
    if users.likes is None:
        return None
    if excluded is None:
        excluded = Ragged(np.empty(0, np.int64), np.zeros(len(users.likes) + 1, np.int64))
    return SourceQueries(users.likes, excluded, allowed.mask if isinstance(allowed, ItemMask) else allowed)


def find_candidates(
    bundle: Bundle, find: Find, k: int, *, users: EncodedUsers | None = None, queries: SourceQueries | None = None
) -> FoundCandidates:
    """Returns what the ranker and the rules choose k items from: the retrieved items, those of the sources, and those
    that a rule needs.
    """
    found, most = find(num_to_retrieve(bundle, k), None), max(len(bundle.items), 1)
    rows, scores, merged = found.item_rows, found.scores, None
    if bundle.sources is not None and users is not None and queries is not None:
        top = bundle.sources.config.num_candidates
        lists = source_lists(bundle.sources, queries, lambda condition: find(min(top, most), condition).item_rows)
        merged = merge_sources(rows, lists, bundle.sources.quotas, top=top)
        rows, scores = merged.item_rows, _scores_of(bundle, users, found, merged.item_rows)
    conditions = [] if bundle.rules is None else guaranteed(bundle.rules.config.rules)
    others = [find(min(count, most), condition) for condition, count in conditions]
    candidates = with_guaranteed(rows, scores, [(each.item_rows, each.scores) for each in others])
    return FoundCandidates(candidates, found.item_rows, merged)


def _scores_of(
    bundle: Bundle, users: EncodedUsers, found: Neighbors | RankedItems, item_rows: Int64[np.ndarray, "batch k"]
) -> Float32[np.ndarray, "batch k"]:
    """Returns the retriever's score of each item, whether or not the retriever found it."""
    width, places = found.item_rows.shape[1], ranks_in(found.item_rows, item_rows)
    scores = np.take_along_axis(found.scores, np.minimum(places, width - 1), axis=1)
    scores[item_rows < 0] = NOT_ALLOWED
    lines, columns = np.nonzero((places == width) & (item_rows >= 0))
    rows = item_rows[lines, columns]
    own = pair_scores(bundle.index.vectors[rows], users.vectors[lines], bundle.index.score)
    added = 0 if users.added is None else users.added.pairs(lines, rows, num_items=len(bundle.items))
    scores[lines, columns] = own + added
    return scores


def num_to_retrieve(bundle: Bundle, k: int) -> int:
    """Returns how many items the retriever must find: k, or as many as the ranker or the rules reorder if more."""
    candidates = 0 if bundle.ranker is None else bundle.ranker.top
    reordered = 0 if bundle.rules is None else bundle.rules.config.num_candidates
    return max(k, min(max(candidates, reordered), max(len(bundle.items), 1)))


def rank(bundle: Bundle, users: EncodedUsers, found: FoundCandidates) -> Ranking:
    """Returns all candidates in the order of the ranker, if there is one."""
    candidates, merged = found.candidates, found.merged
    if bundle.ranker is None:
        return Ranking(candidates, None)
    top = min(bundle.ranker.top, candidates.num_ranked)
    if merged is None:
        ranks = np.tile(np.arange(top)[:, None], (len(candidates.item_rows), 1, 1))
    else:
        ranks = merged.ranks(candidates.item_rows[:, :top])
    scores = _ranker_scores(bundle, bundle.ranker, users, candidates, ranks)
    ranked, positions = merge_stages(candidates, scores, num_items=len(bundle.items))
    retrieved_ranks = found.retrieved_ranks
    retrieved = (
        np.take_along_axis(candidates.scores, positions, axis=1),
        np.take_along_axis(retrieved_ranks, positions, axis=1),
    )
    if merged is None:
        return Ranking(ranked, retrieved)
    listed_by = (retrieved_ranks > 0).astype(np.int64)
    for number in range(1, ranks.shape[2]):
        listed_by[:, :top] |= (ranks[:, :, number] < merged.num_candidates).astype(np.int64) << number
    return Ranking(ranked, retrieved, np.take_along_axis(listed_by, positions, axis=1))


def _ranker_scores(
    bundle: Bundle,
    ranker: Ranker,
    users: EncodedUsers,
    found: Candidates,
    ranks: Int64[np.ndarray, "batch k _"],
) -> Float32[np.ndarray, "batch k"]:
    """Returns the scores of the first candidates of each user; `ranks` are those in each list."""
    assert users.ranker_vectors is not None
    score, top = bundle.index.score, ranks.shape[1]
    candidates = np.maximum(found.item_rows[:, :top], 0)
    scores = np.empty(candidates.shape, np.float32)
    added = None if users.added is None else users.added.lists(candidates, num_items=len(bundle.items))
    for part in chunks(len(candidates), max(1, CHUNK_PAIRS // max(1, top))):
        rows = candidates[part]
        factors = items_as_products(bundle.index.vectors[rows.ravel()], score).reshape(*rows.shape, -1)
        queries = queries_as_products(users.vectors[part], score)
        if added is not None:
            queries, factors = with_additions(queries, factors, added[part])
        scores[part] = ranker.scores(users.ranker_vectors[part], rows, queries, factors, ranks[part])
    return scores


def apply_rules(
    rules: BundleRules | None, ranking: Ranking, k: int, *, met: Meetings | None = None, explain: bool = False
) -> RankedItems:
    """Returns the first k items of each user, in the order of the rules if there are any."""
    candidates, retrieved = ranking.candidates.with_meetings(met), ranking.retrieved
    if rules is None:
        kept = None if retrieved is None else (retrieved[0][:, :k], retrieved[1][:, :k])
        rows, listed_by = candidates.item_rows[:, :k], ranking.listed_by
        listed_by = None if listed_by is None else listed_by[:, :k]
        return RankedItems(rows, candidates.scores[:, :k], (rows >= 0).sum(axis=1), kept, listed_by=listed_by)
    order = reorder(rules.config, rules.items, candidates, k, explain=explain)
    positions, is_item = np.maximum(order.positions, 0), order.positions >= 0

    def taken(values: np.ndarray, missing: int | float) -> np.ndarray:
        return np.where(is_item, np.take_along_axis(values, positions, axis=1), missing).astype(values.dtype)

    places = np.where(positions < candidates.num_ranked, positions + 1, 0)
    return RankedItems(
        taken(candidates.item_rows, -1),
        taken(candidates.scores, -np.inf),
        is_item.sum(axis=1),
        None if retrieved is None else (taken(retrieved[0], -np.inf), taken(retrieved[1], 0)),
        (places, order.moved_by) if explain else None,
        None if ranking.listed_by is None else taken(ranking.listed_by, 0),
    )
