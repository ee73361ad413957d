"""ONNX graphs opened for a process that serves: on one thread, without messages of the runtime."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twofold.errors import RunError


def open_session(path: Path) -> Any:
    """Returns the onnxruntime.InferenceSession of a graph. Errors are onnxruntime's: classes of its own, which share no
    ancestor but Exception.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One row is too little work for several threads, and in a batch the search beside it needs the cores.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextmanager
def graph_errors(path: Path) -> Iterator[None]:
    """Turns any error while a graph of a bundle is opened into a RunError that says how to make it anew."""
    try:
        yield
    except Exception as error:  # see `open_session`
        raise RunError(
            f"{path} is not a graph that onnxruntime can run: {error}. Delete {path.parent} and run `twofold run` "
            f"again."
        ) from error
