"""Cost of a run before it starts: processor hours, memory and disk of each stage, and which limit is met first.

The constants are those of the run of 30 M rows in `benchmarks/scale.json`; a test computes them again and compares
the prediction with the run of 100 M. They hold for the recipe of that benchmark: two rules, two filters,
windows of days, two histories of 100, ids. Labels and counters about double the time of preparation. Memory is that of
tables; pages of mapped files come on top, as far as there is room. GPU hours are computed from products of matrices,
and were not measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from twofold.progress import duration
from twofold.recipe.features import IdFeature, SequenceFeature
from twofold.recipe.id_rows import IdRows
from twofold.recipe.retriever import TwoTower
from twofold.recipe.schema import Recipe, histories_of_ids
from twofold.recipe.train import InBatchSoftmax

GB: Final = 10**9
FITTED_ROWS: Final = 3e7
EXAMPLES_A_ROW: Final = 0.2511
"""Positive training events of an event of the log."""
PREPARE_US: Final = 1.988
DATASET_US: Final = 0.364
TRAIN_US: Final = 15.45
"""Microseconds of processor time: of preparation and arrays for an event, of training for an example and epoch."""
PREPARE_US_A_DECADE: Final = 0.45
DATASET_US_A_DECADE: Final = 0.099
"""Microseconds more of an event for each tenfold of 30 M events: the tables of users leave the cache. From the runs of
10 M and 30 M."""
TRAIN_US_A_MILLION: Final = 0.656
"""Microseconds more of an example for each million of parameters: rows of larger tables are seldom in the cache. From
the runs of 10 M and 30 M."""
PREPARE_BYTES: Final = 21.91
DATASET_BYTES: Final = 73.96
"""Bytes on disk of an event."""
LAZY_FROM: Final = 10
"""Rows of a table per row that a step reads, from which a step moves only those, by lazy Adam. Milliseconds per step,
width 64, one core, fused against lazy: 6.6 times 3.5 and 5.6; 17 times 33 and 15; 34 times 53 and 13; 244 times 333 and
13. Whole steps of two tables that histories of 100 read, 10 times: width 64, 260 and 215; width 16, 64 and 98."""
PREPARE_GB: Final = 0.35
PREPARE_BYTES_IN_MEMORY: Final = 220.0
"""Memory of preparation without a log, and bytes of an event in DuckDB's tables, which spill above its limit."""
ARRAYS_GB: Final = 0.38
TRAIN_GB: Final = 0.79
"""Memory of the arrays and of training without a log: the libraries, and the blocks that training reads."""
ARRAYS_BYTES: Final = 220
"""Memory of the arrays for a user, chosen with the run of 100 M in view: it grows more slowly than the smaller runs
say."""
_NUMBER_BYTES: Final = 4
_COPIES: Final = 5  # a parameter, its gradient, two states of Adam, and the best epoch
_ID_BYTES: Final = 21  # of a user in a vocabulary of integers: the id, its sorted copy and the order
USUAL_EPOCHS: Final = (7, 4)
"""Epochs of the first and of the second fit, with `train.patience` and `train.refit`: medians of
`benchmarks/run_cost.json`."""
REST_S: Final = 13.0
"""Processor seconds of all that is neither prepared nor trained: the choice of the peers' hyperparameters,
evaluation, the index, lists and probes of a small log."""
PAIR_US: Final = 0.87
"""Microseconds of the same for each pair of a user and an item, of which a larger log has more."""
RUN_GB: Final = 1.4
"""Memory of a run of a small log: mostly the libraries."""
PAIR_BYTES: Final = 2.0
GPU_FLOPS: Final = 1e14  # a tenth of what an H100 or H200 has in bfloat16
DAY_S: Final = 86_400


