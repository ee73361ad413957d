"""Decay of repeats in a run that recommends items again: served lists are those that the report evaluates."""

import json
from pathlib import Path

import numpy as np
import pytest

import twofold
from tests.pipeline.test_rerank import lists_of, with_rules
from tests.serve.client import Client
from twofold.errors import RecipeError
from twofold.evaluate.rule_prices import ALL, NONE, lists_by_rules
from twofold.pipeline.adapters import score_sources, window_of
from twofold.pipeline.item_table import described_items
from twofold.pipeline.job import reopen, report_of
from twofold.pipeline.rerank import rule_inputs
from twofold.pipeline.trained_models import load_models
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
DECAY = {"kind": "decay", "subtract": 2, "half_life_hours": 48}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decay")
    tree = Recipe.model_dump(with_rules(folder, [{"kind": "mmr", "trade_off": 0.2}]))
    tree["rerank"]["rules"], tree["index"] = [DECAY], {"include_seen": True}
    return Path(twofold.run(Recipe.model_validate(tree), runs=folder / "runs").folder)


@pytest.fixture(scope="module")
def client(run: Path) -> Client:
    histories = open_histories(run.parent / "histories.db")
    return Client(build_app(Service(open_live_bundle(run), run.parent, histories, ServiceMetrics()), Limits()))


@pytest.fixture(scope="module")
def judged(run: Path) -> dict[int, tuple[int, list[int], list[int]]]:
    """Returns the time of the request and the judged lists, with and without the rule, of each user of the window."""
    job = reopen(run)
    stages = [open_stage(run, name) for name in ("dataset", "train", "train/ranker")]
    models = load_models(job, *stages)
    arrays = models.data.retriever
    window = window_of(job.recipe, arrays, "test")
    as_of = int(window.query_at.min())
    items = described_items(job.recipe, stages[0].folder, arrays, as_of=as_of)
    rules = rule_inputs(job.recipe, items, models.retriever, arrays, as_of=as_of)
    assert rules is not None
    variants = {NONE: (), ALL: rules.config.rules}
    users = np.arange(len(window.user_rows))
    lists = lists_by_rules(window, score_sources(models, window)["model"], rules, variants, users=users, k=K)
    ids = arrays.users.ids_of(window.user_rows).to_pylist()
    own = [[arrays.items.ids_of(rows).to_pylist() for rows in lists[name]] for name in (ALL, NONE)]
    return dict(zip(ids, zip(window.query_at.tolist(), *own, strict=True), strict=True))


def test_served_lists_are_the_judged_ones_to_the_byte(run: Path, client: Client, judged: dict) -> None:
    served, in_table = lists_of(run, client, {user: at for user, (at, _, _) in judged.items()}, k=K)
    assert len(served) == 200
    expected = json.dumps({user: ids for user, (_, ids, _) in judged.items()})
    assert json.dumps(served) == expected
    assert json.dumps(in_table) == expected
    assert sum(ids != before for _, ids, before in judged.values()) > 100


def test_what_was_met_is_lower_and_what_was_not_keeps_its_order(run: Path, judged: dict) -> None:
    bundle = load(run).bundle
    for user, (at, ids, before) in list(judged.items())[:50]:
        row = bundle.users.row_of(user)
        first, end = bundle.events.offsets[row : row + 2]
        is_before = bundle.events.at[first:end] < at
        met = set(bundle.items.ids_of(bundle.events.item_rows[first:end][is_before]).to_pylist())
        unmet = [item for item in before if item not in met]
        assert [item for item in ids if item in unmet] == unmet
        assert sum(item in met for item in ids) <= sum(item in met for item in before)


def test_an_event_of_now_pushes_its_item_down_and_an_explained_reply_says_so(client: Client, judged: dict) -> None:
    user, (at, _, _) = next(iter(judged.items()))
    body = {"user_id": user, "k": 30, "explain": True}
    _, before = client.post("/v1/recommend", body)
    first = before["items"][0]["item_id"]
    event = {"user_id": user, "item_id": first, "kind": "met"}
    status, reply = client.post("/v1/events", {"events": [event]})
    assert status == 200, reply
    _, after = client.post("/v1/recommend", body)
    item = next((item for item in after["items"] if item["item_id"] == first), None)
    assert item is None or (item["rank"] > 5 and "decay 2, half in 48 h" in item["moved"]["rules"])


def test_unknown_users_and_posted_histories_get_lists(client: Client, run: Path) -> None:
    _, answer = client.post("/v1/recommend", {"user_id": 999_999, "k": K})
    assert len(answer["items"]) == K
    _, posted = client.post("/v1/recommend", {"history": [0, 4, 8], "k": K})
    table = load(run).recommend_for_history([0, 4, 8], k=K)["item_id"].to_pylist()
    assert [item["item_id"] for item in posted["items"]] == table
    assert not {0, 4, 8} & set(table)


def test_the_report_has_its_price(run: Path) -> None:
    section = report_of(run).rerank
    assert section is not None
    assert [line.name for line in section.lines] == ["no rule", "decay 2, half in 48 h", "all rules"]
    assert section.lines[1].ndcg_minus.value != 0


def test_decay_without_repeats_is_refused(tmp_path: Path) -> None:
    tree = with_rules(tmp_path, [{"kind": "mmr", "trade_off": 0.2}]).model_dump()
    tree["rerank"]["rules"] = [DECAY]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tree, default=str), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"rerank.rules.0: decay lowers items .* Write index: \{include_seen: true\}"):
        twofold.run(path, runs=tmp_path / "runs")
