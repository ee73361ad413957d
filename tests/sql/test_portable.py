import contextlib
import math
import random
from collections.abc import Iterator

import duckdb
import pytest
import sqlglot
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlglot import exp

from twofold.errors import RecipeError
from twofold.sql.rules import rule_columns, rule_sql

# --- meaning ----------------------------------------------------------------------------------------------------------

COLUMNS = {
    "i": ("INTEGER", 7),
    "big": ("BIGINT", 9_000_000_000),
    "d": ("DOUBLE", -2.5),
    "f": ("FLOAT", 0.8),
    "yes": ("BOOLEAN", True),
    "no": ("BOOLEAN", False),
    "one": ("INTEGER", 1),
    "zero": ("INTEGER", 0),
    "t": ("VARCHAR", "it's"),
    "n": ("DOUBLE", None),
    "top": ("INTEGER", 2**31 - 1),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect(
        config={"enable_external_access": "false", "lock_configuration": "true", "threads": "1"}
    )
    connection.execute(f"CREATE TABLE log ({', '.join(f'{name} {kind}' for name, (kind, _) in COLUMNS.items())})")
    connection.execute(
        f"INSERT INTO log VALUES ({', '.join('?' * len(COLUMNS))})", [value for _, value in COLUMNS.values()]
    )
    yield connection
    connection.close()


def answer(engine: duckdb.DuckDBPyConnection, text: str) -> object:
    row = engine.execute(f"SELECT {rule_sql(text)} FROM log").fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("i / 2", 7 / 2),
        ("i / zero", None),
        ("i % zero", None),
        ("-i % 2", math.fmod(-7, 2)),
        ("SQRT(d)", None),
        ("SQRT(zero)", 0.0),
        ("SQRT(n)", None),
        ("SQRT(0.25)", 0.5),
        ("SQRT(-5e-324)", None),
        ("LN(zero)", None),
        ("LN(d)", None),
        ("LN(EXP(2))", math.log(math.exp(2))),
        ("POWER(d, 0.5)", None),
        ("POWER(d, 2)", 2.5**2),
        ("EXP(1000) > big", True),
        ("top + top", 2 * (2**31 - 1)),
        ("top * top > 0", True),
        ("f > 0.8", True),  # 0.8 as FLOAT lies above 0.8: said the same by every engine once both are doubles
        ("yes + one >= 2", True),
        ("yes = 1", True),
        ("one = TRUE", True),
        ("one AND NOT zero", True),
        ("(i > 3) + (i > 5) + no", 2),
        ("t = 'it''s'", True),
        ("i = '7'", True),
        ("i IN (1, 7) AND t NOT IN ('a')", True),
        ("n IS NULL AND d IS NOT NULL", True),
        ("n > 1", None),
        ("t LIKE 'it%' AND t LIKE '%''s' AND t LIKE '%t''%' AND t LIKE '%' AND t LIKE 'it''s'", True),
        ("t LIKE 's%' OR t LIKE '%it' OR t LIKE 'IT%' OR t LIKE 't'", False),
        ("t NOT LIKE 'it%'", False),
        ("n LIKE '%'", None),
        ("i LIKE '7'", True),
        ("n > 1 IS TRUE", False),
        ("NOT yes = no", True),
        ("1 - 2 - 3", 1 - 2 - 3),
        ("1 - (2 - 3)", 1 - (2 - 3)),
        ("8 / 4 / 2", 8 / 4 / 2),
        ("8 / (4 / 2)", 8 / (4 / 2)),
        ("2 + 3 * 4 - -1", 2 + 3 * 4 - -1),
        ("yes OR no AND no", True),
        ("(yes OR no) AND no", False),
        ("LEAST(SQRT(i * i * 100), 8)", 8),
        ("GREATEST(d, i, -3)", 7),
        ("LEAST(d, i, -3)", -3),
        ("LEAST(i, 7, big)", 7),
        ("GREATEST(n, d, -3)", None),
        ("GREATEST(d, -3, n)", None),
        ("LEAST(n, 8)", None),
        ("LEAST(8, n)", None),
        ("LEAST(GREATEST(n, -3), 3)", None),
        ("LEAST(GREATEST(d, -1), 3)", -1),
        ("LEAST(1 - 3, -(2 - 5))", -2),
        ("COALESCE(LEAST(n, 8), 0)", 0),
        ("LEAST(yes, no)", 0),
        ("LEAST(NULL, 8) IS NULL", True),
        ("GREATEST(i, zero) / LEAST(i, zero)", None),
        ("COALESCE(n, i)", 7),
        ("COALESCE(n, yes) + 1", 2),
        ("NULLIF(i, 7)", None),
        ("FLOOR(d) + CEIL(d)", -3 + -2),
        ("CASE WHEN no THEN 1 WHEN one THEN 1.5 END", 1.5),
        ("CASE WHEN no THEN 1 END", None),
        ("CASE WHEN yes THEN no ELSE yes END OR no", False),
        ("d BETWEEN -3 AND -2 AND i NOT BETWEEN 1 AND 2", True),
    ],
)
def test_meaning(engine: duckdb.DuckDBPyConnection, text: str, expected: object) -> None:
    assert answer(engine, text) == expected


