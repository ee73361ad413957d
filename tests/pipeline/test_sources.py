"""Sources of candidates in a run: each is right for a third of the users; served lists are the judged ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import twofold
from tests import worlds
from tests.pipeline.test_rerank import lists_of
from tests.serve.client import Client
from tests.source_world import three_kinds
from twofold.dataset.dataset import load_dataset
from twofold.errors import RecipeError
from twofold.evaluate.scores import find_candidates, order_candidates
from twofold.evaluate.window import EvaluationWindow, evaluation_window
from twofold.pipeline.adapters import two_stages
from twofold.pipeline.job import reopen, report_of
from twofold.pipeline.sources import SourceFit, fit_sources
from twofold.pipeline.trained_models import TrainedModels, load_models
from twofold.prepare.check import check_recipe
from twofold.recipe.schema import Recipe
from twofold.run_folder import open_stage
from twofold.serve import load
from twofold.serve.app import build_app
from twofold.serve.event_store import open_histories
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.service import Service
from twofold.tables import DAY_MS

K = 10
NAMES = ["retriever", "item-kNN of 2 likes", "popularity of 1 day", "where age_days < 1"]


def changed(recipe: Recipe, **candidates: object) -> dict:
    """Returns the recipe as JSON, with other fields of `ranker.candidates`."""
    tree = recipe.model_dump()
    tree["ranker"]["candidates"].update(candidates)
    return tree


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    return Path(twofold.run(three_kinds(folder), runs=folder / "runs").folder)


@pytest.fixture(scope="module")
def trained(run: Path) -> tuple[TrainedModels, EvaluationWindow]:
    models = load_models(reopen(run), *(open_stage(run, name) for name in ("dataset", "train", "train/ranker")))
    return models, evaluation_window(models.data.retriever, "test")


@pytest.fixture(scope="module")
def client(run: Path) -> Client:
    histories = open_histories(run.parent / "histories.db")
    return Client(
        build_app(Service(open_live_bundle(run), run.parent, histories, ServiceMetrics()), Limits(admin_token="admin")),
        "admin",
    )


@pytest.fixture(scope="module")
def judged(run: Path, trained: tuple[TrainedModels, EvaluationWindow]) -> dict[int, tuple[int, list[int]]]:
    """Returns the time of the request and the first items of both stages of each user of the test window, with what the
    bundle knows of popularity and of age: that of the end of the log.
    """
    models, window = trained
    assert models.ranker is not None
    assert models.sources is not None
    both = two_stages(models, models.ranker, window)
    assert both.sources is not None
    sources = replace(both.sources, sources=models.sources.as_of(load(run).bundle.as_of))
    candidates = find_candidates(both.retrieved, seen=window.seen, top=models.ranker.top, sources=sources)
    ranked = order_candidates(both.retrieved, candidates, both.score_pairs, sources=sources).ranked[:, :K]
    arrays = models.data.retriever
    users = arrays.users.ids_of(window.user_rows).to_pylist()
    ids = [arrays.items.ids_of(rows).to_pylist() for rows in ranked]
    return dict(zip(users, zip(window.query_at.tolist(), ids, strict=True), strict=True))


def test_each_source_finds_everything_for_its_third_of_the_users(trained: tuple) -> None:
    models, window = trained
    both = two_stages(models, models.ranker, window)
    top, kinds = models.ranker.top, models.data.retriever.users.ids_of(window.user_rows).to_numpy() % 3
    rows, brought_by = both.candidates.item_rows[:, :top], both.candidates.brought_by[:, :top]
    for kind in range(3):
        mine, all_found, retrieved = 0, 0, 0
        for user in np.flatnonzero((kinds == kind) & (window.relevant.sizes > 0)):
            first, end = window.relevant.offsets[user : user + 2]
            wanted = set(window.relevant.values[first:end].tolist())
            assert wanted <= set(rows[user].tolist())
            mine += len(wanted & set(both.candidates.lists[kind + 1][user].tolist()))
            all_found += len(wanted)
            retrieved += len(wanted & set(both.candidates.lists[0][user].tolist()))
            assert (brought_by[user] == kind + 1).any()
        assert mine == all_found > 0
        assert retrieved < all_found / 2
    assert all(len(set(each)) == len(each) for each in rows.tolist())


def test_the_report_says_what_the_sources_bring(run: Path) -> None:
    report = report_of(run)
    section = report.candidates
    assert section is not None
    assert section.union.value == 1.0
    assert section.minus.low > 0.5
    assert section.minus.value == pytest.approx(section.union.value - section.retriever.value)
    assert [line.name for line in section.lines] == NAMES
    assert sum(line.recall.value for line in section.lines) == pytest.approx(1.0)
    assert sum(line.places for line in section.lines) == pytest.approx(30)
    assert section.sentence in report.verdict
    rows = {row.name: row.metrics for row in report.catalogue.rows}
    assert rows["model"]["catalogue/ndcg@10"].value > 0.5  # the ranker reads which source is right
    assert rows["retriever alone"]["catalogue/ndcg@10"].value < 0.1
    page = (run / "run.html").read_text(encoding="utf-8")
    assert "Sources of candidates" in page
    assert "where age_days &lt; 1" in page


def test_served_lists_are_the_judged_ones_to_the_byte(run: Path, client: Client, judged: dict) -> None:
    served, in_table = lists_of(run, client, {user: at for user, (at, _) in judged.items()}, k=K)
    assert len(served) == 150
    expected = json.dumps({user: ids for user, (_, ids) in judged.items()})
    assert json.dumps(served) == expected
    assert json.dumps(in_table) == expected


def test_a_batch_has_the_lists_of_single_requests_and_a_short_list_begins_a_long_one(
    run: Path, client: Client, judged: dict
) -> None:
    users, (at, _) = list(judged)[:40], next(iter(judged.values()))
    context = {"context": {"at": at}}
    _, batch = client.post("/v1/recommend:batch", {"user_ids": users, "k": 60, **context})
    table = load(run).recommend(users, k=60, at=at)["item_id"].to_pylist()
    for number, (user, answer) in enumerate(zip(users, batch["answers"], strict=True)):
        ids = [item["item_id"] for item in answer["items"]]
        assert len(set(ids)) == 60
        assert ids == table[60 * number : 60 * number + 60]
        for k in (3, 60):
            _, single = client.post("/v1/recommend", {"user_id": user, "k": k, **context})
            assert [item["item_id"] for item in single["items"]] == ids[:k]
        scores = [item["score"] for item in answer["items"]]
        assert scores == sorted(scores, reverse=True)


def test_sources_obey_filters_exclusions_and_withdrawals(run: Path, client: Client, judged: dict) -> None:
    lengths = {row["item_id"]: row["length_s"] for row in load(run).bundle.attributes.to_pylist()}
    users = list(judged)[:20]
    at = judged[users[0]][0]
    before = {}
    for user in users:
        body = {"user_id": user, "k": 30, "context": {"at": at}}
        _, answer = client.post("/v1/recommend", body)
        before[user] = [item["item_id"] for item in answer["items"]]
        _, short = client.post("/v1/recommend", {**body, "filter": "length_s < 30", "exclude": before[user][:1]})
        found = [item["item_id"] for item in short["items"]]
        assert found
        assert all(lengths[item] < 30 for item in found)
        assert before[user][0] not in found
    withdrawn = sorted({item for ids in before.values() for item in ids[:3]})
    status, reply = client.post("/v1/admin/items", {"remove": withdrawn})
    assert status == 200, reply
    for user in users:
        _, answer = client.post("/v1/recommend", {"user_id": user, "k": 30, "context": {"at": at}})
        assert not {item["item_id"] for item in answer["items"]} & set(withdrawn)
        assert len(answer["items"]) == 30
    client.post("/v1/admin/items", {"restore": withdrawn})


def test_an_explained_list_names_the_sources_of_each_item(client: Client, judged: dict) -> None:
    named = set()
    for user, (at, ids) in list(judged.items())[:30]:
        _, answer = client.post("/v1/recommend", {"user_id": user, "k": K, "explain": True, "context": {"at": at}})
        assert [item["item_id"] for item in answer["items"]] == ids
        for item in answer["items"]:
            sources, rank = item["retrieved"]["sources"], item["retrieved"]["rank"]
            assert sources
            assert ("retriever" in sources) == (rank > 0)
            named |= set(sources)
    assert named == set(NAMES)


def test_a_posted_history_and_an_unknown_user_get_lists(client: Client, run: Path) -> None:
    _, answer = client.post("/v1/recommend", {"history": [0, 14], "k": K, "explain": True})
    partners = [item["item_id"] for item in answer["items"] if NAMES[1] in item["retrieved"]["sources"]]
    assert {1, 15} <= set(partners)
    table = load(run).recommend_for_history([0, 14], k=30)["item_id"].to_pylist()
    assert {1, 15} <= set(table)
    _, answer = client.post("/v1/recommend", {"user_id": 987_654, "k": K})
    assert answer["source"] == "popularity"
    assert len(answer["items"]) == K


def test_training_reads_nothing_of_the_requests_day_or_later(run: Path) -> None:
    recipe = reopen(run).recipe
    arrays = load_dataset(open_stage(run, "dataset").folder, recipe.features)
    fitted = fit_sources(recipe, arrays)
    assert isinstance(fitted, SourceFit)
    second = worlds.FIRST_MS + DAY_MS
    early, late = fitted.before(second), fitted.before(second + DAY_MS)
    ids = np.asarray(arrays.items.ids_of(np.arange(len(arrays.items))))
    of_pairs = arrays.items.rows_of(np.arange(120))
    assert (early.neighbors.item_rows[of_pairs] == -1).all()  # partners are liked on the second day
    assert (late.neighbors.item_rows[of_pairs] >= 0).any()
    assert set(ids[early.flags["age_days < 1"]]) == set(range(186, 192))
    before_second = np.asarray(arrays.positives.at) < second
    liked = set(np.asarray(arrays.positives.item_rows)[before_second].tolist())
    assert set(early.popular[1].tolist()) == liked


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            [{"kind": "popularity", "quota": 30}],
            r"their quotas are 30 together and num_candidates is 30: no place is left",
        ),
        (
            [{"kind": "popularity", "quota": 0}],
            r"ranker.candidates.sources.0.quota .*greater than or equal to 1|at least 1",
        ),
        ([{"kind": "trending", "quota": 3}], r"sources.0.* trending"),
        ([{"kind": "popularity", "quota": 2}] * 2, r"sources.1: `popularity of 2 days` is listed twice"),
        (
            [{"kind": "item_knn", "quota": 3, "last_likes": 11}],
            r"ranker.candidates.sources.0: item_knn reads the last 11 likes, and the longest history .* has 10. Lower",
        ),
        ([{"kind": "condition", "quota": 3, "when": "DROP TABLE items"}], r"sources.0.*when"),
    ],
)
def test_bad_sources_are_refused_with_one_message(tmp_path: Path, sources: list, message: str) -> None:
    tree = changed(three_kinds(tmp_path, num_users=9), sources=sources)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tree, default=str), encoding="utf-8")
    with pytest.raises(RecipeError, match=message) as error:
        twofold.run(path, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists(), error


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("shiny > 1", r"ranker.candidates.sources.0.when reads `shiny`, which does not exist"),
        ("tags = 'a'", "ranker.candidates.sources.0.when reads tags, which is"),
    ],
)
def test_a_condition_on_an_unfit_column_ends_before_a_row_is_read(tmp_path: Path, when: str, message: str) -> None:
    recipe = three_kinds(tmp_path, num_users=9)
    sources = [{"kind": "condition", "quota": 3, "when": when}]
    with pytest.raises(RecipeError, match=message):
        check_recipe(Recipe.model_validate(changed(recipe, sources=sources)))
