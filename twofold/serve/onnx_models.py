"""ONNX models of a bundle, run without torch: the user tower, and the ranker if there is one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64

from twofold.errors import RunError
from twofold.model.fold_in import HistoryModel
from twofold.onnx_session import open_session
from twofold.run_folder import numbered

USER_TOWER: Final = "user_tower.onnx"
RANKER_USER: Final = "ranker_user.onnx"  # these four are written by twofold/model/ranker.py
RANKER_PAIRS: Final = "ranker_pairs.onnx"
RANKER_ITEMS: Final = "ranker_items.npy"
RANKER: Final = "ranker.json"


@dataclass(frozen=True)
class UserTower:
    """The user tower as an ONNX graph: from features of users to vectors."""

    session: Any  # onnxruntime.InferenceSession
    inputs: tuple[str, ...]
    dim: int

    def vectors(self, inputs: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "batch dim"]:
        """Returns one vector per user, to be compared with item vectors; inputs of other models are ignored.

        A vector does not depend on the other users of the batch: for a single row, ONNX Runtime multiplies with another
        kernel, whose sums differ in the last bits, so that row is computed twice (47 µs instead of 50).
        """
        read = {name: inputs[name] for name in self.inputs}
        is_alone = any(len(values) == 1 for values in read.values())
        if is_alone:
            read = {name: np.concatenate([values, values]) for name, values in read.items()}
        (vectors,) = self.session.run(["vector"], read)
        return np.asarray(vectors[:1] if is_alone else vectors)


@dataclass(frozen=True)
class BlendedTower:
    """Parts whose scores are added: a user's vector holds those of all parts, one after the other."""

    parts: tuple[UserTower | HistoryModel, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the features that any part reads."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.inputs))

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return sum(part.dim for part in self.parts)

    def vectors(self, inputs: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "batch dim"]:
        """Returns one vector per user: the vectors of the parts, one after another."""
        return np.concatenate([part.vectors(inputs) for part in self.parts], axis=1)


@dataclass(frozen=True)
class Ranker:
    """The ranker as an ONNX graph, which reorders the retriever's `top` best items. `items` are its item encodings."""

    user: UserTower
    pairs: Any  # onnxruntime.InferenceSession
    items: Float32[np.ndarray, "items dim"]
    top: int

    def scores(
        self,
        users: Float32[np.ndarray, "batch _"],
        item_rows: Int64[np.ndarray, "batch k"],
        user_vectors: Float32[np.ndarray, "batch dim"],
        item_vectors: Float32[np.ndarray, "batch k dim"],
        ranks: Int64[np.ndarray, "batch k _"],
    ) -> Float32[np.ndarray, "batch k"]:
        """Computes scores of each user's items; `users` are the outputs of `user`, and `ranks` those in the list of the
        retriever and of each source.

        The vectors are the retriever's, in the form whose inner product is the retriever's score.
        """
        inputs = {
            "users": users,
            "items": self.items[item_rows],
            "user_vectors": user_vectors,
            "item_vectors": item_vectors,
            "places": ranks,
        }
        (scores,) = self.pairs.run(["scores"], inputs)
        return np.asarray(scores)


def load_user_tower(path: Path) -> UserTower:
    """Loads a user tower; RunError if onnxruntime cannot run the graph."""
    session = _session(path)
    (output,) = session.get_outputs()
    return UserTower(session, tuple(node.name for node in session.get_inputs()), output.shape[-1])


def load_user_towers(folder: Path) -> list[UserTower]:
    """Loads all user towers of a bundle, in the order of their parts of the item vectors."""
    paths = (folder / numbered(USER_TOWER, number) for number in count())
    return [load_user_tower(path) for path in takewhile(Path.exists, paths)]


def load_ranker(folder: Path) -> Ranker | None:
    """Loads the ranker; `None` means the bundle has no second stage. RunError if onnxruntime cannot run a graph."""
    if not (folder / RANKER).exists():
        return None
    top = json.loads((folder / RANKER).read_text(encoding="utf-8"))["top"]
    items = np.load(folder / RANKER_ITEMS, mmap_mode="r", allow_pickle=False)
    return Ranker(load_user_tower(folder / RANKER_USER), _session(folder / RANKER_PAIRS), np.asarray(items), top)


def _session(path: Path) -> Any:
    try:
        session = open_session(path)
        (_,) = session.get_outputs()
    except Exception as error:  # see `open_session`
        raise RunError(
            f"{path} is not a graph with one output that onnxruntime can run: {error}. "
            f"Delete {path.parent} and run `twofold run` again."
        ) from error
    return session
