"""Attributes that are read from the events: of the events that are taken, and noted where they change."""

from pathlib import Path

import pyarrow.parquet as pq

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


def test_items_and_users_of_events_that_are_not_taken_are_in_no_table(tmp_path: Path) -> None:
    """Otherwise the catalogue of Hindi videos would hold the Tamil ones."""
    rows = [(1, 0, TRAIN, True), (2, 1, TRAIN, False), (2, 5, TRAIN + 1, True), (3, 5, TRAIN + 2, True)]
    log = log_of(rows, language=["hi", "hi", "ta", "ta"], city=["x", "y", "y", "z"])
    recipe = world_recipe(write_world(tmp_path / "log", log))
    data = recipe.data.model_dump() | {"item_columns": ["language"], "user_columns": ["city"]}
    where = {"where": "COALESCE(language, 'hi') = 'hi'"}
    prepare(world_recipe(data, {"prepare": recipe.prepare.model_dump() | where}), tmp_path)
    items, users = (pq.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in ("items", "users"))
    assert items == {"item_id": [0, 1, 100], "language": ["hi", "hi", None]}
    assert users == {"user_id": [1, 2, 8, 9], "city": ["x", "y", None, None]}
