"""The service: requests become responses from the bundle in use, which can be swapped. No HTTP here; see `app.py`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from twofold.dataset.vocabulary import UNKNOWN
from twofold.errors import RunError
from twofold.serve.bundle_pointer import RUN_NAME
from twofold.serve.bundle_swaps import POLL_S, BundleSwitch, not_agreed
from twofold.serve.event_store import MAX_AHEAD_MS, NO_MARKS, LiveEvent, LiveHistories, StoreError, now_ms
from twofold.serve.given_items import rank_given
from twofold.serve.http_errors import invalid_field, unavailable
from twofold.serve.live_bundle import LiveBundle, logged_events
from twofold.serve.micro_batching import MicroBatcher, compiled_filter
from twofold.serve.middleware import log
from twofold.serve.page_service import PageService
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.rank_schemas import Rank, Ranked
from twofold.serve.responses import item_facts, ranked_lists, response_items, similar
from twofold.serve.schemas import (
    Event,
    EventRemoval,
    Events,
    EventsAccepted,
    EventsRemoved,
    Health,
    Id,
    ItemChanges,
    ItemFacts,
    ItemsChanged,
    Recommend,
    Recommendations,
    RecommendationsBatch,
    RecommendBatch,
    Similar,
    SimilarItems,
    SomeUsers,
    StoredEvent,
    Swap,
    Swapped,
    UserData,
)
from twofold.serve.shared_state import SharedFolder

SOME_USERS: Final = 20
STORE_LOG_S: Final = 1.0  # interval of the log lines while the store is down
MARKS_POLL_S: Final = 0.5  # longest delay until a worker applies the withdrawals and item changes of the others
EXPIRE_S: Final = 3600.0  # interval in which old events are deleted
CHECK_S: Final = 1.0  # /ready writes to the store at most once in this interval
Result = TypeVar("Result")


class Service:
    """A bundle that can be swapped between two requests, a store of live events, and metrics.

    Every request reads `current` once and is answered by that bundle.
    """

    def __init__(
        self,
        current: LiveBundle,
        runs: Path,
        histories: LiveHistories,
        metrics: ServiceMetrics,
        shared: SharedFolder | None = None,
        beside: LiveBundle | None = None,
    ) -> None:
        """Starts with an open bundle; `shared` is the folder that the workers of one service share. `beside` is a
        second bundle, which the page compares with the first."""
        self.histories, self.metrics = histories, metrics
        self.bundles = BundleSwitch(current, runs, metrics, shared)
        self.is_stopping = False
        self.pointer: Path | None = None
        """The pointer that the service follows; `None` means that swaps are requested over HTTP."""
        self._batcher = MicroBatcher(histories, metrics)
        self.page = PageService(lambda: self.current, self._batcher, beside)
        """The requests of the live page."""
        self._marks = NO_MARKS
        self._store_logged_at = -STORE_LOG_S
        self._check: asyncio.Task[None] | None = None
        self._checked_at = -CHECK_S
        self._next_marks = self._next_expiry = 0.0
        self._followed_bundle = ""

    @property
    def current(self) -> LiveBundle:
        """The bundle in use."""
        return self.bundles.current

    # --- recommendations ----------------------------------------------------------------------------------------------

    async def recommend(self, body: Recommend) -> Recommendations:
        """Returns one list, for a user or for a history."""
        return await self._batcher.recommend(self.current, body)

    async def recommend_batch(self, body: RecommendBatch) -> RecommendationsBatch:
        """Returns one list per user."""
        return await self._batcher.recommend_batch(self.current, body)

    async def rank(self, body: Rank) -> Ranked:
        """Returns given items in the order for one user, or for a history."""
        user = Recommend(
            user_id=body.user_id,
            history=body.history,
            negatives=body.negatives,
            context=body.context,
            explain=body.explain,
            describe=body.describe,
        )
        ranked = await asyncio.to_thread(rank_given, await self._batcher.list_request(self.current, user), body)
        self.metrics.count_unknown("item", sum(each.why == "unknown" for each in ranked.left_out))
        return ranked

    # --- items and events ---------------------------------------------------------------------------------------------

    async def similar(self, body: Similar) -> SimilarItems:
        """Returns the items most similar to one."""
        live_bundle = self.current
        items = live_bundle.items.now
        item_row = self._item_row(live_bundle, body.item_id, status=422)
        where = await compiled_filter(live_bundle, body.filter)
        k = min(body.k, max(len(items), 1))
        (ranked,) = ranked_lists(await asyncio.to_thread(similar, items, item_row, k, where=where))
        listed = response_items(live_bundle, items, ranked, describe=body.describe)
        return SimilarItems(body.item_id, listed, live_bundle.digest[:12], ranked.is_exact)

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
        now, events = now_ms(), body.events
        for position, event in enumerate(events):
            if event.at is not None and event.at > now + MAX_AHEAD_MS:
                detail = f"events[{position}].at is {event.at}: that is after now, which is {now} (UTC milliseconds)."
                raise invalid_field(detail, field=f"events[{position}].at", value=event.at)
        if body.idempotency_key is not None:  # repeated, the events have the same time, and so are the same events
            now = await self._stored(self.histories.first_time(body.idempotency_key, now))
        await self._stored(self.histories.append([(str(event.user_id), _live_event(event, now)) for event in events]))
        rows = self.current.items.now.rows_of([event.item_id for event in events])
        unknown = int((rows == UNKNOWN).sum())
        self.metrics.count_unknown("posted_item", unknown)
        self.metrics.events.inc(len(events))
        return EventsAccepted(len(events), unknown, now)

    async def remove_events(self, body: EventRemoval) -> EventsRemoved:
        """Removes a stored event of a user, as if it had not been posted."""
        removed = self.histories.remove(str(body.user_id), str(body.item_id), body.at)
        return EventsRemoved(await self._stored(removed))

    # --- users --------------------------------------------------------------------------------------------------------

    async def some_users(self) -> SomeUsers:
        """Returns some users of the log, evenly spaced."""
        users = self.current.bundle.users
        ids: list[Id] = users.ids_of(
            np.linspace(0, len(users) - 1, min(SOME_USERS, len(users))).astype(int)
        ).to_pylist()
        return SomeUsers(ids)

    async def user(self, user_id: str) -> UserData:
        """Returns all events of a user that the service knows."""
        (live,) = await self._stored(self.histories.read([user_id]))
        is_forgotten = user_id in self._marks.forgotten
        logged = [] if is_forgotten else logged_events(self.current, user_id)
        posted = [StoredEvent(event.item_id, event.at, event.kind) for event in live]
        return UserData(user_id, logged, posted, is_forgotten)

    async def delete_user(self, user_id: str) -> EventsRemoved:
        """Deletes a user's live events, and ignores the user's events of the log from now on, in every bundle."""
        deleted = await self._stored(self.histories.delete_user(user_id))
        await self._follow_marks()
        log("user deleted", {"events": deleted})
        return EventsRemoved(deleted)

    # --- state --------------------------------------------------------------------------------------------------------

    async def health(self) -> Health:
        """Returns name, digest and size of the bundle in use."""
        bundle = self.current.bundle
        return Health(self.current.name, self.current.digest[:12], len(bundle.items), len(bundle.users))

    async def ready(self) -> Health:
        """Returns the same as `health`; HttpError (503) while the service is stopping, its store cannot be written,
        its Qdrant cannot be reached, or this worker does not have the bundle of the others.
        """
        if self.is_stopping:
            raise unavailable("it is stopping")
        if not self.bundles.is_agreed:
            raise not_agreed()
        if self._check is None or (self._check.done() and time.monotonic() > self._checked_at + CHECK_S):
            self._check = asyncio.get_running_loop().create_task(self._check_parts())
            self._check.add_done_callback(lambda check: check.cancelled() or check.exception())  # requests raise it
            self._checked_at = time.monotonic()
        await asyncio.shield(self._check)
        return await self.health()

    async def _check_parts(self) -> None:
        """Raises the error of the store or of Qdrant."""
        await self._stored(self.histories.check())
        if (remote := self.current.items.now.remote) is not None:
            await asyncio.to_thread(remote.ping)

    async def _stored(self, work: Awaitable[Result]) -> Result:
        """Awaits work of the store; why it fails goes to the log, at most once a second."""
        try:
            return await work
        except StoreError as error:
            if (now := time.monotonic()) > self._store_logged_at + STORE_LOG_S:
                self._store_logged_at = now
                log("the store fails", {"error": str(error)})
            raise

    # --- administration -----------------------------------------------------------------------------------------------

    async def change_items(self, body: ItemChanges) -> ItemsChanged:
        """Upserts, withdraws and restores items; other workers follow within `MARKS_POLL_S`.

        If the withdrawals cannot be written, the upserts stand: the same request can be sent again.
        """
        items = self.current.items
        if body.upsert:
            try:
                await asyncio.to_thread(items.upsert, body.upsert)
            except OSError as error:
                log("item changes cannot be written", {"error": str(error)})
                raise unavailable("item changes cannot be written now") from error
        for ids, is_marked in ((body.restore, False), (body.remove, True)):
            if ids:
                marked = self.histories.mark("withdrawn", [*map(str, ids)], is_marked=is_marked)
                await self._stored(marked)
        removed = await self._follow_marks() if body.remove or body.restore else 0
        facts = {"upserted": len(body.upsert), "removed": max(removed, 0), "restored": max(-removed, 0)}
        log("items changed", facts)
        return ItemsChanged(len(body.upsert), max(removed, 0), max(-removed, 0), len(items.now))

    async def _follow_marks(self) -> int:
        """Applies the marks of the store; returns how many items became unavailable."""
        marks = await self.histories.marks(self._marks.version)
        if marks is None:
            return 0
        self._marks = marks
        self._batcher.forgotten, self.bundles.withdrawn = marks.forgotten, marks.withdrawn
        if self.page.beside is not None:
            await asyncio.to_thread(self.page.beside.items.set_withdrawn, marks.withdrawn)
        return await asyncio.to_thread(self.current.items.set_withdrawn, marks.withdrawn)

    async def start(self) -> None:
        """Waits until this worker uses the bundle of the others, and applies withdrawals and item changes."""
        while not self.bundles.is_agreed:
            await self.bundles.follow()
            await asyncio.sleep(POLL_S)
        with suppress(StoreError):  # it has been logged; the service starts with what the log knows
            await self._follow_store()

    async def follow(self) -> None:
        """Follows the bundle, the item changes and the marks of other workers, until the task is canceled.

        The bundle has a task of its own: a swap must not wait for a store that does not respond.
        """
        await asyncio.gather(_repeated(self._follow_bundle), _repeated(self._follow_store_if_due))

    async def _follow_bundle(self) -> None:
        await self.bundles.follow()
        await self.bundles.check_files()

    async def _follow_store_if_due(self) -> None:
        now, bundle = time.monotonic(), self.current.digest
        if now >= self._next_marks or bundle != self._followed_bundle:
            self._next_marks, self._followed_bundle = now + MARKS_POLL_S, bundle
            self.metrics.refresh()
            await self._follow_store()
        if now >= self._next_expiry:
            self._next_expiry = now + EXPIRE_S
            await self._stored(self.histories.expire())

    async def _follow_store(self) -> None:
        await asyncio.to_thread(self.current.items.catch_up)
        await self._stored(self._follow_marks())

    async def swap(self, body: Swap) -> Swapped:
        """Opens the bundle of another run in all workers, or the current one again.

        RunError if the bundle is damaged or does not work, HttpError (503) if not all workers can be reached; in both
        cases the previous bundle stays in use.
        """
        if body.run is not None and not RUN_NAME.fullmatch(body.run):
            detail = f"run is {body.run[:80]!r}: name a folder beside the current run, of letters, digits and _ . -"
            raise invalid_field(detail, field="run", value=body.run)
        if body.run is not None and self.pointer is not None:
            raise RunError(
                f"this service follows the pointer {self.pointer.name}: name the run there (twofold publish)"
            )
        before = self.current.digest
        live_bundle = await self.bundles.swap(body.run)
        return Swapped(live_bundle.name, live_bundle.digest[:12], was_swapped=live_bundle.digest != before)

    async def reopen(self) -> None:
        """Opens the current run again, in all workers; whatever the error, the previous bundle stays in use."""
        try:
            await self.swap(Swap())
        except RunError:
            pass  # it has been logged
        except Exception as error:
            log("swap failed", {"error": repr(error)})


def _live_event(event: Event, now: int) -> LiveEvent:
    return LiveEvent(str(event.item_id), now if event.at is None else event.at, event.kind)


async def _repeated(work: Callable[[], Awaitable[None]]) -> None:
    """Does `work` every `POLL_S`, until the task is canceled; errors go to the log."""
    while True:
        await asyncio.sleep(POLL_S)
        try:
            await work()
        except StoreError:
            pass  # it has been logged; the service continues with what it knows
        except Exception as error:
            log("cannot follow the other workers", {"error": repr(error)})
