"""Watch time as the goal: on a world whose expected watch times are known, the report tells them and a search finds the
formula that maximizes them.
"""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from tests.impressions import drawn_impressions
from tests.worlds import (
    FIRST_MS,
    SPLIT,
    world_recipe,
    write_world,
)
from twofold.pipeline import run as pipeline
from twofold.pipeline.adapters import two_stages, window_of
from twofold.pipeline.job import Job, claim_folder, report_of
from twofold.pipeline.trained_models import load_models
from twofold.pipeline.watch_time import item_lengths
from twofold.recipe.load import dump_recipe, load_recipe
from twofold.recipe.schema import Recipe

ITEMS, USERS, K = 160, 240, 10
ROWS = np.arange(ITEMS)
LENGTH = np.array([10.0, 20.0, 30.0, 45.0])[np.random.default_rng(3).permutation(ROWS) % 4]
DEPTH = np.random.default_rng(7).permutation(np.linspace(-2, 2, ITEMS))
FORMULAS = ("relevance", "watch", "relevance + LN(watch / (1 - watch))", "minutes", "relevance + minutes")


def share(user, item):
    """Returns the expected share of an item that a user watches: deep items and those of the own team hold longer."""
    return 1 / (1 + np.exp(0.75 - DEPTH[item] - 1.5 * (item % 4 == user % 4)))


