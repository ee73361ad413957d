"""SQL rules of users: parses an expression into a checked tree, or raises an error that says what to write instead.

A rule is one expression over the columns of one event: `liked OR shared OR watch_fraction > 0.8`. This module is
the security boundary: a raw rule given to an engine can read files and settings. So the text never reaches an engine.
It is parsed as an expression, not a statement; every node must be of an allowed *exact* type with allowed arguments;
and the executed SQL is a new tree, written from the checked one node by node (`portable.py`).

Left out because engines differ silently: casts and LOG (measured), ROUND and integer division (by their manuals).
"""

import difflib
from collections.abc import Collection, Iterator
from typing import Final, Literal

from sqlglot import Dialect, ErrorLevel, Token, TokenType, exp
from sqlglot.errors import ParseError, SqlglotError

from twofold.errors import RecipeError
from twofold.sql.portable import CHAINS, Kind, kind_of, like_pattern, portable

# A label rule of the field has 10 to 60 nodes. The limits keep parser and writer far from Python's recursion limit.
MAX_CHARACTERS: Final = 2_000
MAX_NODES: Final = 200
MAX_DEPTH: Final = 30
MAX_DOUBLED: Final = 8
"""Largest number of functions within each other whose argument DuckDB plans twice: NULLIF, and what is written with it.
Each doubles the time: eight take a quarter of a second, ten more than a second.
"""

_ARITHMETIC: Final = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod)
_COMPARISONS: Final = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE)

# Every type a rule may hold, with the arguments that may be set on it. Exact types: a subclass is another thing.
_ALLOWED: Final[dict[type[exp.Expr], frozenset[str]]] = {
    exp.Column: frozenset({"this"}),
    exp.Identifier: frozenset({"this", "quoted"}),
    exp.Literal: frozenset({"this", "is_string"}),
    **dict.fromkeys((exp.Boolean, exp.Paren, exp.Neg, exp.Not), frozenset({"this"})),
    **dict.fromkeys((exp.Abs, exp.Sqrt, exp.Ln, exp.Exp, exp.Floor, exp.Ceil), frozenset({"this"})),
    **dict.fromkeys((*_ARITHMETIC, *_COMPARISONS, exp.And, exp.Or), frozenset({"this", "expression"})),
    **dict.fromkeys((exp.Is, exp.Pow, exp.Nullif), frozenset({"this", "expression"})),
    exp.Coalesce: frozenset({"this", "expressions"}),
    exp.In: frozenset({"this", "expressions", "field"}),
    exp.Like: frozenset({"this", "expression", "negate"}),
    **dict.fromkeys((exp.Least, exp.Greatest), frozenset({"this", "expressions", "ignore_nulls"})),
    exp.Null: frozenset(),
    exp.Between: frozenset({"this", "low", "high"}),
    exp.Case: frozenset({"ifs", "default"}),
    exp.If: frozenset({"this", "true"}),
}
_SUMMARY: Final = (
    "Allowed are columns; numbers, 'text', TRUE, FALSE, NULL; + - * / %; = <> < <= > >=; AND, OR, NOT, BETWEEN, "
    "IN (list), 'text' IN list_column, LIKE 'a%', '%a' or '%a%', IS NULL, IS TRUE; CASE WHEN; COALESCE, NULLIF, LEAST, "
    "GREATEST, ABS, SQRT, LN, EXP, POWER, FLOOR, CEIL."
)
_INSTEAD: Final[dict[type[exp.Expr], str]] = {
    **dict.fromkeys(
        (exp.Cast, exp.TryCast),
        "Leave the cast out: a column is read as a number wherever one is needed. For numbers such as 13,27 in a "
        "CSV file, write data.decimal_comma: [events].",
    ),
    exp.Log: "Write LN(x): engines disagree on the base of LOG.",
    exp.Round: "Write FLOOR(x + 0.5): engines disagree on ROUND.",
    exp.Like: "Write column LIKE 'a%', '%a' or '%a%': % at the ends alone, and neither _ nor a backslash.",
    exp.If: "Write CASE WHEN condition THEN a ELSE b END.",
    exp.Case: "Write CASE WHEN column = value THEN … END.",
    exp.Column: "Write the column's name alone, without a table.",
    exp.In: "Write IN with a list of numbers or texts; for a column of lists, 'text' IN column without brackets.",
}
_OPENING: Final = (TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE)


