"""Responses: lists by the model, or by popularity for unknown users, with ids, reasons and attributes of the items."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer
from msgspec import UNSET, Raw, UnsetType

from twofold.index.live import Snapshot
from twofold.index.search import Neighbors
from twofold.ragged import Ragged
from twofold.serve.bundle import BundleRules
from twofold.serve.live_bundle import LiveBundle
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.schemas import (
    MAX_EXPLAINED,
    HistoryItem,
    Id,
    Item,
    ItemFacts,
    Link,
    Moved,
    Reason,
    Recommend,
    Recommendations,
    RecommendOptions,
    Retrieved,
    Source,
)
from twofold.serve.two_stage import (
    RankedItems,
    Ranking,
    apply_rules,
    encode_users,
    find_candidates,
    rank,
    source_queries,
)
from twofold.serve.user_state import UserState, meetings_of, queries_of
from twofold.serve.vector_tables import most_similar_positives
from twofold.topk import top_k

HISTORY_SHOWN: Final = 50  # newest items of a history in an explained reply
UNKNOWN_USER: Final = "nothing is known of this user: these are the items liked most lately"


class ListRequest(NamedTuple):
    """A request for one list: the options, the user's state, the bundle and its items at the time of the request.

    `where` is the SQL condition for every item, `excluded_rows` are the item rows that the request excludes. `warnings`
    are the problems found so far.
    """

    live_bundle: LiveBundle
    options: RecommendOptions
    user_id: Id | None
    state: UserState
    items: Snapshot
    where: str | None
    excluded_rows: Integer[np.ndarray, "_"]
    unknown_items: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def k(self) -> int:
        """Length of the list: at most the number of items."""
        return min(self.options.k, max(len(self.items), 1))

    @property
    def excluded(self) -> Integer[np.ndarray, "_"]:
        """Item rows that may not be in the list, seen items included if the request excludes them."""
        if not self.live_bundle.bundle.excludes_seen(self.options.exclude_seen):
            return self.excluded_rows
        return np.concatenate([self.state.seen, self.excluded_rows]) if len(self.excluded_rows) else self.state.seen


class RankedList(NamedTuple):
    """Item rows and scores of one list, best first, without padding, and whether the search was exact; with a ranker,
    also the retriever's results; if rules are explained, also what they moved.
    """

    item_rows: Integer[np.ndarray, "k"]
    scores: Float32[np.ndarray, "k"]
    is_exact: bool = True
    retrieved: list[Retrieved] | None = None
    moved: list[Moved | UnsetType] | None = None


def make_lists(requests: Sequence[ListRequest], metrics: ServiceMetrics) -> list[Recommendations]:
    """Makes the lists, in the order of the requests. Those with equal search parameters share a search, which halves
    their cost.
    """
    groups: dict[tuple[int, int, int, str | None], list[int]] = defaultdict(list)
    lists: dict[int, RankedList] = {}
    for index, request in enumerate(requests):
        if request.state.is_blank:
            lists[index] = _popular_list(request)
        else:
            groups[id(request.live_bundle), id(request.items), request.k, request.where].append(index)
    for group in groups.values():
        lists |= zip(group, _lists_by_model([requests[index] for index in group], metrics), strict=True)
    with metrics.time_stage("reply"):
        metrics.count_lists(
            [lists[index].item_rows for index in range(len(requests))],
            popular=sum(request.state.is_blank for request in requests),
            short=sum(len(lists[index].item_rows) < request.options.k for index, request in enumerate(requests)),
        )
        return [recommendations(request, lists[index]) for index, request in enumerate(requests)]


def ranked_lists(ranked: RankedItems, rules: BundleRules | None = None, names: Sequence[str] = ()) -> list[RankedList]:
    """Splits ranked items into one list per user and drops the padding; `names` are those of the candidates' lists."""
    lists = []
    for number, count in enumerate(ranked.counts.tolist()):
        rows, scores = ranked.item_rows[number, :count], ranked.scores[number, :count]
        retrieved = moved = None
        if ranked.retrieved is not None:
            before, ranks = (each[number, :count].tolist() for each in ranked.retrieved)
            listed: list[list[str] | UnsetType] = [UNSET] * count
            if ranked.listed_by is not None:
                bits = ranked.listed_by[number, :count].tolist()
                listed = [[name for place, name in enumerate(names) if each >> place & 1] for each in bits]
            retrieved = [*map(Retrieved, before, ranks, listed)]
        if ranked.moved is not None and rules is not None:
            moved = _moved(rules, *(each[number, :count].tolist() for each in ranked.moved))
        lists.append(RankedList(rows, scores, ranked.is_exact, retrieved, moved))
    return lists


