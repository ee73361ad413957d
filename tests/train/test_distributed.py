"""Two ranks do what one process does, whatever the loss; one that cannot is refused, and one that dies ends all."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.build import build_dataset
from twofold.errors import RunError
from twofold.recipe.features import Features
from twofold.recipe.load import dump_recipe
from twofold.recipe.train import Train
from twofold.train.distributed import SINGLE_PROCESS, ProcessGroup, check_shareable

pytestmark = pytest.mark.slow  # processes are started

ROOT = Path(__file__).parents[2]
DOT, COSINE = {"kind": "dot"}, {"kind": "cosine", "temperature": 0.2}
SETTINGS = {"epochs": 1, "batch_size": 24, "learning_rate": 0.01, "seed": 3}
CASES = {
    "in-batch": ({"kind": "in_batch_softmax"}, COSINE, {"is_killed": True}),
    "in-batch-blocks": ({"kind": "in_batch_softmax"}, COSINE, {"is_killed": True, "block_rows": 90}),
    "in-batch-lazy": ({"kind": "in_batch_softmax"}, COSINE, {"lazy_from": 0, "is_killed": True, "dim": 7}),
    "in-batch-scattered": ({"kind": "in_batch_softmax"}, COSINE, {"is_scattered": True, "bucket_bytes": 600}),
    "mixed-lazy": ({"kind": "in_batch_softmax", "uniform_negatives": 7}, COSINE, {"lazy_from": 0}),
    "in-batch-bfloat16": ({"kind": "in_batch_softmax"}, COSINE, {"precision": "bfloat16"}),
    "full-lazy": ({"kind": "full_softmax"}, COSINE, {"lazy_from": 0}),
    "mixed": ({"kind": "in_batch_softmax", "log_q": "corrected", "uniform_negatives": 7}, COSINE, {}),
    "full": ({"kind": "full_softmax"}, COSINE, {}),
    "sampled": ({"kind": "sampled_softmax", "negatives": 9}, COSINE, {}),
    "bce": ({"kind": "bce"}, DOT, {}),
    "bce-lazy": ({"kind": "bce"}, DOT, {"lazy_from": 0, "dim": 1, "is_killed": True}),  # the first rank has no column
}
SGD = {"optimizer": "sgd", "learning_rate": 1.0}
SEQUENCES = {
    "sequences": ({"kind": "in_batch_softmax"}, COSINE, {"has_sequences": True, "train": SGD}),
    "sequences-lazy": ({"kind": "in_batch_softmax"}, COSINE, {"has_sequences": True, "train": SGD, "lazy_from": 0}),
}
ADVERSARY = {"mixed": {"max_lambda": 0.3}}


def torchrun(*arguments, timeout=120):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=timeout, env=environment, cwd=ROOT
    )


def without_dropout(features, *, has_sequences=False):
    """Returns the features without dropout and sequences, whose result depends on how the examples are divided.

    Dropout is drawn for the examples that a process holds; a sequence is read in one pass for all examples of a user,
    so that an example sees as far back as those beside it let it.
    """
    tree = features.model_dump(mode="json")
    tree["user"] = [feature for feature in tree["user"] if feature["kind"] != "sequence" or has_sequences]
    for feature in (*tree["user"], *tree["item"]):
        feature.update({name: 0.0 for name in ("dropout", "unknown_rate") if name in feature})
    return Features.model_validate(tree)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    cases = {
        name: {
            "train": {
                **SETTINGS,
                "loss": loss,
                "max_grad_norm": 0.5,
                "adversary": ADVERSARY.get(name),
                "precision": more.get("precision", "float32"),
                **more.get("train", {}),
            },
            "features": without_dropout(FEATURES, has_sequences=more.get("has_sequences", False)).model_dump(
                mode="json"
            ),
            "model": {"kind": "two_tower", "dim": more.get("dim", 8), "hidden": [8], "score": score},
            "lazy_from": 10,
            **{key: value for key, value in more.items() if key != "train"},
        }
        for name, (loss, score, more) in (CASES | SEQUENCES).items()
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    done = torchrun(ROOT / "tests" / "train" / "ranks_and_alone.py", folder / "dataset", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_what_one_learns(trained, name):
    ranks, alone = (load_file(trained / name / who / "weights.safetensors") for who in ("ranks", "alone"))
    assert ranks.keys() == alone.keys()
    exact, loss_rtol = ({"rtol": 1e-3, "atol": 1e-4}, 1e-5)
    if name.endswith("bfloat16"):  # each rank rounds its part of a gradient before they are added
        exact, loss_rtol = ({"rtol": 3e-2, "atol": 1e-2}, 1e-3)
    for part, weights in alone.items():
        torch.testing.assert_close(ranks[part], weights, **exact, msg=lambda text, part=part: part + text)
    logs = [pq.read_table(trained / name / who / "training_log.parquet")["loss"] for who in ("ranks", "alone")]
    np.testing.assert_allclose(*logs, rtol=loss_rtol)


def test_two_ranks_learn_the_same_of_sequences_from_sparse_gradients_as_from_dense_ones(trained):
    """Each rank reads other rows, and another number of them."""
    lazy, dense = (
        load_file(trained / name / "ranks" / "weights.safetensors") for name in ("sequences-lazy", "sequences")
    )
    assert any("sequence" in name for name in dense)
    torch.testing.assert_close(lazy, dense, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, (_, _, more) in CASES.items() if more.get("is_killed")])
def test_two_ranks_that_were_killed_end_where_they_would_have_ended(trained, name):
    whole, resumed, alone = (
        trained / name / who / "weights.safetensors" for who in ("ranks", "resumed", "resumed-alone")
    )
    assert whole.read_bytes() == resumed.read_bytes()
    # One process goes on with what two began.
    torch.testing.assert_close(load_file(alone), load_file(whole), rtol=1e-3, atol=1e-4)


def test_a_rank_alone_has_everything():
    assert SINGLE_PROCESS.part(7) == slice(0, 7)
    assert SINGLE_PROCESS.share(5).tolist() == [0, 1, 2, 3, 4]
    assert SINGLE_PROCESS.positions(own=2, drawn=3).tolist() == [0, 1, 2, 3, 4]


def test_shares_cover_what_was_drawn_once():
    ranks = [ProcessGroup(rank=rank, size=3) for rank in range(3)]
    assert [each.part(6) for each in ranks] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    shares = [each.share(7).tolist() for each in ranks]
    assert shares == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]  # as many each; the last two are there to fill up
    gathered = [(rank, "own") if place < 1 else shares[rank][place - 1] for rank in range(3) for place in range(1 + 3)]
    places = ranks[1].positions(own=1, drawn=7).tolist()
    assert [gathered[place] for place in places] == [(0, "own"), (1, "own"), (2, "own"), *range(7)]


def test_what_cannot_be_shared_is_refused():
    three = replace(SINGLE_PROCESS, size=3)
    twelve, thousand = Train(batch_size=12), Train(batch_size=1000)
    check_shareable(three, nn.Linear(1, 1), twelve, num_examples=99)
    check_shareable(SINGLE_PROCESS, nn.BatchNorm1d(1), thousand, num_examples=1)
    with pytest.raises(RunError, match="batches of 1,000 rows cannot be shared by 3 processes. .* such as 999, or"):
        check_shareable(three, nn.Linear(1, 1), thousand, num_examples=5000)
    with pytest.raises(RunError, match="batch_norm standardises over a batch, of which each of 3 processes sees a"):
        check_shareable(three, nn.Sequential(nn.BatchNorm1d(1)), twelve, num_examples=99)
    mining = Train.model_validate({"hard_negatives": {}})
    with pytest.raises(RunError, match="hard_negatives are mined for the examples of one process, and 3 were started"):
        check_shareable(three, nn.Linear(1, 1), mining, num_examples=99)


@pytest.mark.slow
def test_torchrun_trains_and_a_failure_of_all_is_one_message(checkerboard, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(checkerboard))
    arguments = ("-m", "--", "twofold", "train", recipe, "--runs", tmp_path, "--set", "train.epochs=1")
    done = torchrun(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training of the retriever") == 1  # one process prints
    failed = torchrun(*arguments, "--set", "train.learning_rate=1e30", "--run", "other")
    assert failed.returncode != 0
    assert failed.stderr.count("training diverged: the loss of epoch 0, batch 1 is nan") == 1
    assert "RuntimeError" not in failed.stderr
