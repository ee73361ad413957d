"""fit_ranker(): the second stage, taught on what the first one finds."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from twofold.dataset.batches import TensorInputs, to_tensors
from twofold.dataset.dataset import Dataset
from twofold.dataset.malloc import keep_freed_memory
from twofold.dataset.tower_inputs import item_inputs, queries_at, user_inputs
from twofold.model.losses import bce, bpr, sampled_softmax
from twofold.model.ranker import Ranker, RetrieverAndRankerData, Scales, build_ranker, tuned_parameters
from twofold.model.retriever import Model
from twofold.model.second_stage import SecondStage
from twofold.model.weights import save_weights
from twofold.progress import Advance, progress_bar
from twofold.ragged import chunks
from twofold.recipe import ranker as ranking
from twofold.recipe.train import Bce
from twofold.train.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from twofold.train.loop import (
    CHECKPOINT,
    CHECKPOINT_EVERY_S,
    check_divergence,
    deterministic,
    finish_epoch,
    weights_of,
)
from twofold.train.optimizer import Optimizer, build_optimizer, clip_gradients, learning_rate_at, set_learning_rate
from twofold.train.ranker_examples import MINED, CandidateLists, Requests, draw_lists, mine_requests
from twofold.train.shown import Impressions, mine_shown, outcomes_of

SAMPLE = 4096
"""Requests that scales are fitted on."""


@dataclass(frozen=True)
class ListBatch:
    """Requests and their candidates, the positive first: what the ranker reads, line by line."""

    user: TensorInputs
    item: TensorInputs
    """A line a candidate, request by request."""
    user_vectors: Float[Tensor, "requests wide"]
    item_vectors: Float[Tensor, "requests length wide"]
    places: Int64[Tensor, "requests length"]
    competing: Bool[Tensor, "requests length"]
    weight: Float[Tensor, "requests"]


def fit_second_stage(
    retriever: Model,
    arrays: RetrieverAndRankerData,
    *,
    asked: ranking.Ranker,
    validate: Callable[[SecondStage], float],
    out: Path,
) -> dict[str, Any]:
    """The ranker that is asked for, whichever: see `fit_ranker` and `fit_trees`."""
    match asked:
        case ranking.Mlp():
            return fit_ranker(retriever, arrays, asked=asked, validate=validate, out=out)
        case ranking.LambdaMart():
            from twofold.train.boost import fit_trees  # the library is an extra

            return fit_trees(retriever, arrays, asked=asked, validate=validate, out=out)
        case _:
            assert_never(asked)


def fit_ranker(
    retriever: Model,
    arrays: RetrieverAndRankerData,
    *,
    asked: ranking.Mlp,
    validate: Callable[[Ranker], float],
    out: Path,
) -> dict[str, Any]:
    """Mines, trains, and writes `weights.safetensors` of the best epoch and `training_log.parquet`; returns facts.

    A killed training goes on from its checkpoint in `out`. `validate` judges both stages on the validation window;
    higher is better.
    """
    requests = mine_requests(retriever, arrays.retriever, asked.candidates, seed=asked.seed, out=out / MINED)
    shown = mine_shown(retriever, arrays.retriever, requests, asked, out=out / MINED) if asked.heads else None
    with deterministic(asked.seed), keep_freed_memory():
        state, vectors, wide = arrays.ranker.features, arrays.ranker.vectors, requests.users.shape[1]
        ranker = build_ranker(asked, state, vectors, retrieved=wide, retriever=retriever)
        lesson = _prepare(ranker, requests, shown, arrays.ranker, asked, checkpoint=out / CHECKPOINT)
        total = asked.epochs * len(requests)
        begun = load_checkpoint(out / CHECKPOINT, ranker, lesson.optimizer, settings=asked)
        position, best = begun or (TrainingState(), weights_of(ranker))
        done = position.epoch * len(requests) + position.batch * asked.batch_size
        with progress_bar("rank", total=total, unit="requests", done=done) as advance:
            while position.epoch < asked.epochs:
                started, first = time.monotonic(), position.batch
                position = _epoch(lesson, position, best, advance)
                speed = (position.batch - first) * asked.batch_size / (time.monotonic() - started)
                position = finish_epoch(position, validate(ranker), speed)
                if position.best_epoch == position.epoch - 1:
                    best = weights_of(ranker)
                lesson.keep(best=best, position=position)
        ranker.load_state_dict(best)
    save_weights(ranker, out / "weights.safetensors")
    records = [asdict(record) for record in position.records]
    pq.write_table(pa.Table.from_pylist(records), out / "training_log.parquet")
    (out / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(out / MINED)
    return {
        "requests": len(requests),
        "found_share": requests.found_share,
        "parameters": sum(parameter.numel() for parameter in ranker.parameters()),
        "width": requests.users.shape[1],
        "best_epoch": position.best_epoch,
        "epochs": records,
        **({} if shown is None else {"impressions": len(shown)}),
    }


@dataclass(frozen=True)
class RankerTraining:
    """Who is taught, by what."""

    ranker: Ranker
    optimizer: Optimizer
    requests: Requests
    shown: Impressions | None
    dataset: Dataset
    asked: ranking.Mlp
    mean_weight: float
    keep: Callable[..., None]


def _prepare(
    ranker: Ranker,
    requests: Requests,
    shown: Impressions | None,
    dataset: Dataset,
    asked: ranking.Mlp,
    *,
    checkpoint: Path,
) -> RankerTraining:
    ranker.fit_scales(_fit_scales(requests, dataset, asked))
    if shown is not None:
        ranker.fit_heads(np.nanmean(outcomes_of(dataset, shown.lines, asked), axis=0).tolist())
    rows_per_step = asked.batch_size * (1 + asked.candidates.negatives)
    tuned = asked.fine_tune
    optimizer = build_optimizer(
        ranker,
        learning_rate=asked.learning_rate,
        rows_per_step=rows_per_step,
        slow=tuned_parameters(ranker),
        share=1.0 if tuned is None else tuned.learning_rate / asked.learning_rate,
    )
    mean_weight = float(dataset.examples["train"].weight[requests.lines].mean()) or 1.0
    keep = partial(save_checkpoint, checkpoint, ranker, optimizer, settings=asked)
    return RankerTraining(ranker, optimizer, requests, shown, dataset, asked, mean_weight, keep)


def _epoch(lesson: RankerTraining, position: TrainingState, best: dict[str, Tensor], advance: Advance) -> TrainingState:
    """What is left of it; a checkpoint every now and then."""
    asked, saved_at = lesson.asked, time.monotonic()
    parts = chunks(len(lesson.requests), asked.batch_size)
    order = np.random.default_rng((asked.seed, position.epoch)).permutation(len(lesson.requests))
    beside = np.random.default_rng((asked.seed, 2, position.epoch)).permutation(len(lesson.shown or ()))
    shown = np.array_split(beside, len(parts))
    for part in parts[position.batch :]:
        step = position.epoch * len(parts) + position.batch
        rate = learning_rate_at(step, steps=asked.epochs * len(parts), peak=asked.learning_rate)
        set_learning_rate(lesson.optimizer, rate)
        loss = _step(lesson, order[part], shown[position.batch], step=step, position=position)
        position = replace(position, batch=position.batch + 1, loss_sum=position.loss_sum + loss)
        advance(part.stop - part.start, f"loss {position.loss_sum / position.batch:.3f}")
        if time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
            lesson.keep(best=best, position=position)
            saved_at = time.monotonic()
    return position


def _step(
    lesson: RankerTraining,
    which: Int64[np.ndarray, "requests"],
    beside: Int64[np.ndarray, "impressions"],
    *,
    step: int,
    position: TrainingState,
) -> float:
    """One, on these requests and impressions; what it draws hangs on its number alone. Returns the loss."""
    asked = lesson.asked
    batch = gather_lists(lesson.requests, lesson.dataset, which, asked, seed=(asked.seed, 1, step))
    torch.manual_seed(int(np.random.SeedSequence((asked.seed, step)).generate_state(1)[0]))
    loss = (list_losses(lesson.ranker, batch, asked.loss) * (batch.weight / lesson.mean_weight)).mean()
    if lesson.shown is not None and len(beside):
        batch = gather_shown(lesson.shown, lesson.dataset, beside, asked, seed=(asked.seed, 3, step))
        outcomes = torch.from_numpy(outcomes_of(lesson.dataset, lesson.shown.lines[beside], asked))
        weights = torch.tensor([head.weight for head in asked.heads])
        loss = loss + (head_losses(lesson.ranker, batch, outcomes) * weights).sum()
    lesson.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    length, value = clip_gradients(lesson.optimizer, most=None), float(loss.detach())
    remedy = f"Lower ranker.learning_rate (now {asked.learning_rate:g})"
    check_divergence(value, length, position, remedy=remedy)
    lesson.optimizer.step()
    return value


def gather_lists(
    requests: Requests,
    dataset: Dataset,
    which: Int64[np.ndarray, "requests"],
    asked: ranking.Mlp,
    *,
    seed: tuple[int, ...],
) -> ListBatch:
    """The batch of these requests, with negatives that `seed` draws; features as of each request's own moment."""
    rng = np.random.default_rng(seed)
    lists = draw_lists(requests, dataset, which, asked.candidates, rng=rng)
    return _gather(requests, lists, dataset, which, id_dropout=asked.id_dropout, rng=rng)


