"""Predicate over item attributes → bitmask: which items a request may be answered with, decided before the search.

A filter is a rule of the recipe's SQL subset (`twofold/sql/rules.py`): `language = 'hi' AND age_days < 30`. What is
evaluated here is the same portable tree that preparation gives to its engine, with Arrow in the engine's place, so that
a server needs no engine; the tests compare both row by row. An item is eligible where the filter is true: neither false
nor NULL.

What this does not do: read list columns (tags). Store what you filter by as a column of its own.
"""

from collections.abc import Iterable
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool
from sqlglot import exp

from twofold.errors import RecipeError, RequestError
from twofold.sql.rules import check_columns, rule_tree


def compile_filter(text: str, attributes: pa.Table) -> Bool[np.ndarray, "items"]:
    """True at the rows of `attributes` where the SQL condition holds; RequestError if it is none or does not fit them.

    >>> items = pa.table({"language": ["hi", "ta", None, "hi"], "age_days": [3, 3, 3, 99]})
    >>> compile_filter("language = 'hi' AND age_days < 30", items).tolist()
    [True, False, False, False]

    NULL is not eligible, and stays so when it is negated:

    >>> compile_filter("NOT language = 'hi'", items).tolist()
    [False, True, False, False]
    >>> compile_filter("language IS NULL OR language IN ('ta', 'te')", items).tolist()
    [False, True, True, False]

    The way out, where NULL shall count as something:

    >>> compile_filter("COALESCE(language, 'ta') = 'ta'", items).tolist()
    [False, True, True, False]
    """
    try:
        tree = rule_tree(text, result="condition")
        check_columns(text, attributes.column_names, field="filter")
    except RecipeError as error:
        raise RequestError(f"The filter cannot be used. {error}") from None
    try:
        holds = _evaluate(tree, attributes)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        types = ", ".join(f"{name} is {attributes.schema.field(name).type}" for name in sorted(_columns(tree)))
        raise RequestError(
            f"The filter {text!r} does not fit the columns' types ({types}): {str(error).splitlines()[0]}. "
            f"Compare numbers with numbers and text with 'text'."
        ) from None
    return np.asarray(pc.fill_null(holds, False))


def _columns(tree: exp.Expr) -> set[str]:
    return {column.name for column in tree.find_all(exp.Column)}


def _evaluate(node: exp.Expr, items: pa.Table) -> pa.Array:
    """The value of an expression at every item: a boolean, double or string array, or a column as it is stored."""
    match node:
        case exp.Paren():
            return _evaluate(node.this, items)
        case exp.Column():
            return _stored(items[node.name].combine_chunks())
        case exp.Null():
            return pa.nulls(len(items))
        case exp.Boolean():
            return pa.repeat(pa.scalar(bool(node.this)), len(items))
        case exp.Literal():
            return pa.repeat(pa.scalar(node.name if node.is_string else float(node.name)), len(items))
        case exp.Cast():
            return _cast(_evaluate(node.this, items), node)
        case exp.Case():
            return _case(node, items)
        case exp.Is() if isinstance(node.expression, exp.Null):
            return pc.is_null(_evaluate(node.this, items))
        case exp.Is():
            # IS TRUE and IS FALSE: never NULL.
            return pc.equal(pc.fill_null(_evaluate(node.this, items), not node.expression.this), node.expression.this)
    parts = [_evaluate(child, items) for child in node.iter_expressions()]
    return (
        _logic(node, parts) if isinstance(node, exp.Predicate | exp.Connector | exp.Not) else _calculation(node, parts)
    )


def _logic(node: exp.Expr, parts: list[pa.Array]) -> pa.Array:
    match node:
        case exp.And():
            return pc.and_kleene(*parts)
        case exp.Or():
            return pc.or_kleene(*parts)
        case exp.Not():
            return pc.invert(*parts)
        case exp.EQ():
            return _equal(*parts)
        case exp.NEQ():
            return pc.invert(_equal(*parts))
        case exp.LT():
            return _less(*parts)
        case exp.GT():
            return _less(*reversed(parts))
        case exp.LTE():
            return pc.invert(_less(*reversed(parts)))
        case exp.GTE():
            return pc.invert(_less(*parts))
        case exp.Between():
            value, low, high = parts
            return pc.and_kleene(pc.invert(_less(value, low)), pc.invert(_less(high, value)))
        case exp.In():
            value, *options = parts
            return reduce(pc.or_kleene, (_equal(value, option) for option in options))
    raise AssertionError(f"the rules let {type(node).__name__} through, which filters do not know")


