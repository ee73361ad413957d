"""Rows and scores → the lists that are replied: by the model where anything is known, of what is popular elsewhere."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Integer
from msgspec import UNSET, UnsetType

from twofold.index.live import Snapshot
from twofold.ragged import Ragged
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.schemas import (
    HistoryItem,
    Id,
    Item,
    ItemFacts,
    Reason,
    Recommendations,
    RecommendOptions,
    Retrieved,
    Source,
)
from twofold.serve.two_stage import RankedItems, encode_users, rank, wanted_of
from twofold.serve.user_state import LiveBundle, UserState, attributes_of, popular, queries_of, reasons

SHOWN: Final = 50  # of a history, in an explained answer
NOTHING_KNOWN: Final = "nothing is known of this user: these are the items liked most lately"


@dataclass(frozen=True)
class ListRequest:
    """One list that is asked for, of these items, and what went wrong before it could be made.

    `where` is what must hold of its items, `without` rows that it must not have.
    """

    opened: LiveBundle
    question: RecommendOptions
    user_id: Id | None
    asker: UserState
    items: Snapshot
    where: str | None
    without: Integer[np.ndarray, "excluded"]
    unknown_items: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def k(self) -> int:
        """How many items the list may have: not more than there are."""
        return min(self.question.k, max(len(self.items), 1))

    @property
    def excluded(self) -> Integer[np.ndarray, "excluded"]:
        """Item rows that must not be in the list."""
        return np.concatenate([self.asker.met, self.without]) if self.question.exclude_seen else self.without


class RankedList(NamedTuple):
    """Item rows and scores of one list, best first and no longer than it is; and the retriever's, if it was ranked."""

    item_rows: Integer[np.ndarray, "k"]
    scores: Float32[np.ndarray, "k"]
    retrieved: list[Retrieved] | None = None


def make_lists(asks: Sequence[ListRequest], meters: ServiceMetrics) -> list[Recommendations]:
    """The lists, in their order. Those that go through the same search do so together, at half the price."""
    alike: dict[tuple[int, int, int, str | None], list[int]] = defaultdict(list)
    lines: dict[int, RankedList] = {}
    for place, ask in enumerate(asks):
        if ask.asker.is_blank:
            passing = ask.items.built.eligible(ask.where, None)
            found = popular(ask.opened, ask.k, allowed=passing, excluded=ask.excluded)
            lines[place] = lines_of(found)[0]
        else:
            alike[id(ask.opened), id(ask.items), ask.k, ask.where].append(place)
    for places in alike.values():
        lines |= zip(places, _by_model([asks[place] for place in places], meters), strict=True)
    with meters.stage("reply"):
        return [_list(ask, lines[place], meters) for place, ask in enumerate(asks)]


def lines_of(found: RankedItems) -> list[RankedList]:
    """Each query's answers without the empty tail."""
    if found.retrieved is None:
        lines = zip(found.item_rows, found.scores, found.counts.tolist(), strict=True)
        return [RankedList(rows[:count], scores[:count]) for rows, scores, count in lines]
    both = zip(found.item_rows, found.scores, *found.retrieved, found.counts.tolist(), strict=True)
    return [
        RankedList(rows[:count], scores[:count], [*map(Retrieved, before[:count].tolist(), ranks[:count].tolist())])
        for rows, scores, before, ranks, count in both
    ]


def _by_model(asks: list[ListRequest], meters: ServiceMetrics) -> list[RankedList]:
    bundle, k, where = asks[0].opened.bundle, asks[0].k, asks[0].where
    with meters.stage("encode"):
        asked = encode_users(bundle, queries_of(bundle, [ask.asker for ask in asks]))
    with meters.stage("search"):
        own = [ask.excluded for ask in asks]
        excluded = Ragged(np.concatenate(own), np.cumsum([0, *map(len, own)]))
        found = asks[0].items.search(asked.vectors, wanted_of(bundle, k), where=where, excluded=excluded)
    if bundle.ranker is None:
        return lines_of(rank(bundle, asked, found, k))
    with meters.stage("rank"):
        return lines_of(rank(bundle, asked, found, k))


