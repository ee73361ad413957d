"""The ranker's rival: the world that only a ranker solves, its matrix, and what it is told when it cannot be had."""

import subprocess
import sys

import numpy as np
import pytest

from tests import worlds
from twofold.errors import RecipeError
from twofold.model.ranker import load_stages
from twofold.model.retriever import load_model
from twofold.model.trees import load_trees
from twofold.pipeline import run as pipeline
from twofold.recipe.load import dump_recipe
from twofold.recipe.schema import Recipe
from twofold.train.boost import fit_trees, gather_table
from twofold.train.ranker_examples import draw_lists, mine_requests

pytest.importorskip("lightgbm")
TREES = {"kind": "lambdamart", "trees": 40, "leaves": 8, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A retriever of the world where the ranker alone sees what decides, and the dataset as both stages read it."""
    recipe = worlds.polished(tmp_path_factory.mktemp("world"))
    assert recipe.ranker is not None
    told = {name: recipe.ranker.model_dump(mode="json")[name] for name in ("features", "candidates")}
    recipe = Recipe.model_validate(recipe.model_dump(mode="json") | {"ranker": {**TREES, **told}})
    job = pipeline.Job(recipe, tmp_path_factory.mktemp("run"))
    _, dataset, trained, _ = pipeline.up_to_training(job)
    arrays = load_stages(dataset.folder, recipe.features, recipe.ranker_features)
    return recipe, arrays, load_model(recipe.retriever, arrays.retriever, trained.folder), job


def test_what_only_the_ranker_sees_is_solved_and_recall_of_the_candidates_stays(world):
    """Ten bright items of forty: whoever sees the group alone is right once in four."""
    *_, job = world
    stages = pipeline.up_to_training(job)
    pipeline.evaluate(job, *stages)
    report = pipeline.report_of(job.folder)
    both, alone = (row for row in report.catalogue.rows if row.name in ("model", "retriever alone"))
    assert both.metrics["catalogue/recall@5"].value > 0.95
    assert alone.metrics["catalogue/recall@5"].value < 0.5
    assert alone.model_minus["catalogue/ndcg@5"].low > 0.3
    assert both.metrics["catalogue/recall@50"].value == alone.metrics["catalogue/recall@50"].value
    assert "both stages without ids" in [row.name for row in report.catalogue.rows]
    parts = {part.name: part.parameters for part in report.facts.model if part.tower == "ranker"}
    assert list(parts) == ["item.shine", "score", "place", "leaves"]
    assert min(parts["item.shine"], parts["score"]) > 0
    with pytest.raises(RecipeError, match="lambdamart, which is judged and not served: .* delete ranker"):
        pipeline.index(job, *stages[1:])


def fitted(world, out, validate=lambda trees: 0.0, **changes):
    recipe, arrays, model, _ = world
    asked = recipe.ranker.model_copy(update={"trees": 20, **changes})
    facts = fit_trees(model, arrays, asked=asked, validate=validate, out=out)
    return facts, (out / "trees.txt").read_bytes()


def test_one_seed_gives_the_same_trees_and_two_seeds_others(world, tmp_path):
    _, first = fitted(world, tmp_path / "a")
    assert fitted(world, tmp_path / "b")[1] == first
    assert fitted(world, tmp_path / "c", seed=1)[1] != first
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == ["training_log.parquet", "trees.txt"]


def test_as_many_trees_as_are_best_on_validation_are_kept_and_score_as_they_did(world, tmp_path):
    recipe, arrays, _, _ = world
    pairs = np.zeros((2, 0), np.float32), np.array([[[-1.0], [0.3], [2.0]]] * 2, np.float32)
    says = np.array([[0.9, 0.5, 0.1], [0.1, 0.5, 0.9]], np.float32), np.array([[0, 1, 2], [2, 1, 0]])
    judged = {}

    def validate(trees):
        judged[trees.used] = trees.scores(*pairs, *says)
        return -abs(trees.used - 6)

    facts, _ = fitted(world, tmp_path, validate)
    assert list(judged) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert (facts["best_epoch"], facts["trees"]) == (2, 6)
    assert facts["epochs"][0]["loss"] > facts["epochs"][-1]["loss"] > 0
    loaded = load_trees(recipe.ranker, recipe.ranker_features, tmp_path)
    assert (loaded.used, loaded.top) == (6, recipe.ranker.candidates.num_candidates)
    np.testing.assert_array_equal(loaded.scores(*pairs, *says), judged[6])
    assert not np.array_equal(judged[6], judged[20])


def test_the_table_holds_what_competes_in_the_retrievers_order(world, tmp_path):
    recipe, arrays, model, _ = world
    asked = recipe.ranker.candidates
    requests = mine_requests(model, arrays.retriever, asked, seed=0, out=tmp_path)
    table = gather_table(requests, arrays.ranker, asked, seed=0)
    lists = draw_lists(requests, arrays.ranker, np.arange(len(requests)), asked, rng=np.random.default_rng((0, 1, 0)))
    shine = arrays.ranker.item_arrays.inputs["shine"]
    assert (table.lengths.sum(), table.is_positive.sum()) == (len(table.lines), len(requests))
    ends = np.cumsum(table.lengths)
    for line in range(20):
        own = slice(ends[line] - table.lengths[line], ends[line])
        there = lists.competing[line]
        assert table.lengths[line] == there.sum()
        items = lists.item_rows[line, there]
        score = requests.items[requests.moments[line], items] @ requests.users[line]
        expected = np.column_stack([shine[items], score, lists.places[line, there]]).astype(np.float32)
        np.testing.assert_allclose(table.lines[own], expected[np.argsort(expected[:, 2], kind="stable")], rtol=1e-4)
        first = lists.item_rows[line, 0]
        assert table.lines[own][table.is_positive[own]][0, 0] == shine[first]


@pytest.mark.parametrize("side", ["what the towers read", "what it is told"])
def test_features_that_leave_trees_nothing_of_items_are_refused(world, side):
    recipe, *_ = world
    tree = recipe.model_dump(mode="json")
    unread = {"user": [{"kind": "time", "part": "hour"}], "item": [{"kind": "id"}, {"kind": "bag", "column": "tags"}]}
    tree = tree | ({"features": unread} if side == "what the towers read" else {})
    tree["ranker"] = TREES | ({} if side == "what the towers read" else {"features": unread})
    with pytest.raises(
        ValueError, match="nothing of the items: of what it is told there is only id, bag. Add a number"
    ):
        Recipe.model_validate(tree)


WITHOUT_THE_LIBRARY = """
import sys
sys.modules["lightgbm"] = None  # what an import finds when it is not installed
from twofold.cli.main import main
sys.argv = ["twofold", "train", sys.argv[1], "--runs", sys.argv[2], "--run", sys.argv[3]]
main()
"""


@pytest.mark.slow
def test_without_the_library_the_message_says_what_to_install(world, tmp_path):
    recipe, *_, job = world
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe.model_copy(update={"name": "other"})))
    ranked = recipe.model_copy(update={"ranker": recipe.ranker.model_copy(update={"seed": 5})})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(ranked))
    command = [sys.executable, "-c", WITHOUT_THE_LIBRARY, tmp_path / "recipe.yaml", job.folder.parent, job.folder.name]
    done = subprocess.run([*map(str, command), "--overwrite"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "lightgbm is not installed, and this verb needs it: pip install 'twofold[lightgbm]'" in done.stderr
