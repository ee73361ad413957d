import pytest

from twofold.errors import RecipeError
from twofold.sql.rules import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_DOUBLED,
    check_columns,
    check_item_condition,
    check_rule,
    rule_columns,
    rule_sql,
)

HONEST = {
    "liked OR shared OR watch_fraction > 0.8": {"liked", "shared", "watch_fraction"},
    "long_view = 1 OR is_like = 1": {"long_view", "is_like"},
    "NOT liked AND watch_s / duration_s < .2": {"liked", "watch_s", "duration_s"},
    "tab IN (1, 2, -1) AND lang NOT IN ('en', 'de')": {"tab", "lang"},
    "x BETWEEN 1 AND 2 * y": {"x", "y"},
    "LEAST(SQRT(w), 8)": {"w"},
    "CASE WHEN liked AND shared THEN 2.5 WHEN liked THEN 1.5 ELSE 1 END": {"liked", "shared"},
    "COALESCE(x, 0) + GREATEST(x, y, 3) - ABS(-x) * LN(1 + y) / EXP(x) % POWER(2, 3)": {"x", "y"},
    "FLOOR(x + 0.5) = CEIL(y) OR NULLIF(x, 0) IS NULL OR liked IS NOT TRUE": {"x", "y", "liked"},
    "\"odd name\" = 'it''s'": {"odd name"},
    '"read_csv" > 1 AND "SELECT" <> "drop table x; --"': {"read_csv", "SELECT", "drop table x; --"},
    "user > at": {"user", "at"},
    " OR ".join(f"tag = 't{k}'" for k in range(50)): {"tag"},
}


@pytest.mark.parametrize("text", HONEST)
def test_honest_rules_pass_and_say_what_they_read(text: str) -> None:
    check_rule(text)
    assert rule_columns(text) == HONEST[text]


