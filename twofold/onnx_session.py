"""ONNX graphs opened for a process that serves: on one thread, without messages of the runtime."""

from pathlib import Path
from typing import Any


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
