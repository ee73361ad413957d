"""Who plays the negative, and how often: the probabilities that the logQ correction needs."""

import numpy as np
from jaxtyping import Float32, Int64


def log_in_batch_probability(item_rows: Int64[np.ndarray, "rows"], num_items: int) -> Float32[np.ndarray, "items"]:
    """log Q(j): the chance that one position of a shuffled batch holds item j, counted on the rows that batches are
    made of.

    An item that no batch can hold gets -inf and must not be asked for. Never clipped: a floor (1e-6 in TFRS) leaves
    the tail of a large catalogue uncorrected.

    >>> np.exp(log_in_batch_probability(np.array([0, 0, 0, 2]), 3)).round(2).tolist()
    [0.75, 0.0, 0.25]
    """
    counts = np.bincount(item_rows, minlength=num_items)
    with np.errstate(divide="ignore"):
        log_q: np.ndarray = np.log(counts / max(len(item_rows), 1)).astype(np.float32)
    return log_q