def _moved(rules: BundleRules, places: list[int], moved_by: list[int]) -> list[Moved | UnsetType]:
    """Returns the place before the rules and the names of the rules, for items that have another place."""
    names = [rule.name for rule in rules.config.rules]
    return [
        Moved(place, [name for number, name in enumerate(names) if bits >> number & 1]) if place != now else UNSET
        for now, (place, bits) in enumerate(zip(places, moved_by, strict=True), start=1)
    ]


def _lists_by_model(requests: list[ListRequest], metrics: ServiceMetrics) -> list[RankedList]:
    first = requests[0]
    bundle, rules = first.live_bundle.bundle, first.live_bundle.rules.of(first.items)
    with metrics.time_stage("encode"):
        users = encode_users(bundle, queries_of(bundle, [request.state for request in requests]))
    rows = [request.excluded for request in requests]
    excluded = Ragged(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))

    searches: list[Neighbors] = []

    def find(k: int, when: str | None) -> Neighbors:
        added = users.added
        found = first.items.search(users.vectors, k, where=first.where, when=when, excluded=excluded, added=added)
        searches.append(found)
        return found

    with metrics.time_stage("search"):
        queries = source_queries(users, _allowed(first), excluded)
        found = find_candidates(bundle, find, first.k, users=users, queries=queries)
    with metrics.time_stage("rank") if bundle.ranker is not None or rules is not None else nullcontext():
        is_explained = any(request.options.explain for request in requests)
        met = meetings_of(bundle, [request.state for request in requests])
        ranked = apply_rules(rules, rank(bundle, users, found), first.k, met=met, explain=is_explained)
        ranked = replace(ranked, is_exact=all(search.is_exact for search in searches))
        return ranked_lists(ranked, rules, () if bundle.sources is None else bundle.sources.names)


def _allowed(request: ListRequest) -> Bool[np.ndarray, "items"] | None:
    """Returns the items that the sources may list; `None` means all."""
    items = request.items
    if request.live_bundle.bundle.sources is None or (request.where is None and len(items) == len(items.items)):
        return None
    return items.eligible(request.where)


# --- ranked items without a query vector ------------------------------------------------------------------------------


def popular(
    live_bundle: LiveBundle,
    k: int,
    *,
    allowed: Bool[np.ndarray, "items"],
    excluded: Integer[np.ndarray, "_"],
) -> RankedItems:
    """Returns the k allowed items with most positives in the log's last two days, for an unknown user; the score is a
    count. Items added since the bundle was opened have none.
    """
    counts = np.zeros((1, len(allowed)), np.float32)
    counts[0, : len(live_bundle.popularity)] = live_bundle.popularity
    mask = allowed[None].copy()
    mask[0, excluded[excluded < len(allowed)]] = False
    best = top_k(counts, k, allowed=mask)
    return RankedItems(best.item_rows, best.scores, best.counts)


def _popular_list(request: ListRequest) -> RankedList:
    """Returns the list of an unknown user, in the order of the rules."""
    bundle, rules = request.live_bundle.bundle, request.live_bundle.rules.of(request.items)

    def find(k: int, when: str | None) -> RankedItems:
        allowed = request.items.eligible(request.where, when)
        return popular(request.live_bundle, k, allowed=allowed, excluded=request.excluded)

    found = find_candidates(bundle, find, request.k)
    ranked = apply_rules(rules, Ranking(found.candidates, None), request.k, explain=request.options.explain)
    return ranked_lists(ranked, rules)[0]


def similar(items: Snapshot, item_row: int, k: int, *, where: str | None = None) -> RankedItems:
    """Returns the k other items most similar to one."""
    found = items.similar(item_row, k, where=where)
    return RankedItems(found.item_rows, found.scores, found.counts, is_exact=found.is_exact)


# --- rows → a reply ---------------------------------------------------------------------------------------------------


def recommendations(request: ListRequest, ranked: RankedList) -> Recommendations:
    """Returns the reply of a request, with ids, reasons and attributes if requested."""
    options, state, item_rows = request.options, request.state, ranked.item_rows
    source: Source = "popularity" if state.is_blank else "model"
    warnings = [*request.warnings, UNKNOWN_USER] if state.is_blank else [*request.warnings]
    pairs = reasons(request.live_bundle, state, item_rows) if options.explain else None
    return Recommendations(
        user_id=request.user_id,
        items=response_items(request.live_bundle, request.items, ranked, reason_pairs=pairs, describe=options.describe),
        source=source,
        is_degraded=bool(warnings),
        warnings=warnings,
        unknown_items=request.unknown_items,
        at=state.at,
        bundle=request.live_bundle.digest[:12],
        is_exact=ranked.is_exact,
        history=_history_items(request) if options.explain else UNSET,
        links=_links(request, item_rows) if options.explain else UNSET,
    )


