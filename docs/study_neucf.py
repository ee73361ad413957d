"""Trains NeuCF beside the two stages of study D, and adds its row to docs/studies/two-stages.json.

    python docs/study_neucf.py            # after `make studies STUDY=two-stages`, whose runs it reads

NeuCF is NeuMF of He et al., "Neural Collaborative Filtering" (WWW 2017), section 3.4, without its pre-training. It
learns from the training pairs of D2, its constants and epochs are chosen on D2's validation pairs, and it is judged on
D2's users, items and sampled candidates, with as many seeds.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import torch
from study_rows import NEUCF, SHOWN, Saved
from study_runs import RESULTS, RUNS
from torch import Tensor, nn

from twofold.dataset.dataset import Dataset, load_dataset
from twofold.evaluate.baselines import popularity
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.headline_metrics import primary_k
from twofold.evaluate.results import MODEL
from twofold.evaluate.sampled import Negatives, evaluate_sampled, negatives_of
from twofold.evaluate.scores import FIRST_STAGE, ScoreBlock
from twofold.evaluate.significance import across_seeds
from twofold.evaluate.window import EvaluationWindow
from twofold.pipeline.adapters import positives_before_window, score_sources, window_of
from twofold.pipeline.job import reopen
from twofold.pipeline.trained_models import load_models
from twofold.run_folder import open_stage, write_json

EXPERIMENT: Final = "d02"
NEGATIVES: Final = 4  # a positive, as in the paper
BATCH: Final = 1024
EPOCHS: Final = 12
PATIENCE: Final = 3
"""Number of epochs without a better validation after which a fit ends."""
METRICS: Final = SHOWN["two-stages"]


@dataclass(frozen=True)
class Constants:
    """Constants that are chosen on validation."""

    dim: int
    """Predictive factors: the length of either half of what the last layer reads."""
    learning_rate: float
    dropout: float


TRIED: Final = (
    *(Constants(dim, 0.004, dropout) for dim in (8, 32) for dropout in (0.0, 0.3)),
    Constants(8, 0.001, 0.0),
)


class NeuMF(nn.Module):
    """Product of two embeddings beside a network of two others, joined in the last layer."""

    def __init__(self, num_users: int, num_items: int, constants: Constants) -> None:
        """Builds the tables, with the paper's normal values of deviation .01, and the layers 4, 2 and 1 times `dim`."""
        super().__init__()
        dim, sizes = constants.dim, (num_users, num_items)
        self.product = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
        self.inputs = nn.ModuleList(nn.Embedding(size, 2 * dim) for size in sizes)
        widths = itertools.pairwise((4 * dim, 2 * dim, dim))
        layers = [(nn.Dropout(constants.dropout), nn.Linear(*each), nn.ReLU()) for each in widths]
        self.network = nn.Sequential(*itertools.chain.from_iterable(layers))
        self.last = nn.Linear(2 * dim, 1)
        for table in (*self.product, *self.inputs):
            nn.init.normal_(table.weight, std=0.01)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Returns the logit of each pair."""
        product = self.product[0](users) * self.product[1](items)
        network = self.network(torch.cat([self.inputs[0](users), self.inputs[1](items)], dim=1))
        return self.last(torch.cat([product, network], dim=1)).squeeze(1)


def train_epoch(model: NeuMF, optimizer: torch.optim.Optimizer, likes: np.ndarray, rng: np.random.Generator) -> None:
    """Passes once over the positives, each with new negatives that its user has not met; `likes` is users × items."""
    users, items = np.nonzero(likes)
    others = rng.integers(likes.shape[1], size=(NEGATIVES, len(users)))
    while (taken := likes[users, others]).any():
        others[taken] = rng.integers(likes.shape[1], size=int(taken.sum()))
    all_users, all_items = np.tile(users, NEGATIVES + 1), np.concatenate([items, others.reshape(-1)])
    labels = (np.arange(len(all_users)) < len(users)).astype(np.float32)
    order = rng.permutation(len(all_users))
    columns = [torch.from_numpy(each[order]) for each in (all_users, all_items, labels)]
    model.train()
    for batch in zip(*(each.split(BATCH) for each in columns), strict=True):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(batch[0], batch[1]), batch[2]).backward()
        optimizer.step()


@torch.no_grad()
def scores_of(model: NeuMF, window: EvaluationWindow) -> ScoreBlock:
    """Returns the scores of all items for the users of a window."""
    model.eval()
    items = torch.arange(window.num_items)
    rows = [model(torch.full_like(items, int(user)), items).numpy() for user in window.user_rows]
    table = np.stack(rows)
    return lambda users: table[users].copy()


def fit(
    arrays: Dataset, validation: EvaluationWindow, constants: Constants, *, seed: int
) -> tuple[float, int, dict[str, Tensor]]:
    """Returns the best recall on validation, its epoch from 1, and the weights after it."""
    torch.manual_seed(seed)
    rng, rows = np.random.default_rng(seed), arrays.examples["train"]
    likes = np.zeros((len(arrays.users), len(arrays.items)), bool)
    likes[rows.user_rows[rows.label], rows.item_rows[rows.label]] = True
    model, best = NeuMF(*likes.shape, constants), (-1.0, 0, dict[str, Tensor]())
    optimizer = torch.optim.Adam(model.parameters(), lr=constants.learning_rate, fused=True)
    name = f"catalogue/recall@{primary_k(validation.num_items)}"
    for epoch in range(1, EPOCHS + 1):
        train_epoch(model, optimizer, likes, rng)
        found = evaluate_catalogue(validation, scores_of(model, validation)).mean(name)
        if found > best[0]:
            best = (found, epoch, {key: value.clone() for key, value in model.state_dict().items()})
        if epoch - best[1] == PATIENCE:
            break
    print(f"{constants}, seed {seed}: {name} {best[0]:.4f} after epoch {best[1]}", flush=True)
    return best


def values_of(window: EvaluationWindow, scores: ScoreBlock, drawn: Sequence[Negatives]) -> dict[str, np.ndarray]:
    """Returns the metrics of study D's tables for each user."""
    values = dict(evaluate_catalogue(window, scores).values)
    for each in drawn:
        found = evaluate_sampled(window, scores, each.items).values
        values |= {
            name.replace("sampled/", f"sampled/{each.draw}-{each.items.shape[1]}/"): own for name, own in found.items()
        }
    return {name: values[name] for name in METRICS}


