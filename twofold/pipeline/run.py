"""The pipeline on one screen: every stage in order. Read this first.

A stage is a function from complete stages to a complete stage. It is found, and not made again, when nothing that it
depends on has changed (`run_folder.run_stage`).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from twofold.pipeline.dataset import build_dataset
from twofold.pipeline.early_checks import check_later_stages
from twofold.pipeline.evaluate import evaluate
from twofold.pipeline.explain import explain
from twofold.pipeline.index import index, recommend
from twofold.pipeline.job import Job, claimed, selection_job
from twofold.pipeline.prepare import prepare
from twofold.pipeline.train import train, train_ranker
from twofold.prepare.duckdb_engine import OpenEngine, duckdb_engine
from twofold.prepare.last_days import with_dates
from twofold.recipe.schema import Recipe
from twofold.run_folder import Stage


def run(
    recipe: Recipe,
    *,
    runs: Path = Path("runs"),
    name: str | None = None,
    overwrite: bool = False,
    engine: OpenEngine = duckdb_engine,
    on_stage_done: Callable[[Stage], None] = lambda stage: None,
) -> Job:
    """Runs every stage, from a log to evaluated recommendations; returns the job, whose folder then holds them all."""
    job = Job(with_dates(recipe), runs / (name or recipe.name), engine, on_stage_done=on_stage_done)
    run_job(job, overwrite=overwrite)
    return job


def run_job(job: Job, *, overwrite: bool = False) -> None:
    """Runs every stage of a job. `overwrite` discards the results of another recipe in its folder."""
    with claimed(job, overwrite=overwrite):
        prepared, dataset, retriever, ranker = up_to_training(job)
        evaluate(job, prepared, dataset, retriever, ranker)
        indexed = index(job, dataset, retriever, ranker)
        recommended = recommend(job, indexed)
        explain(job, dataset, retriever, indexed, recommended)


def up_to_training(job: Job) -> tuple[Stage, Stage, Stage, Stage | None]:
    """Runs the first stages; returns the prepared log, the dataset, the retriever and, if there is one, the ranker."""
    prepared = prepare(job)
    return prepared, *_fit_stages(job, prepared)


def _fit_stages(job: Job, prepared: Stage) -> tuple[Stage, Stage, Stage | None]:
    """Builds the dataset and trains the models on it; returns the stages dataset, retriever and, if any, ranker.

    With `train.refit` it does so twice. The first fit, in the folder `selection`, chooses the number of epochs and what
    is served on the validation window; the second has that window among its examples.
    """
    if not job.recipe.train.refit:
        dataset = build_dataset(job, prepared)
        retriever = train(job, dataset, check=partial(check_later_stages, job.recipe, dataset))
        return dataset, retriever, train_ranker(job, dataset, retriever)
    selection = selection_job(job)
    chosen = build_dataset(selection, prepared)
    first = train(selection, chosen, check=partial(check_later_stages, job.recipe, chosen))
    first_ranker = train_ranker(selection, chosen, first)
    dataset = build_dataset(job, prepared, with_validation=True)
    retriever = train(job, dataset, first)
    return dataset, retriever, train_ranker(job, dataset, retriever, first_ranker)