@dataclass(frozen=True)
class Scale:
    """The size of a log, and the machines that it is prepared and trained on."""

    rows: float
    users: float
    items: float
    machines: int = 1
    cores: int = 16
    memory_gb: float = 64.0
    disk_gb: float = 1000.0


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage: processor hours in total, peak memory and bytes on disk of a machine, GPU hours in total."""

    name: str
    processor_h: float
    memory_gb: float
    disk_gb: float
    machines: int
    gpu_h: float = 0.0


@dataclass(frozen=True)
class RunCost:
    """Processor seconds of a whole run, usually and if it trains all epochs, and its peak memory."""

    seconds: float
    most_s: float
    memory_gb: float


@dataclass(frozen=True)
class Limit:
    """A limit of a machine, and how many times what it has is needed: above 1, it is exceeded."""

    name: str
    times: float


def stage_costs(recipe: Recipe, scale: Scale) -> tuple[StageCost, ...]:
    """Returns the cost of preparation, of the arrays and of training, of all fits and pairs of towers."""
    examples = scale.rows * EXAMPLES_A_ROW
    parameters = table_parameters(recipe, items=scale.items, users=scale.users, examples=examples)
    machines = scale.machines  # Spark prepares on all of them, and ranks train on all
    tables_gb = scale.rows * PREPARE_BYTES_IN_MEMORY / GB / machines
    decades = max(math.log10(scale.rows / FITTED_ROWS), 0.0)
    limit_gb = scale.memory_gb / 2  # DuckDB's; Spark is given as much
    prepare = StageCost(
        "prepare",
        scale.rows * (PREPARE_US + PREPARE_US_A_DECADE * decades) / 3.6e9,
        PREPARE_GB + min(tables_gb, limit_gb),
        scale.rows * PREPARE_BYTES / GB / machines + max(tables_gb - limit_gb, 0.0),
        machines,
    )
    fits = 1 + recipe.train.refit  # a second fit has arrays of its own
    arrays = StageCost(
        "dataset",
        fits * scale.rows * (DATASET_US + DATASET_US_A_DECADE * decades) / 3.6e9,
        ARRAYS_GB + scale.users * ARRAYS_BYTES / GB,
        fits * scale.rows * DATASET_BYTES / GB,
        1,
    )
    epochs = fits * recipe.train.epochs * (recipe.retriever.ensemble if isinstance(recipe.retriever, TwoTower) else 1)
    memory = TRAIN_GB + (parameters * _NUMBER_BYTES * _COPIES + scale.users * _ID_BYTES) / GB
    train = StageCost(
        "train",
        epochs * epoch_seconds(examples, moved_parameters(recipe, scale.items, examples)) / 3600,
        memory,
        parameters * _NUMBER_BYTES * (_COPIES - 1) / GB,
        machines,
        examples * epochs * flops_an_example(recipe) / GPU_FLOPS / 3600,
    )
    return prepare, arrays, train


def run_cost(recipe: Recipe, *, rows: int, examples: int, users: int, items: int) -> RunCost | None:
    """Returns the cost of `twofold run` on one core, within a factor of 2 of the runs of `benchmarks/run_cost.json`.

    `None` means that no run like it was measured: one with a ranker, a sequence, other negatives, a brief report, or
    without towers.
    """
    train, towers = recipe.train, recipe.retriever
    has_sequence = any(isinstance(each, SequenceFeature) for each in recipe.features.user)
    is_usual = isinstance(train.loss, InBatchSoftmax) and train.hard_negatives is None and recipe.ranker is None
    if not isinstance(towers, TwoTower) or has_sequence or not is_usual or recipe.evaluate.brief:
        return None
    first, second = (train.epochs if train.patience is None else min(train.epochs, usual) for usual in USUAL_EPOCHS)
    usual, most = (first + second, 2 * train.epochs) if train.refit else (first, train.epochs)
    parameters = table_parameters(recipe, items=float(items), users=float(users), examples=float(examples))
    epoch_s = epoch_seconds(float(examples), moved_parameters(recipe, float(items), float(examples))) * towers.ensemble
    arrays_s = rows * (PREPARE_US + DATASET_US * (1 + train.refit)) / 1e6
    rest_s = REST_S + arrays_s + users * items * PAIR_US / 1e6
    memory = RUN_GB + (parameters * _NUMBER_BYTES * _COPIES + users * items * PAIR_BYTES) / GB
    return RunCost(rest_s + usual * epoch_s, rest_s + most * epoch_s, memory)


def epoch_seconds(examples: float, parameters: float) -> float:
    """Returns the processor seconds of a pass of one pair of towers over the training examples; `parameters` are those
    of the tables of items that steps move.
    """
    return examples * (TRAIN_US + TRAIN_US_A_MILLION * parameters / 1e6) / 1e6


def left_out(recipe: Recipe) -> str | None:
    """Returns which part of the training the costs of stages leave out, because it was not measured, if there is one.

    >>> left_out(Recipe.model_construct(retriever=TwoTower(kind="two_tower"))) is None
    True
    """
    if not isinstance(recipe.retriever, TwoTower):
        return f"train is that of towers: a retriever of kind {recipe.retriever.kind} was not measured"
    if recipe.retriever.kind == "best":
        return "train is that of the towers: item-kNN, EASE and iALS of kind best come on top"
    return None


def cost_sentence(cost: RunCost, found: str) -> str:
    """Says what a run takes, and what that is based on; `found` is what the log has.

    >>> cost_sentence(RunCost(68, 400, 1.23), "16,012 examples").partition("; estimated")[0]
    'about 1 min 8 s on one idle core (6 min 40 s if all epochs are trained), 1.2 GB of memory'
    """
    usual, most = duration(cost.seconds), duration(cost.most_s)
    longer = f" ({most} if all epochs are trained)" if cost.most_s > 1.2 * cost.seconds else ""
    return (
        f"about {usual} on one idle core{longer}, {cost.memory_gb:.1f} GB of memory; estimated from {found}, within a "
        f"factor of 2 on the runs of benchmarks/run_cost.json"
    )


def limits(scale: Scale, costs: Sequence[StageCost]) -> list[Limit]:
    """Returns the limits of a machine, those that are exceeded most first."""
    found = []
    for cost in costs:
        found.append(Limit(f"memory of {cost.name}", cost.memory_gb / scale.memory_gb))
        found.append(Limit(f"disk of {cost.name}", cost.disk_gb / scale.disk_gb))
        # One process writes the arrays; the other stages use all cores.
        cores = 1 if cost.machines == 1 and cost.name == "dataset" else scale.cores * cost.machines
        found.append(Limit(f"a day for {cost.name}", cost.processor_h * 3600 / cores / DAY_S))
    return sorted(found, key=lambda limit: limit.times, reverse=True)


def table_parameters(recipe: Recipe, *, items: float, users: float, examples: float) -> float:
    """Returns the most parameters that the tables of ids can have: that of the items, one of each history with its own,
    and that of the users, if the recipe reads their ids.
    """
    features = recipe.features
    of_items = rows_at_most(features.item_ids, items, examples)
    own = [each for each in histories_of_ids(recipe.features) if not each.share_item_embedding]
    rows = of_items * len(own)
    for side, most in ((features.item, of_items), (features.user, rows_at_most(features.user_ids, users, examples))):
        rows += sum(min(most, each.num_buckets or most) for each in side if isinstance(each, IdFeature))
    return rows * _dim(recipe)


def rows_at_most(limits: IdRows | None, ids: float, examples: float) -> float:
    """Returns the most rows that ids can have of their own or share: of 100 examples, at most 20 ids
    have 5 each.

    >>> rows_at_most(IdRows(min_count=5, shared_rows=100), 1e6, 2e6)
    400100.0
    """
    return ids if limits is None else min(ids, examples / limits.min_count + limits.shared_rows)


def moved_parameters(recipe: Recipe, items: float, examples: float) -> float:
    """Returns the parameters of the tables of items that make a step slower: all, up to the size from which a step
    moves only the rows that it reads. That of the ids counts as the histories' do, as in the runs that the constants
    are of.
    """
    longest = max((each.max_length for each in histories_of_ids(recipe.features)), default=0)
    most = float(LAZY_FROM * recipe.train.batch_size * longest)
    return table_parameters(recipe, items=min(items, most or items), users=0.0, examples=examples)


def _dim(recipe: Recipe) -> int:
    return recipe.retriever.dim if isinstance(recipe.retriever, TwoTower) else 64


def flops_an_example(recipe: Recipe) -> float:
    """Returns the floating-point operations of an example: logits against its batch, and their two gradients."""
    drawn = recipe.train.loss.uniform_negatives if isinstance(recipe.train.loss, InBatchSoftmax) else 0
    return 6.0 * _dim(recipe) * (recipe.train.batch_size + drawn)
