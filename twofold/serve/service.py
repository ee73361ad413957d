"""Questions → answers, and which bundle gives them. No HTTP here: `app.py` reads and writes the bytes."""

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
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.responses import ListRequest, item_facts, items_of, lines_of, make_lists
from twofold.serve.schemas import (
    Changed,
    Changes,
    Events,
    EventsAccepted,
    Health,
    Id,
    ItemFacts,
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
    WireError,
    invalid_field,
    unavailable,
)
from twofold.serve.user_state import LiveBundle, UserState, open_live_bundle, similar, user_state_of, user_state_with

AHEAD_MS: Final = 60_000  # that a clock may be fast: an event of next year would be its user's last one for a year
NO_STORE: Final = "the live history cannot be read now: only the log is known, and newer items may come again"
SOME_USERS: Final = 20
SAY_S: Final = 1.0  # how often the log says that the store is away
LOOK_S: Final = 0.5  # how long another worker may answer without a change of items
PROBE: Final = "twofold:ready"  # a user whom nobody is
AT_ONCE: Final = 32  # questions answered as one: more save nothing
TURNS: Final = 3  # of the loop, from the bytes of a question to its being asked
NO_ROWS: Final = np.empty(0, np.int64)


@dataclass
class Service:
    """A bundle that may be exchanged between two requests, live histories, and meters.

    Every question reads `current` once: what it began with answers it.
    """

    current: LiveBundle
    runs: Path
    histories: LiveHistories
    meters: ServiceMetrics
    swapped: Path | None = None
    """Where the other workers read which run answers; beside it, which items were put and withdrawn."""
    is_stopping: bool = False
    _waiting: list[tuple["_Request", Id | None, "asyncio.Future[Recommendations]"]] = field(default_factory=list)
    _json_route: set["asyncio.Task[None]"] = field(default_factory=set)
    _one_swap: asyncio.Lock = field(default_factory=asyncio.Lock)
    _one_batch: asyncio.Lock = field(default_factory=asyncio.Lock)
    _said_at: float = -SAY_S

    def __post_init__(self) -> None:
        """Exposure is counted from here on."""
        self.meters.forget_exposure(len(self.current.bundle.items))
        self._share_items(self.current)

    def _share_items(self, opened: LiveBundle) -> None:
        if self.swapped is not None:
            opened.items.follow(self.swapped.with_name("items.jsonl"))

    # --- recommendations ----------------------------------------------------------------------------------------------

    async def recommend(self, question: Recommend) -> Recommendations:
        """One list, for a user or for a history, made with those that come in at the same time.

        Nobody waits while there is nobody else to be joined. At 16 at once, 30,000 items and 64 dimensions that takes
        half of a request's time; where only those of the same turn of the loop were joined, four were, not thirteen.
        """
        if (question.user_id is None) == (question.history is None):
            raise WireError(Problem("For whom? Give user_id or history, one of the two.", "user_id"))
        request = await self._request(question)
        made: asyncio.Future[Recommendations] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._enqueue()
        self._waiting.append((request, question.user_id, made))
        return await made

    async def recommend_batch(self, question: RecommendBatch) -> RecommendationsBatch:
        """One list a user, on a thread and one batch at a time, so that single questions are not kept waiting."""
        request = await self._request(question)
        with self.meters.stage("history"):
            asks = await self._asks([(request, user_id) for user_id in question.user_ids])
        async with self._one_batch:
            return RecommendationsBatch(await asyncio.to_thread(make_lists, asks, self.meters))

    async def _request(self, question: RecommendOptions) -> "_Request":
        opened = self.current
        where = await _compiled(opened, question.filter)
        return _Request(opened, question, opened.items.now, where)

    def _enqueue(self) -> None:
        task = asyncio.get_running_loop().create_task(self._answer())
        self._json_route.add(task)
        task.add_done_callback(self._json_route.discard)

    async def _answer(self) -> None:
        before = 0
        while before < len(self._waiting) < AT_ONCE:  # as long as more come in
            before = len(self._waiting)
            for _ in range(TURNS):
                await asyncio.sleep(0)
        now, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        if self._waiting:
            self._enqueue()
        asked = [each for each in now if not each[2].done()]  # the rest have given up
        try:
            with self.meters.stage("history"):
                asks = await self._asks([(request, user_id) for request, user_id, _ in asked])
            lists = make_lists(asks, self.meters)
        except Exception as error:  # each of them shall hear of it
            for _, _, made in asked:
                if not made.done():
                    made.set_exception(error)
            return
        for (_, _, made), answer in zip(asked, lists, strict=True):
            if not made.done():
                made.set_result(answer)

    async def _asks(self, requests: Sequence[tuple["_Request", Id | None]]) -> list[ListRequest]:
        """What is asked for, for users with all that is known of them: their live histories are read at once."""
        users = [str(user_id) for _, user_id in requests if user_id is not None]
        remarks: tuple[str, ...] = ()
        try:
            live = iter(await self.histories.of(users) if users else [])
        except StoreError as error:
            if (moment := time.monotonic()) > self._said_at + SAY_S:  # else a line a question
                self._said_at = moment
                log("histories cannot be read", {"error": str(error)})
            live, remarks = repeat([]), (NO_STORE,)
        now = _now()
        return [
            self._of_history(request, now)
            if user_id is None
            else self._of_user(request, user_id, next(live), now=now, remarks=remarks)
            for request, user_id in requests
        ]

    def _of_user(
        self, request: "_Request", user_id: Id, live: list[LiveEvent], *, now: int, remarks: tuple[str, ...]
    ) -> ListRequest:
        bundle, items = request.opened.bundle, request.items
        row = bundle.users.row_of(user_id)
        self.meters.unknown("user", int(row == UNKNOWN))
        asker = user_state_of(bundle, row, live, at=request.question.context.at, now=now, items=items)
        return self._ask(request, user_id, asker, remarks=remarks)

    def _of_history(self, request: "_Request", now: int) -> ListRequest:
        bundle, question = request.opened.bundle, request.question
        assert isinstance(question, Recommend)
        at = max(now, bundle.as_of) if question.context.at is None else question.context.at
        asker, unknown = user_state_with(bundle, question.history or [], question.negatives, at=at, items=request.items)
        return self._ask(request, None, asker, unknown_items=unknown)

    def _ask(
        self,
        request: "_Request",
        user_id: Id | None,
        asker: UserState,
        *,
        unknown_items: int = 0,
        remarks: tuple[str, ...] = (),
    ) -> ListRequest:
        opened, question, items, where = request
        given = items.rows_of(question.exclude) if question.exclude else NO_ROWS
        without = given[given != UNKNOWN]
        unknown_items += len(given) - len(without)
        self.meters.unknown("item", unknown_items)
        return ListRequest(opened, question, user_id, asker, items, where, without, unknown_items, remarks)

    # --- items and events ---------------------------------------------------------------------------------------------

    async def similar(self, question: Similar) -> SimilarItems:
        """The items most like one."""
        opened = self.current
        item_row = self._item_row(opened, question.item_id, status=422)
        where = await _compiled(opened, question.filter)
        (line,) = lines_of(similar(opened, item_row, min(question.k, max(len(opened.items.now), 1)), where=where))
        items = items_of(opened, line, describe=question.describe)
        return SimilarItems(question.item_id, items, opened.digest[:12])

    async def item(self, item_id: str) -> ItemFacts:
        """What is known of an item."""
        opened = self.current
        return item_facts(opened, self._item_row(opened, item_id, status=404))

    def _item_row(self, opened: LiveBundle, item_id: Id, *, status: int) -> int:
        row = opened.items.now.row_of(item_id)
        if row == UNKNOWN:
            self.meters.unknown("item", 1)
            looks = ", ".join(map(str, opened.bundle.items.ids[:3].to_pylist()))
            detail = f"item_id is {str(item_id)[:80]!r}: no item of the catalogue has it. Its ids look like {looks}."
            raise invalid_field(detail, field="item_id", value=item_id, status=status)
        return row

    async def keep(self, question: Events) -> EventsAccepted:
        """Keeps what users just met; when it returns, the next answer reflects it, whichever worker gives it."""
        now, events = _now(), question.events
        for place, event in enumerate(events):
            if event.at is not None and event.at > now + AHEAD_MS:
                detail = f"events[{place}].at is {event.at}: that is after now, which is {now} (UTC milliseconds)."
                raise invalid_field(detail, field=f"events[{place}].at", value=event.at)
        await self.histories.append(
            (str(event.user_id), LiveEvent(str(event.item_id), now if event.at is None else event.at, event.kind))
            for event in events
        )
        rows = self.current.items.now.rows_of([event.item_id for event in events])
        unknown = int((rows == UNKNOWN).sum())
        self.meters.unknown("item", unknown)
        self.meters.events.inc(len(events))
        return EventsAccepted(len(events), unknown)

    async def some_users(self) -> SomeUsers:
        """Users of the log, evenly picked."""
        users = self.current.bundle.users
        ids: list[Id] = users.ids_of(
            np.linspace(0, len(users) - 1, min(SOME_USERS, len(users))).astype(int)
        ).to_pylist()
        return SomeUsers(ids)

    async def health(self) -> Health:
        """What answers."""
        bundle = self.current.bundle
        return Health(self.current.name, self.current.digest[:12], len(bundle.items), len(bundle.users))

    async def ready(self) -> Health:
        """What answers: a bundle that has been asked once; WireError (503) while it stops or the store is away."""
        if self.is_stopping:
            raise unavailable("it is stopping")
        await self.histories.of([PROBE])
        return await self.health()

    # --- other items --------------------------------------------------------------------------------------------------

    async def change(self, question: Changes) -> Changed:
        """Puts and withdraws items, for this worker at once and for the others within `LOOK_S`; all or nothing."""
        items = self.current.items
        put, withdrawn = await asyncio.to_thread(items.change, question)
        log("items changed", {"put": put, "withdrawn": withdrawn})
        return Changed(put, withdrawn, len(items.now))

    async def follow_items(self) -> None:
        """Learns of what other workers were told, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await asyncio.to_thread(self.current.items.catch_up)
            except Exception as error:  # a full disk, say; what is known goes on
                log("changes of items cannot be read", {"error": repr(error)})

    # --- another bundle -----------------------------------------------------------------------------------------------

    async def swap(self, question: Swap) -> Swapped:
        """Answers from the bundle of a run beside today's, or from today's opened anew; the other workers follow.

        RunError if it is damaged or does not answer, WireError (503) if the others cannot be told: what answered before
        goes on then.
        """
        before = self.current.digest
        opened = await self.open_run(question.run, tell=True)
        return Swapped(opened.name, opened.digest[:12], was_swapped=opened.digest != before)

    async def open_run(self, name: str | None, *, tell: bool = False) -> LiveBundle:
        """Answers from that run from now on, or raises RunError and goes on as before; with `tell`, the other workers
        are told first.
        """
        run = self.runs / (name or self.current.name)
        async with self._one_swap:
            try:
                opened = await asyncio.to_thread(open_live_bundle, run)
                await asyncio.to_thread(self._share_items, opened)
            except RunError as error:
                self.meters.swaps.labels("refused").inc()
                log("swap refused", {"run": run.name, "error": str(error)})
                raise RunError(str(error).replace(f"{self.runs}{os.sep}", "")) from error  # clients see no paths
            if tell:
                self._tell(opened)
            self.current = opened
            self.meters.forget_exposure(len(opened.bundle.items))
            self.meters.swaps.labels("done").inc()
            log("swapped", {"run": run.name, "bundle": opened.digest[:12]})
            return opened

    def _tell(self, opened: LiveBundle) -> None:
        if self.swapped is None:
            return
        try:
            write_json(self.swapped, {"run": opened.name, "bundle": opened.digest})
        except OSError as error:  # a full disk, say
            self.meters.swaps.labels("refused").inc()
            log("swap refused", {"run": opened.name, "error": repr(error)})
            raise unavailable("the other workers cannot be told of the swap") from error


class _Request(NamedTuple):
    """A question, the bundle that answers it, its items as they are now, and what must hold of the answers."""

    opened: LiveBundle
    question: RecommendOptions
    items: Snapshot
    where: str | None


async def _compiled(opened: LiveBundle, text: str | None) -> str | None:
    """What must hold of all answers. What is new is compiled on a thread: others would wait for it."""
    where = opened.rule(text)
    if where is not None and where not in opened.bundle.filters:
        await asyncio.to_thread(opened.bundle.filters.eligible, where)
    return where


def log(message: str, facts: Mapping[str, object] = MappingProxyType({})) -> None:
    """One line for whoever runs the service."""
    logging.getLogger("twofold.serve").info(message, extra={"facts": facts})


def _now() -> int:
    return time.time_ns() // 1_000_000
