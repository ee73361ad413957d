"""The graphs of a bundle, run without torch: the user tower, and the ranker where there is one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64

from twofold.errors import RunError

USER_TOWER: Final = "user_tower.onnx"
RANKER_USER: Final = "ranker_user.onnx"  # these four are written by twofold/model/ranker.py
RANKER_PAIRS: Final = "ranker_pairs.onnx"
RANKER_ITEMS: Final = "ranker_items.npy"
RANKER: Final = "ranker.json"


@dataclass(frozen=True)
class UserTower:
    """What is known of a user → a vector, as a graph."""

    session: Any  # onnxruntime.InferenceSession
    inputs: tuple[str, ...]
    dim: int

    def vectors(self, inputs: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "batch dim"]:
        """One vector a line, to be compared with those of items; of the inputs it takes its own."""
        (vectors,) = self.session.run(["vector"], {name: inputs[name] for name in self.inputs})
        return np.asarray(vectors)


@dataclass(frozen=True)
class Ranker:
    """Orders the `top` best items of the retriever anew. What it makes of the items' own features is known already."""

    user: UserTower
    pairs: Any  # onnxruntime.InferenceSession
    items: Float32[np.ndarray, "items dim"]
    top: int

    def scores(
        self,
        users: Float32[np.ndarray, "batch dim"],
        item_rows: Int64[np.ndarray, "batch n"],
        user_vectors: Float32[np.ndarray, "batch wide"],
        item_vectors: Float32[np.ndarray, "batch n wide"],
    ) -> Float32[np.ndarray, "batch n"]:
        """Scores of each line's items, which stand in the retriever's order; `users` is what `user` says of who asks.

        The vectors are the retriever's, as those whose inner product is its score.
        """
        given = {
            "users": users,
            "items": self.items[item_rows],
            "user_vectors": user_vectors,
            "item_vectors": item_vectors,
            "places": np.tile(np.arange(item_rows.shape[1]), (len(item_rows), 1)),
        }
        (scores,) = self.pairs.run(["scores"], given)
        return np.asarray(scores)


def load_user_tower(path: Path) -> UserTower:
    """RunError if onnxruntime cannot run it."""
    session = _session(path)
    (output,) = session.get_outputs()
    return UserTower(session, tuple(given.name for given in session.get_inputs()), output.shape[-1])


def load_ranker(folder: Path) -> Ranker | None:
    """None where a bundle has no second stage; RunError if onnxruntime cannot run one."""
    if not (folder / RANKER).exists():
        return None
    top = json.loads((folder / RANKER).read_text())["top"]
    items = np.load(folder / RANKER_ITEMS, mmap_mode="r", allow_pickle=False)
    return Ranker(load_user_tower(folder / RANKER_USER), _session(folder / RANKER_PAIRS), np.asarray(items), top)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One row is too little work to share, and in a batch the search next to it wants the cores.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (_,) = session.get_outputs()
    except Exception as error:  # onnxruntime raises classes of its own, which share no other ancestor
        raise RunError(
            f"{path} is no graph with one output that onnxruntime can run: {error}. "
            f"Delete {path.parent} and run `twofold run` again."
        ) from error
    return session
