"""RecBole: BPR, a negative a pair; and SASRec, softmax over all items, which it teaches one position a sequence.

    python recbole_models.py SEQUENCES.npz THREADS

Its own models and loaders, and fused Adam in place of its Trainer's loop. SASRec reads the first 200 users only: it
copies a whole sequence for every position.
"""

import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model
from turns import Work, take_turns

FEW = 200
SIZE = {"hidden_size": 64, "inner_size": 128, "n_layers": 2, "n_heads": 2, "embedding_size": 64}
SETTINGS = SIZE | {
    "use_gpu": False,
    "show_progress": False,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "state": "ERROR",
    "MAX_ITEM_LIST_LENGTH": 50,
    "hidden_dropout_prob": 0.2,
    "attn_dropout_prob": 0.2,
}


def write_events(counts: np.ndarray, items: np.ndarray, folder: Path) -> None:
    """Its own format of a data set, which its folder names."""
    users = np.repeat(np.arange(len(counts)), counts)
    columns = np.stack([users, items[: counts.sum()], np.arange(len(users))], axis=1)
    folder.mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float"
    np.savetxt(folder / f"{folder.name}.inter", columns, fmt="%d", delimiter="\t", header=header, comments="")


def steps(name: str, folder: Path, *, batch: int, count: int, settings: dict[str, object]) -> tuple[Work, int]:
    """Some steps of a model on batches of its own making."""
    given = SETTINGS | settings | {"data_path": str(folder.parent), "train_batch_size": batch}
    config = Config(model=name, dataset=folder.name, config_dict=given)
    train, _, _ = data_preparation(config, create_dataset(config))
    model = get_model(name)(config, train.dataset).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batches = list(islice(train, count))

    def work() -> None:
        for each in batches:
            optimizer.zero_grad()
            model.calculate_loss(each).backward()
            optimizer.step()

    return work, sum(len(each) for each in batches)


def main(sequences: str, threads: str) -> None:
    """One part a model."""
    sys.argv = sys.argv[:1]  # RecBole reads it, too
    data = dict(np.load(sequences))
    with tempfile.TemporaryDirectory() as temporary:
        everybody, few = (Path(temporary) / name for name in ("everybody", "few"))
        write_events(data["counts"], data["items"], everybody)
        write_events(data["counts"][:FEW], data["items"], few)
        pairwise = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
        whole = {"train_neg_sample_args": None, "loss_type": "CE"}
        parts = {
            "BPR": steps("BPR", everybody, batch=4096, count=5, settings=pairwise),
            "SASRec, 50": steps("SASRec", few, batch=256, count=2, settings=whole),
        }
    torch.set_num_threads(int(threads))
    take_turns(parts, ["recbole", "torch", "numpy"])


if __name__ == "__main__":
    main(*sys.argv[1:])
