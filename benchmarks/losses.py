"""Time of a step's loss, forward and backward, for each way to choose negatives, beside the classic in-batch softmax.

    python benchmarks/losses.py [rounds]     (default: 15)

Claim: the corrected, the sampled and the mixed softmax take at most 1.2 times as long as the classic one with as many
examples (4,096; width 64). In-batch losses compare each with 4,096 columns, mixed ones with 512 more, and the sampled
softmax with 4,096 drawn ones. The vectors of a batch of a real data set are given, so towers and reading are left out.

One thread, and its processor time, all losses in turn; a figure is the median of the rounds. Writes `losses.json`
beside this file.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu import HISTORIES, dataset_of, recipe_of
from train import Work, medians_ms

from twofold.dataset.batches import epoch_batches
from twofold.dataset.dataset import Dataset
from twofold.dataset.malloc import keep_freed_memory
from twofold.ingest.world_events import World, write_world
from twofold.model.two_tower import build_two_tower
from twofold.recipe.schema import Recipe
from twofold.recipe.train import Train
from twofold.train.batch_loss import loss_of_vectors
from twofold.train.objective import build_objective, draw_columns

HERE = Path(__file__).parent
ROWS, BATCH, DIM = 1_000_000, 4096, 64
LOSSES: dict[str, dict[str, Any]] = {
    "classic": {"kind": "in_batch_softmax", "log_q": "classic", "uniform_negatives": 0},
    "without log Q": {"kind": "in_batch_softmax", "log_q": "none", "uniform_negatives": 0},
    "corrected": {"kind": "in_batch_softmax", "log_q": "corrected", "uniform_negatives": 0},
    "mixed: 512 uniform negatives": {"kind": "in_batch_softmax", "log_q": "classic", "uniform_negatives": 512},
    "mixed, corrected": {"kind": "in_batch_softmax", "log_q": "corrected", "uniform_negatives": 512},
    "sampled: 4,096 negatives": {"kind": "sampled_softmax", "negatives": 4096},
}


def loss_step(dataset: Dataset, recipe: Recipe, loss: dict[str, Any]) -> Work:
    """Returns the loss of one batch and its backward pass, by vectors that are drawn once."""
    torch.manual_seed(0)
    train = Train.model_validate({"batch_size": BATCH, "epochs": 1, "loss": loss})
    assert recipe.retriever.kind == "two_tower"
    model = build_two_tower(recipe.retriever, dataset.features, dataset.vectors)
    objective = build_objective(train, dataset)
    batch = next(epoch_batches(dataset, dataset.examples["train"], objective.order, seed=(0, 0), first=0))
    columns = draw_columns(objective, batch)
    users, items = (torch.nn.functional.normalize(torch.randn(rows, DIM)) for rows in (BATCH, len(columns.item_rows)))

    def step() -> None:
        leaves = users.detach().requires_grad_(), items.detach().requires_grad_()
        loss_of_vectors(objective, model, batch, columns, users=leaves[0], items=leaves[1]).backward()  # type: ignore[no-untyped-call]

    return step


def main(rounds: int = 15) -> None:
    """Times the losses, prints the table, saves it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_world(folder / "world", World(rows=ROWS))
        recipe = recipe_of(folder / "world", HISTORIES, BATCH)
        dataset = dataset_of(folder, "dataset", recipe)
        with keep_freed_memory():  # as training does
            ms = medians_ms({name: loss_step(dataset, recipe, loss) for name, loss in LOSSES.items()}, rounds)
    facts = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "rounds": rounds, "torch": version("torch")}
    table = {name: {"ms": took, "over_classic": round(took / ms["classic"], 3)} for name, took in ms.items()}
    (HERE / "losses.json").write_text(json.dumps(facts | {"batch": BATCH, "losses": table}, indent=1) + "\n")
    for name, found in table.items():
        print(f"{name:<30} {found['ms']:>8.2f} ms  {found['over_classic']:.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*(int(argument) for argument in sys.argv[1:2]))