def _calculation(node: exp.Expr, parts: list[pa.Array]) -> pa.Array:
    match node:
        case exp.Neg():
            return pc.negate(*parts)
        case exp.Add():
            return pc.add(*parts)
        case exp.Sub():
            return pc.subtract(*parts)
        case exp.Mul():
            return pc.multiply(*parts)
        case exp.Div():
            return pc.divide(*parts)
        case exp.Mod():
            return _remainder(*parts)
        case exp.Pow():
            return pc.power(*parts)
        case exp.Abs():
            return pc.abs(*parts)
        case exp.Sqrt():
            return pc.sqrt(*parts)
        case exp.Ln():
            return pc.ln(*parts)
        case exp.Exp():
            return pc.exp(*parts)
        case exp.Floor():
            return pc.floor(*parts)
        case exp.Ceil():
            return pc.ceil(*parts)
        case exp.Coalesce():
            return pc.coalesce(*parts)
        case exp.Nullif():
            value, unwanted = parts
            return pc.if_else(pc.fill_null(_equal(value, unwanted), False), None, value)
        case exp.Greatest():
            return reduce(lambda left, right: _chosen(_less(left, right), left, right), parts)
        case exp.Least():
            return reduce(lambda left, right: _chosen(_less(right, left), left, right), parts)
    raise AssertionError(f"the rules let {type(node).__name__} through, which filters do not know")


def _case(node: exp.Case, items: pa.Table) -> pa.Array:
    default = node.args.get("default")
    value = pa.nulls(len(items)) if default is None else _evaluate(default, items)
    for branch in reversed(node.args["ifs"]):
        holds = pc.fill_null(_evaluate(branch.this, items), False)
        value = pc.if_else(holds, _evaluate(branch.args["true"], items), value)
    return value


# --- where Arrow and SQL differ ---------------------------------------------------------------------------------------


def _stored(column: pa.Array) -> pa.Array:
    """Arrow refuses to compare a large integer with a float of 32 bits."""
    return column.cast(pa.float64()) if pa.types.is_floating(column.type) else column


def _less(left: pa.Array, right: pa.Array) -> pa.Array:
    """SQL orders NaN above every number; Arrow does not order it at all."""
    less = pc.less(left, right)
    if not _are_floats((left, right)):
        return less
    return pc.or_(less, pc.and_(_is_nan(right), pc.invert(_is_nan(left))))


def _equal(left: pa.Array, right: pa.Array) -> pa.Array:
    """In SQL, NaN equals NaN."""
    equal = pc.equal(left, right)
    return pc.or_(equal, pc.and_(_is_nan(left), _is_nan(right))) if _are_floats((left, right)) else equal


def _are_floats(values: Iterable[pa.Array]) -> bool:
    """NaN matters where either side may hold it: an integer beside a double is compared as one."""
    return any(pa.types.is_floating(value.type) for value in values)


def _is_nan(value: pa.Array) -> pa.Array:
    return pc.is_nan(value if pa.types.is_floating(value.type) else value.cast(pa.float64()))


def _chosen(take_right: pa.Array, left: pa.Array, right: pa.Array) -> pa.Array:
    """LEAST and GREATEST pass over NULL: where either side is NULL, the other one is taken."""
    return pc.if_else(pc.coalesce(take_right, pc.is_null(left)), right, left)


def _remainder(left: pa.Array, right: pa.Array) -> pa.Array:
    """C's fmod, which SQL's % is on doubles; Arrow has none."""
    valid = pc.and_(pc.is_valid(left), pc.is_valid(right))
    values = (pc.fill_null(side, 1.0).to_numpy(zero_copy_only=False) for side in (left, right))
    with np.errstate(invalid="ignore"):
        remainder = np.fmod(*values)
    return pc.if_else(valid, pa.array(remainder), None)


def _cast(value: pa.Array, node: exp.Cast) -> pa.Array:
    """A column or truth value as the type its place needs; refuses what engines would read in ways of their own."""
    is_truth, is_whole = pa.types.is_boolean(value.type), pa.types.is_integer(value.type)
    is_number = is_whole or pa.types.is_floating(value.type) or pa.types.is_decimal(value.type)
    is_text = pa.types.is_string(value.type) or pa.types.is_large_string(value.type)
    match node.to.this:
        case exp.DType.DOUBLE if is_number or is_truth or _is_null(value):
            # Beyond 2^53 neighbours share a double, in SQL as here.
            return value.cast(pa.float64(), safe=False)
        case exp.DType.DOUBLE if node.this == exp.Literal.string("NaN"):
            return value.cast(pa.float64())
        case exp.DType.BOOLEAN if is_truth or _is_null(value):
            return value.cast(pa.bool_())
        case exp.DType.BOOLEAN if is_number:
            return pc.invert(_equal(value.cast(pa.float64(), safe=False), pa.repeat(0.0, len(value))))
        case exp.DType.TEXT | exp.DType.VARCHAR if is_text or is_whole or is_truth or _is_null(value):
            return value.cast(pa.string())
        case exp.DType.TEXT | exp.DType.VARCHAR if pa.types.is_date32(value.type):
            return value.cast(pa.string())
        case target:
            raise pa.ArrowTypeError(
                f"{node.this.name or 'a part of it'} is {value.type} and cannot be read as {target.value}"
            )


def _is_null(value: pa.Array) -> bool:
    return bool(pa.types.is_null(value.type))