def main() -> None:
    """Chooses the constants, trains with each seed, and writes the row."""
    path = RESULTS / "two-stages.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    (row,) = [each for each in saved["rows"] if each["name"] == EXPERIMENT]
    folders = [RUNS / "two-stages" / f"{EXPERIMENT}-seed{seed}" for seed in range(len(row["recipes"]))]
    recipe = reopen(folders[0]).recipe
    arrays = load_dataset(folders[0] / "dataset")
    test, validation = (window_of(recipe, arrays, split) for split in ("test", "validation"))
    positives = positives_before_window(recipe.prepare, arrays, test)
    drawn = negatives_of(recipe.evaluate.sampled, test, arrays, positives=positives, published=None)
    tried = {each: fit(arrays, validation, each, seed=0) for each in TRIED}
    chosen = max(tried, key=lambda each: tried[each][0])
    fits = [tried[chosen], *(fit(arrays, validation, chosen, seed=seed) for seed in range(1, len(folders)))]
    values: dict[str, list[dict[str, np.ndarray]]] = {NEUCF: [], MODEL: [], FIRST_STAGE: []}
    for folder, (_, _, weights) in zip(folders, fits, strict=True):
        model = NeuMF(len(arrays.users), len(arrays.items), chosen)
        model.load_state_dict(weights)
        stages = [open_stage(folder, name) for name in ("dataset", "train", "train/ranker")]
        sources = score_sources(load_models(reopen(folder), *stages), test)
        for name, scores in {NEUCF: scores_of(model, test), **sources}.items():
            values[name].append(values_of(test, scores, drawn))
    values["popularity"] = [values_of(test, popularity(positives), drawn)] * len(folders)
    per_seed = {name: [float(each[name].mean()) for each in values[NEUCF]] for name in METRICS}
    row["beside"][NEUCF] = {name: float(np.mean(each)) for name, each in per_seed.items()}
    row["model_minus"][NEUCF] = _difference(values, MODEL, NEUCF)
    row["neucf"] = {
        "chosen": asdict(chosen) | {"epochs": [epoch for _, epoch, _ in fits]},
        "tried": [asdict(each) | {"validation_recall": tried[each][0]} for each in TRIED],
        "per_seed": per_seed,
        "minus_popularity": _difference(values, NEUCF, "popularity"),
        "minus_retriever": _difference(values, NEUCF, FIRST_STAGE),
    }
    write_json(path, saved)


def _difference(values: dict[str, list[dict[str, np.ndarray]]], one: str, other: str) -> Saved:
    """Returns, for each metric, the difference of two rows and its interval over users and seeds."""
    found = {}
    for name in METRICS:
        claim = across_seeds(*(np.stack([each[name] for each in values[row]]) for row in (one, other)))
        found[name] = [claim.difference, claim.low, claim.high]
    return found


if __name__ == "__main__":
    main()