def check_rule(text: str, *, result: Kind | None = None) -> None:
    """Raises RecipeError, with what to write instead, unless the text is one allowed expression.

    `result` is the kind of the whole rule; a rule whose kind depends on a column's type passes.
    """
    rule_sql(text, result=result)


def check_item_condition(text: str) -> None:
    """Raises RecipeError, with what to write instead, unless the text is a condition on items."""
    rule_tree(text, result="condition")


def rule_columns(text: str) -> frozenset[str]:
    """Returns the names of the columns that a rule reads."""
    try:
        return frozenset(column.name for column in _checked(text).find_all(exp.Column))
    except RecipeError as reason:
        raise _beside(text, reason) from None


def listed_columns(text: str) -> dict[str, Kind | None]:
    """Returns the columns that a rule reads as lists, each with the kind of a value that it looks for there.

    >>> listed_columns("'rock' IN tags AND 3 IN (1, 3)")
    {'tags': 'text'}
    """
    found = (node for node in rule_tree(text).find_all(exp.In) if node.args.get("field") is not None)
    return {node.args["field"].name: kind_of(node.this) for node in found}


def columns_read_as(kind: Literal["condition", "number"], text: str, *, result: Kind | None = None) -> frozenset[str]:
    """Returns the columns that a rule reads as conditions, or as numbers.

    >>> sorted(columns_read_as("condition", "liked OR shared IS TRUE OR watch_s > 3"))
    ['liked', 'shared']
    """
    wanted = exp.DType.BOOLEAN if kind == "condition" else exp.DType.DOUBLE
    casts = rule_tree(text, result=result).find_all(exp.Cast)
    return frozenset(cast.this.name for cast in casts if type(cast.this) is exp.Column and cast.to.this is wanted)


def texts_beside(text: str, *, result: Kind | None = None) -> dict[str, list[str]]:
    """Returns the columns that a rule compares with texts, and these texts.

    >>> texts_beside("lang IN ('hi', 'en') AND watch_s > 3")
    {'lang': ['hi', 'en']}
    """
    found: dict[str, list[str]] = {}
    for cast in rule_tree(text, result=result).find_all(exp.Cast):
        if type(cast.this) is exp.Column and cast.to.this is exp.DType.VARCHAR and cast.parent is not None:
            beside = [each.name for each in cast.parent.iter_expressions() if type(each) is exp.Literal]
            found.setdefault(cast.this.name, []).extend(beside)
    return found


def check_columns(text: str, columns: Collection[str], *, field: str) -> None:
    """Raises RecipeError if a rule reads other columns, with the field, the missing names and similar ones."""
    missing = sorted(rule_columns(text) - set(columns))
    if missing:
        raise RecipeError(
            f"{field} reads {' and '.join(_nearest(name, columns) for name in missing)}. "
            f"{_text_hint(text, missing, columns)}Rule: {text}. Available columns: {', '.join(sorted(columns))}."
        )


def _text_hint(text: str, missing: Collection[str], columns: Collection[str]) -> str:
    """Returns what to write if a missing name is compared with a column, as in event = purchase; else nothing."""
    for comparison in _checked(text).find_all(exp.EQ, exp.NEQ):
        column, value = comparison.this, comparison.expression
        is_name = type(value) is exp.Column and type(column) is exp.Column
        if is_name and value.name in missing and column.name in columns:
            quoted = f"{column.sql(dialect='duckdb')} = '{value.name}'"
            return f"If {value.name} is a text, write it in single quotes: {quoted}. "
    return ""


def rule_sql(text: str, dialect: str = "duckdb", *, result: Kind | None = None) -> str:
    """Returns the rule as canonical SQL of an engine, cast to `result`; raises RecipeError if it is not allowed.

    >>> rule_sql("liked OR watch_s / duration_s > 0.8")
    'CAST("liked" AS BOOLEAN) OR ((CAST("watch_s" AS DOUBLE) / NULLIF(CAST("duration_s" AS DOUBLE), 0.0e0)) > 0.8e0)'
    """
    tree = rule_tree(text, result=result)
    if any(node.args.get("field") is not None for node in tree.find_all(exp.In)):
        raise _beside(
            text,
            RecipeError(
                "It reads a column of lists, which conditions on items alone can: filters, "
                "index.where, rerank and sources of candidates."
            ),
        )
    return tree.sql(dialect=dialect, copy=False, comments=False, unsupported_level=ErrorLevel.RAISE)


