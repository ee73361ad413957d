"""Swaps of the bundle in use: every worker opens the new bundle beside its own, and then all of them switch."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from twofold.errors import RunError
from twofold.serve.http_errors import HttpError, unavailable
from twofold.serve.live_bundle import LiveBundle, open_live_bundle
from twofold.serve.middleware import log
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.shared_state import ChosenBundle, SharedFolder

POLL_S: Final = 0.1  # longest delay until a worker sees what another has written
OPEN_TIMEOUT_S: Final = 300.0  # in which all workers must have opened a bundle: 10 GB are read in some 20 s
MAX_PAUSE_S: Final = 30.0  # between two attempts to open a bundle that cannot be opened now
CHECK_FILES_S: Final = 2.0


class BundleSwitch:
    """The bundle that a worker uses, kept equal to that of the other workers.

    Without a shared folder the worker is alone.
    """

    def __init__(self, current: LiveBundle, runs: Path, metrics: ServiceMetrics, shared: SharedFolder | None) -> None:
        """Starts with an open bundle; `runs` is the folder of the runs that can be swapped in."""
        self._runs, self.metrics, self._shared = runs, metrics, shared
        self._prepared: LiveBundle | None = None
        self._lock = asyncio.Lock()
        self._next_try, self._pause_s, self._next_check = 0.0, POLL_S, 0.0
        self._error, self._swaps = "", 0
        self.withdrawn: frozenset[str] = frozenset()
        """Items that no bundle may recommend: they are withdrawn before a bundle is used."""
        self.current = current
        self._use(current, None if shared is None else shared.current)

    def _use(self, live_bundle: LiveBundle, agreed: ChosenBundle | None) -> None:
        """Uses a bundle, with the upserts since the swap that made it the current one; `None` means no swap."""
        self._swaps = 0 if agreed is None else agreed.swaps
        if self._shared is not None:
            live_bundle.items.follow(self._shared.folder / "items.log", swaps=self._swaps)
        if self.withdrawn:
            live_bundle.items.set_withdrawn(self.withdrawn)
        self.current, self._prepared, self._error = live_bundle, None, ""
        self.metrics.reset_exposure(len(live_bundle.bundle.items))
        self.metrics.set_bundle(live_bundle.digest[:12])
        self._report()

    def _report(self) -> None:
        if self._shared is not None:
            opened = "" if self._prepared is None else self._prepared.digest
            self._shared.report(self.current.digest, opened, self._error)

    @property
    def is_agreed(self) -> bool:
        """True if this worker uses the bundle that all workers shall use."""
        return self._is_in_use(None if self._shared is None else self._shared.current)

    def _is_in_use(self, agreed: ChosenBundle | None) -> bool:
        """Returns whether this worker uses a bundle, with the upserts since it was swapped in and no earlier ones."""
        if agreed is None or not agreed.bundle:
            return True
        return (agreed.bundle, agreed.swaps) == (self.current.digest, self._swaps)

    # --- a swap requested from this worker ----------------------------------------------------------------------------

    async def swap(self, run: str | None) -> LiveBundle:
        """Opens a run and uses it from now on, in all workers. `None` means the run in use: its name is looked up
        again, so that a link leads where it leads now.

        RunError if a worker cannot open the bundle, HttpError (503) if not all workers can be reached; in both cases
        the previous bundle stays in use everywhere.
        """
        async with self._lock:
            requested = run or self._requested_run()
            try:
                live_bundle = await asyncio.to_thread(
                    open_live_bundle, self._runs / requested, self.current.qdrant, self._shared
                )
                async with self._all_have_opened(requested, live_bundle) as agreed:
                    self._use(live_bundle, agreed)
            except (RunError, HttpError) as error:
                self.metrics.swaps.labels("refused").inc()
                log("swap refused", {"run": requested, "error": str(error)})
                if isinstance(error, RunError):  # no paths for clients
                    raise RunError(str(error).replace(f"{self._runs}{os.sep}", "")) from error
                raise
            self.metrics.swaps.labels("done").inc()
            log("swapped", {"run": live_bundle.name, "bundle": live_bundle.digest[:12]})
            return live_bundle

    def _requested_run(self) -> str:
        agreed = None if self._shared is None else self._shared.current
        return self.current.name if agreed is None else agreed.run

    @asynccontextmanager
    async def _all_have_opened(self, requested: str, live_bundle: LiveBundle) -> AsyncIterator[ChosenBundle | None]:
        """Makes the bundle the current one of all workers once all have opened it; then the block runs.

        Gives what all workers have agreed on; `None` means that the worker is alone.
        """
        if self._shared is None:
            yield None
            return
        chosen = ChosenBundle(requested, str(live_bundle.folder), live_bundle.digest)
        with self._shared.swap_turn() as is_mine:
            if not is_mine:
                raise unavailable("another swap is in progress")
            try:
                with self._shared.proposing(chosen):
                    await self._wait_for_workers(chosen)
                    agreed = self._shared.commit(chosen)
            except OSError as error:  # for example a full disk
                log("the swap cannot be written", {"error": repr(error)})
                raise unavailable("the other workers cannot be notified of the swap") from error
            yield agreed

    async def _wait_for_workers(self, chosen: ChosenBundle) -> None:
        assert self._shared is not None
        end = time.monotonic() + OPEN_TIMEOUT_S
        while True:
            late = [worker for worker in self._shared.others() if chosen.bundle not in (worker.bundle, worker.opened)]
            if not late:
                return
            if errors := [worker.error for worker in late if worker.error.startswith(chosen.bundle)]:
                raise RunError(f"another worker cannot open it: {errors[0].partition(' ')[2]}")
            if time.monotonic() > end:
                raise unavailable(f"{len(late)} workers have not opened the bundle within {OPEN_TIMEOUT_S:g} s")
            await asyncio.sleep(POLL_S)

    # --- swaps requested from other workers ---------------------------------------------------------------------------

    async def follow(self) -> None:
        """Opens what another worker proposes, and switches to what all have opened. Called every `POLL_S`."""
        if self._shared is None or self._lock.locked():  # a swap requested here is in progress
            return
        agreed, proposed = self._shared.current, self._shared.proposed
        if agreed is not None and not self._is_in_use(agreed):
            await self._open(agreed)
            is_last = self._shared.current == agreed  # else a later swap was made meanwhile, perhaps from here
            if is_last and self._prepared is not None and self._prepared.digest == agreed.bundle:
                self._use(self._prepared, agreed)
                log("swapped", {"run": self.current.name, "bundle": self.current.digest[:12]})
        elif proposed is not None and proposed.bundle != self.current.digest:
            await self._open(proposed)
        elif self._prepared is not None or self._error:
            self._prepared, self._error = None, ""
            self._report()

    async def _open(self, chosen: ChosenBundle) -> None:
        """Opens a bundle beside the current one; if that fails, tries again after a pause that doubles."""
        if self._prepared is not None and self._prepared.digest == chosen.bundle:
            return
        if (now := time.monotonic()) < self._next_try and self._error.startswith(chosen.bundle):
            return
        try:
            live_bundle = await asyncio.to_thread(
                open_live_bundle, Path(chosen.folder), self.current.qdrant, self._shared
            )
            if live_bundle.digest != chosen.bundle:
                raise RunError(f"the run {chosen.run} has other content here than where the swap was requested")
            self._prepared, self._error, self._pause_s = live_bundle, "", POLL_S
        except RunError as error:
            self._error = f"{chosen.bundle} {error}"
            self._next_try, self._pause_s = now + self._pause_s, min(2 * self._pause_s, MAX_PAUSE_S)
            log("bundle cannot be opened", {"run": chosen.run, "error": str(error)})
        self._report()

    # --- files that change in place -----------------------------------------------------------------------------------

    async def check_files(self) -> None:
        """Looks whether the files of the bundle were overwritten in place; if so, tries to open them as a new bundle.

        Called every `POLL_S`; after an attempt that failed, the next one follows after a pause that doubles.
        """
        if (now := time.monotonic()) < self._next_check or self._lock.locked():
            return
        self._next_check = now + CHECK_FILES_S
        if not await asyncio.to_thread(self.current.is_overwritten):
            return
        log("bundle overwritten in place", {"run": self.current.name, "remedy": "copy beside it, then rename and swap"})
        try:
            await self.swap(None)
            self._pause_s = POLL_S
        except (RunError, HttpError):  # logged by `swap`
            self._pause_s = min(2 * max(self._pause_s, CHECK_FILES_S), MAX_PAUSE_S)
            self._next_check = now + self._pause_s


def not_agreed() -> HttpError:
    """Returns HTTP 503: this worker could not open the bundle that the others use."""
    return unavailable("this worker does not have the bundle of the other workers yet")
