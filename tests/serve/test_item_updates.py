"""Items upserted and removed while serving: recommended, filtered and seen at once, and followed by every worker."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.serve.running import Running
from tests.serve.test_app import Client, ids
from tests.serve.tiny import DIM, NOON, VECTORS, other_run, replace_part, write_run
from twofold.errors import RequestError
from twofold.serve import item_updates, shared_state
from twofold.serve.app import build_app
from twofold.serve.event_store import open_histories
from twofold.serve.item_updates import _check_stored
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.schemas import ItemUpsert
from twofold.serve.service import Service
from twofold.serve.shared_state import SharedFolder
from twofold.tables import DAY_MS

TOKEN = "secret"
REQUEST = {"user_id": 30, "k": 9, "context": {"at": NOON}}  # a user without events
ITEMS = "/v1/admin/items"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def services(run: Path, tmp_path: Path) -> list[Service]:
    """Two workers of one service."""
    return [worker(run, tmp_path) for _ in range(2)]


def worker(run: Path, folder: Path) -> Service:
    histories, shared = open_histories(folder / "histories.db"), SharedFolder(folder)
    return Service(open_live_bundle(run), run.parent, histories, ServiceMetrics(), shared)


def catch_up(service: Service) -> None:
    asyncio.run(service._follow_store())


def client(service: Service) -> Client:
    return Client(build_app(service, Limits(admin_token=TOKEN)), TOKEN)


def best_vector(service: Service) -> list[float]:
    """Returns the vector that user 30 scores highest: the user's own, of length 1."""
    scores = {item["item_id"]: item["score"] for item in client(service).post("/v1/recommend", REQUEST)[1]["items"]}
    query = np.linalg.lstsq(VECTORS.astype(float), [scores[name] for name in ["a", "b", "c", "d", "e", "f", "cold"]])[0]
    return list((query / np.linalg.norm(query)).tolist())


def test_an_upserted_item_is_recommended_filtered_and_described(services: list[Service]) -> None:
    one = client(services[0])
    new = {"item_id": "new", "vector": best_vector(services[0]), "attributes": {"colour": "blue"}}
    assert one.post(ITEMS, {"upsert": [new]}) == (200, {"upserted": 1, "removed": 0, "restored": 0, "items": 8})
    reply = one.post("/v1/recommend", REQUEST)[1]
    assert ids(reply)[0] == "new"
    assert len(reply["items"]) == 8
    assert ids(one.post("/v1/recommend", REQUEST | {"filter": "colour = 'blue'"})[1])[0] == "new"
    assert "new" not in ids(one.post("/v1/recommend", REQUEST | {"filter": "length_s > 0"})[1])  # its length is null
    assert "new" not in ids(one.post("/v1/recommend", REQUEST | {"exclude": ["new"]})[1])
    status, facts = one.get("/v1/items/new")
    assert (status, facts["attributes"], facts["is_cold"]) == (200, {"colour": "blue", "length_s": None}, True)
    assert "new" in ids(one.post("/v1/similar", {"item_id": "a", "k": 9})[1])
    assert one.post("/v1/similar", {"item_id": "new", "k": 1})[0] == 200
    explained = one.post("/v1/recommend", REQUEST | {"user_id": 10, "explain": True, "describe": True})[1]
    assert "new" in ids(explained)
    assert ids(one.post("/v1/recommend", {"user_id": "unknown"})[1])[-1] == "new"  # it has no positives yet


def test_an_upserted_item_that_was_seen_is_not_recommended_again(services: list[Service]) -> None:
    one = client(services[0])
    one.post(ITEMS, {"upsert": [{"item_id": "new", "vector": best_vector(services[0])}]})
    before = one.post("/v1/recommend", REQUEST)[1]
    assert (
        one.post("/v1/events", {"events": [{"user_id": 30, "item_id": "new", "at": NOON - 1}]})[1]["unknown_items"] == 0
    )
    after = one.post("/v1/recommend", REQUEST)[1]
    assert ids(after) == ids(before)[1:]
    assert [item["score"] for item in after["items"]] == [item["score"] for item in before["items"]][1:]
    posted = {"history": ["new"], "k": 9, "context": {"at": NOON}}
    assert one.post("/v1/recommend", posted)[1]["items"] == after["items"]


