"""Rules, sources of candidates, a ranker and the retriever's weight: served lists are the evaluated ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import twofold
from tests.pipeline.test_rerank import lists_of
from tests.serve.client import Client
from tests.source_world import three_kinds
from twofold.evaluate.rule_prices import ALL, NONE, lists_by_rules
from twofold.evaluate.scores import find_candidates, order_candidates
from twofold.evaluate.window import evaluation_window
from twofold.pipeline.adapters import two_stages
from twofold.pipeline.item_table import described_items
from twofold.pipeline.job import reopen
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
REQUESTS = 200
RULES = [
    {"kind": "boost", "when": "length_s < 40", "add": 0.3},
    {"kind": "quota", "at_least": 2, "first": 8, "when": "age_days < 1"},
    {"kind": "mmr", "trade_off": 0.3},
    {"kind": "pin", "item": 7, "place": 3},
    {"kind": "block", "when": "length_s > 65"},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all")
    recipe = three_kinds(folder, num_users=252).model_dump()  # one in three of a kind has none on the test day
    with_rules = Recipe.model_validate({**recipe, "rerank": {"num_candidates": 25, "rules": RULES}})
    with pytest.MonkeyPatch.context() as patched:  # as if validation had given both stages a weight in the order
        patched.setattr("twofold.pipeline.train._quality_by_share", lambda *_: {0.0: 0.1, 0.5: 0.2, 1.0: 0.1})
        return Path(twofold.run(with_rules, runs=folder / "runs").folder)


@pytest.fixture(scope="module")
def evaluated(run: Path) -> tuple[dict[int, int], dict[str, dict[int, list[int]]]]:
    """Returns the time of the request of each user of the test window, and the lists with all rules and with none.

    Counts and ages are those of the end of the log, as in the bundle.
    """
    job, stages = reopen(run), [open_stage(run, name) for name in ("dataset", "train", "train/ranker")]
    models = load_models(job, *stages)
    arrays, as_of = models.data.retriever, load(run).bundle.as_of
    assert models.ranker is not None
    assert models.ranker.retriever_share == 0.5
    assert models.sources is not None
    window = evaluation_window(arrays, "test")
    both = two_stages(models, models.ranker, window)
    assert both.sources is not None
    sources = replace(both.sources, sources=models.sources.as_of(as_of))
    candidates = find_candidates(both.retrieved, seen=window.seen, top=models.ranker.top, sources=sources)
    scores = order_candidates(both.retrieved, candidates, both.score_pairs, sources=sources)
    items = described_items(job.recipe, stages[0].folder, arrays, as_of=as_of)
    rules = rule_inputs(job.recipe, items, models.retriever, arrays, as_of=as_of)
    assert rules is not None
    variants, users = {ALL: rules.config.rules, NONE: ()}, np.arange(len(window.user_rows))
    lists = lists_by_rules(window, scores, rules, variants, users=users, k=K)
    ids = arrays.users.ids_of(window.user_rows).to_pylist()
    found = {
        name: {user: arrays.items.ids_of(rows[rows >= 0]).to_pylist() for user, rows in zip(ids, each, strict=True)}
        for name, each in lists.items()
    }
    return dict(zip(ids, window.query_at.tolist(), strict=True)), found


@pytest.mark.slow
def test_served_lists_are_the_evaluated_ones_to_the_byte(run: Path, evaluated: tuple) -> None:
    times, lists = evaluated
    histories = open_histories(run.parent / "histories.db")
    service = Service(open_live_bundle(run), run.parent, histories, ServiceMetrics())
    served, in_table = lists_of(run, Client(build_app(service, Limits())), times, k=K)
    assert len(served) >= REQUESTS
    assert sum(lists[ALL][user] != lists[NONE][user] for user in times) > REQUESTS / 2  # the rules do something
    expected = json.dumps(lists[ALL])
    assert json.dumps(served) == expected
    assert json.dumps(in_table) == expected


@pytest.mark.slow
def test_given_items_are_ordered_as_a_list_of_these_items(run: Path) -> None:
    recommender = load(run)
    histories = open_histories(run.parent / "given.db")
    service = Service(open_live_bundle(run), run.parent, histories, ServiceMetrics())
    client, draw = Client(build_app(service, Limits())), np.random.default_rng(0)
    ids, users = recommender.bundle.items.ids.to_pylist(), recommender.bundle.users.ids[:40].to_pylist()
    for user in users:
        given = draw.permutation(ids)[: draw.integers(5, len(ids))].tolist()
        table = recommender.recommend([user], k=len(given), items=given, exclude_seen=False)
        body = {"user_id": user, "item_ids": given, "context": {"at": recommender.bundle.as_of}}
        status, reply = client.post("/v1/rank", body)
        assert status == 200
        assert [item["item_id"] for item in reply["items"]] == table["item_id"].to_pylist()
        left_out = set(given) - set(table["item_id"].to_pylist())
        assert {each["item_id"] for each in reply["left_out"]} == left_out
