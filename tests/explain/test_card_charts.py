"""Charts of training logs and of models: coordinates of curves and boxes."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twofold.explain.card_charts import curves_of, drawing_of, training_curves


def test_a_curve_begins_at_the_left_and_has_its_highest_at_the_top():
    log = pa.table({"epoch": [0, 1, 2], "loss": [4.0, 2.0, 3.0], "validation": [None, float("nan"), 0.5]})
    loss, validation = curves_of(log)
    assert loss.points == ((0, 0), (150, 110), (300, 55))  # half way between 2 and 4 at the end
    assert (loss.first, loss.last, loss.low, loss.high) == ((0, 4), (2, 3), 2, 4)
    assert (validation.name, validation.first, validation.last) == ("validation", (2, 0.5), (2, 0.5))


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


def part(tower, name, parameters):
    return {"tower": tower, "name": name, "shape": "8 → 4", "parameters": parameters}


def test_boxes_of_a_tower_stand_below_one_another_and_both_meet_in_the_score():
    parts = [part("user", "positives", 5), part("item", "id", 7), part("item", "linear", 11)]
    drawing = drawing_of(parts, "cosine")
    assert drawing.parameters == 5 + 7 + 11
    user, first, second, score = drawing.boxes
    assert user.x < first.x == second.x
    assert first.y < second.y < score.y
    assert [box.kind for box in drawing.boxes] == ["block", "block", "layer", "score"]
    assert score.width == drawing.width
    assert {end for _, _, end in drawing.arrows} == {second.y, score.y}


def test_a_model_without_parts_has_no_drawing():
    assert drawing_of([], "cosine") is None
