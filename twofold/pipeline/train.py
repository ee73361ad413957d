"""The stages `train` and `train/ranker`: arrays become a retriever, and what it retrieves trains a ranker."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, assert_never

import numpy as np
from jaxtyping import Float32
from pydantic import TypeAdapter

from twofold.dataset.dataset import Dataset, load_dataset
from twofold.errors import DataError
from twofold.evaluate.baseline_results import PeerTuning, load_tuning, save_tuning
from twofold.evaluate.catalogue import check_relevant, evaluate_catalogue
from twofold.evaluate.headline_metrics import deciding_metrics, primary_metric_of
from twofold.evaluate.impressions import evaluate_impressions
from twofold.evaluate.peer_tuning import tune_peers
from twofold.evaluate.peers import IALS_ITERATIONS, IALS_MAX_POSITIVES, Interactions
from twofold.evaluate.watch_time import evaluate_watch_time, watched_rows
from twofold.evaluate.window import EvaluationWindow, evaluation_window, smaller_window
from twofold.least_squares import LeastSquares, factorize
from twofold.model.multi_tower import Towers, build_towers
from twofold.model.ranker import Ranker, load_ranker
from twofold.model.retriever import Blend, Model, load_model, towers_folder
from twofold.model.warm_start import start_from
from twofold.pipeline.adapters import (
    catalogue_scores,
    positives_before_window,
    two_stages,
    two_stages_by_share,
    window_of,
)
from twofold.pipeline.best_model import choose_served
from twofold.pipeline.early_checks import check_shown, check_watched
from twofold.pipeline.job import Job, selection_job
from twofold.pipeline.served_model import TOWERS_FACTS, Served, discard_served, fit_served, save_served
from twofold.pipeline.sources import fit_sources
from twofold.pipeline.trained_models import TrainedModels, load_models
from twofold.progress import heartbeat
from twofold.recipe.ranker import Mlp
from twofold.recipe.retriever import Ials, TwoTower
from twofold.run_folder import Stage, find_stage, write_json
from twofold.train.distributed import broadcast_from_rank0
from twofold.train.loop import CHECKPOINT, SINGLE_PROCESS_CPU, fit
from twofold.train.ranker import fit_ranker

MOST_SCORES: Final = 2**28
"""Largest number of scores of validation users × items that one comparison of what may be served computes; users beyond
are left out by chance. On Gowalla (29,858 users, 40,981 items) some fifty comparisons took twice as long as training.
"""
RETRIEVER_SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of the retriever's score in the order of both stages, from the ranker alone to the retriever alone."""


@dataclass(frozen=True)
class _Peers:
    """The peers with which the towers are compared: their constants, and the window and positives that chose them.

    `tuning` is `None` where no user of the window has an unseen positive. In a second fit, `positives` go on up to the
    test window.
    """

    window: EvaluationWindow
    positives: Interactions
    tuning: PeerTuning | None
    has_days: bool
    """Whether the window is some days, not each user's own events."""


def train(
    job: Job, dataset: Stage, selection: Stage | None = None, *, check: Callable[[], None] = lambda: None
) -> Stage:
    """Trains the retriever and writes its weights as they were after the epoch that validated best.

    After a `selection`, whose epochs were validated already, it trains as many epochs as were best there. `check` is
    called before, unless the stage is found unchanged.
    """
    sections = job.recipe.model_dump(mode="json", include={"retriever", "train"})
    # What validation ranks decides which epoch is kept.
    seen = {"include_seen": True} if job.recipe.index.include_seen else {}
    inputs = {"dataset": dataset.digest, **sections, **seen, **_digest_of(selection)}
    facts = None if selection is None else selection.facts

    def work(out: Path) -> Mapping[str, Any]:
        check()
        return _train_with_all_ranks(job, dataset.folder, facts, out)

    retriever = job.run_stage("train", inputs, work)
    if retriever.was_reused:
        _signal_ranks(job, False)
    return retriever


