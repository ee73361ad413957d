"""Training of the ranker on candidates that the retriever finds."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, assert_never

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
from twofold.model.ranker import Ranker, RetrieverAndRankerData, Scales, build_ranker
from twofold.model.retriever import Model
from twofold.model.weights import save_weights
from twofold.progress import Advance, progress_bar
from twofold.ragged import chunks
from twofold.recipe.ranker import Listwise, Mlp, Pairwise, RankerLoss
from twofold.recipe.train import Bce
from twofold.topk import with_additions
from twofold.train.checkpoint import load_checkpoint, save_checkpoint
from twofold.train.device import deterministic, seed_generators
from twofold.train.loop import (
    CHECKPOINT,
    CHECKPOINT_EVERY_S,
    finish_epoch,
    num_epochs,
    validation_of,
    weights_of,
)
from twofold.train.optimizer import (
    Optimizer,
    StepSize,
    build_optimizer,
    clip_gradients,
    learning_rate_at,
    set_learning_rate,
)
from twofold.train.ranker_examples import (
    MINED,
    Mining,
    Requests,
    SourcesBefore,
    mine_requests,
)
from twofold.train.ranker_impressions import Impressions, mine_impressions, outcomes_of
from twofold.train.ranker_lists import CandidateLists, draw_lists
from twofold.train.training_state import TrainingState, check_divergence

SCALE_REQUESTS = 4096
"""Number of requests whose candidates determine `Scales`."""

UNKNOWN_RATE: Final = 0.1
"""Share of the candidates in training whose id is replaced by "unknown", for the ranker and in the retriever's vectors,
so that cold items are ranked too.
"""


@dataclass(frozen=True)
class ListBatch:
    """Inputs of the ranker for some requests and their candidates, the positive first."""

    user: TensorInputs
    item: TensorInputs
    """Features of the items, one row per candidate, request by request."""
    user_vectors: Float[Tensor, "batch _"]
    item_vectors: Float[Tensor, "batch length _"]
    ranks: Int64[Tensor, "batch length _"]
    competing: Bool[Tensor, "batch length"]
    weight: Float[Tensor, "batch"]


def fit_ranker(
    retriever: Model,
    data: RetrieverAndRankerData,
    *,
    config: Mlp,
    validate: Callable[[Ranker], float] | Sequence[float],
    out: Path,
    sources_before: SourcesBefore | None = None,
) -> dict[str, Any]:
    """Mines examples and trains; writes `weights.safetensors` of the best epoch and `training_log.parquet`.

    Returns facts. A killed training resumes from its checkpoint in `out`. `validate` evaluates both stages on the
    validation window; higher is better. If it is a list of known values, up to the best one, one epoch is
    trained for each. `sources_before` is as for `mine_requests`.
    """
    requests = mine_requests(
        retriever, data.retriever, config.candidates, seed=config.seed, out=out / MINED, sources_before=sources_before
    )
    mining = Mining(retriever, data.retriever, config.candidates, sources_before)
    impressions = mine_impressions(mining, requests, config, out=out / MINED) if config.heads else None
    vector_dim = requests.user_vectors.shape[1] + requests.has_additions
    with deterministic(config.seed), keep_freed_memory():
        ranker = build_ranker(config, data.ranker.features, data.ranker.vectors, vector_dim=vector_dim)
        training = _prepare(ranker, requests, impressions, data.ranker, config, checkpoint=out / CHECKPOINT)
        state, best = _train(training, validate, resume_from=out / CHECKPOINT)
        ranker.load_state_dict(best)
    save_weights(ranker, out / "weights.safetensors")
    records = [asdict(record) for record in state.records]
    pq.write_table(pa.Table.from_pylist(records), out / "training_log.parquet")
    (out / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(out / MINED)
    return {
        "requests": len(requests),
        "found_share": requests.found_share,
        "parameters": sum(parameter.numel() for parameter in ranker.parameters()),
        "width": vector_dim,
        "best_epoch": state.best_epoch,
        "epochs": records,
        **({} if impressions is None else {"impressions": len(impressions)}),
    }


@dataclass(frozen=True)
class RankerTraining:
    """The ranker in training, with its optimizer and examples."""

    ranker: Ranker
    optimizer: Optimizer
    requests: Requests
    impressions: Impressions | None
    dataset: Dataset
    config: Mlp
    mean_weight: float
    save: Callable[..., None]


def _prepare(
    ranker: Ranker,
    requests: Requests,
    impressions: Impressions | None,
    dataset: Dataset,
    config: Mlp,
    *,
    checkpoint: Path,
) -> RankerTraining:
    ranker.fit_scales(_fit_scales(requests, dataset, config))
    if impressions is not None:
        ranker.fit_heads(np.nanmean(outcomes_of(dataset, impressions.examples, config), axis=0).tolist())
    rows = config.batch_size * (1 + config.candidates.num_retrieved)
    # There may be more impressions in a step than requests, each with a user and an item.
    optimizer = build_optimizer(ranker, learning_rate=config.learning_rate, size=StepSize(items=rows, users=rows))
    mean_weight = float(dataset.examples["train"].weight[requests.examples].mean()) or 1.0
    save = partial(save_checkpoint, checkpoint, ranker, optimizer, settings=config)
    return RankerTraining(ranker, optimizer, requests, impressions, dataset, config, mean_weight, save)


def _train(
    training: RankerTraining, validate: Callable[[Ranker], float] | Sequence[float], *, resume_from: Path
) -> tuple[TrainingState, dict[str, Tensor]]:
    """Trains all epochs that are left; returns the final state and the weights of the best epoch."""
    config, ranker, num_requests = training.config, training.ranker, len(training.requests)
    epochs = num_epochs(validate, config.epochs)
    resumed = load_checkpoint(resume_from, ranker, training.optimizer, settings=config)
    state, best = resumed or (TrainingState(), weights_of(ranker))
    done = state.epoch * num_requests + state.batch * config.batch_size
    with progress_bar("rank", total=epochs * num_requests, unit="requests", done=done) as advance:
        while state.epoch < epochs:
            started, first = time.monotonic(), state.batch
            state = _epoch(training, state, best, advance)
            count = min(state.batch * config.batch_size, num_requests) - first * config.batch_size
            speed = count / (time.monotonic() - started)
            state = finish_epoch(state, validation_of(validate, state, ranker), speed)
            if state.best_epoch == state.epoch - 1:
                best = weights_of(ranker)
            training.save(best=best, state=state)
    return state, best


def _epoch(training: RankerTraining, state: TrainingState, best: dict[str, Tensor], advance: Advance) -> TrainingState:
    """Trains the batches that are left of an epoch and writes a checkpoint every `CHECKPOINT_EVERY_S` seconds."""
    config, saved_at = training.config, time.monotonic()
    parts = chunks(len(training.requests), config.batch_size)
    order = np.random.default_rng((config.seed, state.epoch)).permutation(len(training.requests))
    shuffled = np.random.default_rng((config.seed, 2, state.epoch)).permutation(len(training.impressions or ()))
    impressions = np.array_split(shuffled, len(parts))
    for part in parts[state.batch :]:
        step = state.epoch * len(parts) + state.batch
        rate = learning_rate_at(step, steps=config.epochs * len(parts), peak=config.learning_rate)
        set_learning_rate(training.optimizer, rate)
        loss = _step(training, order[part], impressions[state.batch], step=step, state=state)
        state = replace(state, batch=state.batch + 1, loss_sum=state.loss_sum + loss)
        advance(part.stop - part.start, f"loss {state.loss_sum / state.batch:.3f}")
        if time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
            training.save(best=best, state=state)
            saved_at = time.monotonic()
    return state


def _step(
    training: RankerTraining,
    requests: Int64[np.ndarray, "batch"],
    impressions: Int64[np.ndarray, "examples"],
    *,
    step: int,
    state: TrainingState,
) -> float:
    """Runs one training step on these requests and impressions and returns its loss. Its random draws depend only on
    the step number.
    """
    config, dataset = training.config, training.dataset
    batch = gather_lists(training.requests, dataset, requests, config, seed=(config.seed, 1, step))
    seed_generators(int(np.random.SeedSequence((config.seed, step)).generate_state(1)[0]), torch.device("cpu"))
    loss = (list_losses(training.ranker, batch, config.loss) * (batch.weight / training.mean_weight)).mean()
    if training.impressions is not None and len(impressions):
        batch = gather_impressions(training.impressions, dataset, impressions, config, seed=(config.seed, 3, step))
        outcomes = torch.from_numpy(outcomes_of(dataset, training.impressions.examples[impressions], config))
        weights = torch.tensor([head.weight for head in config.heads])
        loss = loss + (head_losses(training.ranker, batch, outcomes) * weights).sum()
    training.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    gradient_norm, value = float(clip_gradients(training.optimizer, most=None)), float(loss.detach())
    remedy = f"Lower ranker.learning_rate (now {config.learning_rate:g})"
    check_divergence(value, gradient_norm, state, remedy=remedy)
    training.optimizer.step()
    return value


def gather_lists(
    requests: Requests,
    dataset: Dataset,
    which: Int64[np.ndarray, "batch"],
    config: Mlp,
    *,
    seed: tuple[int, ...],
) -> ListBatch:
    """Gathers a batch of requests with negatives drawn by `seed`; features are those at the request time."""
    rng = np.random.default_rng(seed)
    lists = draw_lists(requests, dataset, which, config.candidates, rng=rng)
    return _gather(requests, lists, dataset, which, unknown_rate=UNKNOWN_RATE, rng=rng)


def gather_impressions(
    impressions: Impressions,
    dataset: Dataset,
    which: Int64[np.ndarray, "batch"],
    config: Mlp,
    *,
    seed: tuple[int, ...],
) -> ListBatch:
    """Gathers a batch of impressions, each a list of its own item; `seed` draws the items that are treated as new."""
    item_rows = dataset.examples["train"].item_rows[impressions.examples[which], None]
    added = None if impressions.added is None else impressions.added[which, None]
    lists = CandidateLists(item_rows, impressions.ranks[which, None], np.ones_like(item_rows, bool), added)
    rng = np.random.default_rng(seed)
    return _gather(impressions, lists, dataset, which, unknown_rate=UNKNOWN_RATE, rng=rng)


def _gather(
    source: Requests | Impressions,
    lists: CandidateLists,
    dataset: Dataset,
    which: Int64[np.ndarray, "batch"],
    *,
    unknown_rate: float,
    rng: np.random.Generator,
) -> ListBatch:
    state, rows = dataset.features, dataset.examples["train"].take(source.examples[which])
    user_rows, at = np.ascontiguousarray(rows.user_rows), source.at[which]
    queries = queries_at(state, dataset.positives, dataset.negatives, user_rows=user_rows, at=at)
    length, days = lists.item_rows.shape[1], source.days[which][:, None]
    is_new = rng.random(lists.item_rows.shape) < unknown_rate
    item = item_inputs(
        state, dataset.item_arrays, item_rows=lists.item_rows.ravel(), at=np.repeat(at, length), is_new=is_new.ravel()
    )
    vectors = source.item_vectors[days, lists.item_rows]
    vectors = np.where(is_new[:, :, None], source.new_item_vectors[days, lists.item_rows], vectors)
    user_vectors = source.user_vectors[which]
    if lists.added is not None:  # a new item has none
        user_vectors, vectors = with_additions(user_vectors, vectors, lists.added * ~is_new)
    return ListBatch(
        user=to_tensors(user_inputs(state, dataset.user_arrays, queries)),
        item=to_tensors(item),
        user_vectors=torch.from_numpy(user_vectors),
        item_vectors=torch.from_numpy(vectors),
        ranks=torch.from_numpy(lists.ranks),
        competing=torch.from_numpy(lists.competing),
        weight=torch.from_numpy(np.ascontiguousarray(rows.weight)),
    )


def list_losses(ranker: Ranker, batch: ListBatch, loss: RankerLoss) -> Float[Tensor, "batch"]:
    """Returns the loss of each candidate list, whose first item is the positive."""
    num_requests, length = batch.competing.shape
    items = ranker.item(batch.item).reshape(num_requests, length, -1)
    _, scores, _ = ranker.scores_and_logits(
        ranker.user(batch.user), items, batch.user_vectors, batch.item_vectors, batch.ranks
    )
    negatives = scores[:, 1:].masked_fill(~batch.competing[:, 1:], -torch.inf)
    match loss:
        case Listwise():
            return sampled_softmax(scores[:, 0], negatives)
        case Pairwise():
            return bpr(scores[:, 0], negatives)
        case Bce(gamma=gamma):
            labels = torch.zeros_like(batch.competing)
            labels[:, 0] = True
            losses = bce(scores.flatten(), labels.flatten(), gamma=gamma).reshape(num_requests, length)
            return (losses * batch.competing).sum(dim=1) / batch.competing.sum(dim=1)
        case _:
            assert_never(loss)


def head_losses(ranker: Ranker, batch: ListBatch, outcomes: Float[Tensor, "batch _"]) -> Float[Tensor, "_"]:
    """Returns the cross-entropy of every head: the mean over the impressions with a known outcome, or 0 without any."""
    items = ranker.item(batch.item)[:, None]
    _, _, logits = ranker.scores_and_logits(
        ranker.user(batch.user), items, batch.user_vectors, batch.item_vectors, batch.ranks
    )
    known = ~outcomes.isnan()
    losses = functional.binary_cross_entropy_with_logits(logits[:, 0], outcomes.nan_to_num(), reduction="none")
    return (losses * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)


def _fit_scales(requests: Requests, dataset: Dataset, config: Mlp) -> Scales:
    """Measures scores and ranks of candidates that are drawn as in training."""
    which = np.linspace(0, len(requests) - 1, min(len(requests), SCALE_REQUESTS)).astype(np.int64)
    lists = draw_lists(requests, dataset, which, config.candidates, rng=np.random.default_rng(config.seed))
    vectors = requests.item_vectors[requests.days[which][:, None], lists.item_rows]
    scores = np.vecdot(requests.user_vectors[which][:, None], vectors) + (0 if lists.added is None else lists.added)
    scores = scores[lists.competing]
    ranks = np.log1p(lists.ranks[lists.competing, 0])
    return Scales(float(scores.mean()), float(scores.std()) or 1.0, float(ranks.mean()), float(ranks.std()) or 1.0)
