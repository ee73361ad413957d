"""RecTools' SASRec, softmax over all items: its module, its loader of batches, its optimizer, no Trainer around them.

    python rectools_sasrec.py SEQUENCES.npz THREADS

Its batches hold as many sequences as have about 4,096 positions. Only positions with a target count.
"""

import sys
import warnings
from itertools import islice

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from turns import Work, take_turns

POSITIONS, STEPS = 4096, 5


def one_step() -> Trainer:
    """It builds the model in `fit`, so it gets one step of that."""
    return Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def steps(events: pd.DataFrame, *, length: int) -> tuple[Work, int]:
    """Some steps on batches of its own making."""
    users = round(POSITIONS / events.groupby("user_id").size().clip(upper=1 + length).sub(1).mean())
    size = {"n_factors": 64, "n_blocks": 2, "n_heads": 2, "session_max_len": length, "batch_size": users}
    model = SASRecModel(**size, loss="softmax", dropout_rate=0.2, get_trainer_func=one_step)
    model.fit(Dataset.construct(events))
    module = model.lightning_model.train()
    optimizer = module.configure_optimizers()
    batches = list(islice(model.data_preparator.get_dataloader_train(), STEPS))

    def work() -> None:
        for batch in batches:
            loss = module.loss_calculator(module.get_batch_logits(batch), batch["y"], batch["yw"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return work, sum(int((batch["y"] != 0).sum()) for batch in batches)


def main(sequences: str, threads: str) -> None:
    """One part a length."""
    torch.set_num_threads(int(threads))
    warnings.simplefilter("ignore")
    data = np.load(sequences)
    users = np.repeat(np.arange(len(data["counts"])), data["counts"])
    moments = pd.Timestamp("2000-01-01") + pd.to_timedelta(np.arange(len(users)), unit="s")
    events = pd.DataFrame({"user_id": users, "item_id": data["items"], "weight": 1.0, "datetime": moments})
    parts = {f"SASRec, {length}": steps(events, length=length) for length in (50, 200)}
    take_turns(parts, ["rectools", "torch", "pytorch-lightning", "numpy"])


if __name__ == "__main__":
    main(*sys.argv[1:])
