"""Given items in the order of a list: scored one by one instead of searched, then ranked and reordered as a list is."""

import numpy as np
from jaxtyping import Float32, Int64

from twofold.dataset.vocabulary import UNKNOWN
from twofold.index.live import Snapshot
from twofold.index.score_kinds import pair_scores
from twofold.serve.bundle import Bundle
from twofold.serve.rank_schemas import LeftOut, Rank, Ranked
from twofold.serve.responses import ListRequest, RankedList, ranked_lists, recommendations
from twofold.serve.two_stage import (
    EncodedUsers,
    RankedItems,
    Ranking,
    apply_rules,
    encode_users,
    find_candidates,
    rank,
    source_queries,
)
from twofold.serve.user_state import meetings_of, queries_of
from twofold.topk import NOT_ALLOWED, best_of


def rank_given(request: ListRequest, body: Rank) -> Ranked:
    """Returns the given items in the order that a list of these items alone would have, and those without a place."""
    item_rows = request.items.rows_of(body.item_ids)
    ordered = _rank_rows(request, np.unique(item_rows[item_rows != UNKNOWN]))
    withdrawn, placed = request.items.withdrawn, {*ordered.item_rows.tolist()}
    left_out = {
        str(item_id): LeftOut(
            item_id, "unknown" if row == UNKNOWN else "withdrawn" if typed in withdrawn else "excluded"
        )
        for item_id, typed, row in zip(
            body.item_ids, request.items.items.typed(body.item_ids).to_pylist(), item_rows.tolist(), strict=True
        )
        if row not in placed
    }
    found = recommendations(request, ordered)
    return Ranked(
        user_id=found.user_id,
        items=found.items,
        left_out=[*left_out.values()],
        source=found.source,
        is_degraded=found.is_degraded,
        warnings=found.warnings,
        at=found.at,
        bundle=found.bundle,
        history=found.history,
        links=found.links,
    )


def _rank_rows(request: ListRequest, item_rows: Int64[np.ndarray, "_"]) -> RankedList:
    """Returns distinct items in the order of the ranker and the rules, without those that no list may contain."""
    bundle, items, state = request.live_bundle.bundle, request.items, request.state
    rules, k = request.live_bundle.rules.of(items), max(len(item_rows), 1)
    users, queries, scores = None, None, np.zeros(len(item_rows), np.float32)
    if state.is_blank:
        is_in_log = item_rows < len(bundle.items)
        scores[is_in_log] = request.live_bundle.popularity[item_rows[is_in_log]]
    else:
        users = encode_users(bundle, queries_of(bundle, [state]))
        scores = retriever_scores(bundle, items, users, item_rows)[0]
        is_given = np.zeros(len(items.items) + len(items.added), bool)
        is_given[item_rows] = True
        queries = source_queries(users, is_given & items.eligible(request.where), None)

    def find(most: int, when: str | None) -> RankedItems:
        is_kept = items.eligible(request.where, when)[item_rows]
        rows, found = np.full((1, most), UNKNOWN), np.full((1, most), NOT_ALLOWED)
        best = best_of(item_rows[None, is_kept], scores[None, is_kept], most, rank=items.tie_rank)
        width = best.item_rows.shape[1]
        rows[:, :width], found[:, :width] = best.item_rows, best.scores
        return RankedItems(rows, found, best.counts)

    found = find_candidates(bundle, find, k, users=users, queries=queries)
    ranking = Ranking(found.candidates, None) if users is None else rank(bundle, users, found)
    met = None if users is None else meetings_of(bundle, [state])
    ranked = apply_rules(rules, ranking, k, met=met, explain=request.options.explain)
    return ranked_lists(ranked, rules, () if bundle.sources is None else bundle.sources.names)[0]


def retriever_scores(
    bundle: Bundle, items: Snapshot, users: EncodedUsers, item_rows: Int64[np.ndarray, "k"]
) -> Float32[np.ndarray, "users k"]:
    """Returns the retriever's score of each item for each user, in the bits of a search."""
    scores = pair_scores(items.vectors_of(item_rows)[None], users.vectors[:, None], bundle.index.score)
    if users.added is not None:
        lines, columns = (each.ravel() for each in np.indices(scores.shape))
        known = np.flatnonzero(item_rows[columns] < len(bundle.items))  # those added since carry nothing
        added = users.added.pairs(lines[known], item_rows[columns[known]], num_items=len(bundle.items))
        scores[lines[known], columns[known]] += added
    return scores
