"""The stage `evaluate`: the models and the baselines on the test window."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from twofold.dataset.dataset import Dataset
from twofold.digest import file_digest
from twofold.environment import commit, hardware
from twofold.evaluate.baseline_results import PeerTuning, load_tuning
from twofold.evaluate.baselines import baseline_scores, positives_before
from twofold.evaluate.days import DayValues, evaluate_day, headline_first, with_days
from twofold.evaluate.evaluate_window import EvaluationOptions, evaluate_window, evaluation_options
from twofold.evaluate.headline_metrics import deciding_metrics, primary_metric_of
from twofold.evaluate.list_watch_time import with_list_watch
from twofold.evaluate.peer_tuning import fixed_constants, tune_peers
from twofold.evaluate.per_user_values import save_row_values, save_values
from twofold.evaluate.results import MODEL, Report, write_report
from twofold.evaluate.sampled import negatives_of
from twofold.evaluate.summary_text import order_sentence
from twofold.evaluate.window import DayBounds, EvaluationWindow
from twofold.model.ranker import describe_ranker
from twofold.model.retriever import describe_model
from twofold.page.run_page import PAGE, write_run_page
from twofold.pipeline.adapters import (
    allowed_items,
    batch_correction,
    evaluate_heads,
    head_predictions,
    positives_before_window,
    score_sources,
    window_of,
)
from twofold.pipeline.index import index_inputs
from twofold.pipeline.item_table import described_items
from twofold.pipeline.job import Job
from twofold.pipeline.rerank import rule_section, with_rules
from twofold.pipeline.sources import with_sources
from twofold.pipeline.trained_models import TrainedModels, load_models
from twofold.pipeline.watch_time import list_watch_section, watch_head
from twofold.progress import heartbeat
from twofold.recipe.diff import recipe_digest
from twofold.recipe.train import Regression
from twofold.run_folder import Stage


def evaluate(job: Job, prepared: Stage, dataset: Stage, retriever: Stage, ranker: Stage | None) -> Stage:
    """Writes report.json and the metrics of single users on the test window.

    The page of the run is written beside the stages, unless the report is unchanged.
    """
    inputs = index_inputs(job, dataset, retriever, ranker) | _evaluation_inputs(job)
    evaluated = job.run_stage("evaluate", inputs, partial(_evaluate, job, prepared, dataset, retriever, ranker))
    if not evaluated.was_reused or not (job.folder / PAGE).is_file():
        write_run_page(job.folder, is_explained=False)
    return evaluated


def _evaluate(
    job: Job, prepared: Stage, dataset: Stage, retriever: Stage, ranker: Stage | None, out: Path
) -> Mapping[str, Any]:
    models = load_models(job, dataset, retriever, ranker)
    arrays = models.data.retriever
    window = window_of(job.recipe, arrays, "test")
    positives = positives_before_window(job.recipe.prepare, arrays, window)
    items = described_items(job.recipe, dataset.folder, arrays, as_of=int(window.query_at.min()))
    heads, fitted = head_predictions(models, window), prepared.folder / "fitted"
    config, published = job.recipe.evaluate.sampled, job.recipe.data.published_negatives
    sources = score_sources(models, window)
    rules = rule_section(job.recipe, items, models, window, sources[MODEL])
    tables = (items, pq.read_table(prepared.folder / "users.parquet"))
    options = replace(
        _options(job, models, window, tables=tables),
        tuning=load_tuning(retriever.folder) or _tuning(job, arrays, window),
        allowed_items=allowed_items(items, job.recipe.index.where),
        correction=batch_correction(models.retriever, arrays, job.recipe.train),
        sampled=negatives_of(config, window, arrays, positives=positives, published=published),
        others={name: scores for name, scores in sources.items() if name != MODEL},
        heads=evaluate_heads(heads, arrays.examples["test"], window, prepare=job.recipe.prepare, fitted=fitted),
    )
    result = evaluate_window(
        window,
        sources[MODEL],
        positives,
        batch_size=max(job.recipe.train.batch_size, 2),
        facts=_facts(job, models, (prepared, dataset, retriever)),
        options=options,
    )
    metrics = headline_first(result.report)
    days = _evaluate_days(job, models, options.groups, result.report.tuning, metrics=metrics)
    head = watch_head(heads, arrays, items, prepare=job.recipe.prepare, fitted=fitted)
    report = with_list_watch(result.report, list_watch_section(head, arrays, window, sources, positives))
    report = _with_order(with_sources(report, window, sources[MODEL]), ranker)
    report = with_rules(with_days(report, days), rules)
    write_report(report, out)
    save_row_values([DayValues("test", window.user_rows, result.rows), *days], out, users=arrays.users, metrics=metrics)
    save_values(result, window, out, users=arrays.users, items=arrays.items, slicings=options.slicings)
    return {"metrics": report.metrics_of(MODEL)}


def _with_order(report: Report, ranker: Stage | None) -> Report:
    """Adds a sentence on the weights of both stages in the order, if validation chose them."""
    if ranker is None or not ranker.facts["shares"]:
        return report
    facts, metric = ranker.facts, primary_metric_of(report.catalogue.num_items, is_two_stages=True)
    sentence = order_sentence(dict(facts["shares"]), facts["retriever_share"], metric=metric)
    return replace(report, verdict=(*report.verdict, sentence))


def _evaluate_days(
    job: Job,
    models: TrainedModels,
    groups: Mapping[str, Int64[np.ndarray, "items"]],
    tuning: PeerTuning,
    *,
    metrics: Sequence[str],
) -> list[DayValues]:
    """Evaluates the days of `evaluate.windows`: the trained model as of each day, and baselines fitted on all days
    before it, with the hyperparameters of the report.
    """
    arrays, found = models.data.retriever, []
    for day in job.recipe.evaluate.windows:
        first_at, end_at = job.recipe.prepare.day_ms(day)
        window = window_of(job.recipe, arrays, "test", DayBounds(f"{day}", first_at, end_at))
        positives = positives_before(arrays, window, first_at=first_at)
        sources = score_sources(models, window)
        baselines, _ = baseline_scores(window, positives, groups, tuning)
        found.append(evaluate_day(window, {MODEL: sources.pop(MODEL), **baselines, **sources}, metrics))
    return found


def _tuning(job: Job, arrays: Dataset, window: EvaluationWindow) -> PeerTuning:
    """Returns the hyperparameters of the baselines of a report on `window`: those chosen on the validation window, or
    fixed ones if nothing is to be found in that.
    """
    metrics, with_peers, tuned = deciding_metrics(window.num_items), not job.recipe.evaluate.brief, None
    if len(arrays.examples["validation"].user_rows):
        validation = window_of(job.recipe, arrays, "validation")
        positives = positives_before_window(job.recipe.prepare, arrays, validation)
        with heartbeat("evaluate"):
            tuned = tune_peers(validation, positives, metrics=metrics, with_peers=with_peers)
    return tuned or fixed_constants(metrics, with_peers=with_peers)


def _options(
    job: Job, models: TrainedModels, window: EvaluationWindow, *, tables: tuple[pa.Table, pa.Table]
) -> EvaluationOptions:
    """Returns the report's optional parts that follow from the dataset; `tables` describe items and users."""
    options = evaluation_options(
        models.data.retriever,
        window,
        tables=tables,
        with_target=isinstance(job.recipe.train.loss, Regression),
        columns=job.recipe.slice_columns,
    )
    return replace(options, dates=job.recipe.prepare.dates("test"))