ATTACKS = [
    # files
    "read_csv('/etc/passwd')",
    "(SELECT content FROM read_text('/etc/passwd'))",
    "liked OR EXISTS (SELECT 1 FROM '/etc/passwd')",
    "x IN (SELECT y FROM 'other.parquet')",
    "x IN (FROM 'other.parquet')",
    "x = ANY (SELECT 1)",
    "x > ALL (SELECT 1)",
    "FROM 'file.csv'",
    "x IN 'file.csv'",
    "x IN read_text('a')",
    "x IN UNNEST([1])",
    "glob('*')",
    "parquet_scan('a')",
    "COPY log TO 'out.csv'",
    "ATTACH 'other.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "IMPORT DATABASE 'x'",
    "EXPORT DATABASE 'x'",
    "query('SELECT 1')",
    "query_table('secret')",
    "table_name.read_csv('x')",
    # settings
    "SET enable_external_access = true",
    "PRAGMA database_list",
    "getenv('HOME')",
    "current_setting('home_directory')",
    "getvariable('x')",
    "current_user",
    "current_date",
    "version()",
    "random()",
    # breakouts
    "liked; DROP TABLE log",
    "1; DROP TABLE log",
    "liked);DROP TABLE log;--",
    "liked) OR (SELECT 1",
    "liked -- OR shared",
    "liked /* OR shared */",
    "/*+ hint */ liked",
    "liked FROM log",
    "liked UNION SELECT 1",
    "liked ORDER BY 1",
    "liked AS x",
    "liked x",
    "liked, shared",
    "SELECT 1",
    "VALUES (1)",
    "WITH a AS (SELECT 1) SELECT * FROM a",
    "DELETE FROM log",
    "x = 'a' || (SELECT 'b')",
    "'it's'",
    "'open",
    '"open',
    "$$text$$ = x",
    "E'\\n' = x",
    # what is not a column, a constant or an allowed function
    "*",
    "COLUMNS(*)",
    "COLUMNS('li.*')",
    "COUNT(*)",
    "SUM(x)",
    "SUM(x) OVER ()",
    "LEAST(x, y) OVER (ORDER BY x)",
    "SQRT(x) FILTER (WHERE y)",
    "SQRT(DISTINCT x)",
    "COALESCE(x, y ORDER BY z)",
    "SQRT(x := 1)",
    "log.liked",
    "log.read.liked",
    "liked.x",
    "(liked).x",
    "x[1]",
    "x['a']",
    "[x for x in y]",
    "{'a': 1}",
    "{ : }",
    "IF",
    "IF x",
    "IIF(x, 1, 2)",
    "MAP {'a': 1}",
    "list_transform(y, x -> x + 1)",
    "list_transform(y, lambda x: x + 1)",
    "x -> x + 1",
    "x ->> 'a'",
    "(x, y)",
    "(1, 2) = (x, y)",
    "?",
    "$1",
    ":name",
    "#1",
    "CAST(x AS INT)",
    "x::INT",
    "TRY_CAST(x AS INT)",
    "DATE '2022-05-08'",
    "INTERVAL 1 DAY",
    "x AT TIME ZONE 'UTC'",
    "x COLLATE nocase = 'a'",
    "x LIKE y",
    "x LIKE 'a%b'",
    "x LIKE 'a_'",
    "x LIKE 'a\\%'",
    "x LIKE 'a%' ESCAPE '!'",
    "x LIKE ANY ('a%', 'b%')",
    "x ILIKE 'a%'",
    "'a' IN x",
    "x IN y",
    "UPPER(x) IN y",
    "'a' IN y.x",
    "'a' IN (y)",
    "x SIMILAR TO 'a'",
    "x // 2",
    "x & 1",
    "~x",
    "LOG(x)",
    "ROUND(x)",
    "FLOOR(x, 2)",
    "IF(x, 1, 2)",
    "CASE x WHEN 1 THEN 2 END",
    "x BETWEEN SYMMETRIC 1 AND 2",
    "x IN ()",
    "x IN (y)",
    "x IN (1, NULL)",
    "x IS y",
    "x IS DISTINCT FROM y",
    "x = NULL",
    "LEAST(x)",
    "SQRT()",
    "@",
    "-",
    "NOT",
    "CASE WHEN x THEN END",
    "",
    "   ",
    ";",
    "1e999 > x",
    "x > 1e",
    # what a reader sees is not what runs
    "liked\u202e OR shared",
    "liked\u00a0OR shared",
    "liked\u200b",
    "li\u0000ked",
    "liked\x1b[2K",
    "x = 'a\u2028b'",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks_are_refused_with_the_rule_beside_the_reason(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RecipeError, match=r"(?s)^.{10,} Rule: "):
        check_rule(text)
    assert not caplog.records  # the parser says nothing beside our message


@pytest.mark.parametrize(
    "text",
    [
        "(" * 900 + "x" + ")" * 900,
        "(" * 900,
        "NOT " * 490 + "x",
        "- " * 900 + "x",
        "[" * 1500,
        "{" * 1500,
        "CASE WHEN " * 150,
        "ABS(" * 400 + "x" + ")" * 400,
        "SQRT(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1),
        "x = " * 400 + "x",
        " OR ".join(["x"] * 300),
        "x" * (MAX_CHARACTERS + 1),
        "x IN (" + ", ".join(["1"] * 500) + ")",
    ],
)
def test_huge_rules_are_refused_by_a_message_not_by_a_crash(text: str) -> None:
    with pytest.raises(
        RecipeError, match=r"nested more than|more than 200 (parts|brackets)|characters; a rule|cannot be read"
    ):
        check_rule(text)


def test_nesting_does_not_multiply_the_text() -> None:
    nested = "SQRT(" * MAX_DOUBLED + "ABS(" * (MAX_DEPTH - 1 - MAX_DOUBLED) + "x" + ")" * (MAX_DEPTH - 1)
    assert len(rule_sql(nested)) < 2_000


@pytest.mark.parametrize(
    ("before", "after"), [("LEAST(1, ", ")"), ("SQRT(", ")"), ("NULLIF(", ", 2)"), ("1 / (", ")"), ("7 % (", ")")]
)
def test_what_an_engine_plans_twice_may_stand_eight_times_within_itself(before: str, after: str) -> None:
    rule_sql(before * MAX_DOUBLED + "x" + after * MAX_DOUBLED)
    with pytest.raises(RecipeError, match="More than 8 of LEAST, GREATEST, .* stand within each other. Split the rule"):
        check_rule(before * (MAX_DOUBLED + 1) + "x" + after * (MAX_DOUBLED + 1))


def test_a_chain_of_quotients_is_no_nesting() -> None:
    assert rule_sql(" / ".join(["x"] * (MAX_DEPTH - 2))).count("NULLIF") == MAX_DEPTH - 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CAST(x AS INT) > 1", r"CAST\(…\) cannot be part of a rule. Leave the cast out: a column is read as a number"),
        ("LOG(x) > 1", r"LOG\(…\) cannot be part of a rule. Write LN\(x\)"),
        ("read_csv('a')", r"READ_CSV\(…\) cannot be part of a rule. Allowed are columns; numbers"),
        ("getenv('a')", r"getenv\(…\) cannot be part of a rule. Allowed"),
        ("log.liked", r"A name with a dot cannot be part of a rule. Write the column's name alone"),
        ("x IN (SELECT 1)", r"IN without a list .* Write IN with a list of numbers or texts"),
        ("(SELECT 1)", r"A query cannot be part of a rule"),
        ("liked -- x", r"a SQL comment, which hides what follows once YAML joins lines"),
        ("a; b", r"a semicolon. A rule is one expression"),
        ("liked ANDD shared", r"cannot be read near `ANDD`"),
        ("x = 'a", r"left open"),
        ("x LIKE 'a%b'", r"LIKE 'a%b' cannot be part of a rule. Write column LIKE 'a%', '%a' or '%a%'"),
        ("x LIKE y", r"LIKE without a text cannot be part"),
        ("1 LIKE 'a'", r"a number where a text is needed"),
        ("'a' IN tags", r"reads a column of lists, which conditions on items alone can: filters, index.where, rerank"),
        ("tags IN other", r"IN without a list .* for a column of lists, 'text' IN column without brackets"),
        ("", r"It is empty. Write a condition such as"),
        ("liked\u202e", r"invisible character U\+202E. Delete it"),
        ("x = NULL", r"Write IS NULL"),
        ("x = 1 AND x > 'a' + 1", r"a text where a number is needed"),
        ("liked OR 1", r"a number where a condition is needed"),
        ("x > CASE WHEN liked THEN 'a' ELSE 1 END", r"mixes 'text' with a number"),
        ("x = 12345678901234567", r"above 2\^53, .* Quote it"),
        ("x > 1e400", r"not a number that fits a double"),
    ],
)
def test_refusals_say_what_to_write_instead(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_rule(text)


def test_a_rule_of_the_wrong_result_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"It has a number where a condition is needed. Rule: x \+ 1"):
        check_rule("x + 1", result="condition")
    with pytest.raises(RecipeError, match="It has a text where a number is needed"):
        check_rule("'a'", result="number")
    assert rule_sql("liked", result="number") == 'CAST("liked" AS DOUBLE)'
    assert rule_sql("x > 1", result="number") == 'CAST(CAST("x" AS DOUBLE) > 1.0e0 AS DOUBLE)'


