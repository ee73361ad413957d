"""Filters: equal to DuckDB row by row on random rules, messages for invalid ones, and the cache of compiled ones."""

import datetime
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from twofold.errors import RecipeError, RequestError
from twofold.index import filters as module
from twofold.index.filters import Filters, _entry_bytes, compile_filter
from twofold.sql.rules import rule_sql

DAY = datetime.date(2024, 5, 1)
NUMBERS = {
    "age_days": pa.array([0, 3, None, -7, 100, 2**40, 1, 2, None], pa.int64()),
    "rank": pa.array([1, 2, 3, None, 5, -128, 127, 0, 0], pa.int8()),
    "length_s": [0.0, -0.0, math.nan, math.inf, -math.inf, None, 1.5, 3.0, 1e300],
    "share": pa.array([0.1, 0.2, None, math.nan, 1.0, -1.0, 0.0, 0.5, 2.0], pa.float32()),
    "price": pa.array([None, 1, 2, 3, 4, 5, -6, 7, 0], pa.decimal128(10, 2)),
}
TRUTHS = {"liked": [True, False, None, True, False, None, True, True, False]}
TEXTS = {
    "language": ["hi", "ta", None, "", "HI", "é", "zz", "0", "hi"],
    "day": pa.array([DAY, None, *([DAY + datetime.timedelta(days=9)] * 7)], pa.date32()),
}
ATTRIBUTES = pa.table(NUMBERS | TRUTHS | TEXTS)

numbers = st.sampled_from([*NUMBERS, *TRUTHS]) | st.sampled_from(["0", "1", "2.5", "-3", "100", "1e-3"])
texts = st.sampled_from([*TEXTS, "age_days", "liked", "'hi'", "''", "'é'", "'3'", "'2024-05-01'", "'true'"])
patterns = st.sampled_from(["'hi'", "'h%'", "'%i'", "'%i%'", "'%'", "''", "'é%'", "'%0%'", "'2024-05-%'", "'%%'"])
comparisons = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])