def test_the_age_of_an_item_follows_its_upload(run: Path, tmp_path: Path) -> None:
    """The bundle's items have ages as of the bundle, and so does an item whose upload is posted."""

    def with_ages(path: Path) -> None:
        items = pq.read_table(path)
        uploaded = pa.array([NOON - day * DAY_MS for day in range(7)])
        ages = pa.array([float(day) for day in range(7)])
        pq.write_table(items.append_column("uploaded_at", uploaded).append_column("age_days", ages), path)

    aged = other_run(run, "aged")
    replace_part(aged, "item_attributes.parquet", with_ages)
    with_token = client(worker(aged, tmp_path))
    upserts = [
        {"item_id": "a", "attributes": {"uploaded_at": NOON - 9 * DAY_MS}},
        {"item_id": "b", "attributes": {"uploaded_at": NOON - 9 * DAY_MS, "age_days": 2.0}},
        {"item_id": "c", "attributes": {"colour": "red"}},
        {"item_id": "new", "vector": [1.0, 0.0, 0.0, 0.0, 0.0], "attributes": {"uploaded_at": NOON + 5}},
    ]
    assert with_token.post("/v1/admin/items", {"upsert": upserts})[0] == 200
    ages = {id_: with_token.get(f"/v1/items/{id_}")[1]["attributes"]["age_days"] for id_ in ("a", "b", "c", "new")}
    assert ages == {"a": 9.0, "b": 2.0, "c": 2.0, "new": 0.0}
    found = with_token.post("/v1/recommend", {"user_id": 30, "filter": "age_days < 1", "k": 9})[1]
    assert [item["item_id"] for item in found["items"]] == ["new"]


def test_an_update_changes_what_is_given_and_nothing_else(services: list[Service]) -> None:
    one = client(services[0])
    before = one.post("/v1/recommend", REQUEST)[1]
    assert one.post(ITEMS, {"upsert": [{"item_id": "a", "attributes": {"colour": "green"}}]})[1]["items"] == 7
    assert one.get("/v1/items/a")[1]["attributes"] == {"colour": "green", "length_s": 5.0}
    assert ids(one.post("/v1/recommend", REQUEST | {"filter": "colour = 'green'"})[1]) == ["a"]
    assert one.post("/v1/recommend", REQUEST)[1]["items"] == before["items"]


def test_every_worker_applies_the_changes_and_so_does_a_restarted_one(
    services: list[Service], run: Path, tmp_path: Path
) -> None:
    one, other = map(client, services)
    one.post(ITEMS, {"upsert": [{"item_id": "new", "vector": best_vector(services[0])}], "remove": ["b"]})
    assert "b" in ids(other.post("/v1/recommend", REQUEST)[1])
    catch_up(services[1])
    expected = one.post("/v1/recommend", REQUEST)[1]["items"]
    assert other.post("/v1/recommend", REQUEST)[1]["items"] == expected
    # A worker applies the earlier changes of other workers before its own.
    assert client(worker(run, tmp_path)).post(ITEMS, {"remove": ["new", "c"]})[1] == {
        "upserted": 0,
        "removed": 3,
        "restored": 0,
        "items": 5,
    }
    catch_up(services[0])
    assert sorted(ids(one.post("/v1/recommend", REQUEST)[1])) == ["a", "cold", "d", "e", "f"]


