"""Curves of training logs: coordinates of points and of ticks."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twofold.page.training_curves import curves_of, training_curves


def test_a_curve_lies_between_its_ticks():
    log = pa.table({"epoch": [0, 1, 2], "loss": [4.0, 2.0, 3.0], "validation": [None, float("nan"), 0.5]})
    loss, validation = curves_of(log)
    assert loss.points == ((0, 0), (150, 110), (300, 55))  # the axis is from 2 to 4
    assert loss.x_ticks == ((0, "1"), (150, "2"), (300, "3"))  # as progress counts epochs
    assert loss.y_ticks == ((110, "2"), (55, "3"), (0, "4"))
    assert (loss.first, loss.last, loss.low, loss.high) == (4, 3, 2, 4)
    assert (validation.name, validation.first, validation.last) == ("validation", 0.5, 0.5)


def test_small_numbers_have_ticks_that_tell_them_apart():
    (rate,) = curves_of(pa.table({"step": [1, 2], "learning_rate": [0.002, 0.0000001]}))
    assert [text for _, text in rate.y_ticks] == ["0", "0.001", "0.002"]


def test_throughput_is_no_result():
    assert curves_of(pa.table({"step": [1, 2], "examples_per_s": [5.0, 6.0], "seconds": [1.0, 2.0]})) == ()


@pytest.mark.parametrize("log", [{"loss": [1.0]}, {"epoch": [0], "note": ["text"]}, {"epoch": [0], "loss": [None]}])
def test_a_log_without_numbers_over_time_has_no_curve(log):
    assert curves_of(pa.table(log)) == ()


def test_steps_are_drawn_where_they_were_logged_and_epochs_where_nothing_else_was(tmp_path):
    pq.write_table(
        pa.table({"epoch": [0, 1], "loss": [3.0, 2.0], "validation": [0.1, 0.2]}), tmp_path / "training_log.parquet"
    )
    assert [(curve.name, curve.axis) for curve in training_curves(tmp_path)] == [
        ("loss", "epoch"),
        ("validation", "epoch"),
    ]
    steps = pa.table({"step": [1, 2, 3], "loss": [3.5, 2.5, 2.0], "gradient_norm": [1.0, 9.0, 1.0]})
    pq.write_table(steps, tmp_path / "training_steps.parquet")
    drawn = [("loss", "step"), ("validation", "epoch"), ("gradient_norm", "step")]
    assert [(curve.name, curve.axis) for curve in training_curves(tmp_path)] == drawn
    assert training_curves(tmp_path / "nowhere") == ()
