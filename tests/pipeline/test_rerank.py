"""Rules after ranking in a run with a ranker: served lists are those that the report evaluates."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

import twofold
from tests import worlds
from tests.serve.client import Client
from twofold.errors import RecipeError
from twofold.evaluate.rule_prices import ALL, lists_by_rules
from twofold.evaluate.window import evaluation_window
from twofold.pipeline.adapters import score_sources
from twofold.pipeline.item_table import described_items
from twofold.pipeline.job import reopen, report_of
from twofold.pipeline.rerank import check_rules, rule_inputs
from twofold.pipeline.trained_models import load_models
from twofold.prepare.check import check_recipe
from twofold.recipe.rerank import Rerank
from twofold.recipe.schema import Recipe
from twofold.run_folder import open_stage
from twofold.serve import load
from twofold.serve.app import build_app
from twofold.serve.event_store import open_histories
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.service import Service

K = 10
LIMIT = {"kind": "limit", "column": "team", "at_most": 2, "window": 4}
RULES = [
    LIMIT,
    {"kind": "quota", "when": "length_s > 50", "at_least": 2, "first": 5},
    {"kind": "boost", "when": "age_days < 9.5", "add": 0.2},
    {"kind": "mmr", "trade_off": 0.2},
    {"kind": "pin", "item": 10, "place": 3},
    {"kind": "block", "when": "creator = 'creator 4'"},
]


def with_rules(folder: Path, rules: list[dict]) -> Recipe:
    """Returns a recipe of a world with a ranker, whose retriever tells all items apart."""
    recipe = worlds.polished(folder, num_users=200, num_items=120).model_dump()
    recipe["features"]["item"] = [{"kind": "id"}, {"kind": "category", "column": "team"}]
    recipe["train"]["epochs"], recipe["ranker"]["epochs"] = 2, 2
    return Recipe.model_validate({**recipe, "rerank": {"num_candidates": 60, "rules": rules}})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    return Path(twofold.run(with_rules(folder, RULES), runs=folder / "runs").folder)


@pytest.fixture(scope="module")
def client(run: Path) -> Client:
    histories = open_histories(run.parent / "histories.db")
    return Client(build_app(Service(open_live_bundle(run), run.parent, histories, ServiceMetrics()), Limits()))


@pytest.fixture(scope="module")
def judged(run: Path) -> dict[int, tuple[int, list[int]]]:
    """Returns the time of the request and the judged list of each user of the test window."""
    job = reopen(run)
    stages = [open_stage(run, name) for name in ("dataset", "train", "train/ranker")]
    models = load_models(job, *stages)
    arrays = models.data.retriever
    window = evaluation_window(arrays, "test")
    as_of = int(window.query_at.min())
    items = described_items(job.recipe, stages[0].folder, arrays, as_of=as_of)
    rules = rule_inputs(job.recipe, items, models.retriever, arrays, as_of=as_of)
    assert rules is not None
    sources = score_sources(models, window)
    users = np.arange(len(window.user_rows))
    lists = lists_by_rules(window, sources["model"], rules, {ALL: rules.config.rules}, users=users, k=K)[ALL]
    users = arrays.users.ids_of(window.user_rows).to_pylist()
    ids = [arrays.items.ids_of(rows[rows >= 0]).to_pylist() for rows in lists]
    return dict(zip(users, zip(window.query_at.tolist(), ids, strict=True), strict=True))


def lists_of(run: Path, client: Client, times: dict[int, int], *, k: int) -> tuple[dict, dict]:
    """Returns the list of each user as of a time, served over HTTP and in a table of Python.

    Twenty requests at a time wait together, and a table is that of all users of one time; some users are tried alone.
    """
    served, in_table, recommender = {}, {user: [] for user in times}, load(run)
    requests = {
        user: ("POST", "/v1/recommend", {"user_id": user, "k": k, "context": {"at": at}}) for user, at in times.items()
    }
    for users in np.array_split(list(times), max(len(times) // 20, 1)):
        for user, reply in zip(users.tolist(), client.send(*map(requests.get, users.tolist())), strict=True):
            assert reply.status_code == 200, reply.text
            served[user] = [item["item_id"] for item in reply.json()["items"]]
    for user in list(times)[::10]:
        (alone,) = client.send(requests[user])
        assert [item["item_id"] for item in alone.json()["items"]] == served[user]
    for at in set(times.values()):
        table = recommender.recommend([user for user in times if times[user] == at], k=k, at=at)
        for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
            in_table[user].append(item)
    for user in list(times)[::10]:
        assert recommender.recommend([user], k=k, at=times[user])["item_id"].to_pylist() == in_table[user]
    return served, in_table


def test_served_lists_are_the_judged_ones_to_the_byte(run: Path, client: Client, judged: dict) -> None:
    assert len(judged) == 200
    served, in_table = lists_of(run, client, {user: at for user, (at, _) in judged.items()}, k=K)
    expected = json.dumps({user: ids for user, (_, ids) in judged.items()})
    assert json.dumps(served) == expected
    assert json.dumps(in_table) == expected


def test_a_batch_has_the_lists_of_single_requests_and_a_short_list_begins_a_long_one(
    client: Client, judged: dict
) -> None:
    users, at = list(judged)[:40], next(iter(judged.values()))[0]
    context = {"context": {"at": at}}
    _, batch = client.post("/v1/recommend:batch", {"user_ids": users, "k": K, **context})
    for user, answer in zip(users, batch["answers"], strict=True):
        ids = [item["item_id"] for item in answer["items"]]
        _, single = client.post("/v1/recommend", {"user_id": user, "k": K, **context})
        assert [item["item_id"] for item in single["items"]] == ids
        for k in (4, 100):
            _, other = client.post("/v1/recommend", {"user_id": user, "k": k, **context})
            assert [item["item_id"] for item in other["items"]][:K] == ids[:k]


def test_the_lists_obey_the_rules(run: Path, client: Client, judged: dict) -> None:
    items = {row["item_id"]: row for row in load(run).bundle.attributes.to_pylist()}
    pinned = 0
    for user, (_, ids) in judged.items():
        rows = [items[each] for each in ids]
        assert all(row["creator"] != "creator 4" for row in rows)
        assert sum(row["length_s"] > 50 for row in rows[:5]) >= 2
        pinned += ids[2] == 10
        assert 10 not in ids or ids[2] == 10, user
        teams = [row["team"] for row in rows]
        windows = [teams[first : first + 4] for first in range(K - 3)]
        assert max(each.count(team) for each in windows for team in each) <= 3, teams  # 3: the pin comes before limits
    assert pinned > 50


def test_an_explained_reply_names_the_rule_and_the_place_before(client: Client, judged: dict) -> None:
    found: dict[str, int] = {}
    for user, (at, ids) in list(judged.items())[:50]:
        body = {"user_id": user, "k": K, "explain": True, "context": {"at": at}}
        _, answer = client.post("/v1/recommend", body)
        assert [item["item_id"] for item in answer["items"]] == ids
        for item in answer["items"]:
            moved = item.get("moved")
            if moved is not None:
                assert moved["place"] != item["rank"]
                for rule in moved["rules"]:
                    found[rule] = found.get(rule, 0) + 1
            if item["item_id"] == 10:
                assert moved is None or "pin 10 at 3" in moved["rules"]
    assert {"at most 2 of one team in 4", "pin 10 at 3", "mmr 0.2"} <= found.keys()


def test_a_user_of_whom_nothing_is_known_gets_the_rules_too(run: Path, client: Client) -> None:
    items = {row["item_id"]: row for row in load(run).bundle.attributes.to_pylist()}
    _, answer = client.post("/v1/recommend", {"user_id": 999_999, "k": K})
    ids = [item["item_id"] for item in answer["items"]]
    assert answer["source"] == "popularity"
    assert ids[2] == 10
    assert sum(items[each]["length_s"] > 50 for each in ids[:5]) >= 2


def test_the_report_has_the_price_of_every_rule(run: Path) -> None:
    section = report_of(run).rerank
    assert section is not None
    rules = reopen(run).recipe.rerank
    assert rules is not None
    assert [line.name for line in section.lines] == ["no rule", *(rule.name for rule in rules.rules), "all rules"]
    assert section.gini_of == "team"
    none, limit = section.lines[0], section.lines[1]
    assert none.ndcg_minus.value == 0
    assert limit.gini <= none.gini
    assert section.sentence in report_of(run).verdict
    page = (run / "run.html").read_text(encoding="utf-8")
    assert "Rules after ranking" in page
    assert "2. at most 2 of one team in 4" in page
    points = re.findall(r'class="point( best)?" style="left:([\d.]+)%;top:([\d.]+)%" title="([^"]+)"', page)
    assert [html.unescape(name) for *_, name in points] == [line.name for line in section.lines]
    assert [bool(best) for best, *_ in points] == [line.is_best for line in section.lines]
    by_gini = sorted(zip(section.lines, points, strict=True), key=lambda pair: pair[0].gini)
    assert [float(left) for _, (_, left, _, _) in by_gini] == sorted(float(left) for _, left, *_ in points)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({**LIMIT, "column": "teem"}, r"rerank.rules.0.column: the items have no column teem \(.*team"),
        ({"kind": "boost", "when": "shiny > 1", "add": 1}, r"rerank.rules.0.when reads `shiny`, which does not exist"),
        (
            {"kind": "quota", "when": "tags = 'a'", "at_least": 1, "first": 2},
            "rerank.rules.0.when reads tags, which is",
        ),
    ],
)
def test_a_rule_on_an_unknown_or_unfit_column_ends_before_a_row_is_read(
    tmp_path: Path, rule: dict, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(with_rules(tmp_path, [rule]))


def test_a_pinned_id_that_no_item_has_is_an_error(run: Path) -> None:
    pins = Rerank.model_validate({"rules": [{"kind": "pin", "item": 4711, "place": 1}]})
    with pytest.raises(
        RecipeError, match=r"rerank.rules.0: item 4711 is pinned, and none of the 120 items .* Ids look"
    ):
        check_rules(pins, load(run).bundle.attributes)
