"""Columns of every type that Parquet has, in every place of a recipe that reads a column: where the check of a recipe
lets a type through, a column of several values gives several values, and of as many where values are looked up.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.worlds import DAY_MS, FIRST_MS, world_recipe, write_world
from twofold.dataset.build import build_dataset
from twofold.dataset.column_encoders import numbers
from twofold.dataset.dataset import Dataset, item_attributes, load_dataset
from twofold.dataset.example_blocks import ExampleBlocks
from twofold.dataset.tower_inputs import item_inputs
from twofold.errors import DataError, RecipeError
from twofold.evaluate.slices import item_groups
from twofold.model.multi_tower import assign_towers
from twofold.prepare import check
from twofold.prepare.check import check_recipe
from twofold.prepare.run_plan import prepare
from twofold.prepare.sources import open_source
from twofold.recipe.schema import Recipe
from twofold.train.batch_groups import group_by_columns

Numbers = Sequence[int]


def array(type_: pa.DataType, of: Callable[[int], Any] = lambda number: number) -> Callable[[Numbers], pa.Array]:
    return lambda numbers: pa.array([of(number) for number in numbers], type_)


def moment(type_: pa.DataType, step: int) -> Callable[[Numbers], pa.Array]:
    return lambda numbers: pa.array([step * number for number in numbers], pa.int64()).cast(type_)


def uuids(numbers: Numbers) -> pa.Array:
    stored = pa.array([uuid.UUID(int=number).bytes for number in numbers], pa.binary(16))
    return pa.ExtensionArray.from_storage(pa.uuid(), stored)


# Name → a column of these numbers, in another type.
NUMBERS: Final[Mapping[str, Callable[[Numbers], pa.Array]]] = {
    **{str(type_): array(type_) for type_ in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{str(type_): array(type_) for type_ in (pa.uint8(), pa.uint16(), pa.uint32())},
    "uint64": array(pa.uint64(), lambda number: 2**64 - 1 if number == 3 else number),
    "half": array(pa.float16(), np.float16),
    "float": array(pa.float32(), lambda number: number / 2),
    "double": array(pa.float64(), lambda number: number / 3),
    "whole_double": array(pa.float64(), float),
    "decimal": array(pa.decimal128(10, 2)),
    "long_decimal": array(pa.decimal128(38, 3)),
}
TEXTS: Final[Mapping[str, Callable[[Numbers], pa.Array]]] = {
    "text": array(pa.string(), str),
    "large_text": array(pa.large_string(), str),
    "dictionary": lambda numbers: array(pa.string(), str)(numbers).dictionary_encode(),
    "uuid": uuids,
}
PLAIN: Final = {
    **NUMBERS,
    **TEXTS,
    "boolean": array(pa.bool_(), lambda number: number > 1),
    "date": array(pa.date32()),
    "time_ms": array(pa.time32("ms")),
    "time_us": array(pa.time64("us")),
    **{f"timestamp_{unit}": moment(pa.timestamp(unit), 86_400) for unit in ("s", "ms", "us")},
    "timestamp_ns": moment(pa.timestamp("ns"), 86_400_000_000),
    "zoned": moment(pa.timestamp("us", "Asia/Kolkata"), 86_400_000_000),
    "duration": array(pa.duration("s")),
}
NESTED: Final[Mapping[str, Callable[[Numbers], pa.Array]]] = {
    "blob": array(pa.binary(), lambda number: b"%d" % number),
    "struct": array(pa.struct({"x": pa.int64()}), lambda number: {"x": number}),
    "map": array(pa.map_(pa.string(), pa.int64()), lambda number: [("x", number)]),
    "list": array(pa.list_(pa.int64()), lambda number: [number]),
}
COLUMNS: Final = PLAIN | NESTED
ITEMS = 8


def columns(numbers: Numbers, of: Mapping[str, Callable[[Numbers], pa.Array]] = COLUMNS) -> dict[str, pa.Array]:
    return {f"c_{name}": make(numbers) for name, make in of.items()}


def lists(of: Callable[[Numbers], pa.Array], numbers: Numbers) -> pa.Array:
    """Two values for each number: itself, and the next one."""
    values = of([each for number in numbers for each in (number, (number + 1) % 4)])
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    return pa.ListArray.from_arrays(pa.array(range(0, 2 * len(numbers) + 1, 2), pa.int32()), values)


def world(folder: Path, further: Mapping[str, pa.Array] | None = None) -> dict[str, Any]:
    """A log of 4 users and 8 items, each with all columns: those of event, item and user hold the numbers 0 to 3."""
    events = [(user, item, day) for user in range(4) for item in range(ITEMS) for day in range(6)]
    user, item, day = (np.array(each) for each in zip(*events, strict=True))
    log = {
        "user_id": user,
        "item_id": item,
        "at": FIRST_MS + day * DAY_MS + item,
        "liked": (user + item + day) % 3 == 0,
    }
    log |= {"watch_s": (user * 7 + item * 3 + day) % 11 + 1.0, "length_s": item + 5.0}
    four = [each % 4 for each in range(ITEMS)]
    listed = {f"l_{name}": lists(make, four) for name, make in COLUMNS.items()}
    items = pa.table({"item_id": range(ITEMS)} | columns(four) | listed)
    data = write_world(folder, pa.table(log | dict(further or {})), items)
    profiles = {f"p_{size}": pa.array([[n, 1.0] for n in range(4)], pa.list_(t)) for size, t in FLOATS.items()}
    pq.write_table(pa.table({"user_id": range(4)} | columns(range(4)) | profiles), folder / "users.parquet")
    return data | {"users": folder / "users.parquet"}


FLOATS = {"float": pa.float32(), "double": pa.float64()}


def with_features(data: dict[str, Any], **towers: list[dict[str, Any]]) -> Recipe:
    features = {"user": [{"kind": "time", "part": "hour"}], "item": [{"kind": "id"}]} | towers
    counters = {f["key"]: {"rates": {"like": "liked"}} for f in towers.get("item", []) if f["kind"] == "counter"}
    recipe = world_recipe(data)
    return world_recipe(data, {"features": features, "prepare": recipe.prepare.model_dump() | {"counters": counters}})


# --- features ---------------------------------------------------------------------------------------------------------

# Names of the types that the check of a recipe lets through, by kind of feature. DuckDB reads a duration as an integer.
READ: Final = {
    "category": [f"c_{name}" for name in PLAIN],
    "number": [f"c_{name}" for name in (*NUMBERS, "duration")],
    "bag": [*(f"l_{name}" for name in PLAIN), "c_list"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world(tmp_path_factory.mktemp("columns"))


@pytest.mark.parametrize("kind", READ)
def test_a_feature_over_a_column_of_another_type_is_refused(
    data: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(world_recipe(data).data)  # opened once, because it has a hundred columns
    monkeypatch.setattr(check, "open_source", lambda _: source)
    others = [f"c_{name}" for name in COLUMNS] + [f"l_{name}" for name in COLUMNS]
    for name in set(others) - set(READ[kind]):
        feature = {"kind": kind, "column": name} | ({"scale": "log"} if kind == "number" else {})
        with pytest.raises(RecipeError, match=rf"reads {name} of .*, which is .*; kind: {kind} needs"):
            check_recipe(with_features(data, item=[feature]))


@pytest.fixture(scope="module")
def dataset(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset with every feature over every column that is let through, one feature a column and tower.

    The user tower reads numbers as numbers, all other columns as categories; the item tower reads all as categories.
    """
    categories = [{"kind": "category", "column": name} for name in READ["category"]]
    item = [*categories, *({"kind": "bag", "column": name} for name in READ["bag"])]
    item += [{"kind": "counter", "key": f["column"], "statistic": "like"} for f in categories]
    user = [each for each in categories if each["column"] not in READ["number"]]
    user += [{"kind": "number", "column": name, "scale": "standard"} for name in READ["number"]]
    user += [{"kind": "profile", "column": f"p_{name}", "length": 2} for name in FLOATS]
    return built(with_features(data, item=item, user=user), tmp_path_factory.mktemp("dataset"))


