"""What is counted of a service, for Prometheus: where time goes, what was short or unknown, how exposure is shared.

Several workers write into one folder (`PROMETHEUS_MULTIPROC_DIR`, set before they start), so that whichever is asked
answers for all.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from time import perf_counter
from typing import Final

import numpy as np
from jaxtyping import Integer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED_METERS: Final = "PROMETHEUS_MULTIPROC_DIR"
STAGES: Final = ("history", "encode", "search", "rank", "reply", "request")
BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
TOP_SHARE: Final = 0.01  # of the catalogue: the items whose part of all exposures is the concentration


class ServiceMetrics:
    """The counters of one worker."""

    def __init__(self) -> None:
        """Zero of everything."""
        self._registry = CollectorRegistry()
        seconds = Histogram(
            "twofold_stage_seconds",
            "Where the time of a request goes.",
            ["stage"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._stages = {stage: seconds.labels(stage) for stage in STAGES}
        lists = self._counter("lists", "Lists answered, by what ordered them.", "source")
        self._lists = {source: lists.labels(source) for source in ("model", "popularity")}
        unknown_ids = self._counter("unknown_ids", "Ids that the bundle does not hold.", "of")
        self._unknown_ids = {of: unknown_ids.labels(of) for of in ("user", "item")}
        self._short_lists = self._counter("short_lists", "Lists shorter than asked for: no more items were eligible.")
        requests = self._counter("requests", "Replies.", "route", "status")
        # `labels` looks into the environment each time: 4 % of a request.
        self._requests = lru_cache(1024)(lambda route, status: requests.labels(route, status))
        self.events = self._counter("events", "Live events kept.")
        self.swaps = self._counter("swaps", "Bundles opened while serving.", "outcome")
        self._served = self._gauge("served_share", "Part of the catalogue that any list of this bundle held.")
        self._on_top = self._gauge("exposure_of_top_items", "Part of exposures of the most shown hundredth of items.")
        self._shown: np.ndarray = np.zeros(0, np.int64)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"twofold_{name}", about, labels, registry=self._registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"twofold_{name}", about, registry=self._registry, multiprocess_mode="liveall")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block."""
        started = perf_counter()
        try:
            yield
        finally:
            self._stages[name].observe(perf_counter() - started)

    def forget_exposure(self, items: int) -> None:
        """Another bundle answers: its item rows are others."""
        self._shown = np.zeros(items, np.int64)

    def replied(self, route: str, status: int) -> None:
        """One reply."""
        self._requests(route, status).inc()

    def unknown(self, of: str, count: int) -> None:
        """Ids of a request that the bundle does not hold."""
        if count:
            self._unknown_ids[of].inc(count)

    def answered(self, item_rows: Integer[np.ndarray, "k"], source: str, *, is_short: bool) -> None:
        """One list was answered; its rows are distinct."""
        self._lists[source].inc()
        if is_short:
            self._short_lists.inc()
        # Others were put while serving, or are of the bundle before.
        self._shown[item_rows[item_rows < len(self._shown)]] += 1

    def exposure(self) -> tuple[float, float]:
        """(share of the catalogue served at least once, part of the exposures that the top hundredth took)."""
        shown, total = self._shown, int(self._shown.sum())
        if total == 0:
            return 0.0, 0.0
        top = max(1, round(TOP_SHARE * len(shown)))
        return float((shown > 0).mean()), float(np.partition(shown, -top)[-top:].sum() / total)

    def refresh(self) -> None:
        """Brings up to date what is not counted one by one."""
        served, on_top = self.exposure()
        self._served.set(served)
        self._on_top.set(on_top)

    def page(self) -> bytes:
        """The metrics of all workers as text."""
        self.refresh()
        if SHARED_METERS not in os.environ:
            return bytes(generate_latest(self._registry))
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        return bytes(generate_latest(everyone))
