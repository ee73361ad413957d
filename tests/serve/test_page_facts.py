"""Columns, map and second bundle of the live page."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.serve.client import Client
from tests.serve.tiny import other_run, replace_part, write_run
from twofold.run_folder import MANIFEST, file_digest
from twofold.serve.app import build_app
from twofold.serve.event_store import open_histories
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.page_facts import page_facts
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.service import Service


def with_page(run: Path, page: dict[str, str]) -> Path:
    """Adds page.json to a bundle."""
    path = run / "index" / "page.json"
    path.write_text(json.dumps(page))
    manifest = json.loads((run / "index" / MANIFEST).read_text())
    manifest["files"]["page.json"] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    (run / "index" / MANIFEST).write_text(json.dumps(manifest))
    return run


def with_map(run: Path) -> Path:
    """Writes a map of two clusters, and of one user, as the stage explain does."""
    (run / "explain").mkdir()
    kinds, names = ["item"] * 7 + ["user"], ["a", "b", "c", "d", "e", "f", "cold", "10"]
    places = {"x": [float(each) for each in range(8)], "y": [float(each % 3) for each in range(8)]}
    clusters = ["01 · red" if each % 2 else "02 · blue" for each in range(8)]
    pq.write_table(
        pa.table({"kind": kinds, "id": names, **places, "cluster": clusters}), run / "explain" / "map.parquet"
    )
    return run


def test_columns_have_the_statistics_that_chips_and_sliders_need(run: Path) -> None:
    facts = page_facts(open_live_bundle(run), None)
    colour, length = facts.columns
    assert (colour.kind, [(each.value, each.items) for each in colour.values]) == ("values", [("red", 4), ("blue", 2)])
    assert (length.kind, length.steps) == ("number", [5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0])
    assert (facts.has_map, facts.beside, facts.shown.title) == (False, None, None)


def test_ids_titles_times_and_constants_are_no_filters(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        items = pq.read_table(path)
        extra = {
            "author_id": [*range(7)],
            "tags": [["x"]] * 7,
            "uploaded_at": [*range(7)],
            "age_days": [float(each) for each in range(7)],
            "moods": [["calm", "old"], ["calm"], [], None, ["new", None], ["new"], ["new"]],
            "one": [1] * 7,
            "empty": pa.array([None] * 7, pa.float64()),
            "is_new": [True, False, True, True, True, True, None],
        }
        for name, values in extra.items():
            items = items.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
        pq.write_table(items, path)

    run = write_run(tmp_path / "run")
    replace_part(run, "item_attributes.parquet", write)
    facts = page_facts(open_live_bundle(run), None)
    assert {each.name: each.kind for each in facts.columns} == {
        "colour": "values",
        "length_s": "number",
        **dict.fromkeys(("author_id", "tags", "uploaded_at", "one", "empty"), "other"),
        "age_days": "number",
        "moods": "lists",
        "is_new": "values",
    }
    (moods,) = (each for each in facts.columns if each.name == "moods")
    assert [(each.value, each.items) for each in moods.values] == [("new", 3), ("calm", 2), ("old", 1)]


@pytest.fixture
def pair(run: Path, tmp_path: Path) -> Client:
    """A service with a map, a page section and a second bundle."""
    first = with_map(with_page(Path(shutil.copytree(run, tmp_path / "first")), {"title": "colour", "link": "gone"}))
    second = open_live_bundle(other_run(first, "second"))
    histories = open_histories(tmp_path / "histories.db")
    service = Service(open_live_bundle(first), tmp_path, histories, ServiceMetrics(), beside=second)
    return Client(build_app(service, Limits()))


def test_the_page_shows_the_columns_of_the_recipe_that_exist(pair: Client) -> None:
    _, facts = pair.get("/v1/page")
    assert facts["shown"] == {"title": "colour", "subtitle": None, "image": None, "link": None}
    assert (facts["has_map"], facts["beside"]) == (True, "second")


def test_the_map_holds_items_alone(pair: Client) -> None:
    _, found = pair.get("/v1/map")
    assert found["item_ids"] == ["a", "b", "c", "d", "e", "f", "cold"]
    assert found["x"] == [float(each) for each in range(7)]
    assert [found["clusters"][each] for each in found["cluster"]][:2] == ["02 · blue", "01 · red"]


def test_the_second_bundle_answers_as_the_first_where_they_are_equal(pair: Client) -> None:
    first, second = (pair.post(path, {"user_id": 10, "k": 4}) for path in ("/v1/recommend", "/v1/recommend:beside"))
    assert first[1]["items"] == second[1]["items"]
    assert first[1]["bundle"] != second[1]["bundle"]
    assert pair.post("/v1/events", {"events": [{"user_id": 10, "item_id": "c"}]})[0] == 200
    seen = [item["item_id"] for item in pair.post("/v1/recommend:beside", {"user_id": 10})[1]["items"]]
    assert "c" not in seen  # both read the same histories


def test_without_map_and_second_bundle_each_route_says_what_to_do(client: Client) -> None:
    status, problem = client.get("/v1/map")
    assert (status, problem["detail"].startswith("This run has no map: run `twofold explain`")) == (404, True)
    status, problem = client.post("/v1/recommend:beside", {"user_id": 10})
    assert (status, "start the service with --beside RUN" in problem["detail"]) == (404, True)