def built(recipe: Recipe, folder: Path) -> Dataset:
    (folder / "prepare").mkdir()
    prepare(recipe, folder / "prepare")
    build_dataset(folder / "prepare", recipe.features, folder / "dataset", time_zone="UTC")
    return load_dataset(folder / "dataset")


def distinct(values: np.ndarray) -> int:
    return len(np.unique(values, axis=0))


def test_columns_of_any_type_tell_their_values_apart(dataset: Dataset) -> None:
    items, users = dataset.item_arrays.inputs, dataset.user_arrays.attributes
    for name in PLAIN:
        expected = 2 if name == "boolean" else 4
        assert distinct(items[f"c_{name}"]) == expected, name
        # 2^64 - 1 is so far from 0, 1 and 2 that a standardized float cannot tell these apart.
        of_users = 2 if name == "uint64" else expected
        assert distinct(users[f"c_{name}"]) == of_users + 1, name  # the last row is that of an unknown user
    assert {name: distinct(users[f"p_{name}"]) for name in FLOATS} == dict.fromkeys(FLOATS, 5)


def test_a_bag_of_any_type_tells_its_values_apart(dataset: Dataset) -> None:
    for name in PLAIN:
        rows = dataset.item_arrays.bags[f"l_{name}"].padded()
        assert distinct(rows) == 4, name
        assert (rows > 0).all(), name


