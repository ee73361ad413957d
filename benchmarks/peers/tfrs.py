"""TensorFlow Recommenders: the retrieval task of its guide over two embeddings, compiled as `fit` compiles it.

    python tfrs.py PAIRS.npz THREADS

Accidental hits are removed and log Q subtracted; the same user's other items stay in, for which it has no setting.
"""

import os
import sys

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from turns import Work, take_turns


class TwoTower(tfrs.Model):
    """Ids to vectors of unit length, as ours."""

    def __init__(self, users: int, items: int, *, dim: int, temperature: float) -> None:
        super().__init__()
        self.user, self.item = (
            tf.keras.Sequential([tf.keras.layers.Embedding(rows, dim), tf.keras.layers.Dense(dim)])
            for rows in (users, items)
        )
        self.task = tfrs.tasks.Retrieval(temperature=temperature, remove_accidental_hits=True)

    def compute_loss(self, inputs: dict, training: bool = False) -> tf.Tensor:
        """The softmax over the batch."""
        users, items = (
            tf.math.l2_normalize(tower(inputs[name]), axis=1)
            for name, tower in (("user", self.user), ("item", self.item))
        )
        return self.task(
            users,
            items,
            candidate_ids=inputs["item"],
            candidate_sampling_probability=inputs["probability"],
            compute_metrics=False,
        )


def steps(data: dict, optimizer: tf.keras.optimizers.Optimizer) -> tuple[Work, int]:
    """A step a batch, all in turn."""
    model = TwoTower(int(data["num_users"]), int(data["num_items"]), dim=64, temperature=0.05)
    model.compile(optimizer=optimizer)
    inputs = {"user": data["users"], "item": data["items"], "probability": np.exp(data["log_q"])}
    batches = tf.data.Dataset.from_tensors(inputs).unbatch().cache().repeat()
    train, batch = model.make_train_function(), iter(batches)

    def work() -> None:
        for _ in data["users"]:
            train(batch)

    return work, data["users"].size


def main(pairs: str, threads: str) -> None:
    """One part an optimizer: ours, and its guide's."""
    tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    tf.config.threading.set_inter_op_parallelism_threads(int(threads))
    data = dict(np.load(pairs))
    parts = {
        "Adam": steps(data, tf.keras.optimizers.Adam(1e-3)),
        "Adagrad": steps(data, tf.keras.optimizers.Adagrad(0.1)),
    }
    take_turns(parts, ["tensorflow-recommenders", "tensorflow", "tf-keras", "numpy"])


if __name__ == "__main__":
    main(*sys.argv[1:])