def _calculations(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, inner)
    one = st.sampled_from(["ABS", "FLOOR", "CEIL", "SQRT", "-"])
    two = st.sampled_from(["COALESCE", "NULLIF", "LEAST", "GREATEST"])
    return st.one_of(
        st.tuples(inner, st.sampled_from("+-*/%"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(one, inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(two, pairs).map(lambda t: f"{t[0]}({t[1][0]}, {t[1][1]})"),
        st.tuples(numbers, pairs).map(lambda t: f"CASE WHEN {t[0]} > 1 THEN {t[1][0]} WHEN liked THEN {t[1][1]} END"),
        pairs.map(lambda t: f"CASE WHEN liked THEN {t[0]} ELSE {t[1]} END"),
        # EXP, LN and POWER: whole numbers of a small range, where the last digit does not decide.
        inner.map(lambda t: f"FLOOR(10 * LN(EXP(LEAST(GREATEST({t}, -9), 9)) * 1.01))"),
        inner.map(lambda t: f"POWER(LEAST(GREATEST({t}, -4), 4), 2)"),
    )


MOST_BRACKETS = 8
"""DuckDB takes twice as long for each NULLIF within another, and each function writes one or two: ten take a second."""
calculations = st.recursive(numbers, _calculations, max_leaves=4).filter(lambda text: text.count("(") <= MOST_BRACKETS)


def _conditions(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda t: f"(NOT {t})"),
        st.tuples(inner, st.sampled_from(["IS NULL", "IS NOT NULL", "IS TRUE", "IS FALSE"])).map(
            lambda t: f"({t[0]} {t[1]})"
        ),
    )


simple_conditions = st.one_of(
    st.just("liked"),
    st.sampled_from(["rank", "age_days", "share"]),
    st.tuples(calculations, comparisons, calculations).map(" ".join),
    st.tuples(texts, comparisons, texts).map(" ".join),
    st.tuples(calculations, calculations, calculations).map(lambda t: f"{t[0]} BETWEEN {t[1]} AND {t[2]}"),
    st.tuples(texts, texts, texts).map(lambda t: f"{t[0]} BETWEEN {t[1]} AND {t[2]}"),
    st.sampled_from([*NUMBERS, *TRUTHS]).map(lambda t: f"{t} IN (0, 1, 3, -7, 100, 0.5)"),
    st.sampled_from([*TEXTS, "age_days"]).map(lambda t: f"{t} NOT IN ('hi', '', '3', '2024-05-01')"),
    st.tuples(calculations, st.sampled_from(["IS NULL", "IS NOT NULL"])).map(" ".join),
    st.tuples(texts, texts, texts).map(lambda t: f"COALESCE({t[0]}, {t[1]}) = {t[2]}"),
    st.tuples(texts, st.sampled_from(["LIKE", "NOT LIKE"]), patterns).map(" ".join),
)
conditions = st.recursive(simple_conditions, _conditions, max_leaves=4)


@pytest.fixture(scope="module")
def engine() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.register("items", ATTRIBUTES)
        yield connection


@settings(max_examples=150, deadline=None)
@given(conditions)
def test_a_filter_is_true_where_duckdb_says_so(engine: duckdb.DuckDBPyConnection, text: str) -> None:
    try:
        sql = rule_sql(text, result="condition")
    except RecipeError:
        assume(False)
    try:
        expected = [row[0] is True for row in engine.execute(f"SELECT {sql} FROM items").fetchall()]
    except duckdb.Error:  # a text where a number is needed, a date beside a truth value
        with pytest.raises(RequestError, match="does not fit the columns' types"):
            compile_filter(text, ATTRIBUTES)
        return
    try:
        found = compile_filter(text, ATTRIBUTES).tolist()
    except RequestError as refused:
        assert "does not fit the columns' types" in str(refused)  # noqa: PT017
        return
    assert found == expected


@pytest.mark.parametrize(
    ("text", "eligible"),
    [
        ("language = 'hi'", [0, 8]),
        ("language <> 'hi'", [1, 3, 4, 5, 6, 7]),
        ("NOT (language = 'hi' AND liked)", [1, 3, 4, 5, 6, 7, 8]),
        ("age_days < 3 OR liked", [0, 3, 6, 7]),
        ("length_s >= 3", [2, 3, 7, 8]),  # NaN lies above every number, as in the engines
        ("length_s / 0 IS NULL AND age_days IS NOT NULL", [0, 1, 3, 4, 5, 6, 7]),
        ("day > '2024-05-01'", [2, 3, 4, 5, 6, 7, 8]),
        ("TRUE", list(range(9))),
        ("NULL", []),
    ],
)
def test_items_where_the_condition_is_true_are_eligible(text: str, eligible: list[int]) -> None:
    assert np.flatnonzero(compile_filter(text, ATTRIBUTES)).tolist() == eligible


LISTS = pa.table(
    {
        "tags": [["rock", "live"], [], None, ["pop", None], [None], ["rock", "rock"]],
        "years": pa.array([[1, 2], [2**40], [], None, [3, None], [-1]], pa.list_(pa.int64())),
        "shares": pa.array([[0.5], [float("nan")], [], None, [1.0], [0.1]], pa.large_list(pa.float32())),
        "marks": pa.array([[True], [False], [], None, [None], [True, False]]),
    }
)


@pytest.mark.parametrize("part", [slice(0, 6), slice(2, 5), slice(0, 0)])
@pytest.mark.parametrize(
    "text",
    ["'rock' IN tags", "'none' IN tags", "2 IN years", "-1 IN years", "0.5 IN shares", "TRUE IN marks"],
)
@pytest.mark.parametrize("frame", ["{}", "NOT {}", "({}) IS NULL", "({}) = FALSE"])
def test_a_value_is_found_in_lists_as_duckdb_finds_it(text: str, frame: str, part: slice) -> None:
    items = LISTS.slice(part.start, part.stop - part.start)
    value, column = text.split(" IN ")
    with duckdb.connect() as connection:
        connection.register("items", items)
        sql = frame.format(f"list_contains({column}, {value})")
        expected = [row[0] is True for row in connection.execute(f"SELECT {sql} FROM items").fetchall()]
    assert compile_filter(frame.format(text), items).tolist() == expected


def test_no_items_pass_no_filter() -> None:
    assert compile_filter("age_days > 3 AND language IN ('a', 'b')", ATTRIBUTES.slice(0, 0)).shape == (0,)


def test_a_table_in_pieces_is_read_whole() -> None:
    pieces = pa.concat_tables([ATTRIBUTES.slice(0, 4), ATTRIBUTES.slice(4)])
    assert compile_filter("rank > 1", pieces).tolist() == compile_filter("rank > 1", ATTRIBUTES).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lenght_s < 3", r"The filter cannot be used. filter reads `lenght_s`.*nearest: `length_s`"),
        ("(SELECT 1)", "The filter cannot be used. A query cannot be part of a rule"),
        ("read_text('/etc/passwd') = 'x'", r"The filter cannot be used. read_text\(…\) cannot be part of a rule"),
        ("length_s + 1", "The filter cannot be used. It has a number where a condition is needed"),
        ("", "The filter cannot be used. It is empty"),
        ("language > 3", r"'language > 3' does not fit the columns' types \(language is string\): language is string"),
        ("language", "language is string and cannot be read as BOOLEAN"),
        ("length_s = '3'", "length_s is double and cannot be read as"),
        (
            "'x' IN (tags)",
            "The filter cannot be used. .*Write IN with a list of numbers or texts; for a column of lists",
        ),
        ("'hi' IN language", "does not fit the columns' types .*language is string and holds no lists"),
        ("3 IN tags", "does not fit the columns' types .*tags is list"),
        ("liked LIKE 'a_'", "The filter cannot be used. LIKE 'a_' cannot be part of a rule. Write column LIKE 'a%'"),
        ("tags = 'x'", "tags is list<.*> and cannot be read as"),
        ("tags = language", "does not fit the columns' types .*tags is list"),
    ],
)
def test_an_invalid_filter_is_refused(text: str, message: str) -> None:
    items = ATTRIBUTES.append_column("tags", pa.array([["x"]] * 9))
    with pytest.raises(RequestError, match=message):
        compile_filter(text, items)