def gather_shown(
    shown: Impressions,
    dataset: Dataset,
    which: Int64[np.ndarray, "impressions"],
    asked: ranking.Mlp,
    *,
    seed: tuple[int, ...],
) -> ListBatch:
    """The same of these impressions, each a list of its own item; `seed` draws whose ids nobody knows."""
    item_rows = dataset.examples["train"].item_rows[shown.lines[which], None]
    lists = CandidateLists(item_rows, shown.places[which, None], np.ones_like(item_rows, bool))
    rng = np.random.default_rng(seed)
    return _gather(shown, lists, dataset, which, id_dropout=asked.id_dropout, rng=rng)


def _gather(
    asking: Requests | Impressions,
    lists: CandidateLists,
    dataset: Dataset,
    which: Int64[np.ndarray, "requests"],
    *,
    id_dropout: float,
    rng: np.random.Generator,
) -> ListBatch:
    state, rows = dataset.features, dataset.examples["train"].take(asking.lines[which])
    user_rows, at = np.ascontiguousarray(rows.user_rows), asking.at[which]
    queries = queries_at(state, dataset.positives, dataset.negatives, user_rows=user_rows, at=at)
    length, moments = lists.item_rows.shape[1], asking.moments[which][:, None]
    item = dict(item_inputs(state, dataset.item_arrays, item_rows=lists.item_rows.ravel(), at=np.repeat(at, length)))
    vectors = asking.items[moments, lists.item_rows]
    unknown = rng.random(lists.item_rows.shape) < id_dropout
    if "id" in item:
        item["id"] = item["id"] * ~unknown.ravel()
    if asking.masked is not None:
        vectors = np.where(unknown[:, :, None], asking.masked[moments, lists.item_rows], vectors)
    return ListBatch(
        user=to_tensors(user_inputs(state, dataset.user_arrays, queries)),
        item=to_tensors(item),
        user_vectors=torch.from_numpy(asking.users[which]),
        item_vectors=torch.from_numpy(vectors),
        places=torch.from_numpy(lists.places),
        competing=torch.from_numpy(lists.competing),
        weight=torch.from_numpy(np.ascontiguousarray(rows.weight)),
    )