def rule_tree(text: str, *, result: Kind | None = None) -> exp.Expr:
    """Returns the checked and rewritten tree that `rule_sql` writes, for callers without a SQL engine."""
    try:
        return portable(_checked(text), result)
    except RecipeError as reason:
        raise _beside(text, reason) from None


def _beside(text: str, reason: RecipeError) -> RecipeError:
    return RecipeError(f"{reason} Rule: {_shortened(text)}")


def nearest_names(name: str, names: Collection[str]) -> list[str]:
    """Returns up to three names that resemble one that does not exist, ignoring case; the most similar first."""
    by_lower = {each.lower(): each for each in names}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3)]


def _nearest(name: str, columns: Collection[str]) -> str:
    near = nearest_names(name, columns)
    hint = f" (nearest: {', '.join(f'`{column}`' for column in near)})" if near else ""
    return f"`{name}`, which does not exist{hint}"


def _shortened(text: str) -> str:
    shown = "".join(character if character.isprintable() else " " for character in text[:200])
    return shown if len(text) <= 200 else f"{shown}… ({len(text):,} characters)"


# --- text → checked tree ----------------------------------------------------------------------------------------------


def _checked(text: str) -> exp.Expr:
    """Parses a rule and checks that every node is allowed."""
    tree = _parsed(text)
    for node, depth in _nodes(tree):
        if depth > MAX_DEPTH:
            raise RecipeError(f"It is nested more than {MAX_DEPTH} deep. Split it, or use IN or LEAST.")
        _check_node(node)
    _check_doubled(tree)
    return tree


def _parsed(text: str) -> exp.Expr:
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"It has {len(text):,} characters; a rule may have {MAX_CHARACTERS:,}.")
    for character in text:
        # Control and bidirectional characters, and spaces that are not spaces, make a rule look unlike what it does.
        if not (character.isprintable() or character in "\n\r\t"):
            raise RecipeError(f"It holds the invisible character U+{ord(character):04X}. Delete it.")
    dialect = Dialect.get_or_raise("duckdb")
    try:
        tokens = dialect.tokenize(text)
        _check_tokens(tokens)
        trees = dialect.parser().parse_into(exp.Condition, tokens, text)
    except RecipeError:
        raise
    except RecursionError:
        raise RecipeError(f"It is nested more than {MAX_DEPTH} deep.") from None
    except ParseError as error:
        where = error.errors[-1] if error.errors else {}
        near = _shortened(str(where.get("highlight") or text))
        raise RecipeError(f"It is not one SQL expression: it cannot be read near `{near}`. {_SUMMARY}") from None
    except SqlglotError:
        raise RecipeError("It is not SQL: a quotation mark or a bracket is left open.") from None
    except Exception as error:  # found by fuzzing: on `{ : }` the parser itself has an AttributeError
        raise RecipeError(f"It is not SQL: the parser gave up ({type(error).__name__}). {_SUMMARY}") from None
    if len(trees) != 1 or trees[0] is None:
        raise RecipeError("It is empty. Write a condition such as liked OR watch_fraction > 0.8.")
    return trees[0]


def _check_tokens(tokens: list[Token]) -> None:
    """Rejects, before parsing, tokens that must not reach the parser or that parsing would remove."""
    if any(token.comments for token in tokens):
        raise RecipeError(
            "It holds a SQL comment, which hides what follows once YAML joins lines. Write # comments in YAML."
        )
    if any(token.token_type is TokenType.SEMICOLON for token in tokens):
        raise RecipeError("It holds a semicolon. A rule is one expression, not statements.")
    if sum(token.token_type in _OPENING for token in tokens) > MAX_NODES:  # a compiled parser has no recursion limit
        raise RecipeError(f"It has more than {MAX_NODES} brackets.")
    if any(
        token.token_type is TokenType.VAR and token.text.upper() == "IF" for token in tokens
    ):  # parsed as a statement
        raise RecipeError(f"IF cannot be part of a rule. {_INSTEAD[exp.If]}")


