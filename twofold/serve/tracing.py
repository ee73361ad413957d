"""Traces: the id of every request, by W3C Trace Context, and spans of requests for an OpenTelemetry collector.

Spans need the extra `otel`; without `--traces`, nothing of it is imported. A span of a stage is made when the request
ends, from the times that the metrics measure. Requests that are answered together share the times of their stages.
"""

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from twofold.errors import RequestError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

TRACEPARENT: Final = "traceparent"
_TRACEPARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SERVICE_NAME: Final = "OTEL_SERVICE_NAME"


class Stage(NamedTuple):
    """A stage of a request: its name, and when it began and ended (UTC nanoseconds)."""

    name: str
    started_ns: int
    ended_ns: int


@dataclass(frozen=True)
class Trace:
    """The trace of a request: the header for other services, and the stages so far.

    `stages` is `None` if nobody wants the spans: no collector is set, or the request is not in the sample.
    """

    traceparent: str
    stages: list[Stage] | None = None
    span: Any = None


TRACE: Final = ContextVar[Trace | None]("TRACE", default=None)
"""Trace of the requests that the current task or thread answers; `None` means that they have none."""


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """Returns the trace id of the header `traceparent`, or a new id if the header is missing or invalid.

    >>> request_id({b"traceparent": b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
    '4bf92f3577b34da6a3ce929d0e0e4736'
    >>> len(request_id({b"traceparent": b"00-" + 32 * b"0" + b"-00f067aa0ba902b7-01"}))
    32
    """
    match = _TRACEPARENT.fullmatch(headers.get(TRACEPARENT.encode(), b""))
    return token_hex(16) if match is None else match[1].decode()


def passed_on(headers: Mapping[bytes, bytes]) -> Trace | None:
    """Returns the trace of the header `traceparent`, without spans of its own; `None` without a valid header."""
    header = headers.get(TRACEPARENT.encode(), b"")
    return Trace(header.decode()) if _TRACEPARENT.fullmatch(header) else None


def trace_headers() -> dict[str, str]:
    """Returns the headers with which another service continues the current trace."""
    trace = TRACE.get()
    return {} if trace is None else {TRACEPARENT: trace.traceparent}


def joined_trace(traces: list[Trace | None]) -> Trace | None:
    """Returns a trace for work that is done for several requests at once; `share_stages` gives them its stages."""
    recorded = [each for each in traces if each is not None and each.stages is not None]
    first = next((each for each in [*recorded, *traces] if each is not None), None)
    return None if first is None else Trace(first.traceparent, [] if recorded else None)


def share_stages(joined: Trace | None, traces: list[Trace | None]) -> None:
    """Adds the stages of the joint work to each request that records its stages."""
    for trace in traces:
        if joined is not None and joined.stages is not None and trace is not None and trace.stages is not None:
            trace.stages.extend(joined.stages)


# --- spans ------------------------------------------------------------------------------------------------------------


class Tracing:
    """The spans of one worker."""

    def __init__(self, provider: "TracerProvider") -> None:
        """Takes a provider with the exporter of the spans."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("twofold")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, headers: Mapping[bytes, bytes], *, method: str, route: str) -> Trace:
        """Starts the span of a request, below the caller's if the headers name one."""
        from opentelemetry.trace import SpanKind

        names = (TRACEPARENT, "tracestate")
        carrier = {name: headers[name.encode()].decode("latin-1") for name in names if name.encode() in headers}
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(carrier) if carrier else None,
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        ids = span.get_span_context()
        traceparent = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"
        return Trace(traceparent, [] if span.is_recording() else None, span)

    def end(self, trace: Trace, status: int) -> None:
        """Ends the span of a request, and makes those of its stages."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        if trace.stages is None:
            return
        context = set_span_in_context(trace.span)
        for stage in trace.stages:
            if stage.name != "request":  # the span itself
                child = self._tracer.start_span(stage.name, context=context, start_time=stage.started_ns)
                child.end(stage.ended_ns)
        trace.span.set_attribute("http.response.status_code", status)
        if status >= 500:
            trace.span.set_status(StatusCode.ERROR)
        trace.span.end()

    def close(self) -> None:
        """Sends the spans that have not been sent yet."""
        self._provider.shutdown()


def check_traces(url: str) -> None:
    """Raises RequestError if spans cannot be sent: the address is not one, or the extra is missing."""
    if not re.match(r"https?://[^/\s]+", url):
        raise RequestError(
            f"--traces {url} is not the address of a collector. Give that of OTLP over HTTP, such as http://HOST:4318."
        )
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise RequestError("--traces needs OpenTelemetry, which is not installed: pip install 'twofold[otel]'")


def open_tracing(url: str) -> Tracing:
    """Returns spans that a thread sends to a collector; OpenTelemetry's own variables (`OTEL_…`) set the rest."""
    check_traces(url)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    os.environ.setdefault(_SERVICE_NAME, "twofold")
    provider = TracerProvider(shutdown_on_exit=False)  # the worker closes it
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url.rstrip('/')}/v1/traces")))
    return Tracing(provider)