def test_the_sql_of_nested_minima_names_each_column_once() -> None:
    written = rule_sql("LEAST(GREATEST(" * 4 + "watch_s" + ", -3), 3)" * 4)
    assert written.count('"watch_s"') == 1
    assert len(written) < 5_000


# --- fuzz -------------------------------------------------------------------------------------------------------------

WRITTEN = {
    *(exp.Column, exp.Identifier, exp.Literal, exp.Boolean, exp.Null, exp.Paren, exp.Neg, exp.Not, exp.And, exp.Or),
    *(exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.Is, exp.In),
    *(exp.Between, exp.Case, exp.If, exp.Coalesce, exp.Nullif, exp.Least, exp.Greatest, exp.Abs, exp.Sqrt, exp.Ln),
    *(exp.Exp, exp.Floor, exp.Ceil, exp.Pow, exp.Cast, exp.TryCast, exp.DataType),  # Spark's CAST is read as TRY_CAST
}


def assert_refused_or_harmless(engine: duckdb.DuckDBPyConnection, text: str) -> bool:
    """Returns whether the rule was accepted; asserts that an accepted rule holds allowed nodes alone and runs."""
    try:
        written = {dialect: rule_sql(text, dialect) for dialect in ("duckdb", "spark")}
    except RecipeError:
        return False
    trees = {dialect: sqlglot.parse(sql, read=dialect) for dialect, sql in written.items()}
    for (tree,) in trees.values():
        assert tree is not None
        assert {type(node) for node in tree.walk()} <= WRITTEN
        assert not any(column.table for column in tree.find_all(exp.Column))
        assert {column.name for column in tree.find_all(exp.Column)} == rule_columns(text)
    literals = [sorted(str(leaf.this) for leaf in tree.find_all(exp.Literal)) for (tree,) in trees.values() if tree]
    assert literals[0] == literals[1]
    if rule_columns(text) <= set(COLUMNS):
        # The types of the columns are the engine's to refuse: t, a text, where a number is needed.
        with contextlib.suppress(duckdb.ConversionException, duckdb.BinderException):
            engine.execute(f"SELECT {written['duckdb']} FROM log").fetchall()
    return True


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(text=st.text(max_size=60))
@example(text="\\' OR 1=1 --")
def test_fuzz_any_text(engine: duckdb.DuckDBPyConnection, text: str) -> None:
    assert_refused_or_harmless(engine, text)
    quoted = text.replace("'", "''")
    assert_refused_or_harmless(engine, f"t = '{quoted}'")
    column = text.replace('"', '""')
    assert_refused_or_harmless(engine, f'"{column}" = 1')


def expressions() -> st.SearchStrategy[str]:
    leaves = st.sampled_from([*COLUMNS, "1", "0.5", "-2", "1e3", "'a'", "TRUE", "NULL"])

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        operators = ["+", "-", "*", "/", "%", "=", "<>", "<", ">=", "AND", "OR"]
        return st.one_of(
            st.builds("({} {} {})".format, inner, st.sampled_from(operators), inner),
            st.builds("{} {} {}".format, inner, st.sampled_from(operators), inner),
            st.builds(
                "{}({})".format, st.sampled_from(["SQRT", "LN", "EXP", "ABS", "FLOOR", "CEIL", "-", "NOT "]), inner
            ),
            st.builds("{}({}, {})".format, st.sampled_from(["LEAST", "COALESCE", "NULLIF", "POWER"]), inner, inner),
            st.builds("CASE WHEN {} THEN {} ELSE {} END".format, inner, inner, inner),
            st.builds("{} BETWEEN {} AND {}".format, inner, inner, inner),
            st.builds("{} IN (1, 2)".format, inner),
            st.builds("{} IS NULL".format, inner),
        )

    return st.recursive(leaves, grow, max_leaves=12)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(text=expressions())
def test_fuzz_grammar_runs_or_is_refused(engine: duckdb.DuckDBPyConnection, text: str) -> None:
    assert_refused_or_harmless(engine, text)


PIECES = [
    "(SELECT 1)",
    "read_csv('a')",
    ";",
    "--",
    "/*",
    "*/",
    "'",
    '"',
    "[",
    "]",
    ".",
    "::INT",
    ",",
    "->",
    "*",
    "\\",
    "$$",
]


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(text=expressions(), pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=3), seed=st.integers(0, 2**32))
def test_fuzz_mutations(engine: duckdb.DuckDBPyConnection, text: str, pieces: list[str], seed: int) -> None:
    chance = random.Random(seed)
    for piece in pieces:
        at = chance.randrange(len(text) + 1)
        text = text[:at] + piece + text[at:]
    assert_refused_or_harmless(engine, text)
