"""The service: requests become responses from the bundle in use, which can be swapped. No HTTP here; see `app.py`."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from twofold.dataset.vocabulary import UNKNOWN
from twofold.errors import RunError
from twofold.index.live import Snapshot
from twofold.run_folder import write_json
from twofold.serve.event_store import LiveEvent, LiveHistories, StoreError
from twofold.serve.live_bundle import LiveBundle, open_live_bundle
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.responses import ListRequest, item_facts, make_lists, ranked_lists, response_items, similar
from twofold.serve.schemas import (
    Events,
    EventsAccepted,
    Health,
    HttpError,
    Id,
    ItemChanges,
    ItemFacts,
    ItemsChanged,
    Problem,
    Recommend,
    Recommendations,
    RecommendationsBatch,
    RecommendBatch,
    RecommendOptions,
    Similar,
    SimilarItems,
    SomeUsers,
    Swap,
    Swapped,
    invalid_field,
    unavailable,
)
from twofold.serve.user_state import UserState, user_state_from_history, user_state_of

MAX_AHEAD_MS: Final = 60_000  # tolerance for fast clocks: an event of next year would be its user's last for a year
NO_STORE: Final = "the live history cannot be read now: only the log is known, and newer items may come again"
SOME_USERS: Final = 20
STORE_LOG_S: Final = 1.0  # interval of the log lines while the store is down
ITEMS_POLL_S: Final = 0.5  # longest delay until a worker applies the item changes of the others
PROBE: Final = "twofold:ready"  # id of no user
MAX_TOGETHER: Final = 32  # requests answered with one search: more of them save nothing
TURNS: Final = 3  # of the event loop, from the bytes of a request until the request is queued
NO_ROWS: Final = np.empty(0, np.int64)


@dataclass
class Service:
    """A bundle that can be swapped between two requests, a store of live events, and metrics.

    Every request reads `current` once and is answered by that bundle.
    """

    current: LiveBundle
    runs: Path
    histories: LiveHistories
    metrics: ServiceMetrics
    swap_file: Path | None = None
    """File with the run in use, read by the other workers; the file of item changes is stored beside it."""
    is_stopping: bool = False
    _waiting: list[tuple["_Request", Id | None, "asyncio.Future[Recommendations]"]] = field(default_factory=list)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _swap_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _batch_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _store_logged_at: float = -STORE_LOG_S

    def __post_init__(self) -> None:
        """Starts counting exposure and following item changes."""
        self.metrics.reset_exposure(len(self.current.bundle.items))
        self._share_items(self.current)

    def _share_items(self, live_bundle: LiveBundle) -> None:
        if self.swap_file is not None:
            live_bundle.items.follow(self.swap_file.with_name("items.jsonl"))

    # --- recommendations ----------------------------------------------------------------------------------------------

    async def recommend(self, body: Recommend) -> Recommendations:
        """Returns one list, for a user or for a history, computed together with the requests that arrive meanwhile.

        A single request does not wait for others. With 16 clients, 30,000 items and 64 dimensions, sharing halves the
        time of a request; sharing only within one turn of the event loop joined four requests instead of thirteen.
        """
        if (body.user_id is None) == (body.history is None):
            raise HttpError(Problem("Exactly one of user_id and history is required.", "user_id"))
        request = await self._request(body)
        result: asyncio.Future[Recommendations] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._enqueue()
        self._waiting.append((request, body.user_id, result))
        return await result

    async def recommend_batch(self, body: RecommendBatch) -> RecommendationsBatch:
        """Returns one list per user, computed on a thread, one batch at a time, so that single requests do not wait."""
        request = await self._request(body)
        with self.metrics.time_stage("history"):
            list_requests = await self._list_requests([(request, user_id) for user_id in body.user_ids])
        async with self._batch_lock:
            return RecommendationsBatch(await asyncio.to_thread(make_lists, list_requests, self.metrics))

    async def _request(self, options: RecommendOptions) -> "_Request":
        live_bundle = self.current
        where = await _compiled(live_bundle, options.filter)
        return _Request(live_bundle, options, live_bundle.items.now, where)

    def _enqueue(self) -> None:
        task = asyncio.get_running_loop().create_task(self._answer_waiting())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_waiting(self) -> None:
        before = 0
        while before < len(self._waiting) < MAX_TOGETHER:  # as long as more arrive
            before = len(self._waiting)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        batch, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
        if self._waiting:
            self._enqueue()
        batch = [each for each in batch if not each[2].done()]  # without the canceled requests
        try:
            with self.metrics.time_stage("history"):
                list_requests = await self._list_requests([(request, user_id) for request, user_id, _ in batch])
            lists = make_lists(list_requests, self.metrics)
        except Exception as error:  # every request of the batch gets the error
            for _, _, result in batch:
                if not result.done():
                    result.set_exception(error)
            return
        for (_, _, result), recommendations in zip(batch, lists, strict=True):
            if not result.done():
                result.set_result(recommendations)

    async def _list_requests(self, requests: Sequence[tuple["_Request", Id | None]]) -> list[ListRequest]:
        """Adds the users' states to requests; all live histories are read with one command."""
        users = [str(user_id) for _, user_id in requests if user_id is not None]
        warnings: tuple[str, ...] = ()
        try:
            live = iter(await self.histories.read(users) if users else [])
        except StoreError as error:
            if (logged_at := time.monotonic()) > self._store_logged_at + STORE_LOG_S:  # not for every request
                self._store_logged_at = logged_at
                log("histories cannot be read", {"error": str(error)})
            live, warnings = repeat([]), (NO_STORE,)
        now = _now()
        return [
            self._for_history(request, now)
            if user_id is None
            else self._for_user(request, user_id, next(live), now=now, warnings=warnings)
            for request, user_id in requests
        ]

    def _for_user(
        self, request: "_Request", user_id: Id, live_events: list[LiveEvent], *, now: int, warnings: tuple[str, ...]
    ) -> ListRequest:
        bundle, items = request.live_bundle.bundle, request.items
        row = bundle.users.row_of(user_id)
        self.metrics.count_unknown("user", int(row == UNKNOWN))
        state = user_state_of(bundle, row, live_events, at=request.options.context.at, now=now, items=items)
        return self._list_request(request, user_id, state, warnings=warnings)

    def _for_history(self, request: "_Request", now: int) -> ListRequest:
        bundle, body = request.live_bundle.bundle, request.options
        assert isinstance(body, Recommend)
        at = max(now, bundle.as_of) if body.context.at is None else body.context.at
        state, unknown = user_state_from_history(bundle, body.history or [], body.negatives, at=at, items=request.items)
        return self._list_request(request, None, state, unknown_items=unknown)

    def _list_request(
        self,
        request: "_Request",
        user_id: Id | None,
        state: UserState,
        *,
        unknown_items: int = 0,
        warnings: tuple[str, ...] = (),
    ) -> ListRequest:
        live_bundle, options, items, where = request
        rows = items.rows_of(options.exclude) if options.exclude else NO_ROWS
        excluded_rows = rows[rows != UNKNOWN]
        unknown_items += len(rows) - len(excluded_rows)
        self.metrics.count_unknown("item", unknown_items)
        return ListRequest(live_bundle, options, user_id, state, items, where, excluded_rows, unknown_items, warnings)

    # --- items and events ---------------------------------------------------------------------------------------------

    async def similar(self, body: Similar) -> SimilarItems:
        """Returns the items most similar to one."""
        live_bundle = self.current
        item_row = self._item_row(live_bundle, body.item_id, status=422)
        where = await _compiled(live_bundle, body.filter)
        k = min(body.k, max(len(live_bundle.items.now), 1))
        (ranked,) = ranked_lists(similar(live_bundle, item_row, k, where=where))
        items = response_items(live_bundle, ranked, describe=body.describe)
        return SimilarItems(body.item_id, items, live_bundle.digest[:12])

    async def item(self, item_id: str) -> ItemFacts:
        """Returns attributes and event counts of an item."""
        live_bundle = self.current
        return item_facts(live_bundle, self._item_row(live_bundle, item_id, status=404))

    def _item_row(self, live_bundle: LiveBundle, item_id: Id, *, status: int) -> int:
        row = live_bundle.items.now.row_of(item_id)
        if row == UNKNOWN:
            self.metrics.count_unknown("item", 1)
            examples = ", ".join(map(str, live_bundle.bundle.items.ids[:3].to_pylist()))
            detail = f"item_id is {str(item_id)[:80]!r}: no item of the catalogue has it. Its ids look like {examples}."
            raise invalid_field(detail, field="item_id", value=item_id, status=status)
        return row

    async def add_events(self, body: Events) -> EventsAccepted:
        """Stores new events of users; after the reply, every worker reads them."""
        now, events = _now(), body.events
        for position, event in enumerate(events):
            if event.at is not None and event.at > now + MAX_AHEAD_MS:
                detail = f"events[{position}].at is {event.at}: that is after now, which is {now} (UTC milliseconds)."
                raise invalid_field(detail, field=f"events[{position}].at", value=event.at)
        await self.histories.append(
            (str(event.user_id), LiveEvent(str(event.item_id), now if event.at is None else event.at, event.kind))
            for event in events
        )
        rows = self.current.items.now.rows_of([event.item_id for event in events])
        unknown = int((rows == UNKNOWN).sum())
        self.metrics.count_unknown("item", unknown)
        self.metrics.events.inc(len(events))
        return EventsAccepted(len(events), unknown)

    async def some_users(self) -> SomeUsers:
        """Returns some users of the log, evenly spaced."""
        users = self.current.bundle.users
        ids: list[Id] = users.ids_of(
            np.linspace(0, len(users) - 1, min(SOME_USERS, len(users))).astype(int)
        ).to_pylist()
        return SomeUsers(ids)

    async def health(self) -> Health:
        """Returns name, digest and size of the bundle in use."""
        bundle = self.current.bundle
        return Health(self.current.name, self.current.digest[:12], len(bundle.items), len(bundle.users))

    async def ready(self) -> Health:
        """Returns the same as `health`; HttpError (503) while the service is stopping or its store is down."""
        if self.is_stopping:
            raise unavailable("it is stopping")
        await self.histories.read([PROBE])
        return await self.health()

    # --- item changes -------------------------------------------------------------------------------------------------

    async def change_items(self, body: ItemChanges) -> ItemsChanged:
        """Upserts and removes items, all or none; other workers follow within `ITEMS_POLL_S`."""
        items = self.current.items
        upserted, removed = await asyncio.to_thread(items.change, body)
        log("items changed", {"upserted": upserted, "removed": removed})
        return ItemsChanged(upserted, removed, len(items.now))

    async def follow_items(self) -> None:
        """Applies the item changes of other workers, until the task is canceled."""
        while True:
            await asyncio.sleep(ITEMS_POLL_S)
            try:
                await asyncio.to_thread(self.current.items.catch_up)
            except Exception as error:  # for example a full disk; the service continues with the items it has
                log("item changes cannot be read", {"error": repr(error)})

    # --- another bundle -----------------------------------------------------------------------------------------------

    async def swap(self, body: Swap) -> Swapped:
        """Opens the bundle of another run beside the current one, or the current one again; other workers follow.

        RunError if the bundle is damaged or does not work, HttpError (503) if the other workers cannot be notified; in
        both cases the previous bundle stays in use.
        """
        before = self.current.digest
        live_bundle = await self.open_run(body.run, notify=True)
        return Swapped(live_bundle.name, live_bundle.digest[:12], was_swapped=live_bundle.digest != before)

    async def open_run(self, name: str | None, *, notify: bool = False) -> LiveBundle:
        """Opens a run and uses it from now on; after a RunError the previous one stays. `None` means the current run.

        With `notify`, the other workers are notified first.
        """
        run = self.runs / (name or self.current.name)
        async with self._swap_lock:
            try:
                live_bundle = await asyncio.to_thread(open_live_bundle, run)
                await asyncio.to_thread(self._share_items, live_bundle)
            except RunError as error:
                self.metrics.swaps.labels("refused").inc()
                log("swap refused", {"run": run.name, "error": str(error)})
                raise RunError(str(error).replace(f"{self.runs}{os.sep}", "")) from error  # no paths for clients
            if notify:
                self._notify_workers(live_bundle)
            self.current = live_bundle
            self.metrics.reset_exposure(len(live_bundle.bundle.items))
            self.metrics.swaps.labels("done").inc()
            log("swapped", {"run": run.name, "bundle": live_bundle.digest[:12]})
            return live_bundle

    def _notify_workers(self, live_bundle: LiveBundle) -> None:
        if self.swap_file is None:
            return
        try:
            write_json(self.swap_file, {"run": live_bundle.name, "bundle": live_bundle.digest})
        except OSError as error:  # for example a full disk
            self.metrics.swaps.labels("refused").inc()
            log("swap refused", {"run": live_bundle.name, "error": repr(error)})
            raise unavailable("the other workers cannot be notified of the swap") from error


class _Request(NamedTuple):
    """A request with the bundle in use, its current items, and the SQL condition for every recommended item."""

    live_bundle: LiveBundle
    options: RecommendOptions
    items: Snapshot
    where: str | None


async def _compiled(live_bundle: LiveBundle, filter_text: str | None) -> str | None:
    """Returns the condition for every item; a new one is compiled on a thread, so that other requests do not wait."""
    where = live_bundle.rule(filter_text)
    if where is not None and where not in live_bundle.bundle.filters:
        await asyncio.to_thread(live_bundle.bundle.filters.eligible, where)
    return where


def log(message: str, facts: Mapping[str, object] = MappingProxyType({})) -> None:
    """Writes one line to the log of the service."""
    logging.getLogger("twofold.serve").info(message, extra={"facts": facts})


def _now() -> int:
    return time.time_ns() // 1_000_000