def test_a_counter_by_a_column_of_any_type_counts_its_values_apart(dataset: Dataset) -> None:
    item_rows, at = np.arange(ITEMS), np.full(ITEMS, FIRST_MS + 4 * DAY_MS)
    inputs = item_inputs(dataset.features, dataset.item_arrays, item_rows=item_rows, at=at)
    for name in PLAIN:
        assert distinct(inputs[f"c_{name}_like_life"]) > 1, name


def test_the_logarithm_of_numbers_of_any_type_keeps_them_apart(dataset: Dataset) -> None:
    attributes = item_attributes(dataset.folder)
    for name in READ["number"]:
        assert distinct(numbers(attributes[name], is_log=True, name=name)) == 4, name


def test_groups_slices_and_towers_by_a_column_of_any_type(dataset: Dataset) -> None:
    examples, table = ExampleBlocks(dataset.examples["train"]), item_attributes(dataset.folder)
    of_items = item_groups(dataset, [table], [f"c_{name}" for name in PLAIN])
    for name in PLAIN:
        expected = 2 if name == "boolean" else 4
        groups = group_by_columns(dataset, (f"c_{name}",), examples, batch_size=8)
        assert groups is not None
        values, _ = assign_towers(table[f"c_{name}"].combine_chunks(), num_known=ITEMS, column=name)
        assert (len(groups), distinct(of_items[f"c_{name}"]), len(values)) == (expected,) * 3, name


# --- rules and labels -------------------------------------------------------------------------------------------------


def rule_of(name: str) -> str:
    """A condition that holds for the larger two of the four numbers, as far as the type has an order."""
    if name == "uuid":
        return f"c_uuid >= '{uuid.UUID(int=2)}'"
    if name in TEXTS:
        return f"c_{name} >= '2'"
    larger = {"float": 0.5, "double": 1 / 3}.get(name, 1)
    return f"c_{name}" if name == "boolean" else f"c_{name} > {larger!r}"


def test_a_rule_over_a_column_of_any_type_reads_its_values(data: dict[str, Any], tmp_path: Path) -> None:
    names = [*NUMBERS, *TEXTS, "boolean", "duration"]
    prepare(with_prepare(data, outcomes={name: rule_of(name) for name in names}), tmp_path)
    rows = pq.read_table(tmp_path / "rows" / "split=train" / "shard=0.parquet", partitioning=None)
    larger = np.array([item % 4 for item in rows["item_id"].to_pylist()]) > 1
    for name in names:
        assert rows[f"outcome_{name}"].to_pylist() == larger.tolist(), name


