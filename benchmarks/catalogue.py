"""Processor time of a training step against the number of items: histories' tables updated densely and lazily.

    python benchmarks/catalogue.py [items ...] [--steps 21]     (default: 100000 1000000 10000000)
    python benchmarks/catalogue.py --threshold                  (only the catalogues from which sequences are lazy)

Claim: nothing in a step is proportional to the catalogue; with 10 M items it takes at most 1 ms longer for that.

A step is read, computed, clipped and applied. The towers have the features of the shipped recipe: means of 100
positives and of 100 negatives; id, category, lists, number, age and counter of an item; batches of 512, 512 uniform
negatives, the corrected loss. Another user tower is a sequence of 50 positives that borrows the item tower's table.
Width 12, so that dense tables of all sizes fit into 8 GB.

`same`: the events are those of the same 100,000 items whatever the catalogue, so that the rows of a step are as far
apart in memory; only uniform negatives are drawn from all items. `spread`: events are of all items. `dense` updates the
tables of histories as before, `lazy` as from ten times as many rows as a step reads, here at every size. One thread; a
process for each case trains on all sizes in turn, a step each, so that what slows one slows all. Figures are medians of
the steps. Writes `catalogue.json` beside this file.

`--threshold`: a sequence tower with the fewest items with which its table is lazy, and with twice as many, widths 16
and 64: a dense and a lazy step in turn, in one process, and the median of their ratios. It must be at most 1.05.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64

from twofold.dataset.batches import gather_batch
from twofold.dataset.column_encoders import Scale
from twofold.dataset.counters import Counters
from twofold.dataset.dataset import Dataset
from twofold.dataset.examples import ROW, Examples
from twofold.dataset.features import FeatureState
from twofold.dataset.histories import Histories
from twofold.dataset.malloc import keep_freed_memory
from twofold.dataset.tower_inputs import ItemArrays, UserArrays
from twofold.dataset.vocabulary import Vocabulary
from twofold.model.two_tower import TwoTower, build_two_tower
from twofold.ragged import Ragged
from twofold.recipe.features import Features
from twofold.recipe.retriever import TwoTower as Config
from twofold.recipe.train import Train
from twofold.tables import HOUR_MS, Split
from twofold.train.batch_loss import mean_loss
from twofold.train.device import deterministic
from twofold.train.objective import Objective, build_objective
from twofold.train.optimizer import LAZY_FROM_SEQUENCES, Optimizer, build_optimizer, clip_gradients

RESULTS = Path(__file__).with_name("catalogue.json")
USERS, EACH, FEW, DIM = 5_000, 200, 100_000, 12
PARTS = ("read", "loss", "backward", "clip", "update")
MODEL = {"kind": "two_tower", "dim": DIM, "score": {"kind": "cosine", "temperature": 0.1}}
TRAIN = {
    "batch_size": 512,
    "loss": {"kind": "in_batch_softmax", "log_q": "corrected", "uniform_negatives": 512},
}
ITEM = [
    {"kind": "id", "unknown_rate": 0.1},
    {"kind": "category", "column": "author_id"},
    {"kind": "bag", "column": "tags"},
    {"kind": "number", "column": "length_s", "scale": "log"},
    {"kind": "age"},
    {"kind": "counter", "key": "item_id", "statistic": "events", "hours": 24},
]
USER: dict[str, list[dict[str, Any]]] = {
    "means": [{"kind": "history", "events": events, "max_length": 100} for events in ("positives", "negatives")],
    "sequence": [{"kind": "sequence", "max_length": 50, "num_layers": 2, "num_heads": 2}],
}


def dataset_of(num_items: int, tower: str, liked: int) -> Dataset:
    """Returns a data set in memory: 200 positives and as many negatives of each user, of the first `liked` items."""
    draw = np.random.default_rng(0)
    features = Features.model_validate({"user": USER[tower], "item": ITEM})
    events = USERS * EACH
    offsets = np.arange(0, events + 1, EACH)
    at = np.tile(np.arange(EACH) * HOUR_MS, USERS)
    positives, negatives = (
        Histories((draw.random(events) ** 2 * liked).astype(np.int32), at, offsets) for _ in range(2)
    )
    records = np.zeros(events, ROW)
    records["user_rows"], records["item_rows"] = np.repeat(np.arange(USERS), EACH), positives.item_rows
    records["at"], records["weight"], records["label"], records["at_is_known"] = at, 1, True, True
    records["positives_before"] = records["negatives_before"] = np.tile(np.arange(EACH), USERS)
    counted = "item_id_events_24h"
    examples: dict[Split, Examples] = {"train": Examples(records, {counted: np.ones(events, np.float32)})}
    ids = Vocabulary(pa.array(np.arange(num_items)), num_items)
    values = Vocabulary(pa.array(np.arange(1000)), 1000)
    scales = {f"item.{name}": Scale(0.0, 1.0) for name in ("length_s", "age", counted)}
    state = FeatureState(features, "UTC", num_items, {"item.author_id": values, "item.tags": values}, scales)
    hours = np.zeros(num_items, np.dtype([("hour", np.int64), ("events", np.int64)]))
    hours["events"] = 1
    first = np.arange(num_items + 1)
    counters = {"item_id": Counters(first, np.append(first[1:], num_items), hours, {"events": num_items})}
    inputs = {
        "id": np.arange(1, num_items + 1, dtype=np.int32),
        "author_id": draw.integers(1001, size=num_items, dtype=np.int32),
        "length_s": draw.random(num_items, dtype=np.float32),
    }
    tags = Ragged(draw.integers(1001, size=num_items * 3, dtype=np.int32), np.arange(num_items + 1) * 3)
    arrays = ItemArrays(inputs, {"tags": tags}, np.full(num_items, -HOUR_MS), counters)
    users = Vocabulary(pa.array(np.arange(USERS)), USERS)
    return Dataset(
        Path(), users, ids, examples, positives, positives, negatives, state, arrays, UserArrays({}, {}, {}), {}
    )


@dataclass(frozen=True)
class Training:
    """A model in training on one catalogue."""

    objective: Objective
    model: TwoTower
    optimizer: Optimizer
    batches: Int64[np.ndarray, "_ batch"]

    def step_ms(self, number: int) -> list[float]:
        """Takes a step; returns the processor milliseconds of each of `PARTS`, and of the whole."""
        dataset, times = self.objective.dataset, [time.process_time()]
        batch = gather_batch(dataset, dataset.examples["train"], self.batches[number])
        times.append(time.process_time())
        loss, _ = mean_loss(self.objective, self.model, batch)
        times.append(time.process_time())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        times.append(time.process_time())
        clip_gradients(self.optimizer, most=100.0)
        times.append(time.process_time())
        self.optimizer.step()
        times.append(time.process_time())
        return [
            1e3 * (end - begin) for begin, end in zip([*times[:-1], times[0]], [*times[1:], times[-1]], strict=True)
        ]


def training_of(num_items: int, tower: str, events: str, tables: str, *, dim: int = DIM) -> Training:
    """Returns a training whose tables and states are in memory already, as they are after many steps."""
    dataset = dataset_of(num_items, tower, FEW if events == "same" else num_items)
    objective = build_objective(Train.model_validate(TRAIN), dataset)
    model = build_two_tower(Config.model_validate(MODEL | {"dim": dim}), dataset.features, {})
    users = 0 if tables == "lazy" else 10**9  # as if a step read so few rows of histories, or so many
    size = replace(objective.step_size, users=users, sequences=None)
    optimizer = build_optimizer(model, learning_rate=1e-3, size=size, weight_decay=0.01)
    training = Training(objective, model, optimizer, next(iter(objective.order.epoch((0, 0)))).indices)
    training.step_ms(0)
    for part in optimizer.parts:
        for state in part.state.values():
            state["exp_avg"].add_(0)
            state["exp_avg_sq"].add_(0)
    return training


def case_ms(tower: str, events: str, tables: str, *, sizes: list[int], steps: int) -> list[dict[str, float]]:
    """Returns the median milliseconds of each part of a step, by the number of items."""
    trainings = [training_of(num_items, tower, events, tables) for num_items in sizes]
    found = np.array([[each.step_ms(number) for each in trainings] for number in range(1, steps + 3)])[2:]
    return [dict(zip((*PARTS, "step"), each.round(2).tolist(), strict=True)) for each in np.median(found, axis=0)]


def threshold_runs(steps: int) -> list[dict[str, float]]:
    """Returns the milliseconds of dense and lazy steps of a sequence tower, taken in turn, for each width and size."""
    size = build_objective(Train.model_validate(TRAIN), dataset_of(1000, "sequence", 1000)).step_size
    assert size.sequences is not None
    fewest = LAZY_FROM_SEQUENCES * (size.items + size.sequences * USER["sequence"][0]["max_length"])
    runs = []
    for dim, num_items in product((16, 64), (fewest, 2 * fewest)):
        trainings = [training_of(num_items, "sequence", "spread", tables, dim=dim) for tables in ("dense", "lazy")]
        assert [len(each.optimizer.tables) for each in trainings] == [0, 1]
        found = np.array([[each.step_ms(number)[-1] for each in trainings] for number in range(1, steps + 3)])[2:]
        dense, lazy = np.median(found, axis=0).round(2).tolist()
        ratio = round(float(np.median(found[:, 1] / found[:, 0])), 3)
        runs.append({"dim": dim, "items": num_items, "dense": dense, "lazy": lazy, "lazy_over_dense": ratio})
        print(runs[-1], flush=True)
    return runs


def main(sizes: list[int], steps: int) -> None:
    """Runs every case in a process of its own, prints and saves the numbers."""
    runs = []
    for case in product(USER, ("same", "spread"), ("dense", "lazy")):
        command = [sys.executable, __file__, *map(str, sizes), "--steps", str(steps), "--case", *case]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        named = dict(zip(("tower", "events", "tables"), case, strict=True))
        for num_items, ms in zip(sizes, json.loads(done.stdout.splitlines()[-1]), strict=True):
            runs.append(named | {"items": num_items} | ms)
            print(*case, f"{num_items:,} items: {ms['step']} ms", flush=True)
    facts = {"cores": os.cpu_count(), "threads": 1, "steps": steps, "torch": version("torch")}
    save(facts | {"runs": runs})


def save(found: dict[str, Any]) -> None:
    """Writes the numbers; those that were not measured again stay."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(kept | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--case", nargs=3)
    parser.add_argument("--threshold", action="store_true")
    given = parser.parse_args()
    if given.case is None and not given.threshold:
        main(given.items, given.steps)
    else:
        torch.set_num_threads(1)
        with deterministic(0), keep_freed_memory():  # as training does
            if given.threshold:
                save({"threshold": threshold_runs(given.steps)})
            else:
                print(json.dumps(case_ms(*given.case, sizes=given.items, steps=given.steps)))