def planted(folder: Path) -> Recipe:
    """A user likes what is of its own team and short: what it likes is not what it watches for long."""
    draw = np.random.default_rng(8)
    users, items, at = drawn_impressions(draw, USERS, ITEMS)
    mean = share(users, items)
    events = pa.table(
        {
            "user_id": users,
            "item_id": items,
            "at": at + FIRST_MS,
            "liked": (items % 4 == users % 4) & (LENGTH[items] < 25),
            "watch_s": LENGTH[items] * draw.beta(6 * mean, 6 * (1 - mean)),
        }
    )
    table = {"item_id": ROWS, "team": ROWS % 4, "depth": DEPTH, "length_s": LENGTH}
    team = {"kind": "category", "column": "team"}
    numbers = [{"kind": "number", "column": name, "scale": "standard"} for name in ("depth", "length_s")]
    history = [{"kind": "history", "events": "positives", "max_length": 50}]
    parts = {
        "prepare": {
            "positive": "liked",
            "split": SPLIT,
            "labels": {"d2q": {"kind": "quantile"}},
            "outcomes": {"watch": "d2q", "minutes": "LEAST(watch_s / 60, 1)"},
        },
        "features": {"user": history, "item": [team]},
        "train": {"epochs": 2, "batch_size": 128, "learning_rate": 0.01, "seed": 0},
        "ranker": {
            "kind": "mlp",
            "features": {"user": history, "item": [team, *numbers]},
            "dim": 16,
            "hidden": [32],
            "candidates": {"num_candidates": ITEMS, "num_retrieved": 10},
            "heads": [{"outcome": "watch"}, {"outcome": "minutes"}],
            "formula": "minutes",
            "epochs": 8,
            "best_epoch_by": "xauc",  # the NDCG of likes is 0 for this order, after every epoch
            "batch_size": 64,
            "learning_rate": 0.01,
        },
        "index": {"include_seen": True},  # most items were met: the unseen ones would leave little to choose
    }
    return world_recipe(write_world(folder, events, pa.table(table)), parts)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A run whose lists are in the order of predicted seconds → its job and its stages up to training."""
    job = Job(world, tmp_path_factory.mktemp("run"))
    claim_folder(job, overwrite=False)
    return job, pipeline.up_to_training(job)


def planted_seconds(job, stages, formula):
    """Returns the planted seconds of the first items of the lists by a formula, those of the best lists, and those of
    random lists.
    """
    _, dataset, retriever, ranker = stages
    models = load_models(job, dataset, retriever, ranker)
    arrays = models.data.retriever
    window = window_of(job.recipe, arrays, "test")
    scores = two_stages(models, models.ranker.with_formula(formula), window)(slice(0, len(window.user_rows)))
    users = arrays.users.ids.take(pa.array(window.user_rows)).to_numpy()
    items = arrays.items.ids.to_numpy(zero_copy_only=False)
    truth = LENGTH[items] * share(users[:, None], items[None])
    own = np.take_along_axis(truth, np.argsort(-scores, axis=1)[:, :K], axis=1)
    return own.mean(), np.sort(truth, axis=1)[:, -K:].mean(), truth.mean()


@pytest.mark.slow
def test_the_report_tells_the_planted_watch_time_of_lists(run):
    job, stages = run
    pipeline.evaluate(job, *stages)
    report = report_of(job.folder)
    own, _, by_chance = planted_seconds(job, stages, "minutes")
    section = report.list_watch
    rows = {row.name: row.metrics[f"list_watch/seconds@{K}"].value for row in section.rows}
    assert rows["model"] == pytest.approx(own, rel=0.04)
    assert rows["random"] == pytest.approx(by_chance, rel=0.04)
    assert rows["model"] > rows["random"] > rows["popularity"]  # popular items are short
    assert (section.head, section.users) == ("watch", USERS)
    # It follows the two headline metrics, and stands on the page.
    assert report.verdict[2] == section.sentence
    assert section.sentence.startswith("Expected watch time of the first 10 items ")
    assert "better than popularity" in section.sentence
    assert "better than random" in section.sentence
    page = (job.folder / "run.html").read_text(encoding="utf-8")
    assert 'id="list-watch"' in page
    assert "Expected seconds" in page
    assert report.metrics_of("model")[f"list_watch/seconds@{K}"] == rows["model"]


@pytest.mark.slow
def test_a_search_finds_the_formula_of_the_planted_optimum(world, run, tmp_path):
    pytest.importorskip("optuna")
    from twofold.tune import Search, tune

    tree = yaml.safe_load(dump_recipe(world))
    tree["tune"] = {"goal": "watch_time", "trials": 16, "ranges": {"ranker.formula": {"choices": list(FORMULAS)}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    search = Search(tmp_path / "recipe.yaml", (), tmp_path / "world.tune")
    trials = tune(search)
    found = {json.loads(trial.changes[0].partition("=")[2]): trial.value for trial in trials}
    assert len(found) >= 4
    best = max(found, key=found.get)
    own, optimum, _ = planted_seconds(*run, best)
    assert own >= 0.98 * optimum
    others = {formula: planted_seconds(*run, formula)[0] for formula in FORMULAS}
    assert own >= 0.995 * max(others.values())
    assert min(others.values()) < 0.7 * optimum  # it matters which one is chosen
    assert trials[0].value == pytest.approx(own, rel=0.04)
    # One training for all: each trial is a run folder without a ranker, which `twofold run` trains.
    assert len({path.stat().st_ino for path in search.folder.rglob("train/ranker/weights.safetensors")}) == 1
    assert load_recipe(trials[0].folder / "recipe.yaml").ranker.formula == best


def test_the_length_of_an_item_is_that_of_the_items_table_or_of_its_events():
    item_rows, seconds = np.array([0, 1, 1, 2]), np.array([9, 5, 7, np.nan], np.float32)
    table = pa.table({"item_id": [5, 6, 7, 8], "length_s": [30.0, None, None, 0.0]})
    stated = item_lengths(table, item_rows, seconds)
    np.testing.assert_array_equal(stated, np.array([30, 6, np.nan, np.nan], np.float32))
    found = item_lengths(table.select(["item_id"]), item_rows, seconds)
    np.testing.assert_array_equal(found, np.array([9, 6, np.nan, np.nan], np.float32))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"goal": "watch_time", "ranges": {"retriever.dim": {"choices": [8, 16]}}},
         "retriever.dim cannot be searched over with goal: watch_time. Write ranges: {ranker.formula: {choices:"),
        ({"goal": "watch_time", "ranges": {"ranker.formula": {"low": 0.1, "high": 0.5}}},
         "ranker.formula has no choices with goal: watch_time"),
        ({"ranges": {"ranker.formula": {"choices": ["relevance", "watch"]}}},
         "ranker.formula does not change recall. Write goal: watch_time"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(world, parts, said):
    tree = world.model_dump(mode="json") | {"tune": parts}
    with pytest.raises(ValueError, match=re.escape(said)):
        Recipe.model_validate(tree)


def test_a_search_for_watch_time_needs_a_head_that_predicts_it(world):
    tree = world.model_dump(mode="json")
    tree["ranker"] |= {"heads": [{"outcome": "minutes"}], "formula": "minutes"}
    tree["tune"] = {"goal": "watch_time", "ranges": {"ranker.formula": {"choices": ["relevance", "minutes"]}}}
    said = "no head of the ranker predicts a quantile of watch time. Add labels: {d2q: {kind: quantile}}"
    with pytest.raises(ValueError, match=re.escape(said)):
        Recipe.model_validate(tree)
