"""Portable SQL expressions: rewrites a checked rule so that it means the same on every engine.

Engines disagree on `liked = 1`, on `0.8` beside a FLOAT, on integer overflow, on `x / 0` and on LN(0); on doubles and
on NULL they agree. The new tree differs from the rule as follows:

- every name is a quoted column, every number a double (`1` becomes `1.0e0`), every open operand is in parentheses;
- a column is cast to the type that its context needs: DOUBLE in arithmetic or beside a number, BOOLEAN in a condition,
  VARCHAR beside a text;
- `x / 0` and `x % 0`, LN(x) of x <= 0, SQRT(x) of x < 0 and POWER where it has no real value are NULL. Otherwise one
  engine raises where another returns infinity, and NaN counts as larger than every number;
- LEAST and GREATEST are NULL if an argument is NULL, as every other function is. The engines ignore NULL there, so that
  `LEAST(watch_s, 8)` would give 8, the largest value, to an unknown watch time.

`'text' IN column`, where the column holds lists, has no portable SQL: `arrow.py` evaluates it.

Still different: FLOOR and CEIL beyond 2^63 (Spark returns an integer), the last digit of EXP, LN and POWER.
"""

import math
from collections.abc import Collection
from typing import Final, Literal

from sqlglot import exp

from twofold.errors import RecipeError

Kind = Literal["number", "condition", "text"]

MAX_INTEGER: Final = 2**53  # beyond it two integers share one double
CHAINS: Final = (exp.And, exp.Or, exp.Add, exp.Mul)  # a + b + c is deep to the left in the tree and flat to a reader
_CASTS: Final = {"number": exp.DType.DOUBLE, "condition": exp.DType.BOOLEAN, "text": exp.DType.VARCHAR}
# No double lies between it and zero, so GREATEST(x, it) equals it exactly where x is negative or NULL.
_LARGEST_NEGATIVE: Final = -math.ulp(0.0)


def portable(node: exp.Expr, want: Kind | None) -> exp.Expr:
    """Returns a new tree that equals the checked `node` on every engine and is of kind `want`; raises RecipeError if it
    is of another kind.

    Where one of several branches is the value (CASE, COALESCE, NULLIF), each of them is cast.
    """
    match node:
        case exp.Paren():
            return portable(node.this, want)
        case exp.Case():
            want = want or _joint_kind(_branches(node))
            ifs = [
                exp.If(this=portable(b.this, "condition"), true=portable(b.args["true"], want))
                for b in node.args["ifs"]
            ]
            default = node.args.get("default")
            return exp.Case(ifs=ifs, default=portable(default, want) if default else None)
        case exp.Coalesce() | exp.Nullif():
            want = want or _joint_kind(_branches(node))
            first, *others = (portable(child, want) for child in node.iter_expressions())
            return (
                exp.Nullif(this=first, expression=others[0])
                if type(node) is exp.Nullif
                else exp.Coalesce(this=first, expressions=others)
            )
        case exp.Column():
            return _cast(exp.column(node.name, quoted=True), None, want)
        case exp.Literal() | exp.Boolean() | exp.Null():
            return _cast(_constant(node), kind_of(node), want)
        case _:
            kind = kind_of(node)
            return _cast(_condition(node) if kind == "condition" else _calculation(node), kind, want)


def like_pattern(pattern: str) -> tuple[str, bool, bool] | None:
    """Returns the text that a LIKE searches, and whether other text may stand before it and after it; `None` means
    that the pattern is of another kind.

    >>> like_pattern("ab%"), like_pattern("%a_b%")
    (('ab', False, True), None)
    """
    text = pattern.removeprefix("%").removesuffix("%")
    is_plain = not any(each in text for each in "%_\\")  # Spark reads a backslash as an escape
    return (text, pattern.startswith("%"), pattern.endswith("%")) if is_plain else None


def _number(node: exp.Expr) -> float:
    try:
        number = float(node.name)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(f"{node.name[:80]} is not a number that fits a double.")
    if number > MAX_INTEGER and number.is_integer() and node.name.isdecimal():
        raise RecipeError(
            f"{node.name} is above 2^53, where neighbors are the same double. Quote it to compare it as text."
        )
    return number


def kind_of(node: exp.Expr) -> Kind | None:
    """Returns the kind of an expression, or None where it depends on the type of a column."""
    match node:
        case exp.Column() | exp.Null():
            return None
        case exp.Literal():
            return "text" if node.is_string else "number"
        case exp.Paren():
            return kind_of(node.this)
        case exp.Case() | exp.Coalesce() | exp.Nullif():
            return _joint_kind(_branches(node))
        case exp.And() | exp.Or() | exp.Not() | exp.Is() | exp.In() | exp.Between() | exp.Boolean() | exp.Predicate():
            return "condition"
        case _:
            return "number"


def _branches(node: exp.Expr) -> list[exp.Expr]:
    """Returns the expressions of which one becomes the value of `node`, or is compared with it."""
    if type(node) is exp.Case:
        default = node.args.get("default")
        return [branch.args["true"] for branch in node.args["ifs"]] + ([default] if default else [])
    return list(node.iter_expressions())


def _joint_kind(nodes: Collection[exp.Expr]) -> Kind | None:
    """Returns the kind in which expressions are compared: TRUE is 1 beside a number; text only compares with text."""
    kinds = {kind_of(node) for node in nodes} - {None}
    if "text" in kinds and len(kinds) > 1:
        raise RecipeError(
            f"It mixes 'text' with a {' and a '.join(sorted(str(kind) for kind in kinds if kind != 'text'))}."
        )
    return "number" if "number" in kinds else next(iter(kinds), None)


