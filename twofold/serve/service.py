"""The service: requests become responses from the bundle in use, which can be swapped. No HTTP here; see `app.py`."""

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from twofold.dataset.vocabulary import UNKNOWN
from twofold.errors import RunError
from twofold.run_folder import write_json
from twofold.serve.event_store import LiveEvent, LiveHistories
from twofold.serve.live_bundle import LiveBundle, open_live_bundle
from twofold.serve.micro_batching import MicroBatcher, compiled_filter, now_ms
from twofold.serve.middleware import log
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.responses import item_facts, ranked_lists, response_items, similar
from twofold.serve.schemas import (
    Events,
    EventsAccepted,
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
    Swap,
    Swapped,
    invalid_field,
    unavailable,
)

MAX_AHEAD_MS: Final = 60_000  # tolerance for fast clocks: an event of next year would be its user's last for a year
SOME_USERS: Final = 20
ITEMS_POLL_S: Final = 0.5  # longest delay until a worker applies the item changes of the others
PROBE: Final = "twofold:ready"  # id of no user


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
    _swap_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        """Starts counting exposure and following item changes."""
        self._batcher = MicroBatcher(self.histories, self.metrics)
        self.metrics.reset_exposure(len(self.current.bundle.items))
        self._share_items(self.current)

    def _share_items(self, live_bundle: LiveBundle) -> None:
        if self.swap_file is not None:
            live_bundle.items.follow(self.swap_file.with_name("items.jsonl"))

    async def recommend(self, body: Recommend) -> Recommendations:
        """Returns one list, for a user or for a history."""
        return await self._batcher.recommend(self.current, body)

    async def recommend_batch(self, body: RecommendBatch) -> RecommendationsBatch:
        """Returns one list per user."""
        return await self._batcher.recommend_batch(self.current, body)

    # --- items and events ---------------------------------------------------------------------------------------------

    async def similar(self, body: Similar) -> SimilarItems:
        """Returns the items most similar to one."""
        live_bundle = self.current
        item_row = self._item_row(live_bundle, body.item_id, status=422)
        where = await compiled_filter(live_bundle, body.filter)
        k = min(body.k, max(len(live_bundle.items.now), 1))
        (ranked,) = ranked_lists(similar(live_bundle, item_row, k, where=where))
        items = response_items(live_bundle, live_bundle.items.now, ranked, describe=body.describe)
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
        now, events = now_ms(), body.events
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