def run_worker_rank(job: Job) -> None:
    """Runs a rank other than 0: waits for each dataset, then trains its share of every batch.

    Only rank 0 prepares, writes and evaluates.
    """
    jobs = [selection_job(job), job] if job.recipe.train.refit else [job]
    for number, each in enumerate(jobs):
        if _signal_ranks(each, False):
            selection = find_stage(jobs[0].folder, "train") if number else None
            facts = None if selection is None else selection.facts
            _train(each, each.folder / "dataset", facts, each.folder / "train.partial")


def train_ranker(job: Job, dataset: Stage, retriever: Stage, selection: Stage | None = None) -> Stage | None:
    """Trains the ranker and writes its weights after the best epoch on validation; `None` means the recipe has none.

    Its folder is inside that of the retriever whose items it orders, and is deleted with it. The weight of the
    retriever's score in the order is that of the best NDCG on validation; 1 means that the ranker gained nothing. After
    a `selection` it trains as many epochs as were best there, and has the same weight.
    """
    config = job.recipe.ranker
    if config is None:
        return None
    inputs = {"train": retriever.digest, "dataset": dataset.digest, "ranker": config.model_dump(mode="json")}
    inputs |= _digest_of(selection)
    work = partial(_train_ranker, job, config, dataset, retriever, None if selection is None else selection.facts)
    return job.run_stage("train/ranker", inputs, work)


def _digest_of(selection: Stage | None) -> dict[str, str]:
    return {} if selection is None else {"selection": selection.digest}


def _train_with_all_ranks(job: Job, dataset: Path, selected: Mapping[str, Any] | None, out: Path) -> Mapping[str, Any]:
    _signal_ranks(job, isinstance(job.recipe.retriever, TwoTower))
    return _train(job, dataset, selected, out)


def _signal_ranks(job: Job, is_needed: bool) -> bool:
    """Broadcasts from rank 0 whether there is a training to run; blocks until it does."""
    return bool(broadcast_from_rank0((job.setup or SINGLE_PROCESS_CPU).ranks, lambda: float(is_needed)))


def _train(job: Job, dataset: Path, selected: Mapping[str, Any] | None, out: Path) -> Mapping[str, Any]:
    """Trains the retriever and returns the facts of the stage.

    `selected` are the facts of the first fit, which chose the epochs and what is served; `None` means this is it.
    """
    arrays = load_dataset(dataset, job.recipe.features)
    match job.recipe.retriever:
        case TwoTower() as config:
            peers = None
            if config.kind == "best" and (job.setup or SINGLE_PROCESS_CPU).ranks.is_first:
                with heartbeat("peers"):
                    peers = _tuned_peers(job, arrays, selected, out)
            fits = [_fit_towers(job, arrays, selected, peers, out, number) for number in range(config.ensemble)]
            facts = {**fits[0], "parameters": sum(each["parameters"] for each in fits), "ensemble": fits[1:]}
            if peers is not None:
                with heartbeat("peers"):
                    facts |= _serve_best(config, arrays, selected, peers, out)
            return facts
        case Ials() as config:
            from twofold.train.als import fit_factors

            validate = _known_values(selected) or _validation_of(job, arrays)
            return fit_factors(arrays, config, seed=job.recipe.train.seed, validate=validate, out=out)
        case _ as config:
            assert_never(config)


def _tuned_peers(job: Job, arrays: Dataset, selected: Mapping[str, Any] | None, out: Path) -> _Peers:
    """Chooses the constants of the peers, or reads those that the first fit or a killed attempt chose."""
    window = evaluation_window(arrays, "test") if selected else window_of(job.recipe, arrays, "validation")
    positives = positives_before_window(job.recipe.prepare, arrays, window)
    tuning = load_tuning(selection_job(job).folder / "train" if selected else out)
    if tuning is None and not selected:
        _check_start(job.recipe.retriever, positives)
        tuning = tune_peers(window, positives, metrics=deciding_metrics(window.num_items))
    if tuning is not None:
        save_tuning(tuning, out)
    return _Peers(window, positives, tuning, job.recipe.prepare.bounds_ms("validation") is not None)