def _links(request: ListRequest, item_rows: Integer[np.ndarray, "_"]) -> list[Link]:
    """Returns the request that says what carries the scores; none for an unknown user, whose items are popular ones."""
    if request.state.is_blank or not len(item_rows):
        return []
    user: dict[str, Any] = {"user_id": request.user_id}
    if request.user_id is None and isinstance(request.options, Recommend):
        user = {"history": request.options.history, "negatives": request.options.negatives}
    item_ids = _item_ids(request.live_bundle, item_rows[:MAX_EXPLAINED])
    return [Link("explain", "/v1/explain", "POST", user | {"item_ids": item_ids, "context": {"at": request.state.at}})]


def response_items(
    live_bundle: LiveBundle,
    items: Snapshot,
    ranked: RankedList,
    *,
    reason_pairs: list[list[tuple[int, float]]] | None = None,
    describe: bool = False,
) -> list[Item]:
    """Returns the items of a list with ids and ranks from 1, and with reasons and attributes if requested."""
    item_rows = ranked.item_rows
    ids = _item_ids(live_bundle, item_rows)
    plain = ids, ranked.scores.tolist(), range(1, len(ids) + 1)
    if reason_pairs is None and not describe:
        return list(map(Item, *plain))
    unset = [UNSET] * len(ids)
    described: Sequence[Raw | UnsetType] = live_bundle.attributes.of(items, item_rows) if describe else unset
    if reason_pairs is None:
        return list(map(Item, *plain, unset, described))
    explained = [_reasons(live_bundle, pairs) for pairs in reason_pairs]
    return list(map(Item, *plain, explained, described, ranked.retrieved or unset, ranked.moved or unset))


def reasons(
    live_bundle: LiveBundle, state: UserState, item_rows: Int64[np.ndarray, "k"]
) -> list[list[tuple[int, float]]]:
    """Returns for each item the most similar positives of the user: (item row, cosine of the vectors), best first.

    Similarity of vectors, not a cause: the tower reduces the whole history to one vector.
    """
    rows, cosines = most_similar_positives(live_bundle.items.now.vectors_of, item_rows, state.positives)
    pairs = zip(rows.tolist(), cosines.tolist(), strict=True)
    return [[*zip(rows_of_item, cosines_of_item, strict=True)] for rows_of_item, cosines_of_item in pairs]


def _reasons(live_bundle: LiveBundle, pairs: list[tuple[int, float]]) -> list[Reason]:
    ids = _item_ids(live_bundle, np.array([row for row, _ in pairs], np.int64))
    return [Reason(item_id, cosine, item_path(item_id)) for item_id, (_, cosine) in zip(ids, pairs, strict=True)]


def item_path(item_id: Id) -> str:
    """Returns the path of an item's facts."""
    return f"/v1/items/{quote(str(item_id), safe='')}"


def item_facts(live_bundle: LiveBundle, item_row: int) -> ItemFacts:
    """Returns an item's attributes and its numbers of events and positives in the log."""
    bundle, rows = live_bundle.bundle, np.array([item_row])
    is_in_log = item_row < len(bundle.items)
    return ItemFacts(
        item_id=_item_ids(live_bundle, rows)[0],
        attributes=live_bundle.attributes.of(live_bundle.items.now, rows)[0],
        is_cold=item_row >= bundle.items.num_known,
        events=int(live_bundle.num_events[item_row]) if is_in_log else 0,
        positives=int(live_bundle.num_positives[item_row]) if is_in_log else 0,
    )


def _history_items(request: ListRequest) -> list[HistoryItem]:
    """Returns the newest items that the user has seen, newest first."""
    state = request.state
    kinds = dict.fromkeys(state.negatives.tolist(), "negative") | dict.fromkeys(state.positives.tolist(), "positive")
    rows = state.seen[: -HISTORY_SHOWN - 1 : -1]
    described: Sequence[Raw | UnsetType] = [UNSET] * len(rows)
    if request.options.describe:
        described = request.live_bundle.attributes.of(request.items, rows)
    return [
        HistoryItem(item_id, kinds.get(row, "met"), attributes)  # type: ignore[arg-type]
        for item_id, row, attributes in zip(_item_ids(request.live_bundle, rows), rows.tolist(), described, strict=True)
    ]


def _item_ids(live_bundle: LiveBundle, item_rows: Integer[np.ndarray, "_"]) -> list[Id]:
    items, integers = live_bundle.items.now, live_bundle.integer_ids
    if len(items.added) and item_rows.max(initial=0) >= len(items.items):
        return list(items.ids_of(item_rows).to_pylist())
    if integers is not None:  # without Arrow: a tenth of the time
        return list(integers[item_rows].tolist())
    return list(live_bundle.bundle.items.ids_of(item_rows).to_pylist())
