"""Access to the service: tokens, hosts, content types, headers of pages, and routes without a limit."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.serve.client import Client
from twofold.errors import RequestError
from twofold.serve import middleware
from twofold.serve.app import build_app
from twofold.serve.middleware import Limits
from twofold.serve.service import Service
from twofold.serve.workers import LOOPBACK, ServeOptions, _check_token, serve

READ = ("POST", "/v1/recommend", {"user_id": 10})
ADMIN = [
    ("POST", "/v1/admin/items", {"remove": []}),
    ("POST", "/v1/admin/swap", {}),
    ("GET", "/v1/users/10", b""),
    ("DELETE", "/v1/users/nobody", b""),
]


def status(app: Any, request: tuple[str, str, Any], token: str | None = None, **headers: str) -> int:
    client = Client(app, token)
    client.headers |= headers
    (reply,) = client.send(request)
    return reply.status_code


def test_a_token_to_read_does_not_change_the_service(service: Service) -> None:
    app = build_app(service, Limits(token="reader", admin_token="admin"))
    assert [status(app, READ, token) for token in (None, "reader", "admin", "other")] == [401, 200, 200, 401]
    for request in ADMIN:
        assert [status(app, request, token) for token in (None, "reader", "admin")] == [401, 401, 200], request


def test_without_an_admin_token_nobody_changes_the_service(service: Service) -> None:
    for limits in (Limits(), Limits(token="reader")):
        app = build_app(service, limits)
        for request in ADMIN:
            assert status(app, request, "reader") == 403
    assert status(build_app(service, Limits(admin_token="admin")), READ) == 200


@pytest.mark.parametrize("scheme", ["bearer", "Bearer", "BEARER"])
def test_the_scheme_of_a_token_has_no_case(service: Service, scheme: str) -> None:
    app = build_app(service, Limits(token="reader"))
    assert status(app, READ, authorization=f"{scheme} reader") == 200
    assert status(app, READ, authorization="Basic reader") == 401


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_page_of_another_site_cannot_post(client: Client, kind: str) -> None:
    client.headers["content-type"] = kind
    event = {"events": [{"user_id": "new", "item_id": "a"}]}
    actual, problem = client.post("/v1/events", event)
    assert (actual, problem["detail"]) == (415, "Send the header Content-Type: application/json.")
    client.headers["content-type"] = "Application/JSON; charset=utf-8"
    assert client.post("/v1/recommend", {"user_id": "new"})[1]["source"] == "popularity"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
    ],
)
def test_without_a_token_the_service_answers_to_this_machine_only(service: Service, host: str, expected: int) -> None:
    app = build_app(service, Limits(hosts=LOOPBACK))
    assert status(app, READ, host=host) == expected
    assert status(app, ("GET", "/health", b""), host=host) == expected


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::"])
def test_other_machines_are_not_accepted_without_a_token(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("TWOFOLD_TOKEN", raising=False)
    with pytest.raises(RequestError, match=f"--host {host} accepts other machines, .*Set the environment variable"):
        serve(ServeOptions(tmp_path, str(tmp_path / "h.db"), host=host))
    assert not (tmp_path / "h.db").exists()
    monkeypatch.setenv("TWOFOLD_TOKEN", "secret")
    _check_token(host)


def test_pages_state_what_they_may_load_and_who_may_frame_them(client: Client) -> None:
    for path in ("/", "/docs"):
        (page,) = client.send(("GET", path, b""))
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/health"):
        (page,) = client.send(("GET", path, b""))
        assert page.headers["x-content-type-options"] == "nosniff"


def test_no_reply_redirects(client: Client) -> None:
    for path in ("/health/", "/v1/recommend/", "/docs/"):
        (reply,) = client.send(("GET", path, b""))
        assert reply.status_code == 404
        assert "location" not in reply.headers


def test_head_is_get_and_other_methods_are_named(client: Client) -> None:
    (head, wrong) = client.send(("HEAD", "/health", b""), ("PUT", "/v1/users/10", b""))
    assert head.status_code == 200
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "DELETE, GET")


def test_metrics_are_made_once_a_second(client: Client, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr("twofold.serve.prometheus.PAGE_S", 60.0)
    monkeypatch.setattr(service.metrics, "_new_page", lambda: made.append(1) or b"page")
    for _ in range(5):
        assert client.send(("GET", "/metrics", b""))[0].text == "page"
    assert len(made) == 1


def test_the_description_is_made_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    first = client.send(("GET", "/openapi.json", b""))[0].content
    monkeypatch.setattr("twofold.serve.routing.components", None)
    assert client.send(("GET", "/openapi.json", b""))[0].content == first


def test_readiness_and_metrics_wait_their_turn_and_write_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[int] = []

    async def slow() -> None:
        checks.append(1)
        await asyncio.sleep(0.2)

    monkeypatch.setattr(service.histories, "check", slow)
    client = Client(build_app(service, Limits(max_waiting=4)))
    replies = client.send(*[("GET", "/ready", b"")] * 10)
    assert [reply.status_code for reply in replies] == [200] * 4 + [503] * 6
    assert len(checks) == 1


def test_administration_has_a_deadline_of_its_own(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*_: Any) -> Any:
        await asyncio.sleep(0.3)
        return service.current

    monkeypatch.setattr(service.bundles, "swap", slow)
    app = build_app(service, Limits(admin_token="admin", timeout_s=0.05))
    assert status(app, ("POST", "/v1/admin/swap", {}), "admin") == 200
    monkeypatch.setattr(middleware, "ADMIN_TIMEOUT_S", 0.05)
    app = build_app(service, Limits(admin_token="admin"))
    assert status(app, ("POST", "/v1/admin/swap", {}), "admin") == 503


@pytest.mark.parametrize("name", ["../runs/tiny", "/etc", "..", "tiny\n", "a b", ".hidden"])
def test_a_swap_names_a_folder(service: Service, name: str) -> None:
    client = Client(build_app(service, Limits(admin_token="admin")), "admin")
    status, problem = client.post("/v1/admin/swap", {"run": name})
    assert (status, problem["field"]) == (422, "run")
    assert problem["detail"] == f"run is {name!r}: name a folder beside the current run, of letters, digits and _ . -"


def test_the_description_states_tokens_ids_and_bounds(client: Client) -> None:
    page = client.get("/openapi.json")[1]
    operations = {operation["operationId"]: operation for path in page["paths"].values() for operation in path.values()}
    assert operations["recommend"]["security"] == [{"token": []}]
    assert operations["swap"]["security"] == [{"admin_token": []}]
    assert "security" not in operations["health"]
    assert len(operations) == sum(len(path) for path in page["paths"].values())
    assert "409" not in operations["recommend"]["responses"]
    assert {"401", "422", "503"} <= operations["recommend"]["responses"].keys()
    assert "9223372036854775" not in httpx.Response(200, json=page).text