def _check_start(config: TwoTower | Ials, positives: Interactions) -> None:
    """Raises DataError if the towers shall begin with vectors of iALS and the log is too large for it."""
    count = len(positives.user_rows)
    if isinstance(config, TwoTower) and config.start_from == "ials" and count > IALS_MAX_POSITIVES:
        raise DataError(
            f"retriever.start_from: ials needs item vectors of iALS, which is limited to {IALS_MAX_POSITIVES:,} "
            f"positives, and there are {count:,}. Delete start_from, or write a shorter prepare.split.train."
        )


def _fit_towers(
    job: Job, arrays: Dataset, selected: Mapping[str, Any] | None, peers: _Peers | None, out: Path, number: int
) -> dict[str, Any]:
    """Trains one pair of towers, unless an attempt that was killed later has finished it; returns its facts.

    What follows with several pairs, or with the comparison of `kind: best`, may take as long as the training.
    """
    config = job.recipe.retriever
    assert isinstance(config, TwoTower)
    folder, setup = towers_folder(out, number), job.setup or SINGLE_PROCESS_CPU
    done = folder / TOWERS_FACTS
    if done.exists():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    folder.mkdir(exist_ok=True)
    chosen = selected if selected is None or number == 0 else selected["ensemble"][number - 1]
    validate = _known_values(chosen) or _validation_of(job, arrays)
    settings = job.recipe.train.model_copy(update={"seed": job.recipe.train.seed + number})
    start = None
    if config.start_from == "ials" and peers is not None and not (folder / CHECKPOINT).exists():
        start = _ials_vectors(peers, dim=config.dim, seed=settings.seed)
    build = partial(_build, config, arrays, start)
    facts = fit(build, arrays, settings, validate=validate, out=folder, setup=setup)
    if (config.ensemble > 1 or config.kind == "best") and setup.ranks.is_first:
        write_json(done, facts)
    return facts


def _ials_vectors(peers: _Peers, *, dim: int, seed: int) -> Float32[np.ndarray, "items dim"] | None:
    """Fits iALS with the chosen constants in another dimension; `None` if none were chosen."""
    at = None if peers.tuning is None else peers.tuning.constants_of("iALS")
    if at is None:
        return None
    constants = LeastSquares(dim, at["alpha"], at["regularization"], at["frequency_power"], IALS_ITERATIONS)
    with heartbeat("iALS"):
        return factorize(peers.positives.likes, constants, seed=seed).item_vectors


def _build(config: TwoTower, arrays: Dataset, start: Float32[np.ndarray, "items dim"] | None) -> Towers:
    """Builds towers whose embeddings of items begin as these vectors, if there are any."""
    model = build_towers(config, arrays)
    if start is not None and next(model.parameters()).device.type != "meta":
        start_from(model, arrays.features, start)
    return model


def _validation_of(job: Job, arrays: Dataset) -> Callable[[Model], float]:
    window = window_of(job.recipe, arrays, "validation")
    check = check_shown if job.recipe.train.best_epoch_by == "auc" else check_relevant
    check(window)  # before an epoch is trained
    return partial(_validate_retriever, job, arrays, window)


def _known_values(selected: Mapping[str, Any] | None) -> list[float]:
    """Returns the validation metric of each epoch up to the best one; empty if no fit has chosen yet."""
    return [] if selected is None else [each["validation"] for each in selected["epochs"][: selected["best_epoch"] + 1]]


