"""Correlation of labels with item length: known answers, and the planted length bias of a world."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.prepare.tables import TEST, TRAIN, VALIDATION
from tests.worlds import DAY_MS, FIRST_MS, world_recipe, write_world
from twofold.prepare.label_report import label_report
from twofold.prepare.run_plan import prepare


def test_deciles_hold_rows_of_like_length(tmp_path: Path) -> None:
    length = np.arange(1.0, 101.0)
    report = label_report((length > 50).astype(float), -length, length)
    assert [(decile.first_s, decile.last_s, decile.rows) for decile in report.deciles] == [
        (10.0 * n + 1, 10.0 * n + 10, 10) for n in range(10)
    ]
    assert [decile.positive_share for decile in report.deciles] == [0.0] * 5 + [1.0] * 5
    assert report.deciles[0].mean_target == pytest.approx(-np.mean(np.arange(1, 11)))
    assert report.target_with_length == pytest.approx(-1)
    assert report.label_with_length == pytest.approx(np.sqrt(3) / 2, abs=0.001)  # a rank against its halves


def test_equal_lengths_are_never_parted_and_a_constant_has_no_order() -> None:
    report = label_report(np.ones(20), np.arange(20.0), np.repeat([5.0, 9.0], [17, 3]))
    assert [(decile.first_s, decile.rows) for decile in report.deciles] == [(5.0, 17), (9.0, 3)]
    assert report.label_with_length is None


def test_of_the_labels_only_gain_leans_to_no_length(tmp_path: Path) -> None:
    """Watch times that grow with length, but slower: raw seconds lean to long items, completion to short ones."""
    draw = np.random.default_rng(0)
    size = 6_000
    length = draw.choice([5.0, 10.0, 20.0, 40.0, 80.0, 160.0], size)
    watch = length**0.5 * draw.gamma(2.0, 1.0, size)
    columns = {
        "user_id": draw.integers(0, 50, size), "item_id": draw.integers(0, 80, size),
        "at": FIRST_MS + draw.integers(0, 6 * DAY_MS, size), "liked": draw.random(size) < 0.5,
        "watch_s": watch, "length_s": length,
    }  # fmt: skip
    data = write_world(tmp_path / "log", pa.table(columns))
    labels = {
        "wtg": {"kind": "wtg", "buckets": {"kind": "equal_frequency", "n": 30}},
        "pcc": {"kind": "pcc"},
        "rank": {"kind": "quantile"},
        "of_item": {"kind": "wtg", "buckets": {"kind": "item"}},
    }
    plain = world_recipe(data).prepare.model_dump() | {"labels": labels}
    leaning = {}
    for target in ("wtg", "pcc", "rank", "watch_s"):
        recipe = world_recipe(data, {"prepare": plain | {"target": target, "positive": f"{target} > 0.4"}})
        report = prepare(recipe, tmp_path / target)["labels"]
        leaning[target] = report["target_with_length"]
        assert report["rows"] == sum(decile["rows"] for decile in report["deciles"])
    assert leaning["watch_s"] > 0.4
    assert leaning["pcc"] < -0.3
    # A rank correlation of 1,000 rows has a standard deviation of 1 / sqrt(1000) = .03.
    assert abs(leaning["wtg"]) < 0.1
    assert abs(leaning["rank"]) < 0.1
    (remark,) = report["warnings"]
    assert remark.startswith("of_item is near 0 on average for every item")


def test_a_log_without_lengths_has_no_report(tmp_path: Path) -> None:
    rows = {
        "user_id": [1, 2, 1, 2],
        "item_id": [1, 2, 1, 2],
        "at": [TRAIN, TRAIN, VALIDATION, TEST],
        "liked": [True] * 4,
    }
    assert prepare(world_recipe(write_world(tmp_path / "log", pa.table(rows))), tmp_path / "out")["labels"] is None
