"""The stages `index` and `recommend`: trained models become a bundle, and the bundle a file of recommendations."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from twofold.index.item_index import build_index, save_index
from twofold.model.history_additions import save_additions
from twofold.model.ranker import save_ranker
from twofold.model.retriever import Blend, as_products, item_vectors, save_user_side
from twofold.pipeline.adapters import allowed_items, calibration_queries
from twofold.pipeline.item_table import described_items
from twofold.pipeline.job import Job
from twofold.pipeline.rerank import check_rules, where_of
from twofold.pipeline.trained_models import load_models
from twofold.progress import heartbeat
from twofold.run_folder import Stage, write_json
from twofold.serve.bundle import PAGE, RERANK, save_context, save_sources
from twofold.serve.recommender import load


def index(job: Job, dataset: Stage, retriever: Stage, ranker: Stage | None) -> Stage:
    """Writes the bundle, all that the service opens: user tower, item vectors, attributes, histories."""
    inputs = index_inputs(job, dataset, retriever, ranker)
    if page := job.recipe.page.model_dump(mode="json", exclude_none=True):
        inputs["page"] = page
    work = heartbeat("index")(partial(_index, job, dataset, retriever, ranker))
    return job.run_stage("index", inputs, work)


def recommend(job: Job, indexed: Stage) -> Stage:
    """Writes recommendations.parquet: the best unseen items of every user of the log."""
    inputs = {"index": indexed.digest, "k": job.recipe.recommend_k}
    return job.run_stage("recommend", inputs, partial(_recommend, job))


def index_inputs(job: Job, dataset: Stage, retriever: Stage, ranker: Stage | None) -> dict[str, Any]:
    """Returns what both the bundle and the report depend on: the models, and which items may be recommended."""
    config, rerank = job.recipe.index.model_dump(mode="json", exclude_defaults=True), job.recipe.rerank
    return {
        "dataset": dataset.digest,
        "train": retriever.digest,
        **({} if ranker is None else {"ranker": ranker.digest}),
        **({"index": config} if config else {}),
        **({} if rerank is None else {"rerank": rerank.model_dump(mode="json")}),
    }


def _index(job: Job, dataset: Stage, retriever: Stage, ranker: Stage | None, out: Path) -> Mapping[str, Any]:
    models, config = load_models(job, dataset, retriever, ranker), job.recipe.index
    model, arrays = models.retriever, models.data.retriever
    as_of = dataset.facts["last_event_at"] + 1
    attributes = described_items(job.recipe, dataset.folder, arrays, as_of=as_of)
    where = where_of(job.recipe)
    allowed = allowed_items(attributes, where)
    check_rules(job.recipe.rerank, attributes)
    vectors = item_vectors(model, arrays, as_of)
    if models.ranker is not None:
        factors = as_products(model, vectors[:0], vectors)[1]
        save_ranker(models.ranker, models.data, factors, at=as_of, folder=out)
    if models.sources is not None:
        save_sources(models.sources.config, models.sources.neighbors, out)
    built = build_index(vectors, score=model.score, queries=calibration_queries(model, arrays, as_of))
    save_index(built, out)
    save_user_side(model, out)
    if isinstance(model, Blend) and model.added is not None:
        save_additions(model.added, out)
    save_context(dataset.folder, out, as_of=as_of, where=where, include_seen=config.include_seen)
    pq.write_table(attributes, out / "item_attributes.parquet", compression="zstd")  # with the recent counts
    if job.recipe.rerank is not None:
        write_json(out / RERANK, job.recipe.rerank.model_dump(mode="json"))
    if page := job.recipe.page.model_dump(mode="json", exclude_none=True):
        write_json(out / PAGE, page)
    facts = {} if allowed is None else {"passing": int(allowed.allowed.sum())}
    return {"items": len(vectors), "dim": int(vectors.shape[1]), "as_of": as_of, **facts, **built.facts}


def _recommend(job: Job, out: Path) -> Mapping[str, Any]:
    k = job.recipe.recommend_k
    return {"rows": load(job.folder).recommend_all(k, out / "recommendations.parquet"), "k": k}
