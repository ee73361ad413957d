"""The stages `train` and `train/ranker`: arrays become a retriever, and what it retrieves trains a ranker."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from twofold.dataset.dataset import Dataset, load_dataset
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.headline_metrics import primary_k, primary_metric_of
from twofold.evaluate.window import EvaluationWindow, evaluation_window
from twofold.model.multi_tower import build_towers
from twofold.model.ranker import Ranker
from twofold.model.retriever import Model
from twofold.model.weights import load_weights
from twofold.pipeline.adapters import catalogue_scores, two_stages
from twofold.pipeline.best_model import serve_best
from twofold.pipeline.job import Job
from twofold.pipeline.trained_models import TrainedModels, load_models
from twofold.recipe.ranker import Mlp
from twofold.recipe.retriever import Ials, TwoTower
from twofold.run_folder import Stage
from twofold.train.distributed import broadcast_from_rank0
from twofold.train.loop import SINGLE_PROCESS_CPU, fit
from twofold.train.ranker import fit_ranker


def train(job: Job, dataset: Stage) -> Stage:
    """Trains the retriever and writes its weights after the best epoch on the validation window."""
    sections = job.recipe.model_dump(mode="json", include={"retriever", "train"})
    inputs = {"dataset": dataset.digest, **sections}
    retriever = job.run_stage("train", inputs, partial(_train_with_all_ranks, job, dataset.folder))
    if retriever.was_reused:
        _signal_ranks(job, False)
    return retriever


def run_worker_rank(job: Job) -> None:
    """Runs a rank other than 0: waits for the dataset, then trains its share of every batch.

    Only rank 0 prepares, writes and evaluates.
    """
    if _signal_ranks(job, False):
        _train(job, job.folder / "dataset", job.folder / "train.partial")


def train_ranker(job: Job, dataset: Stage, retriever: Stage) -> Stage | None:
    """Trains the ranker and writes its weights after the best epoch on validation; `None` means the recipe has none.

    Its folder is inside that of the retriever whose items it orders, and is deleted with it.
    """
    config = job.recipe.ranker
    if config is None:
        return None
    inputs = {"train": retriever.digest, "dataset": dataset.digest, "ranker": config.model_dump(mode="json")}
    return job.run_stage("train/ranker", inputs, partial(_train_ranker, job, config, dataset, retriever))


def _train_with_all_ranks(job: Job, dataset: Path, out: Path) -> Mapping[str, Any]:
    _signal_ranks(job, isinstance(job.recipe.retriever, TwoTower))
    return _train(job, dataset, out)


def _signal_ranks(job: Job, is_needed: bool) -> bool:
    """Broadcasts from rank 0 whether there is a training to run; blocks until it does."""
    return bool(broadcast_from_rank0((job.setup or SINGLE_PROCESS_CPU).ranks, lambda: float(is_needed)))


def _train(job: Job, dataset: Path, out: Path) -> Mapping[str, Any]:
    arrays = load_dataset(dataset, job.recipe.features)
    window = evaluation_window(arrays, "validation")
    validate = partial(_validate_retriever, job, arrays, window)
    match job.recipe.retriever:
        case TwoTower() as config:
            towers = partial(build_towers, config, arrays)
            setup = job.setup or SINGLE_PROCESS_CPU
            facts = fit(towers, arrays, job.recipe.train, validate=validate, out=out, setup=setup)
            if config.kind == "best" and setup.ranks.is_first:
                trained = load_weights(towers(), out / "weights.safetensors")
                facts |= serve_best(job.recipe.prepare, arrays, window, trained, out=out)
            return facts
        case Ials() as config:
            from twofold.train.als import fit_factors

            return fit_factors(arrays, config, seed=job.recipe.train.seed, validate=validate, out=out)
        case _ as config:
            assert_never(config)


def _validate_retriever(job: Job, arrays: Dataset, window: EvaluationWindow, model: Model) -> float:
    """Returns recall@k over the catalogue, and reports it to the job."""
    k = primary_k(len(arrays.items))
    recall = evaluate_catalogue(window, catalogue_scores(model, arrays, window), ks=(k,)).mean(f"catalogue/recall@{k}")
    job.on_validation(recall)
    return recall


def _train_ranker(job: Job, config: Mlp, dataset: Stage, retriever: Stage, out: Path) -> Mapping[str, Any]:
    models = load_models(job, dataset, retriever)
    validate = partial(_validate_ranker, models, evaluation_window(models.data.retriever, "validation"))
    return fit_ranker(models.retriever, models.data, config=config, validate=validate, out=out)


def _validate_ranker(models: TrainedModels, window: EvaluationWindow, ranker: Ranker) -> float:
    """Returns the report's primary metric of both stages together."""
    metric = primary_metric_of(window.num_items, is_two_stages=True)
    scores = two_stages(models.retriever, ranker, models.data, window)
    return evaluate_catalogue(window, scores, ks=(int(metric.partition("@")[2]),)).mean(metric)
