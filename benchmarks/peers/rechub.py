"""torch-rechub: its DSSM over two ids, trained by its own trainer against all other items of the batch.

    python rechub.py PAIRS.npz THREADS

It has no log Q, removes no accidental hits, and draws its order of the negatives line by line. Its trainer's defaults:
dense Adam with weight decay.
"""

import sys

import numpy as np
import torch
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.matching import DSSM
from torch_rechub.trainers import MatchTrainer
from turns import take_turns

STEPS = 2


def main(pairs: str, threads: str) -> None:
    """One part: batches given to its trainer's epoch."""
    torch.set_num_threads(int(threads))
    data = np.load(pairs)
    user, item = (SparseFeature(name, vocab_size=int(data[f"num_{name}s"]), embed_dim=64) for name in ("user", "item"))
    model = DSSM([user], [item], user_params={"dims": [64]}, item_params={"dims": [64]})
    trainer = MatchTrainer(model, mode=2, in_batch_neg=True)
    batches = [
        ({"user": torch.from_numpy(users), "item": torch.from_numpy(items)}, torch.zeros(len(users)))
        for users, items in zip(data["users"][:STEPS], data["items"][:STEPS], strict=True)
    ]
    part = (lambda: trainer.train_one_epoch(batches), data["users"][:STEPS].size)
    take_turns({"in-batch softmax": part}, ["torch-rechub", "torch", "numpy"])


if __name__ == "__main__":
    main(*sys.argv[1:])
