"""Requests of the live page: columns, the map, what carries an answer, and lists of the bundle beside the current."""

import asyncio
from collections.abc import Callable
from typing import Final

import numpy as np

from twofold.dataset.vocabulary import UNKNOWN
from twofold.serve.http_errors import HttpError, invalid_field
from twofold.serve.leave_one_out import scores_without
from twofold.serve.live_bundle import LiveBundle
from twofold.serve.micro_batching import MicroBatcher
from twofold.serve.page_facts import item_map, page_facts
from twofold.serve.page_schemas import Carried, Explain, Explanation, Explanations, ItemMap, PageFacts
from twofold.serve.responses import ListRequest
from twofold.serve.schemas import Problem, Recommend, Recommendations

MOST_CARRIED: Final = 5


class PageService:
    """Routes of the page beyond the lists; `beside` is a second bundle, whose lists are shown beside the first."""

    def __init__(self, current: Callable[[], LiveBundle], batcher: MicroBatcher, beside: LiveBundle | None) -> None:
        """Takes a function that returns the bundle in use, which may be swapped."""
        self._current, self._batcher, self.beside = current, batcher, beside
        self._facts: tuple[str, PageFacts] | None = None
        self._map: tuple[str, ItemMap | None] | None = None

    async def page(self) -> PageFacts:
        """Returns the columns of the items for the page of the service."""
        live_bundle = self._current()
        if self._facts is None or self._facts[0] != live_bundle.digest:
            name = None if self.beside is None else self.beside.name
            self._facts = live_bundle.digest, await asyncio.to_thread(page_facts, live_bundle, name)
        return self._facts[1]

    async def map(self) -> ItemMap:
        """Returns the map of the items; HttpError (404) if the run has none."""
        live_bundle = self._current()
        if self._map is None or self._map[0] != live_bundle.digest:
            self._map = live_bundle.digest, await asyncio.to_thread(item_map, live_bundle)
        if self._map[1] is None:
            raise HttpError(Problem("This run has no map: run `twofold explain` with the extra explain."), status=404)
        return self._map[1]

    async def recommend_beside(self, body: Recommend) -> Recommendations:
        """Returns the list of the other bundle; HttpError (404) if there is none."""
        if self.beside is None:
            raise HttpError(Problem("There is no second bundle: start the service with --beside RUN."), status=404)
        return await self._batcher.recommend(self.beside, body)

    async def explain(self, body: Explain) -> Explanations:
        """Returns the items of the history that carry each score, by leaving each of them out."""
        live_bundle = self._current()
        user = Recommend(user_id=body.user_id, history=body.history, negatives=body.negatives, context=body.context)
        request = await self._batcher.list_request(live_bundle, user)
        item_rows = request.items.rows_of(body.item_ids)
        if (item_rows == UNKNOWN).any():
            item_id = body.item_ids[int(np.flatnonzero(item_rows == UNKNOWN)[0])]
            detail = f"item_ids names {str(item_id)[:80]!r}: no item of the catalogue has it."
            raise invalid_field(detail, field="item_ids", value=item_id)
        return await asyncio.to_thread(_explained, request, body, item_rows)


def _explained(request: ListRequest, body: Explain, item_rows: np.ndarray) -> Explanations:
    left_out, scores = scores_without(request.live_bundle.bundle, request.items, request.state, item_rows)
    ids = request.items.ids_of(left_out).to_pylist()
    explained = []
    for number, item_id in enumerate(body.item_ids):
        changes = scores[0, number] - scores[1:, number]
        order = [place for place in np.argsort(-changes, kind="stable")[:MOST_CARRIED] if changes[place] > 0]
        carried = [Carried(ids[place], float(changes[place])) for place in order]
        explained.append(Explanation(item_id, float(scores[0, number]), carried))
    return Explanations(explained, len(ids), request.state.at)