def _cast(written: exp.Expr, kind: Kind | None, want: Kind | None) -> exp.Expr:
    if want is None or kind == want:
        return written
    if kind is not None and (kind, want) != ("condition", "number"):
        raise RecipeError(f"It has a {kind} where a {want} is needed.")
    return exp.Cast(this=written, to=exp.DataType(this=_CASTS[want]))  # to build one from its name parses the name


def double_sql(number: float) -> str:
    """Returns a number with an exponent, because without one engines read a DECIMAL.

    >>> double_sql(10.0), double_sql(1e-06)
    ('10.0e0', '1e-06')
    """
    text = repr(number)
    return text if "e" in text else f"{text}e0"


def _double(number: float) -> exp.Expr:
    return exp.Literal.number(double_sql(number))


def _constant(node: exp.Expr) -> exp.Expr:
    if type(node) is exp.Literal:
        return exp.Literal.string(node.name) if node.is_string else _double(_number(node))
    return exp.Boolean(this=node.this) if type(node) is exp.Boolean else exp.Null()


def _operand(node: exp.Expr, want: Kind | None) -> exp.Expr:
    """Writes an operand, in parentheses unless it is one word or one call: precedence differs between engines."""
    written = portable(node, want)
    is_open = isinstance(written, exp.Binary | exp.Unary | exp.Between | exp.In) and type(written) is not exp.Pow
    return exp.Paren(this=written) if is_open else written


def _links(node: exp.Expr, want: Kind) -> tuple[exp.Expr, exp.Expr]:
    """Writes both operands, the left one without parentheses in a chain, so that a OR b OR c stays flat."""
    is_chain = type(node.this) is type(node) and type(node) in CHAINS
    return portable(node.this, want) if is_chain else _operand(node.this, want), _operand(node.expression, want)


def _condition(node: exp.Expr) -> exp.Expr:
    match node:
        case exp.Not():
            return exp.Not(this=_operand(node.this, "condition"))
        case exp.And() | exp.Or():
            left, right = _links(node, "condition")
            return type(node)(this=left, expression=right)
        case exp.Is():
            want: Kind | None = "condition" if type(node.expression) is exp.Boolean else None
            return exp.Is(this=_operand(node.this, want), expression=_constant(node.expression))
        case exp.In() if node.args.get("field") is not None:
            column = exp.column(node.args["field"].name, quoted=True)
            return exp.In(this=portable(node.this, None), field=column)
        case exp.Like():
            pattern = exp.Literal.string(node.expression.name)
            like = exp.Like(this=_operand(node.this, "text"), expression=pattern)
            return exp.Not(this=exp.Paren(this=like)) if node.args.get("negate") else like
        case exp.In():
            kind = _joint_kind(_branches(node))
            return exp.In(
                this=_operand(node.this, kind), expressions=[portable(value, kind) for value in node.expressions]
            )
        case exp.Between():
            kind = _joint_kind(_branches(node))
            return exp.Between(**{name: _operand(node.args[name], kind) for name in ("this", "low", "high")})
        case _:
            kind = _joint_kind(_branches(node))
            return type(node)(this=_operand(node.this, kind), expression=_operand(node.expression, kind))


def _calculation(node: exp.Expr) -> exp.Expr:
    match node:
        case exp.Neg():
            return exp.Neg(this=_operand(node.this, "number"))
        case exp.Add() | exp.Sub() | exp.Mul():
            left, right = _links(node, "number")
            return type(node)(this=left, expression=right)
        case exp.Div() | exp.Mod():
            divisor = exp.Nullif(this=portable(node.expression, "number"), expression=_double(0.0))
            return type(node)(this=_operand(node.this, "number"), expression=divisor)
        case exp.Greatest():
            return _greatest([portable(child, "number") for child in node.iter_expressions()])
        case exp.Least():  # of the negatives, because NaN is above every number
            return exp.Neg(
                this=_greatest([exp.Neg(this=_operand(child, "number")) for child in node.iter_expressions()])
            )
        case exp.Pow():
            power = exp.Pow(this=portable(node.this, "number"), expression=portable(node.expression, "number"))
            return exp.Nullif(this=power, expression=_nan())
        case exp.Ln():
            return exp.Ln(this=_above(portable(node.this, "number"), _double(0.0)))
        case exp.Sqrt():
            return exp.Sqrt(this=_above(portable(node.this, "number"), exp.Neg(this=_double(-_LARGEST_NEGATIVE))))
        case exp.Floor() | exp.Ceil():  # Spark returns an integer
            return _cast(type(node)(this=portable(node.this, "number")), None, "number")
        case _:
            return type(node)(this=portable(node.this, "number"))


def _greatest(written: list[exp.Expr]) -> exp.Expr:
    """Returns the greatest argument, NULL if one is NULL. Names each argument once: a CASE would name it twice, and
    double the text at each nesting.
    """
    first, *others = (
        argument if argument.is_number else exp.Coalesce(this=argument, expressions=[_nan()]) for argument in written
    )
    return exp.Nullif(this=exp.Greatest(this=first, expressions=others, ignore_nulls=True), expression=_nan())


def _nan() -> exp.Expr:
    """Writes NaN, which is above every number and equals itself on every engine."""
    return _cast(exp.Literal.string("NaN"), None, "number")


def _above(written: exp.Expr, limit: exp.Expr) -> exp.Expr:
    """Returns NULL where not above the limit. Names its argument once: a CASE would double the text at each nesting."""
    return exp.Nullif(this=exp.Greatest(this=written, expressions=[limit], ignore_nulls=True), expression=limit.copy())
