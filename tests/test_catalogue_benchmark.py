"""The cost of a step against the number of items: the runs hold the claims."""

import json
from pathlib import Path
from typing import Any

import pytest

FOUND: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "benchmarks" / "catalogue.json").read_text(encoding="utf-8")
)


def step_ms(tower: str, tables: str) -> dict[int, float]:
    """Returns the milliseconds of a step over the same events, by the number of items."""
    keys = ("tower", "tables", "events")
    runs = [run for run in FOUND["runs"] if tuple(run[key] for key in keys) == (tower, tables, "same")]
    return {run["items"]: run["step"] for run in runs}


@pytest.mark.parametrize("tower", ["means", "sequence"])
def test_nothing_in_a_step_is_proportional_to_the_catalogue(tower: str) -> None:
    dense, lazy = (step_ms(tower, tables) for tables in ("dense", "lazy"))
    assert lazy[10**7] - lazy[10**6] < 1.0
    assert dense[10**7] > 5 * dense[10**6]


def test_where_sequences_become_lazy_a_step_is_not_slower_for_it() -> None:
    assert {run["dim"] for run in FOUND["threshold"]} == {16, 64}
    assert all(run["lazy_over_dense"] <= 1.05 for run in FOUND["threshold"])