# --- the cache --------------------------------------------------------------------------------------------------------

ITEMS = 2000
CACHED = pa.table({"language": np.array(["hi", "ta", "te", "bn"])[np.arange(ITEMS) % 4], "age_days": np.arange(ITEMS)})
VECTORS = np.random.default_rng(0).standard_normal((ITEMS, 3), np.float32)


def test_a_filter_is_compiled_once_and_its_vectors_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_and_note(text: str, attributes: pa.Table) -> np.ndarray:
        compiled.append(text)
        return compile_filter(text, attributes)

    monkeypatch.setattr(module, "compile_filter", compile_and_note)
    filters = Filters(CACHED, VECTORS)
    first = filters.eligible("age_days < 7")
    assert filters.eligible("age_days < 7") is first
    assert compiled == ["age_days < 7"]
    assert np.flatnonzero(first.mask).tolist() == list(range(7))
    assert first.pool is not None
    assert first.pool.vectors is not None
    assert first.pool.vectors.tolist() == VECTORS[:7].tolist()
    assert filters.eligible("language <> 'hi'").pool is None  # three quarters: no list, no copy


def test_the_least_recently_used_filter_is_dropped_first() -> None:
    size = _entry_bytes("age_days = 0", Filters(CACHED).eligible("age_days = 0"))
    filters = Filters(CACHED, max_bytes=3 * size)
    for text in ("age_days = 0", "age_days = 1", "age_days = 2"):
        filters.eligible(text)
    kept, dropped = filters.eligible("age_days = 0"), filters.eligible("age_days = 1")
    filters.eligible("age_days = 0")
    filters.eligible("age_days = 3")  # one too many: 2 was used longest ago
    filters.eligible("age_days = 4")  # and now 1
    assert len(filters) == 3
    assert filters.eligible("age_days = 0") is kept
    assert filters.eligible("age_days = 1") is not dropped


def test_a_filter_larger_than_the_cache_is_compiled_and_not_cached() -> None:
    filters = Filters(CACHED, VECTORS, max_bytes=10)
    assert np.flatnonzero(filters.eligible("age_days < 3").mask).tolist() == [0, 1, 2]
    assert len(filters) == 0


def test_an_invalid_filter_is_refused_each_time_and_not_cached() -> None:
    filters = Filters(CACHED)
    for _ in range(2):
        with pytest.raises(RequestError, match=r"The filter cannot be used. .*nearest: `language`"):
            filters.eligible("lenguage = 'hi'")
    assert len(filters) == 0


def test_threads_share_the_filters() -> None:
    most = 3 * _entry_bytes("age_days < 6", Filters(CACHED, VECTORS).eligible("age_days < 6"))
    filters = Filters(CACHED, VECTORS, max_bytes=most)
    texts = [f"age_days < {number % 7}" for number in range(200)]
    with ThreadPoolExecutor(8) as threads:
        counts = [mask.count for mask in threads.map(filters.eligible, texts)]
    assert counts == [number % 7 for number in range(200)]
    assert filters._bytes == sum(_entry_bytes(text, mask) for text, mask in filters._masks.items()) <= most


def test_the_cache_counts_the_text_and_the_objects_of_an_entry() -> None:
    filters = Filters(CACHED, max_bytes=100_000)  # its bits alone would be some 100 bytes
    for number in range(200):
        filters.eligible(f"age_days < {number} AND language <> '{'x' * 1_000}'")
    assert 10 < len(filters) < 30


def test_a_condition_is_parsed_once_for_all_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_filter("age_days < 4711", CACHED)
    monkeypatch.setattr(module, "rule_tree", None)
    assert compile_filter("age_days < 4711", CACHED.slice(0, 3)).tolist() == [True] * 3