def test_a_rule_over_a_column_of_another_type_is_refused(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(world_recipe(data).data)
    monkeypatch.setattr(check, "open_source", lambda _: source)
    for name in COLUMNS.keys() - {*NUMBERS, *TEXTS, "boolean", "duration"}:
        message = rf"prepare\.weight reads c_{name}, which is .*; a rule reads numbers, true and false, and text"
        with pytest.raises(RecipeError, match=message):
            check_recipe(with_prepare(data, weight=f"CASE WHEN c_{name} IS NULL THEN 1 ELSE 2 END"))


def with_prepare(data: dict[str, Any], **parts: Any) -> Recipe:
    return world_recipe(data, {"prepare": world_recipe(data).prepare.model_dump() | parts})


def test_labels_over_and_by_columns_of_any_type_take_several_values(data: dict[str, Any], tmp_path: Path) -> None:
    keys, averaged = (
        ("boolean", "uint64", "decimal", "uuid", "date", "timestamp_ns"),
        ("int8", "uint32", "half", "decimal"),
    )
    by = {f"by_{name}": {"kind": "below_mean", "column": "watch_s", "key": f"c_{name}"} for name in keys}
    over = {f"over_{name}": {"kind": "below_mean", "column": f"c_{name}", "key": "user_id"} for name in averaged}
    outcomes = {name: f"CASE WHEN {name} THEN 1 ELSE 0 END" for name in by | over}
    prepare(with_prepare(data, labels=by | over, outcomes=outcomes), tmp_path)
    rows = pq.read_table(tmp_path / "rows" / "split=train" / "shard=0.parquet", partitioning=None)
    for name in by | over:
        assert set(rows[f"outcome_{name}"].to_pylist()) == {0.0, 1.0}, name
    for name in keys:
        fitted = pq.read_table(tmp_path / "fitted" / f"by_{name}.mean.parquet")
        assert len(fitted) == (2 if name == "boolean" else 4), name


def test_gain_by_a_creator_of_any_type_has_a_mean_for_each(data: dict[str, Any], tmp_path: Path) -> None:
    labels = {
        name: {"kind": "wtg", "buckets": {"kind": "item", "creator": f"c_{name}", "n": 2}}
        for name in ("boolean", "decimal", "uuid")
    }
    prepare(with_prepare(data, labels=labels, target="boolean"), tmp_path)
    for name in labels:
        fitted = pq.read_table(tmp_path / "fitted" / f"{name}.c_{name}.parquet")
        assert len(fitted) == (2 if name == "boolean" else 4), name
    rows = pq.read_table(tmp_path / "rows" / "split=train" / "shard=0.parquet", partitioning=None)
    assert len(set(rows["target"].to_pylist())) > 2


@pytest.mark.parametrize("name", ["boolean", "uint64", "decimal", "uuid", "zoned"])
def test_ties_of_any_type_order_events_of_one_time(tmp_path: Path, name: str) -> None:
    """The last event is that of the greatest value; a boolean has two, and the greater item decides."""
    order = [2, 0, 3, 1]
    log = pa.table(
        {
            "user_id": np.repeat([1, 2], 4),
            "item_id": [*order, *order],
            "at": [FIRST_MS] * 8,
            "liked": [True] * 8,
            "tie": PLAIN[name]([*order, *order]),
        }
    )
    recipe = world_recipe(write_world(tmp_path, log))
    split = {"kind": "last_n", "test": 1, "validation": 1, "ties": "tie"}
    prepare(world_recipe(recipe.data.model_dump(), {"prepare": {"positive": "liked", "split": split}}), tmp_path)
    rows = {each: pq.read_table(tmp_path / "rows" / f"split={each}" / "shard=0.parquet", partitioning=None) for each in
            ("train", "validation", "test")}  # fmt: skip
    assert rows["test"]["item_id"].to_pylist() == [3, 3]
    assert rows["validation"]["item_id"].to_pylist() == [2, 2]


# --- ids --------------------------------------------------------------------------------------------------------------

IDS = {name: make for name, make in PLAIN.items() if name in TEXTS or "int" in name and name != "uint64"}


@pytest.mark.parametrize("name", ["uint32", "dictionary", "uuid"])
def test_ids_of_any_type_stay_apart(tmp_path: Path, name: str) -> None:
    events = [(user, item, day) for user in range(3) for item in range(4) for day in range(6)]
    user, item, day = zip(*events, strict=True)
    log = {"user_id": IDS[name](user), "item_id": IDS[name](item), "at": FIRST_MS + np.array(day) * DAY_MS}
    recipe = world_recipe(write_world(tmp_path, pa.table(log | {"liked": [True] * len(day)})))
    dataset = built(recipe, tmp_path)
    assert (len(dataset.users), len(dataset.items)) == (3, 4)
    assert distinct(dataset.item_arrays.inputs["id"]) == 4


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in IDS and name not in ("uint64", "duration")])
def test_ids_of_other_types_are_refused(tmp_path: Path, name: str) -> None:
    log = {"user_id": COLUMNS[name]([0, 1]), "item_id": [0, 1], "at": [FIRST_MS, FIRST_MS], "liked": [True, True]}
    with pytest.raises(DataError, match=r"user_id is .*; an id is an integer or text"):
        check_recipe(world_recipe(write_world(tmp_path, pa.table(log))))