def _list(ask: ListRequest, line: RankedList, meters: ServiceMetrics) -> Recommendations:
    question, asker, item_rows = ask.question, ask.asker, line.item_rows
    source: Source = "popularity" if asker.is_blank else "model"
    remarks = [*ask.remarks, NOTHING_KNOWN] if asker.is_blank else [*ask.remarks]
    meters.answered(item_rows, source, is_short=len(item_rows) < question.k)
    because = reasons(ask.opened, asker, item_rows) if question.explain else None
    return Recommendations(
        user_id=ask.user_id,
        items=items_of(ask.opened, line, because=because, describe=question.describe),
        source=source,
        is_degraded=bool(remarks),
        remarks=remarks,
        unknown_items=ask.unknown_items,
        at=asker.at,
        bundle=ask.opened.digest[:12],
        history=_history(ask) if question.explain else UNSET,
    )


def items_of(
    opened: LiveBundle,
    line: RankedList,
    *,
    because: list[list[tuple[int, float]]] | None = None,
    describe: bool = False,
) -> list[Item]:
    """Items by id, ranked from 1, with reasons and attributes if they are asked for."""
    item_rows = line.item_rows
    ids = _ids(opened, item_rows)
    plain = list(map(Item, ids, line.scores.tolist(), range(1, len(ids) + 1)))
    if because is None and not describe:
        return plain
    why: list[list[Reason] | UnsetType] = [UNSET] * len(ids) if because is None else [_why(opened, p) for p in because]
    what = [attributes_of(opened, row) if describe else UNSET for row in item_rows.tolist()]
    is_told = because is not None and line.retrieved is not None
    found: Sequence[Retrieved | UnsetType] = line.retrieved or () if is_told else [UNSET] * len(ids)
    return [
        Item(item.item_id, item.score, item.rank, reason, attributes, retrieved)
        for item, reason, attributes, retrieved in zip(plain, why, what, found, strict=True)
    ]


def item_facts(opened: LiveBundle, item_row: int) -> ItemFacts:
    """What is known of one item."""
    bundle = opened.bundle
    return ItemFacts(
        item_id=_ids(opened, np.array([item_row]))[0],
        attributes=attributes_of(opened, item_row),
        is_cold=item_row >= bundle.items.num_known,
        events=int((bundle.events.item_rows == item_row).sum()),
        positives=int((bundle.positives.item_rows == item_row).sum()),
    )


def _history(ask: ListRequest) -> list[HistoryItem]:
    """The newest of what the answer took into account, newest first."""
    asker = ask.asker
    kinds = dict.fromkeys(asker.negatives.tolist(), "negative") | dict.fromkeys(asker.positives.tolist(), "positive")
    rows = asker.met[: -SHOWN - 1 : -1]
    what = [attributes_of(ask.opened, row) if ask.question.describe else UNSET for row in rows.tolist()]
    return [
        HistoryItem(item_id, kinds.get(row, "met"), attributes)  # type: ignore[arg-type]
        for item_id, row, attributes in zip(_ids(ask.opened, rows), rows.tolist(), what, strict=True)
    ]


def _why(opened: LiveBundle, pairs: list[tuple[int, float]]) -> list[Reason]:
    ids = _ids(opened, np.array([row for row, _ in pairs], np.int64))
    return [Reason(item_id, cosine) for item_id, (_, cosine) in zip(ids, pairs, strict=True)]


def _ids(opened: LiveBundle, item_rows: Integer[np.ndarray, "rows"]) -> list[Id]:
    held = opened.bundle.items.ids
    if item_rows.max(initial=0) >= len(held):
        return list(opened.items.now.ids_of(item_rows).to_pylist())
    if pa.types.is_int64(held.type):  # seen as NumPy, without a copy: a tenth of the time
        return list(held.to_numpy()[item_rows].tolist())
    return list(held.take(pa.array(item_rows)).to_pylist())