def _evaluation_inputs(job: Job) -> dict[str, Any]:
    """Returns what a report depends on besides the models, where the recipe asks for more than the default."""
    config = job.recipe.evaluate.model_dump(mode="json", exclude_defaults=True)
    if not config:
        return {}
    published = job.recipe.data.published_negatives
    return {"evaluate": config, "published_negatives": None if published is None else file_digest(published)}


def _facts(job: Job, models: TrainedModels, stages: tuple[Stage, Stage, Stage]) -> dict[str, Any]:
    """Returns where a report comes from; the stages are preparation, dataset and training."""
    parts = describe_model(models.retriever)
    parts += [] if models.ranker is None else describe_ranker(models.ranker)
    return {
        "recipe": job.recipe.name,
        "recipe_digest": recipe_digest(job.recipe),
        "commit": commit(),
        "hardware": hardware(),
        "precision": stages[2].facts.get("precision", "float32"),
        "versions": {name: version(name) for name in ("twofold", "torch", "numpy", "duckdb")},
        "seconds": {stage.folder.name: round(stage.seconds, 1) for stage in stages},
        "funnel": stages[0].facts["funnel"],
        "model": [asdict(part) for part in parts],
        "served": stages[2].facts.get("served"),
        "compared": stages[2].facts.get("quality", {}),
    }
