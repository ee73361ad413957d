"""Freed memory is used again while asked for: counted in a fresh process, whose heap nobody has grown."""

import json
import subprocess
import sys

import pytest

COUNT = """
import json, resource
import numpy as np
from twofold.dataset.malloc import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.full(2**20, 1.0, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
with keep_freed_memory():
    faults()
    kept = faults()
print(json.dumps([usual, kept]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told to keep memory")
def test_memory_is_used_again_while_it_is_asked_for():
    done = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True)
    usual, kept = json.loads(done.stdout)
    assert kept < 20 <= usual, "less than one fault an array of 4 MB, and usually more"