def _nodes(tree: exp.Expr) -> Iterator[tuple[exp.Expr, int]]:
    """Yields every node with its depth, without recursion. Links of a chain such as a OR b OR c add no depth."""
    stack, count = [(tree, 1)], 0
    while stack:
        node, depth = stack.pop()
        count += type(node) is not exp.Identifier
        if count > MAX_NODES:
            raise RecipeError(f"It has more than {MAX_NODES} parts.")
        yield node, depth
        for child in node.iter_expressions():
            is_link = type(child) is type(node) and type(node) in CHAINS
            stack.append((child, depth + (not is_link and type(child) is not exp.Identifier)))


_DOUBLING: Final = (exp.Least, exp.Greatest, exp.Ln, exp.Sqrt, exp.Pow, exp.Nullif)


def _check_doubled(tree: exp.Expr) -> None:
    stack = [(tree, 0)]
    while stack:
        node, doubled = stack.pop()
        if doubled > MAX_DOUBLED:
            raise RecipeError(
                f"More than {MAX_DOUBLED} of LEAST, GREATEST, LN, SQRT, POWER, NULLIF and divisors stand within each "
                f"other. Split the rule, or give LEAST all its arguments at once."
            )
        for child in node.iter_expressions():
            is_divisor = isinstance(node, exp.Div | exp.Mod) and child is node.expression
            stack.append((child, doubled + (is_divisor or isinstance(node, _DOUBLING))))


def _check_node(node: exp.Expr) -> None:
    allowed = _ALLOWED.get(type(node))
    set_args = {name for name, value in node.args.items() if value not in (None, False, [])}
    is_stray_if = type(node) is exp.If and type(node.parent) is not exp.Case
    if allowed is None or not set_args <= allowed or is_stray_if:
        raise RecipeError(f"{_describe(node)} cannot be part of a rule. {_INSTEAD.get(type(node), _SUMMARY)}")
    if any(is_needed and node.args.get(name) is None for name, is_needed in node.arg_types.items()):
        raise RecipeError(f"{_describe(node)} lacks what it applies to.")  # the parser reads a lone @ as ABS()
    match node:
        case exp.Column() if type(node.this) is not exp.Identifier:
            raise RecipeError(f"{_describe(node)} is not a column's name.")
        case exp.In() if type(node.args.get("field")) is exp.Column and not node.expressions and _is_literal(node.this):
            pass
        case exp.In() if (
            node.args.get("field") is not None
            or not node.expressions
            or not all(_is_literal(value) for value in node.expressions)
        ):
            raise RecipeError(f"{_describe(node)} of constants cannot be part of a rule. {_INSTEAD[exp.In]}")
        case exp.Like() if type(node.expression) is not exp.Literal or not node.expression.is_string:
            raise RecipeError(f"LIKE without a text cannot be part of a rule. {_INSTEAD[exp.Like]}")
        case exp.Like() if like_pattern(node.expression.name) is None:
            raise RecipeError(
                f"LIKE '{_shortened(node.expression.name)}' cannot be part of a rule. {_INSTEAD[exp.Like]}"
            )
        case exp.Is() if type(node.expression) not in (exp.Null, exp.Boolean):
            raise RecipeError("IS needs NULL, TRUE or FALSE after it. Write = to compare.")
        case exp.Binary() if isinstance(node, _COMPARISONS) and exp.Null in (type(node.this), type(node.expression)):
            raise RecipeError("A comparison with NULL is never true. Write IS NULL or IS NOT NULL.")
        case exp.Least() | exp.Greatest() | exp.Coalesce() if not node.expressions:
            raise RecipeError(f"{_describe(node)} needs at least two arguments.")


def _describe(node: exp.Expr) -> str:
    """Names a node for a message. An unchecked tree is never turned into text, so this is not its SQL."""
    match node:
        case exp.Anonymous():
            return f"{_shortened(node.name)}(…)"
        case exp.Case():
            return "CASE value WHEN"
        case exp.Column() | exp.Dot():
            return "A name with a dot"
        case exp.In():
            return "IN without a list"
        case exp.Query() | exp.Subquery() | exp.Exists():
            return "A query"
        case exp.Func():
            return f"{type(node).sql_name()}(…)"
        case _:
            return type(node).__name__


def _is_literal(node: exp.Expr) -> bool:
    return type(node) in (exp.Literal, exp.Boolean) or (type(node) is exp.Neg and type(node.this) is exp.Literal)