def test_a_condition_on_items_may_read_lists() -> None:
    check_item_condition("'rock' IN tags AND NOT 3 IN years OR -1 NOT IN years")
    assert rule_columns("'rock' IN tags OR title LIKE 'a%'") == {"tags", "title"}
    for text in (
        "UPPER(x) IN tags",
        "x IN tags",
        "'a' IN log.tags",
        "'a' IN (SELECT 1)",
        "1 + 1 IN tags",
        "NULL IN tags",
    ):
        with pytest.raises(RecipeError, match="cannot be part of a rule"):
            check_item_condition(text)


def test_missing_columns_are_named_with_the_nearest() -> None:
    check_columns("liked AND watch_s > 3", ["liked", "watch_s"], field="prepare.positive")
    with pytest.raises(RecipeError) as refused:
        check_columns("Likd OR wach_s > 3 OR zzz", ["liked", "watch_s", "at"], field="prepare.positive")
    message = str(refused.value)
    assert message.startswith("prepare.positive reads ")
    assert "`Likd`, which does not exist (nearest: `liked`)" in message
    assert "`wach_s`, which does not exist (nearest: `watch_s`)" in message
    assert "`zzz`, which does not exist." in message
    assert "Available columns: at, liked, watch_s." in message


def test_names_keep_their_case() -> None:
    with pytest.raises(RecipeError, match=r"`LIKED`, which does not exist \(nearest: `liked`\)"):
        check_columns("LIKED", ["liked"], field="prepare.positive")
