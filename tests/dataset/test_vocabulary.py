import tracemalloc

import pyarrow as pa
import pytest

from twofold.dataset.vocabulary import Vocabulary, build_value_vocabulary, build_vocabulary
from twofold.errors import DataError


def test_known_ids_come_first_and_cold_ones_follow():
    vocabulary = build_vocabulary(pa.array([30, 10, 30]), pa.array([10, 20, 30, 5]))
    assert vocabulary.ids.to_pylist() == [10, 30, 5, 20]
    assert vocabulary.num_known == 2


@pytest.mark.parametrize("ids", [[7, 3, 9], ["b", "a", "é"]])
def test_there_and_back(ids):
    vocabulary = build_vocabulary(pa.array(ids), pa.array(ids))
    rows = vocabulary.rows_of(pa.array(ids))
    assert vocabulary.ids_of(rows).to_pylist() == ids


def test_text_that_is_a_number_finds_the_number():
    vocabulary = Vocabulary(pa.array([5, 6]), num_known=2)
    assert vocabulary.rows_of(["6", "x", "7"]).tolist() == [1, -1, -1]


@pytest.mark.parametrize("text", ["03", " 3", "3 ", "+3", "0_3", "\uff13", "-0", "3.0", ""])
def test_only_the_usual_form_of_a_number_is_an_id(text):
    vocabulary = Vocabulary(pa.array([0, 3]), num_known=2)
    assert vocabulary.row_of(text) == -1
    assert vocabulary.rows_of([text, "3", "-3"]).tolist() == [-1, 1, -1]


def test_what_cannot_be_an_id_is_unknown():
    numbers = Vocabulary(pa.array([3, 5]), num_known=2)
    assert numbers.rows_of([3.7, 3.0, 10**30, None, "5", "five", b"5", float("nan")]).tolist()[:4] == [
        -1,
        0,
        -1,
        -1,
    ]
    assert numbers.rows_of(pa.array(["5", "x"])).tolist() == [1, -1]
    assert numbers.rows_of(pa.array([5, 3], pa.int32())).tolist() == [1, 0]
    assert Vocabulary(pa.array(["3"]), num_known=1).rows_of([3, None]).tolist() == [0, -1]


@pytest.mark.parametrize("ids", [[3, 5, -7], ["3", "a", "é"], []])
def test_one_id_is_looked_up_as_many_are(ids):
    vocabulary = Vocabulary(pa.array(ids, pa.int64() if ids[:1] == [3] else pa.string()), num_known=len(ids))
    for value in (*ids, 3, "5", 3.0, 3.5, None, 10**30, -(2**63), "", "zz", "a" * 99, float("nan")):
        assert vocabulary.row_of(value) == vocabulary.rows_of([value]).tolist()[0]


COLUMNS = {
    "bool": [True, False, None],
    "int8": pa.array([1, -2, 3], pa.int8()),
    "uint8": pa.array([1, 2, 255], pa.uint8()),
    "uint64": pa.array([1, 2, 2**64 - 1], pa.uint64()),
    "whole doubles": [0.0, 1.0, 2.0],
    "halves": [0.5, 1.0, 1.5],
    "float": pa.array([0.1, 0.2, 3.0], pa.float32()),
    "decimal": pa.array([1, 2, None], pa.decimal128(10, 2)),
    "text": ["a", "True", "0.0"],
    "large text": pa.array(["a", "b", "c"], pa.large_string()),
    "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
    "date": pa.array([0, 1, 2], pa.date32()),
    "time": pa.array([0, 1, 2], pa.time64("us")),
    **{f"timestamp {unit}": pa.array([0, 10**9, 10**10], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")},
    "zoned": pa.array([0, 1, 2], pa.timestamp("us", "UTC")),
}


@pytest.mark.parametrize("values", COLUMNS.values(), ids=COLUMNS)
def test_every_value_of_a_column_is_found_whatever_its_type(values):
    column = pa.array(values)
    rows = build_vocabulary(column, column).rows_of(column)
    assert [row == -1 for row in rows] == [value is None for value in column.to_pylist()]
    assert len(set(rows.tolist())) == len(set(column.to_pylist()))


def test_null_and_empty_are_unknown():
    vocabulary = Vocabulary(pa.array([0, 1]), num_known=2)
    assert vocabulary.rows_of(pa.array([None, 1], pa.int64())).tolist() == [-1, 1]
    assert Vocabulary(pa.array([], pa.int64()), num_known=0).rows_of([1]).tolist() == [-1]


def test_twins_and_nulls_are_refused():
    with pytest.raises(DataError, match="occurs twice"):
        Vocabulary(pa.array([1, 1]), num_known=2)
    with pytest.raises(DataError, match="1 of its 2 ids are NULL"):
        Vocabulary(pa.array([1, None]), num_known=1)


def test_saved_and_loaded_equal(tmp_path):
    vocabulary = build_vocabulary(pa.array(["a"]), pa.array(["b", "a"]))
    vocabulary.save(tmp_path / "v.parquet")
    loaded = Vocabulary.load(tmp_path / "v.parquet")
    assert loaded.ids.equals(vocabulary.ids)
    assert loaded.num_known == 1


@pytest.mark.parametrize(
    ("column", "ids", "shared"),
    [
        (["b", None, "a", "b", "c", "c"], ["b", "c", "a"], 2),
        ([[2, 2], [1, 3], None, [3], []], [3, 1, 2], 1),  # twice in one list is still one item
        ([[], None], [], 0),
        ([7, 8], [7, 8], 0),
    ],
)
def test_values_that_several_rows_share_come_first(column, ids, shared):
    kind = pa.list_(pa.int64()) if column == [[], None] else None
    vocabulary = build_value_vocabulary(pa.chunked_array([pa.array(column, kind)]))
    assert vocabulary.ids.to_pylist() == ids
    assert vocabulary.num_known == shared


def test_a_text_with_nul_is_refused_and_finds_nothing():
    with pytest.raises(DataError, match=r"the text 'a\\x00' contains the character NUL, .* Remove it from the log"):
        build_vocabulary(pa.array(["a", "a\0"]), pa.array(["a", "a\0"]))
    vocabulary = Vocabulary(pa.array(["a", "b"]), num_known=2)
    assert vocabulary.rows_of(["a", "a\0", None]).tolist() == [0, -1, -1]
    assert vocabulary.row_of("a\0") == -1


@pytest.mark.parametrize("is_own", [True, False])
def test_one_long_text_does_not_widen_all_others(is_own: bool) -> None:
    """An id that is an address of 5,000 characters among 2,000 short ones: at one width they would take 40 MB."""
    short, long = [f"item {number}" for number in range(2_000)], "x" * 5_000
    wanted = pa.array([*short, long, None, "item", short[7] + "\0", long + "\0"])
    tracemalloc.start()
    vocabulary = Vocabulary(pa.array([*short, long] if is_own else short), num_known=1)
    rows = vocabulary.rows_of(wanted)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.tolist() == [*range(2_000), 2_000 if is_own else -1, -1, -1, -1, -1]
    assert [vocabulary.row_of(text) for text in (short[3], long, "", long + "\0")] == [3, rows[2_000], -1, -1]
    assert peak < 4e6