def test_another_bundle_takes_over_the_removals_only(services: list[Service], run: Path) -> None:
    other = other_run(run, "other")
    one = client(services[0])
    one.post(ITEMS, {"upsert": [{"item_id": "new", "vector": best_vector(services[0])}], "remove": ["b"]})
    assert one.post("/v1/admin/swap", {"run": other.name})[1]["was_swapped"]
    assert sorted(ids(one.post("/v1/recommend", REQUEST)[1])) == ["a", "c", "cold", "d", "e", "f"]


def test_a_worker_that_missed_a_swap_does_not_drop_the_changes_after_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_updates, "COMPACT_FROM_BYTES", 0)  # each change is followed by a rewrite of the file
    late, swapped, again = (open_live_bundle(run).items for _ in range(3))
    late.follow(tmp_path / "items.log")
    swapped.follow(tmp_path / "items.log", swaps=1)
    swapped.upsert([ItemUpsert(item_id="a", attributes={"colour": "green"})])
    late.upsert([ItemUpsert(item_id="b", attributes={"colour": "black"})])
    again.follow(tmp_path / "items.log", swaps=1)
    colours = [each["colour"] for each in again.now.attributes_of(again.now.rows_of(["a", "b"]))]
    assert colours == ["green", "blue"]


def test_an_update_does_not_take_an_item_out_of_the_lists_of_strangers(services: list[Service]) -> None:
    one = client(services[0])
    stranger = {"user_id": "unknown", "k": 9}
    before = one.post("/v1/recommend", stranger)[1]["items"]
    one.post(ITEMS, {"upsert": [{"item_id": item["item_id"]} for item in before[:3]]})
    assert one.post("/v1/recommend", stranger)[1]["items"] == before
    one.post(ITEMS, {"upsert": [{"item_id": "a", "attributes": {"length_s": 33.0}}]})
    assert sorted(ids(one.post("/v1/recommend", stranger | {"filter": "length_s > 32"})[1])) == ["a", "cold"]


def test_an_upsert_brings_no_withdrawn_item_back(services: list[Service], run: Path, tmp_path: Path) -> None:
    one, other = map(client, services)
    new = {"item_id": "new", "vector": best_vector(services[0])}
    one.post(ITEMS, {"upsert": [new], "remove": ["a", "new"]})
    synced = {"upsert": [{"item_id": name, "attributes": {"colour": "red"}} for name in "abc"] + [new]}
    for each in (one, other):
        assert each.post(ITEMS, synced)[0] == 200
    for service in (*services, worker(run, tmp_path)):  # a restarted one too
        catch_up(service)
        assert not {"a", "new"} & set(ids(client(service).post("/v1/recommend", REQUEST)[1]))
    assert other.post(ITEMS, {"restore": ["a", "new"]})[1]["restored"] == 2
    catch_up(services[0])
    assert {"a", "new"} <= set(ids(one.post("/v1/recommend", REQUEST)[1]))


def test_withdrawn_items_stay_out_without_the_folder_of_the_workers(run: Path, tmp_path: Path) -> None:
    """A restarted service and one on another machine see the same store."""
    histories = open_histories(tmp_path / "histories.db")
    alone = Service(open_live_bundle(run), run.parent, histories, ServiceMetrics())
    assert client(alone).post(ITEMS, {"remove": ["b"]})[1]["removed"] == 1
    again = Service(open_live_bundle(run), run.parent, histories, ServiceMetrics())
    asyncio.run(again.start())
    assert "b" not in ids(client(again).post("/v1/recommend", REQUEST)[1])


