"""Heads: chances that are known are learned and said as they are; a formula orders by them; a killed training ends the
same; impressions stand where the retriever has them.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.impressions import drawn_impressions
from tests.worlds import (
    DAY_MS,
    FIRST_MS,
    SPLIT,
    TRAIN_DAYS,
    world_recipe,
    write_world,
)
from twofold.errors import DataError
from twofold.evaluate.window import evaluation_window
from twofold.model.ranker import build_ranker, load_ranker, load_ranker_data
from twofold.model.retriever import as_products, item_vectors, load_model, user_vectors
from twofold.pipeline import run as pipeline
from twofold.pipeline.adapters import two_stages
from twofold.pipeline.job import claim_folder, report_of
from twofold.pipeline.trained_models import TrainedModels
from twofold.recipe.schema import Recipe
from twofold.train import ranker as rank
from twofold.train.ranker import fit_ranker, gather_impressions, head_losses
from twofold.train.ranker_examples import Mining, mine_requests
from twofold.train.ranker_impressions import mine_impressions, outcomes_of

ITEMS, USERS = 160, 150


def depth_of(item):
    """Returns the depth of items: with it long views become likelier and likes rarer."""
    return np.random.default_rng(7).permutation(np.linspace(-2, 2, ITEMS))[item]


def chance_of(item):
    """Returns the probability of a long view."""
    return 1 / (1 + np.exp(1 - 1.5 * depth_of(item)))


def chances(folder: Path) -> Recipe:
    """A user likes what is of its own team and shallow; a long view is a matter of depth alone, and a chance.

    Watch time says the same: among items as long, the share of views that were shorter rises with depth.
    """
    draw = np.random.default_rng(8)
    users, items, at = drawn_impressions(draw, USERS, ITEMS)
    length = 10.0 + 10 * (np.arange(ITEMS) // 4 % 3)
    events = pa.table(
        {
            "user_id": users,
            "item_id": items,
            "at": at + FIRST_MS,
            "liked": (items % 4 == users % 4) & (depth_of(items) < 0),
            "was_long": draw.random(len(items)) < chance_of(items),
            "watch_s": length[items] * draw.random(len(items)) ** np.exp(-depth_of(items)),
        }
    )
    rows = np.arange(ITEMS)
    table = {"item_id": rows, "team": rows % 4, "depth": depth_of(rows), "length_s": length}
    number, team = {"kind": "number", "scale": "standard"}, {"kind": "category", "column": "team"}
    history = [{"kind": "history", "events": "positives", "max_length": 50}]
    parts = {
        "prepare": {
            "positive": "liked",
            "split": SPLIT,
            "labels": {"d2q": {"kind": "quantile"}},
            "outcomes": {"long": "was_long", "watch": "d2q"},
        },
        "features": {"user": history, "item": [team]},
        "train": {
            # With uniform negatives an earlier epoch of the ranker orders best, and its heads are not calibrated yet.
            "loss": {"kind": "in_batch_softmax", "uniform_negatives": 0},
            **{"epochs": 10, "batch_size": 128, "learning_rate": 0.01, "seed": 0},
        },
        "ranker": {
            "kind": "mlp",
            "features": {"user": history, "item": [team, number | {"column": "depth"}]},
            "dim": 8,
            "hidden": [16],
            "candidates": {"num_candidates": 40, "num_retrieved": 10},
            "heads": [{"outcome": "long"}, {"outcome": "watch"}],
            "epochs": 6,
            "batch_size": 64,
            "learning_rate": 0.01,
        },
        "evaluate": {"brief": True},
    }
    return world_recipe(write_world(folder, events, pa.table(table)), parts)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    recipe = chances(tmp_path_factory.mktemp("world"))
    job = pipeline.Job(recipe, tmp_path_factory.mktemp("run"))
    _, dataset, trained, _ = pipeline.up_to_training(job)
    arrays = load_ranker_data(dataset.folder, recipe.features, recipe.ranker_features)
    return recipe, arrays, load_model(recipe.retriever, arrays.retriever, trained.folder), job


@pytest.fixture(scope="module")
def judged(world):
    *_, job = world
    claim_folder(job, overwrite=False)  # the page of the run reads the recipe there
    pipeline.evaluate(job, *pipeline.up_to_training(job))
    return report_of(job.folder)


def taught(world, job):
    """The ranker of the run."""
    recipe, arrays, *_ = world
    return load_ranker(recipe.ranker, arrays, job.folder / "train" / "ranker", vector_dim=16)


def fitted(world, out, **changes):
    recipe, arrays, model, _ = world
    config = recipe.ranker.model_copy(update={"epochs": 2, **changes})
    facts = fit_ranker(model, arrays, config=config, validate=lambda ranker: 0.0, out=out)
    return facts, (out / "weights.safetensors").read_bytes()


# --- what they say ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_head_says_the_chance_that_is_known(world, judged):
    long, watch = judged.heads
    assert (long.name, long.impressions, watch.name) == ("long", USERS * 20, "watch")
    assert long.ratio == pytest.approx(1, abs=0.05)
    assert long.ece < 0.035  # of which .02 are the few impressions of a bin
    assert long.auc > 0.8
    assert watch.auc is None
    assert watch.observed == pytest.approx(0.5, abs=0.02)  # a quantile, whatever was watched
    assert watch.seconds.mae < 0.7 * watch.seconds.mae_of_length
    assert watch.seconds.xauc > watch.seconds.xauc_of_length + 0.1
    assert any(sentence.startswith("long, on 3,000 impressions: ") for sentence in judged.verdict)
    assert {"heads/long/ece", "heads/watch/ratio"} <= judged.metrics_of("model").keys()


def test_a_formula_orders_by_what_a_head_says(world, judged):
    """Relevance has the shallow items of a team first, the chance of a long view the deep ones."""
    _, arrays, model, job = world
    ranker, window = taught(world, job), evaluation_window(arrays.retriever, "test")
    depth = depth_of(arrays.retriever.items.ids.to_numpy())

    def first(ranker):
        return float(depth[two_stages(TrainedModels(arrays, model, ranker), ranker, window).ranked[:, :5]].mean())

    relevance = first(ranker)
    assert first(ranker.with_formula("relevance")) == relevance
    assert relevance < -0.5 < 0.5 < first(ranker.with_formula("long"))
    assert (
        relevance
        < first(ranker.with_formula("relevance + 2 * LN(long / (1 - long))"))
        <= first(ranker.with_formula("long"))
    )


def test_a_formula_is_what_validation_judges(world, tmp_path):
    heard = []
    recipe, arrays, model, _ = world
    config = recipe.ranker.model_copy(update={"epochs": 1, "formula": "long"})
    fit_ranker(
        model, arrays, config=config, validate=lambda ranker: heard.append(ranker.formula.name) or 0.0, out=tmp_path
    )
    assert heard == ["long"]


# --- how they are taught ----------------------------------------------------------------------------------------------


def test_impressions_stand_where_the_retriever_has_them(world, tmp_path):
    """Ranks equal those of requests one by one: events of the day are seen, later days are not known yet."""
    recipe, arrays, model, _ = world
    dataset, config = arrays.retriever, recipe.ranker
    requests = mine_requests(model, dataset, config.candidates, seed=0, out=tmp_path)
    impressions = mine_impressions(Mining(model, dataset, config.candidates), requests, config, out=tmp_path)
    rows = dataset.examples["train"]
    assert impressions.examples.tolist() == list(range(len(rows)))  # all days, and fewer than may be drawn
    for number in np.random.default_rng(0).integers(len(impressions), size=40):
        user, at, item = rows.user_rows[number], impressions.at[number], rows.item_rows[number]
        days = rows.at[rows.user_rows == user] // DAY_MS
        assert at == rows.at[rows.user_rows == user][days == rows.at[number] // DAY_MS].min()
        asking = user_vectors(model, dataset, np.array([user]), np.array([at]))
        query, factors = as_products(model, asking, item_vectors(model, dataset, int(at)))
        scores = (query @ factors.T)[0]
        start, end = dataset.events.offsets[user : user + 2]
        met = dataset.events.item_rows[start:end][dataset.events.at[start:end] < at]
        others = np.setdiff1d(np.arange(len(scores)), [*met, item])
        expected = 40 if item in met else min(40, (scores[others] > scores[item] + 1e-6).sum())
        assert expected <= impressions.ranks[number, 0] <= expected + 39  # items of one team are equal to the retriever
        np.testing.assert_allclose(impressions.user_vectors[number], query[0], atol=1e-6)


def test_losses_are_the_cross_entropy_of_what_is_known(world, tmp_path):
    recipe, arrays, model, _ = world
    requests = mine_requests(model, arrays.retriever, recipe.ranker.candidates, seed=0, out=tmp_path)
    impressions = mine_impressions(
        Mining(model, arrays.retriever, recipe.ranker.candidates), requests, recipe.ranker, out=tmp_path
    )
    ranker = build_ranker(recipe.ranker, arrays.ranker.features, {}, vector_dim=16)
    ranker.fit_heads([0.2, 0.5])  # and nothing else yet: every impression is as likely
    which = np.arange(50)
    batch = gather_impressions(impressions, arrays.ranker, which, recipe.ranker, seed=(0,))
    outcomes = torch.from_numpy(outcomes_of(arrays.ranker, impressions.examples[which], recipe.ranker))
    outcomes[:40, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0] * 10)
    outcomes[40:, 0] = torch.nan
    outcomes[:, 1] = torch.nan
    # a quarter of the known are long, of chance .2
    expected = -(0.25 * np.log(0.2) + 0.75 * np.log(0.8))
    assert head_losses(ranker, batch, outcomes).tolist() == pytest.approx([expected, 0.0], rel=1e-5)


def test_the_lists_are_taught_as_without_heads_while_heads_weigh_next_to_nothing(world, tmp_path):
    """The lists drawn and every initial weight are those of a ranker without heads."""
    recipe, *_ = world
    (light,) = (head.model_copy(update={"weight": 1e-12}) for head in recipe.ranker.heads[:1])
    with_heads, _ = fitted(world, tmp_path / "with", heads=(light,))
    without, _ = fitted(world, tmp_path / "without", heads=())
    losses = [[epoch["loss"] for epoch in facts["epochs"]] for facts in (with_heads, without)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert with_heads["impressions"] == USERS * 20 * len(TRAIN_DAYS)
    assert "impressions" not in without


def test_a_killed_training_with_heads_ends_where_an_uninterrupted_one_does(world, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    _, whole = fitted(world, tmp_path / "whole")
    monkeypatch.setattr(rank, "CHECKPOINT_EVERY_S", -1.0)
    steps, original = iter(range(1, 1000)), rank.head_losses

    def step_then_die(*arguments):
        if next(steps) == 12:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(rank, "head_losses", step_then_die)
    with pytest.raises(Killed):
        fitted(world, tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    assert fitted(world, tmp_path / "cut")[1] == whole


# --- what cannot be asked ---------------------------------------------------------------------------------------------


def test_a_head_whose_outcome_nobody_knows_is_refused(world, tmp_path):
    recipe, arrays, model, _ = world
    rows = arrays.retriever.examples
    nothing = {name: np.full(len(rows["train"]), np.nan, np.float32) for name in ("long", "watch")}
    outcomes = nothing | {"watch": rows["train"].outcomes["watch"]}
    unknown = replace(arrays.retriever, examples={**rows, "train": replace(rows["train"], outcomes=outcomes)})
    requests = mine_requests(model, arrays.retriever, recipe.ranker.candidates, seed=0, out=tmp_path)
    with pytest.raises(DataError, match=r"ranker.heads.0 has nothing to learn from: long is unknown for all 12,000"):
        mine_impressions(Mining(model, unknown, recipe.ranker.candidates), requests, recipe.ranker, out=tmp_path)


@pytest.mark.parametrize(
    ("ranker", "said"),
    [
        ({"heads": [{"outcome": "like"}]}, "ranker.heads.0 predicts like, and prepare.outcomes has long, watch. Add"),
        ({"heads": [{"outcome": "long"}, {"outcome": "long"}]}, "heads: long is predicted twice"),
        ({"heads": [{"outcome": "relevance"}]}, "heads: relevance is the score of the ranked lists"),
        ({"formula": "relevance + long"}, "formula reads `long`, which does not exist.*Add what it lacks to heads"),
        ({"formula": "logit(relevance)"}, r"logit\(…\) cannot be part of a rule"),
        ({"formula": "relevance; DROP TABLE x"}, "It holds a semicolon"),
        ({"formula": "__import__('os').system('id')"}, "cannot be part of a rule|cannot be read near"),
        ({"formula": "CASE WHEN relevance > 0 THEN 1 END"}, "holds Case, and a formula is arithmetic"),
        ({"formula": "relevance % 2"}, "holds Mod, and a formula is arithmetic"),
        ({"formula": "relevance > 0"}, "holds GT, and a formula is arithmetic only"),
        ({"formula": "NULLIF(relevance, 'x')"}, "text where a number is needed"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_of_heads(world, ranker, said):
    tree = world[0].model_dump(mode="json")
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(tree | {"ranker": {"kind": "mlp", **ranker}})
