"""Traces: ids of requests in problems and in the log, spans of each stage, and the collector that gets them."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.client import Client
from tests.serve.running import Running
from twofold.errors import RequestError
from twofold.serve.app import build_app
from twofold.serve.event_store import StoreError
from twofold.serve.middleware import REQUEST_LOG, Limits
from twofold.serve.service import Service
from twofold.serve.tracing import TRACE, Tracing, check_traces, trace_headers

TRACE_ID, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE_ID}-{CALLER}-01"
STAGES = {"store", "history", "encode", "search", "reply"}
RECOMMEND = ("POST", "/v1/recommend", {"user_id": 10, "k": 3})


def send(client: Client, *requests: tuple[str, str, Any], traceparent: str | None = None) -> list[httpx.Response]:
    if traceparent is not None:
        client.headers["traceparent"] = traceparent
    return client.send(*requests)


# --- ids of requests, without OpenTelemetry ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/recommend", "/nothing"])
def test_a_problem_carries_the_trace_id_of_the_request(client: Client, path: str) -> None:
    (reply,) = send(client, ("POST", path, {"user_id": 10, "k": 0}), traceparent=PARENT)
    problem = reply.json()
    assert reply.headers["content-type"] == "application/problem+json"
    assert problem["instance"] == TRACE_ID
    assert (problem["type"], problem["status"]) == ("about:blank", reply.status_code)
    assert problem["title"] in ("Unprocessable Entity", "Unprocessable Content", "Not Found")


@pytest.mark.parametrize(
    "traceparent",
    [None, "", f"ff-{TRACE_ID}-{CALLER}-01", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE_ID}-{'0' * 16}-01"],
)
def test_without_a_valid_trace_every_problem_has_an_id_of_its_own(client: Client, traceparent: str | None) -> None:
    ids = [send(client, ("GET", "/nothing", b""), traceparent=traceparent)[0].json()["instance"] for _ in range(2)]
    assert [len(each) for each in ids] == [32, 32]
    assert len({TRACE_ID, *ids}) == 3


def test_the_log_has_the_id_that_the_problem_has(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, REQUEST_LOG):
        (reply,) = send(client, ("POST", "/v1/recommend", {"k": 0}))
    assert [record.facts["request"] for record in caplog.records] == [reply.json()["instance"]]  # type: ignore[attr-defined]


def test_the_trace_goes_on_to_other_services_without_a_collector(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    read = service.histories.read

    async def watched(users: Any) -> Any:
        sent.append(trace_headers())
        return await read(users)

    monkeypatch.setattr(service.histories, "read", watched)
    send(client, RECOMMEND, traceparent=PARENT)
    del client.headers["traceparent"]
    send(client, RECOMMEND)
    assert sent == [{"traceparent": PARENT}, {}]
    assert TRACE.get() is None


def test_a_service_without_a_collector_imports_no_opentelemetry() -> None:
    code = (
        "import sys, twofold.serve.workers; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


# --- spans ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spans() -> Any:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    return InMemorySpanExporter()


@pytest.fixture
def traced(service: Service, spans: Any) -> Client:
    """Returns a client of a service whose spans `spans` gets at once."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Client(build_app(service, Limits(), tracing=Tracing(provider)))


def by_request(spans: Any) -> list[tuple[Any, list[Any]]]:
    """Returns the span of each request with the spans of its stages."""
    finished = spans.get_finished_spans()
    requests = [span for span in finished if span.kind.name == "SERVER"]
    return [
        (request, [span for span in finished if span.parent and span.parent.span_id == request.context.span_id])
        for request in requests
    ]


def test_a_request_has_a_span_below_the_callers_and_one_per_stage(traced: Client, spans: Any) -> None:
    send(traced, RECOMMEND, traceparent=PARENT)
    ((request, stages),) = by_request(spans)
    assert request.name == "POST /v1/recommend"
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE_ID, CALLER)
    assert request.attributes["http.response.status_code"] == 200
    assert {stage.name for stage in stages} == STAGES
    assert all(request.start_time <= stage.start_time <= stage.end_time <= request.end_time for stage in stages)
    assert [stage.name for stage in sorted(stages, key=lambda stage: stage.start_time)][0] == "store"


def test_requests_that_are_answered_together_have_a_trace_each(traced: Client, spans: Any) -> None:
    send(traced, *[RECOMMEND] * 5)
    requests = by_request(spans)
    assert len({request.context.trace_id for request, _ in requests}) == 5
    assert all({stage.name for stage in stages} == STAGES for _, stages in requests)


def test_a_batch_has_the_stages_of_its_thread(traced: Client, spans: Any) -> None:
    send(traced, ("POST", "/v1/recommend:batch", {"user_ids": [10, 20], "k": 3}))
    ((_, stages),) = by_request(spans)
    assert {stage.name for stage in stages} == STAGES


def test_a_request_outside_the_sample_of_its_caller_has_no_spans(traced: Client, spans: Any) -> None:
    (reply,) = send(traced, ("POST", "/v1/recommend", {"k": 0}), traceparent=PARENT[:-1] + "0")
    assert (reply.json()["instance"], spans.get_finished_spans()) == (TRACE_ID, ())


def test_probes_and_pages_have_no_spans(traced: Client, spans: Any) -> None:
    send(traced, ("GET", "/health", b""), ("GET", "/ready", b""), ("GET", "/metrics", b""), ("GET", "/", b""))
    assert spans.get_finished_spans() == ()


def test_a_failure_is_marked_and_its_problem_names_the_trace(
    traced: Client, spans: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise StoreError("down")

    monkeypatch.setattr(service.histories, "append", fail)
    (reply,) = send(traced, ("POST", "/v1/events", {"events": [{"user_id": 10, "item_id": "a"}]}))
    ((request, _),) = by_request(spans)
    assert (reply.status_code, request.status.status_code.name) == (503, "ERROR")
    assert reply.json()["instance"] == f"{request.context.trace_id:032x}"


# --- the collector ----------------------------------------------------------------------------------------------------


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Yields the address of a server for spans, and what it has received: paths and bodies."""
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("opentelemetry.exporter") is None, reason="the extra otel is not installed")
def test_a_collector_gets_the_spans_of_a_service(run: Path, collector: tuple[str, list[tuple[str, bytes]]]) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    url, received = collector
    running = Running(run, "--traces", url, "--log-requests")
    try:
        running.call("/v1/recommend", {"user_id": 10, "k": 3})
    finally:
        assert running.stop() == 0
    ((path, body),) = received
    (of_service,) = ExportTraceServiceRequest.FromString(body).resource_spans
    names = {span.name for scope in of_service.scope_spans for span in scope.spans}
    assert (path, names) == ("/v1/traces", STAGES | {"POST /v1/recommend"})
    resource = {each.key: each.value.string_value for each in of_service.resource.attributes}
    assert resource["service.name"] == "twofold"
    (line,) = running.logged("request")
    ids = {span.trace_id.hex() for scope in of_service.scope_spans for span in scope.spans}
    assert {line["request"]} == ids


def test_a_collector_that_cannot_be_one_is_refused(run: Path) -> None:
    command = [sys.executable, "-m", "twofold", "serve", str(run), "--traces", "collector:4317"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--traces collector:4317 is not the address of a collector. Give that of OTLP over HTTP" in done.stderr


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twofold.serve.tracing.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'twofold\[otel\]'"):
        check_traces("http://collector:4318")