def test_a_change_that_cannot_be_written_is_503_and_not_made(
    services: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = map(client, services)
    before = one.post("/v1/recommend", REQUEST)[1]
    new = {"upsert": [{"item_id": "new", "vector": best_vector(services[0])}]}
    monkeypatch.setattr(shared_state, "SPARE_BYTES", 2**60)
    assert one.post(ITEMS, new)[0] == 503
    assert one.post(ITEMS, {"remove": ["b"]})[0] == 200  # needs no space there
    assert one.post(ITEMS, {"restore": ["b"]})[0] == 200
    monkeypatch.undo()
    assert one.post("/v1/recommend", REQUEST)[1] == before
    assert one.post(ITEMS, new)[0] == 200
    catch_up(services[1])
    assert other.post("/v1/recommend", REQUEST)[1] == one.post("/v1/recommend", REQUEST)[1] != before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"upsert": [{"item_id": "new"}]},
            f"item new is new: give its vector, {DIM} numbers from",
        ),
        (
            {"upsert": [{"item_id": "a", "vector": [1.0]}]},
            f"item a: the vector has 1 numbers; vectors of this bundle have {DIM}.",
        ),
        ({"upsert": [{"item_id": "a", "vector": [2.0] * DIM}]}, "must have length 1"),
        (
            {"upsert": [{"item_id": "a", "attributes": {"color": "red"}}]},
            "there is no attribute color; the catalogue has",
        ),
        ({"upsert": [{"item_id": "a", "attributes": {"length_s": "x"}}]}, "does not have the catalogue's type"),
        ({"upsert": [{"item_id": "a", "vector": [1e39] * DIM}]}, "a number that is not finite as 32-bit float"),
        ({"upsert": [{"item_id": "a"}, {"item_id": "a"}]}, "must not occur twice"),
        (
            {"upsert": [{"item_id": "n\0", "vector": [1.0] + [0.0] * (DIM - 1)}]},
            "item_id 'n\\x00' holds the character NUL: give it an id without that",
        ),
    ],
)
def test_an_invalid_change_is_refused_as_a_whole(services: list[Service], change: dict[str, Any], says: str) -> None:
    one = client(services[0])
    status, problem = one.post(ITEMS, change | {"remove": ["b"]})
    assert (status, says in problem["detail"]) == (422, True), problem
    assert "b" in ids(one.post("/v1/recommend", REQUEST)[1])
    catch_up(services[1])
    assert "b" in ids(client(services[1]).post("/v1/recommend", REQUEST)[1])


@pytest.mark.parametrize(
    ("type_", "value"), [(pa.int64(), 1.5), (pa.int64(), True), (pa.bool_(), 1), (pa.string(), 3)], ids=str
)
def test_a_value_that_would_be_stored_as_another_is_refused(type_: pa.DataType, value: Any) -> None:
    stored = {pa.int64(): int(value), pa.bool_(): bool(value), pa.string(): str(value)}[type_]
    with pytest.raises(RequestError, match=f"item a: author_id is {value!r}, but the column holds {type_}."):
        _check_stored("a", pa.field("author_id", type_), value, stored)
    for kept in ({pa.int64(): 3, pa.bool_(): True, pa.string(): "x"}[type_], None):
        _check_stored("a", pa.field("author_id", type_), kept, kept)
    _check_stored("a", pa.field("length_s", pa.float32()), 0.1, 0.10000000149011612)


def test_item_changes_require_a_token(services: list[Service]) -> None:
    assert Client(build_app(services[0], Limits())).post(ITEMS, {"remove": ["b"]})[0] == 403
    assert Client(build_app(services[0], Limits(admin_token=TOKEN))).post(ITEMS, {"remove": ["b"]})[0] == 401
    assert Client(build_app(services[0], Limits(token="t", admin_token=TOKEN)), "t").post(ITEMS, {})[0] == 401


@pytest.mark.slow
def test_worker_processes_share_changes_and_stop_cleanly(run: Path, tmp_path: Path) -> None:
    service = Running(run, "--workers", "2", "--histories", str(tmp_path / "h.db"))
    service.until(lambda: len(service.logged("ready")) == 2)
    try:
        assert service.call(ITEMS, {"remove": ["b"]})["items"] == 6
        time.sleep(2)  # by then the other worker has followed
        for _ in range(30):  # new connections reach both workers
            assert "b" not in ids(service.call("/v1/recommend", REQUEST))
        assert service.call("/ready")["items"] == 7  # items of the bundle
    finally:
        assert service.stop() == 0
