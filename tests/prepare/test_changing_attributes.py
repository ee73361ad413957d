"""Attributes that are read from the events: a value that changes is noted, because it may tell of later days."""

from pathlib import Path

from tests.prepare.tables import TEST, TRAIN, log_of
from tests.worlds import world_recipe, write_world
from twofold.prepare.run_plan import prepare


def test_attributes_that_change_among_the_events_of_one_id_are_counted(tmp_path: Path) -> None:
    """The plays of an item grow with the log, so that the largest number is that of the test window."""
    rows = [(1, 0, TRAIN, True), (2, 0, TEST, True), (2, 1, TRAIN, False), (1, 1, TRAIN + 1, False)]
    log = log_of(rows, plays=[1, 900, 3, 3], maker=["b", "b", None, "c"], city=["x", "y", "y", "x"])
    recipe = world_recipe(write_world(tmp_path / "log", log))
    data = recipe.data.model_dump() | {"item_columns": ["plays", "maker"], "user_columns": ["city"]}
    recipe = world_recipe(data, {"prepare": recipe.prepare.model_dump()})
    assert prepare(recipe, tmp_path)["odd_rows"] == {
        "items: plays changes among the events of one id, and the largest value is read, be it a later one": 1
    }
