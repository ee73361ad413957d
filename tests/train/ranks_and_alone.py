"""Run by `torchrun` in test_distributed.py: every training of `cases.json` by two ranks, and by the first one alone."""

import json
import math
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from twofold.dataset.dataset import load_dataset
from twofold.model.two_tower import build_two_tower
from twofold.recipe.features import Features
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import Train
from twofold.train import distributed, loop, objective
from twofold.train import optimizer as optimise
from twofold.train.distributed import broadcast_from_rank0, distributed_context
from twofold.train.loop import Setup, fit

BLOCK_ROWS = objective.BLOCK_ROWS


class Killed(BaseException):
    """Stands for a signal."""


def train(dataset, case, out, setup, die_at=None):
    out.mkdir(parents=True, exist_ok=True)
    model = TypeAdapter(TwoTower).validate_python(case["model"])
    backward, steps = loop._backward, iter(range(1000))

    def counted(*arguments, **named):
        if next(steps) == die_at:
            raise Killed
        return backward(*arguments, **named)

    loop._backward, optimise.LAZY_FROM = counted, case["lazy_from"]
    distributed.SCATTERED_ON = ("cpu",) if case.get("is_scattered") else ("cuda",)
    distributed.BUCKET_BYTES = case.get("bucket_bytes", 2**25)
    objective.BLOCK_ROWS, objective.BATCHES_A_BLOCK = case.get("block_rows", BLOCK_ROWS), 1
    try:
        fit(
            lambda: build_two_tower(model, dataset.features, dataset.vectors),
            dataset,
            Train.model_validate(case["train"]),
            validate=partial(counted_numbers, dataset),
            out=out,
            setup=setup,
        )
    finally:
        loop._backward = backward


def counted_numbers(dataset, model):
    """The validation of an epoch finds every table whole, and one process can look its rows up."""
    known = torch.arange(1 + dataset.items.num_known)
    assert model.item.tables["id"](known).shape == (len(known), model.item.tables["id"].embedding_dim)
    return float(sum(parameter.numel() for parameter in model.parameters()))


def with_lengths(dataset):
    rows = dataset.examples["train"]
    records = rows.records.copy()
    records["length_s"] = np.random.default_rng(0).choice([np.nan, 5, 30, 90], size=len(rows))
    return replace(dataset, examples={**dataset.examples, "train": replace(rows, records=records)})


def main(dataset_folder, folder):
    paces = loop.CHECKPOINT_EVERY_S, loop.CHECKPOINT_SHARE
    with distributed_context("cpu") as ranks:
        torch.set_num_threads(1)
        for name, case in json.loads((Path(folder) / "cases.json").read_text()).items():
            features = Features.model_validate(case["features"])
            dataset = with_lengths(load_dataset(Path(dataset_folder), features))
            train(dataset, case, Path(folder) / name / "ranks", Setup(ranks))
            if ranks.is_first:
                train(dataset, case, Path(folder) / name / "alone", Setup())
            if case.get("is_killed"):
                loop.CHECKPOINT_EVERY_S, loop.CHECKPOINT_SHARE = -1.0, math.inf  # a checkpoint at every step
                with suppress(Killed):
                    train(dataset, case, Path(folder) / name / "resumed", Setup(ranks), die_at=3)
                if ranks.is_first:
                    shutil.copytree(Path(folder) / name / "resumed", Path(folder) / name / "resumed-alone")
                broadcast_from_rank0(ranks, lambda: 0.0)  # whoever reads the checkpoint does so after it is written
                train(dataset, case, Path(folder) / name / "resumed", Setup(ranks))
                if ranks.is_first:
                    train(dataset, case, Path(folder) / name / "resumed-alone", Setup())
                loop.CHECKPOINT_EVERY_S, loop.CHECKPOINT_SHARE = paces


if __name__ == "__main__":
    main(*sys.argv[1:])
