"""Prometheus metrics of the service: time per stage, short lists, unknown ids, and the concentration of exposure.

Several workers write into one folder (`PROMETHEUS_MULTIPROC_DIR`, set before they start), so that each of them can
report for all.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from time import perf_counter, time_ns
from typing import Final

import numpy as np
from jaxtyping import Integer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from twofold.serve.tracing import TRACE, Stage

SHARED_METRICS: Final = "PROMETHEUS_MULTIPROC_DIR"
STAGES: Final = ("store", "history", "encode", "search", "rank", "reply", "request")
BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
PAGE_S: Final = 1.0  # a page of many workers takes 7 ms and more
TOP_SHARE: Final = 0.01  # of the catalogue: concentration is these items' share of all exposures


class ServiceMetrics:
    """The metrics of one worker."""

    def __init__(self) -> None:
        """Starts every metric at zero."""
        self._registry = CollectorRegistry()
        seconds = Histogram(
            "twofold_stage_seconds",
            "Time of a request by stage.",
            ["stage"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._stages = {stage: seconds.labels(stage) for stage in STAGES}
        lists = self._counter("lists", "Lists returned, by what ordered them.", "source")
        self._lists = {source: lists.labels(source) for source in ("model", "popularity")}
        unknown_ids = self._counter("unknown_ids", "Ids of requests that the bundle does not contain.", "of")
        self._unknown_ids = {kind: unknown_ids.labels(kind) for kind in ("user", "item", "posted_item")}
        self._short_lists = self._counter("short_lists", "Lists shorter than requested: no more items were eligible.")
        requests = self._counter("requests", "Replies, by route and status.", "route", "status")
        # `labels` reads the environment each time: 4 % of a request.
        self._requests = lru_cache(1024)(lambda route, status: requests.labels(route, status))
        self.events = self._counter("events", "Live events stored.")
        self.swaps = self._counter("swaps", "Bundles opened while serving.", "outcome")
        self._served = self._gauge("served_share", "Share of the catalogue in at least one list of this bundle.")
        self._on_top = self._gauge("exposure_of_top_items", "Share of exposures of the most shown 1% of items.")
        self.pointer_lag = Gauge(
            "twofold_pointer_lag",
            "1 while a worker does not use the bundle that the pointer of --follow names.",
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self._bundle = Gauge(
            "twofold_bundle_info",
            "1 for the bundle that a worker uses.",
            ["bundle"],
            registry=self._registry,
            multiprocess_mode="liveall",
        )
        self._bundle_in_use = ""
        self._exposures: np.ndarray = np.zeros(0, np.int64)
        self._page, self._page_at = b"", -PAGE_S

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"twofold_{name}", about, labels, registry=self._registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"twofold_{name}", about, registry=self._registry, multiprocess_mode="liveall")

    @contextmanager
    def time_stage(self, name: str) -> Iterator[None]:
        """Measures the time of a block, also for the trace of the requests it answers."""
        started = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - started
            self._stages[name].observe(seconds)
            if (trace := TRACE.get()) is not None and trace.stages is not None:
                ended = time_ns()
                trace.stages.append(Stage(name, ended - int(1e9 * seconds), ended))

    def reset_exposure(self, items: int) -> None:
        """Counts exposure from zero for a new bundle, whose item rows are different."""
        self._exposures = np.zeros(items, np.int64)

    def set_bundle(self, digest: str) -> None:
        """Sets the gauge that names the bundle in use."""
        if self._bundle_in_use:
            self._bundle.labels(self._bundle_in_use).set(0)
        self._bundle_in_use = digest
        self._bundle.labels(digest).set(1)

    def count_reply(self, route: str, status: int) -> None:
        """Counts one reply."""
        self._requests(route, status).inc()

    def count_unknown(self, kind: str, count: int) -> None:
        """Counts ids of a request that the bundle does not contain; `kind` is "user", "item" or, for
        items of posted events, "posted_item".
        """
        if count:
            self._unknown_ids[kind].inc(count)

    def count_lists(self, item_rows: Sequence[Integer[np.ndarray, "_"]], *, popular: int, short: int) -> None:
        """Counts lists and the exposure of their items: `popular` of them are ordered by popularity, `short` are short.

        Called once for the lists of a batch: counting each of them takes 6 µs a list.
        """
        for source, count in (("popularity", popular), ("model", len(item_rows) - popular)):
            if count:
                self._lists[source].inc(count)
        if short:
            self._short_lists.inc(short)
        rows = np.concatenate([*item_rows, np.empty(0, np.int64)])
        # Items added while serving, or of the previous bundle, are not counted.
        np.add.at(self._exposures, rows[rows < len(self._exposures)], 1)

    def exposure(self) -> tuple[float, float]:
        """Returns the share of the catalogue shown at least once, and the share of exposures of the top 1% of items."""
        total = int(self._exposures.sum())
        if total == 0:
            return 0.0, 0.0
        top = max(1, round(TOP_SHARE * len(self._exposures)))
        on_top = np.partition(self._exposures, -top)[-top:].sum()
        return float((self._exposures > 0).mean()), float(on_top / total)

    def refresh(self) -> None:
        """Updates the gauges of exposure."""
        served, on_top = self.exposure()
        self._served.set(served)
        self._on_top.set(on_top)

    def page(self) -> bytes:
        """Returns the metrics of all workers in Prometheus' text format, at most `PAGE_S` old."""
        if (now := perf_counter()) > self._page_at + PAGE_S:
            self._page, self._page_at = self._new_page(), now
        return self._page

    def _new_page(self) -> bytes:
        self.refresh()
        if SHARED_METRICS not in os.environ:
            return bytes(generate_latest(self._registry))
        all_workers = CollectorRegistry()
        MultiProcessCollector(all_workers)  # type: ignore[no-untyped-call]
        return bytes(generate_latest(all_workers))