def _serve_best(
    config: TwoTower, arrays: Dataset, selected: Mapping[str, Any] | None, peers: _Peers, out: Path
) -> dict[str, Any]:
    """Writes what is served beside or instead of the towers; returns it, and the quality of all that were compared."""
    discard_served(out)
    if selected is not None:
        served = TypeAdapter(Served).validate_python(selected["best"])
        quality = selected["quality"]
        fitted = fit_served(served, arrays, peers.positives)
    else:
        towers = load_model(config, arrays, out)
        assert isinstance(towers, Towers | Blend)
        window = peers.window if peers.tuning is None else smaller_window(peers.window, most_scores=MOST_SCORES)
        served, quality, fitted = choose_served(
            arrays, window, towers, peers.tuning, peers.positives, has_days=peers.has_days
        )
    save_served(served, fitted, out)
    return {"served": served.name, "best": asdict(served), "quality": quality}


def _validate_retriever(job: Job, arrays: Dataset, window: EvaluationWindow, model: Model) -> float:
    """Returns recall or NDCG over the catalogue, or AUC on shown items, and reports it to the job."""
    scores = catalogue_scores(model, arrays, window)
    if job.recipe.train.best_epoch_by == "auc":
        value = evaluate_impressions(window, scores).mean("impressions/auc")
    else:
        recall, ndcg = deciding_metrics(len(arrays.items))
        metric = ndcg if job.recipe.train.best_epoch_by == "ndcg" else recall
        value = evaluate_catalogue(window, scores, ks=(int(metric.partition("@")[2]),)).mean(metric)
    job.on_validation(value)
    return value


def _train_ranker(
    job: Job, config: Mlp, dataset: Stage, retriever: Stage, selected: Mapping[str, Any] | None, out: Path
) -> Mapping[str, Any]:
    models = load_models(job, dataset, retriever)
    sources = fit_sources(job.recipe, models.data.retriever)
    if sources is not None and sources.neighbors is not None:
        sources.neighbors.save(out)
    models = replace(models, sources=sources)
    window = window_of(job.recipe, models.data.retriever, "validation")
    if config.best_epoch_by == "xauc" and selected is None:
        check_watched(models.data.retriever, window)
    facts = fit_ranker(
        models.retriever,
        models.data,
        config=config,
        validate=_known_values(selected) or partial(_validate_ranker, models, window, config.best_epoch_by),
        out=out,
        sources_before=None if sources is None else sources.before,
    )
    if selected is not None:
        return facts | {name: selected[name] for name in ("retriever_share", "shares")}
    if config.formula is not None or config.best_epoch_by != "ndcg":  # another goal than the NDCG of positives
        return facts | {"retriever_share": 0.0, "shares": []}
    ranker = load_ranker(config, models.data, out, vector_dim=facts["width"])
    shares = _quality_by_share(models, smaller_window(window, most_scores=MOST_SCORES), ranker)
    return facts | {"retriever_share": max(shares, key=lambda each: shares[each]), "shares": list(shares.items())}


def _quality_by_share(models: TrainedModels, window: EvaluationWindow, ranker: Ranker) -> dict[float, float]:
    """Returns NDCG of both stages on the window for each weight that the retriever's score may have in the order."""
    metric = primary_metric_of(window.num_items, is_two_stages=True)
    ks = (int(metric.partition("@")[2]),)
    stages = two_stages_by_share(models, ranker, window, RETRIEVER_SHARES)
    return {share: evaluate_catalogue(window, scores, ks=ks).mean(metric) for share, scores in stages}


def _validate_ranker(
    models: TrainedModels, window: EvaluationWindow, by: Literal["ndcg", "xauc"], ranker: Ranker
) -> float:
    """Returns NDCG of both stages together, or their XAUC on shown items: see `check_watched`."""
    metric = primary_metric_of(window.num_items, is_two_stages=True)
    scores = two_stages(models, ranker, window)
    if by == "xauc":
        shown = watched_rows(models.data.retriever, window, with_target=False)
        assert shown is not None, "checked before the ranker is trained"
        return evaluate_watch_time(window, scores, shown)[0].mean("watch_time/xauc")
    return evaluate_catalogue(window, scores, ks=(int(metric.partition("@")[2]),)).mean(metric)
