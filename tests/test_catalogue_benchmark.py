"""The cost of a step against the number of items: the page has the numbers of the runs, which hold the claims."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from twofold.render.numbers import format_significant

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FOUND: dict[str, Any] = json.loads((BENCHMARKS / "catalogue.json").read_text(encoding="utf-8"))
RUNS: list[dict[str, Any]] = FOUND["runs"]
SIZES = (100_000, 1_000_000, 10_000_000)
NAMES = {"means": "means of 100", "sequence": "sequence of 50"}


def step_ms(tower: str, events: str, tables: str) -> list[float]:
    """Returns the milliseconds of a step by the number of items."""
    found = {
        run["items"]: run["step"]
        for run in RUNS
        if (run["tower"], run["events"], run["tables"]) == (tower, events, tables)
    }
    return [found[size] for size in SIZES]


def test_the_page_has_the_numbers_of_the_runs() -> None:
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for tower, events in product(NAMES, ("same", "spread")):
        dense, lazy = (step_ms(tower, events, tables) for tables in ("dense", "lazy"))
        cells = [format_significant(ms) for ms in (*dense, *lazy)] + [format_significant(dense[2] / lazy[2])]
        assert f"| {NAMES[tower]} | {events} | {' | '.join(cells)} |" in page


@pytest.mark.parametrize("tower", NAMES)
def test_nothing_in_a_step_is_proportional_to_the_catalogue(tower: str) -> None:
    dense, lazy = (step_ms(tower, "same", tables) for tables in ("dense", "lazy"))
    assert lazy[2] - lazy[1] < 1.0
    assert dense[2] > 5 * dense[1]


def test_where_sequences_become_lazy_a_step_is_not_slower_for_it() -> None:
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert {run["dim"] for run in FOUND["threshold"]} == {16, 64}
    for run in FOUND["threshold"]:
        assert run["lazy_over_dense"] <= 1.05
        cells = [format_significant(run[name]) for name in ("dense", "lazy", "lazy_over_dense")]
        assert f"| {run['dim']} | {run['items']:,} | {' | '.join(cells)} |" in page
