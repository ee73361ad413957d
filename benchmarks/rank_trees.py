"""A rival of the ranker: LightGBM's LambdaMART on the same candidates (Burges, MSR-TR-2010-82).

    pip install 'lightgbm>=4.5'
    python benchmarks/rank_trees.py runs/NAME

Trains on the requests and candidate lists of the run's recipe, and prints NDCG@10 of the test window for the retriever
alone, for the run's ranker and for the trees. The trees read the numeric and categorical features of the ranker with
one value per user or item, the retrieval score and the rank; they read no ids, bags, histories or vectors.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import lightgbm
import numpy as np

from twofold.dataset.dataset import Dataset
from twofold.dataset.tower_inputs import item_inputs, queries_at, user_inputs
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.scores import rank_in_two_stages
from twofold.evaluate.window import evaluation_window
from twofold.pipeline import run as pipeline
from twofold.pipeline.adapters import catalogue_scores, two_stages
from twofold.pipeline.job import reopen
from twofold.pipeline.trained_models import TrainedModels, load_models
from twofold.recipe.ranker import Mlp
from twofold.train.ranker_examples import mine_requests
from twofold.train.ranker_lists import draw_lists

TREES, SETTINGS = 300, {"objective": "lambdarank", "learning_rate": 0.05, "deterministic": True, "verbosity": -1}


def user_columns(dataset: Dataset, user_rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns the user features with one value per user."""
    queries = queries_at(dataset.features, dataset.positives, dataset.negatives, user_rows=user_rows, at=at)
    return single_values(user_inputs(dataset.features, dataset.user_arrays, queries), len(user_rows))


def item_columns(dataset: Dataset, item_rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns the item features with one value per item."""
    return single_values(item_inputs(dataset.features, dataset.item_arrays, item_rows=item_rows, at=at), len(item_rows))


def single_values(inputs: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """Stacks the inputs of one dimension, without ids, as columns."""
    columns = [values for name, values in inputs.items() if values.ndim == 1 and name != "id"]
    return np.column_stack([np.empty((rows, 0), np.float32), *columns]).astype(np.float32)


def pairs(users: np.ndarray, items: np.ndarray, scores: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Returns one row per candidate: user columns, item columns, retrieval score and rank."""
    length = ranks.shape[1]
    return np.column_stack([np.repeat(users, length, axis=0), items, scores.ravel(), ranks[:, :, 0].ravel()])


def fit(models: TrainedModels, config: Mlp) -> lightgbm.Booster:
    """Trains the trees on the candidate lists that the ranker draws."""
    dataset, candidates = models.data.ranker, config.candidates
    with TemporaryDirectory() as folder:
        requests = mine_requests(
            models.retriever, models.data.retriever, candidates, seed=config.seed, out=Path(folder) / "mined"
        )
        which = np.arange(len(requests))
        lists = draw_lists(requests, dataset, which, candidates, rng=np.random.default_rng(config.seed))
        vectors = requests.item_vectors[requests.days[:, None], lists.item_rows]
        scores = np.vecdot(requests.user_vectors[:, None], vectors)
        rows, at = dataset.examples["train"].take(requests.examples), np.asarray(requests.at)
    length = lists.ranks.shape[1]
    users = user_columns(dataset, np.ascontiguousarray(rows.user_rows), at)
    items = item_columns(dataset, lists.item_rows.ravel(), np.repeat(at, length))
    # LightGBM breaks the ties of its first scores by position: the retriever's order must not put positives first.
    order = np.argsort(lists.ranks[:, :, 0], axis=1, kind="stable")
    kept = (order + which[:, None] * length)[np.take_along_axis(lists.competing, order, axis=1)]
    table = lightgbm.Dataset(
        pairs(users, items, scores, lists.ranks)[kept], kept % length == 0, group=lists.competing.sum(axis=1)
    )
    return lightgbm.train(SETTINGS | {"seed": config.seed}, table, TREES)


def main(folder: Path) -> None:
    """Prints NDCG@10 of the three models."""
    job = reopen(folder)
    assert job.recipe.ranker is not None, "the recipe has no ranker"
    _, dataset, retriever, ranker = pipeline.up_to_training(job)
    models = load_models(job, dataset, retriever, ranker)
    window, data, trees = evaluation_window(models.data.retriever, "test"), models.data, fit(models, job.recipe.ranker)
    both = two_stages(models, models.ranker, window)
    at = int(window.query_at.min())
    item_rows = np.arange(len(data.ranker.items))
    items = item_columns(data.ranker, item_rows, np.full(len(item_rows), at))
    users = user_columns(data.ranker, window.user_rows, window.query_at)
    products = both.retrieved

    def score_pairs(rows: np.ndarray, item_rows: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        scores = np.vecdot(products.queries[rows][:, None], products.items[item_rows])
        values = pairs(users[rows], items[item_rows.ravel()], scores, ranks)
        return np.asarray(trees.predict(values), np.float32).reshape(ranks.shape)

    ranked = rank_in_two_stages(
        products, score_pairs, seen=window.seen, top=job.recipe.ranker.candidates.num_candidates
    )
    sources = {
        "retriever alone": catalogue_scores(models.retriever, data.retriever, window),
        "ranker": both,
        "trees": ranked,
    }
    for name, source in sources.items():
        print(f"{name:<16} {evaluate_catalogue(window, source, ks=(10,)).mean('catalogue/ndcg@10'):.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