def list_losses(ranker: Ranker, batch: ListBatch, loss: ranking.RankerLoss) -> Float[Tensor, "requests"]:
    """What the ranker makes of each list, its positive first."""
    requests, length = batch.places.shape
    items = ranker.item(batch.item).reshape(requests, length, -1)
    scores, _ = ranker.relevance_and_logits(
        ranker.user(batch.user), items, batch.user_vectors, batch.item_vectors, batch.places
    )
    negatives = scores[:, 1:].masked_fill(~batch.competing[:, 1:], -torch.inf)
    match loss:
        case ranking.Listwise():
            return sampled_softmax(scores[:, 0], negatives)
        case ranking.Pairwise():
            return bpr(scores[:, 0], negatives)
        case Bce(gamma=gamma):
            labels = torch.zeros_like(batch.competing)
            labels[:, 0] = True
            each = bce(scores.flatten(), labels.flatten(), gamma=gamma).reshape(requests, length)
            return (each * batch.competing).sum(dim=1) / batch.competing.sum(dim=1)
        case _:
            assert_never(loss)


def head_losses(ranker: Ranker, batch: ListBatch, outcomes: Float[Tensor, "requests heads"]) -> Float[Tensor, "heads"]:
    """Cross-entropy of every head, the mean over the impressions whose outcome is known; 0 where there are none."""
    items = ranker.item(batch.item)[:, None]
    _, odds = ranker.relevance_and_logits(
        ranker.user(batch.user), items, batch.user_vectors, batch.item_vectors, batch.places
    )
    known = ~outcomes.isnan()
    each = functional.binary_cross_entropy_with_logits(odds[:, 0], outcomes.nan_to_num(), reduction="none")
    return (each * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)


def _fit_scales(requests: Requests, dataset: Dataset, asked: ranking.Mlp) -> Scales:
    """Of the candidates of some requests, drawn as in training."""
    which = np.linspace(0, len(requests) - 1, min(len(requests), SAMPLE)).astype(np.int64)
    lists = draw_lists(requests, dataset, which, asked.candidates, rng=np.random.default_rng(asked.seed))
    vectors = requests.items[requests.moments[which][:, None], lists.item_rows]
    scores = np.vecdot(requests.users[which][:, None], vectors)[lists.competing]
    places = np.log1p(lists.places[lists.competing])
    return Scales(float(scores.mean()), float(scores.std()) or 1.0, float(places.mean()), float(places.std()) or 1.0)
