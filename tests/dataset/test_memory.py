"""Freed memory is used again while asked for, and given back afterwards."""

import resource
import sys

import numpy as np
import pytest

from twofold.dataset.memory import kept_memory


def faults(arrays):
    """Page faults of filling and freeing so many arrays of 4 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(arrays):
        np.full(2**20, 1.0, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told to keep memory")
def test_memory_is_used_again_only_while_it_is_asked_for():
    with kept_memory():
        faults(2)
        kept = faults(20)
    given_back = faults(20)
    assert given_back >= 20  # one an array at least: with huge pages a fault brings many
    assert kept < given_back / 10
