"""Micro-batching: requests for lists that arrive together are answered with one read of the store and one search."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from twofold.dataset.vocabulary import UNKNOWN
from twofold.index.live import Snapshot
from twofold.index.qdrant_search import QdrantError
from twofold.ragged import chunks
from twofold.serve.event_store import LiveEvent, LiveHistories, StoreError, now_ms
from twofold.serve.http_errors import HttpError, invalid_field
from twofold.serve.live_bundle import LiveBundle
from twofold.serve.middleware import log
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.responses import ListRequest, make_lists
from twofold.serve.schemas import (
    MAX_BATCH,
    MAX_BATCH_EXPLAINED,
    Id,
    Problem,
    Recommend,
    Recommendations,
    RecommendationsBatch,
    RecommendBatch,
    RecommendOptions,
)
from twofold.serve.tracing import TRACE, Trace, joined_trace, share_stages
from twofold.serve.user_state import UserState, user_state_from_history, user_state_of

NO_STORE: Final = "the live history cannot be read now: only the log is known, and newer items may come again"
LOG_S: Final = 1.0  # interval of the log lines while the store or Qdrant is down
SEARCH_THREADS: Final = 8  # searches in Qdrant at once: a thread waits for each
MAX_TOGETHER: Final = 32  # requests answered with one search: more of them save nothing
BLOCK_USERS: Final = 64  # users of a batch between two checks of its deadline
TURNS: Final = 3  # of the event loop, from the bytes of a request until the request is queued
NO_ROWS: Final = np.empty(0, np.int64)


class MicroBatcher:
    """The queue of the requests for one list, and the threads of batches and of searches in Qdrant."""

    def __init__(self, histories: LiveHistories, metrics: ServiceMetrics) -> None:
        """Starts with an empty queue."""
        self._histories = histories
        self.forgotten: frozenset[str] = frozenset()
        """Users whose events of the log are ignored."""
        self._metrics = metrics
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._large_batches = asyncio.Lock()
        self._batch_thread = ThreadPoolExecutor(1, "batches")
        self._search_threads = ThreadPoolExecutor(SEARCH_THREADS, "searches")
        self._logged_at = -LOG_S

    async def recommend(self, live_bundle: LiveBundle, body: Recommend) -> Recommendations:
        """Returns one list, for a user or for a history, computed together with the requests that arrive meanwhile.

        A single request does not wait for others. With 16 clients, 30,000 items and 64 dimensions, sharing halves the
        time of a request; sharing only within one turn of the event loop joined four requests instead of thirteen.
        """
        request = await _single_request(live_bundle, body)
        result: asyncio.Future[Recommendations] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._enqueue()
        self._waiting.append((request, body.user_id, result))
        return await result

    async def list_request(self, live_bundle: LiveBundle, body: Recommend) -> ListRequest:
        """Returns the request for a list with the state of its user, as it is now."""
        request = await _single_request(live_bundle, body)
        if body.user_id is None:
            return self._for_history(request, now_ms())
        live, warnings = await self._read_live([body.user_id])
        return self._for_user(request, body.user_id, live[0], now=now_ms(), warnings=warnings)

    async def recommend_batch(self, live_bundle: LiveBundle, body: RecommendBatch) -> RecommendationsBatch:
        """Returns one list per user, computed in blocks on a thread of their own, so that single requests do not wait.

        Batches of more than one block are answered in the order of their arrival: if their blocks took turns, all of
        them would miss their deadline together. Smaller ones come between their blocks. A request that is canceled ends
        after its current block.
        """
        items, most = len(body.user_ids) * body.k, MAX_BATCH_EXPLAINED if body.explain or body.describe else MAX_BATCH
        if items > most:
            detail = (
                f"user_ids times k is {items:,}: a batch has at most {MAX_BATCH:,} items, with explain or describe "
                f"{MAX_BATCH_EXPLAINED:,}. Send fewer users at once."
            )
            raise invalid_field(detail, field="k", value=body.k)
        request, lists = await _request(live_bundle, body), list[Recommendations]()
        async with self._large_batches if len(body.user_ids) > BLOCK_USERS else nullcontext():
            for block in chunks(len(body.user_ids), BLOCK_USERS):
                users = body.user_ids[block]
                live, warnings = await self._read_live(users)
                requests = [(request, user_id) for user_id in users]
                lists += await self._lists_on(self._batch_thread, requests, live, warnings)
        return RecommendationsBatch(lists)

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
        await self._answer([each for each in batch if not each[2].done()])  # without the canceled requests

    async def _answer(self, batch: list["_Waiting"]) -> None:
        requests = [(request, user_id) for request, user_id, _ in batch]
        traces = [request.trace for request, _ in requests]
        joined = joined_trace(traces)
        TRACE.set(joined)  # of this task alone
        try:
            live, warnings = await self._read_live([user_id for _, user_id in requests if user_id is not None])
            if any(request.items.remote is not None for request, _ in requests):
                lists = await self._lists_on(self._search_threads, requests, live, warnings)
            else:
                lists = self._lists(requests, live, warnings)
        except QdrantError as error:
            for _, _, result in batch:
                if not result.done():
                    result.set_exception(error)
            return
        except Exception as error:
            if len(batch) > 1:  # the other requests shall not fail with one
                for each in batch:
                    await self._answer([each])
            elif batch and not batch[0][2].done():
                batch[0][2].set_exception(error)
            return
        share_stages(joined, traces)
        for (_, _, result), recommendations in zip(batch, lists, strict=True):
            if not result.done():
                result.set_result(recommendations)

    async def _read_live(self, user_ids: Sequence[Id]) -> tuple[list[list[LiveEvent]], tuple[str, ...]]:
        """Reads the live histories of users with one command; without the store they are empty, with a warning."""
        try:
            with self._metrics.time_stage("store"):
                return await self._histories.read([*map(str, user_ids)]) if user_ids else [], ()
        except StoreError as error:
            self._log_often("histories cannot be read", error)
            return [[] for _ in user_ids], (NO_STORE,)

    def _log_often(self, message: str, error: Exception) -> None:
        """Writes a line to the log, but not for every request."""
        if (logged_at := time.monotonic()) > self._logged_at + LOG_S:
            self._logged_at = logged_at
            log(message, {"error": str(error)})

    async def _lists_on(
        self,
        threads: ThreadPoolExecutor,
        requests: Sequence[tuple["_Request", Id | None]],
        live: Sequence[list[LiveEvent]],
        warnings: tuple[str, ...],
    ) -> list[Recommendations]:
        """Returns one list per request, made on a thread, with the trace of the current task."""
        run, loop = copy_context().run, asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(threads, run, self._lists, requests, live, warnings)
        except QdrantError as error:
            self._log_often("Qdrant cannot be reached", error)
            raise

    def _lists(
        self,
        requests: Sequence[tuple["_Request", Id | None]],
        live: Sequence[list[LiveEvent]],
        warnings: tuple[str, ...],
    ) -> list[Recommendations]:
        """Returns one list per request; `live` are the live histories of those with a user."""
        now, of_users = now_ms(), iter(live)
        with self._metrics.time_stage("history"):
            list_requests = [
                self._for_history(request, now)
                if user_id is None
                else self._for_user(request, user_id, next(of_users), now=now, warnings=warnings)
                for request, user_id in requests
            ]
        return make_lists(list_requests, self._metrics)

    def _for_user(
        self, request: "_Request", user_id: Id, live_events: list[LiveEvent], *, now: int, warnings: tuple[str, ...]
    ) -> ListRequest:
        bundle, items = request.live_bundle.bundle, request.items
        row = UNKNOWN if str(user_id) in self.forgotten else bundle.users.row_of(user_id)
        self._metrics.count_unknown("user", int(row == UNKNOWN))
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
        live_bundle, options, items, where, _ = request
        rows = items.rows_of(options.exclude) if options.exclude else NO_ROWS
        excluded_rows = rows[rows != UNKNOWN]
        unknown_items += len(rows) - len(excluded_rows)
        self._metrics.count_unknown("item", unknown_items)
        return ListRequest(live_bundle, options, user_id, state, items, where, excluded_rows, unknown_items, warnings)


class _Request(NamedTuple):
    """A request with the bundle in use, its current items, the SQL condition for every recommended item, and its trace,
    if it has one.
    """

    live_bundle: LiveBundle
    options: RecommendOptions
    items: Snapshot
    where: str | None
    trace: Trace | None


_Waiting: TypeAlias = tuple[_Request, Id | None, "asyncio.Future[Recommendations]"]


async def _single_request(live_bundle: LiveBundle, body: Recommend) -> _Request:
    """Returns the request for one list; HttpError (422) if it names neither a user nor a history, or both."""
    if (body.user_id is None) == (body.history is None):
        raise HttpError(Problem("Exactly one of user_id and history is required.", "user_id"))
    return await _request(live_bundle, body)


async def _request(live_bundle: LiveBundle, options: RecommendOptions) -> _Request:
    where = await compiled_filter(live_bundle, options.filter)
    return _Request(live_bundle, options, live_bundle.items.now, where, TRACE.get())


async def compiled_filter(live_bundle: LiveBundle, filter_text: str | None) -> str | None:
    """Returns the condition for every item; a new one is compiled on a thread, so that other requests do not wait."""
    where = live_bundle.rule(filter_text)
    if where is not None and where not in live_bundle.bundle.filters:
        await asyncio.to_thread(live_bundle.bundle.filters.eligible, where)
    if where is not None and (remote := live_bundle.items.now.remote) is not None:
        remote.check_condition(where)
    return where
