"""SQL expressions evaluated on Arrow arrays: the portable tree of a rule, without a database engine.

The tree is the one that preparation gives to its engine (`portable.py`). The service filters items with it, so it needs
no engine; tests compare every operator with DuckDB, row by row.
"""

from collections.abc import Callable
from functools import reduce
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from twofold.sql.portable import like_pattern


def evaluate(node: exp.Expr, table: pa.Table) -> pa.Array:
    """Returns the value of an expression at every row: a boolean, double or string array, or a column as stored."""
    match node:
        case exp.Paren():
            return evaluate(node.this, table)
        case exp.In() if node.args.get("field") is not None:
            name = node.args["field"].name
            return _lists_with(table[name].combine_chunks(), evaluate(node.this, table.slice(0, 1)), name)
        case exp.Like():
            return _like(evaluate(node.this, table), node.expression.name)
        case exp.Column():
            return _as_double(table[node.name].combine_chunks())
        case exp.Null():
            return pa.nulls(len(table))
        case exp.Boolean():
            return pa.repeat(pa.scalar(bool(node.this)), len(table))
        case exp.Literal():
            return pa.repeat(pa.scalar(node.name if node.is_string else float(node.name)), len(table))
        case exp.Cast():
            return _cast(evaluate(node.this, table), node)
        case exp.Case():
            return _case(node, table)
        case exp.Is() if isinstance(node.expression, exp.Null):
            return pc.is_null(evaluate(node.this, table))
        case exp.Is():
            # IS TRUE and IS FALSE: never NULL.
            return pc.equal(pc.fill_null(evaluate(node.this, table), not node.expression.this), node.expression.this)
    assert type(node) in _OPERATORS, f"the rules allow {type(node).__name__}, which cannot be evaluated here"
    return _OPERATORS[type(node)](*(evaluate(child, table) for child in node.iter_expressions()))


def _case(node: exp.Case, table: pa.Table) -> pa.Array:
    default = node.args.get("default")
    value = pa.nulls(len(table)) if default is None else evaluate(default, table)
    for branch in reversed(node.args["ifs"]):
        is_true = pc.fill_null(evaluate(branch.this, table), False)
        value = pc.if_else(is_true, evaluate(branch.args["true"], table), value)
    return value


# --- where Arrow and SQL differ ---------------------------------------------------------------------------------------


def _as_double(column: pa.Array) -> pa.Array:
    """Returns a float column as doubles: Arrow refuses to compare a large integer with a 32-bit float."""
    return column.cast(pa.float64()) if pa.types.is_floating(column.type) else column


def _less(left: pa.Array, right: pa.Array) -> pa.Array:
    """Compares as SQL does, where NaN is above every number; Arrow does not order NaN at all."""
    less = pc.less(left, right)
    if not _are_floats(left, right):
        return less
    return pc.or_(less, pc.and_(_is_nan(right), pc.invert(_is_nan(left))))


def _equal(left: pa.Array, right: pa.Array) -> pa.Array:
    """Compares as SQL does, where NaN equals NaN."""
    equal = pc.equal(left, right)
    return pc.or_(equal, pc.and_(_is_nan(left), _is_nan(right))) if _are_floats(left, right) else equal


def _are_floats(left: pa.Array, right: pa.Array) -> bool:
    """Returns whether either side may hold NaN: an integer beside a double is compared as a double."""
    return bool(pa.types.is_floating(left.type) or pa.types.is_floating(right.type))


def _is_nan(value: pa.Array) -> pa.Array:
    return pc.is_nan(value if pa.types.is_floating(value.type) else value.cast(pa.float64()))


def _is_in(value: pa.Array, *options: pa.Array) -> pa.Array:
    return reduce(pc.or_kleene, (_equal(value, option) for option in options))


def _lists_with(lists: pa.Array, value: pa.Array, name: str) -> pa.Array:
    """Returns whether each list contains the one value; NULL for no list, as in DuckDB's list_contains."""
    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)):
        raise pa.ArrowTypeError(f"{name} is {lists.type} and holds no lists")
    found = np.zeros(len(lists), bool)
    if len(lists):
        values = _as_double(lists.flatten())
        is_same = _equal(values, pa.repeat(value[0], len(values)))
        found[pc.list_parent_indices(lists).filter(is_same).to_numpy()] = True
    return pc.if_else(lists.is_valid(), pa.array(found), None)


def _like(value: pa.Array, pattern: str) -> pa.Array:
    """Compares as LIKE does; the pattern has % at its ends alone."""
    simple = like_pattern(pattern)
    assert simple is not None, "the rules allow no other pattern"
    match simple:
        case text, False, False:
            return pc.equal(value, text)
        case text, False, True:
            return pc.starts_with(value, text)
        case text, True, False:
            return pc.ends_with(value, text)
        case text, _, _:
            return pc.match_substring(value, text)


def _greatest(left: pa.Array, right: pa.Array) -> pa.Array:
    """Returns what the engines' GREATEST does, which ignores NULL: where one side is NULL, the other one."""
    return pc.if_else(pc.coalesce(_less(left, right), pc.is_null(left)), right, left)


def _remainder(left: pa.Array, right: pa.Array) -> pa.Array:
    """Returns C's fmod, which is SQL's % on doubles; Arrow has none."""
    valid = pc.and_(pc.is_valid(left), pc.is_valid(right))
    values = (pc.fill_null(side, 1.0).to_numpy(zero_copy_only=False) for side in (left, right))
    with np.errstate(invalid="ignore"):
        remainder = np.fmod(*values)
    return pc.if_else(valid, pa.array(remainder), None)


def _cast(value: pa.Array, node: exp.Cast) -> pa.Array:
    """Casts a column or truth value to the type its place needs; refuses casts on which engines differ."""
    is_truth, is_whole = pa.types.is_boolean(value.type), pa.types.is_integer(value.type)
    is_number = is_whole or pa.types.is_floating(value.type) or pa.types.is_decimal(value.type)
    is_text = pa.types.is_string(value.type) or pa.types.is_large_string(value.type)
    is_null = pa.types.is_null(value.type)
    match node.to.this:
        case exp.DType.DOUBLE if is_number or is_truth or is_null:
            # Beyond 2^53 adjacent integers share a double, in SQL as here.
            return value.cast(pa.float64(), safe=False)
        case exp.DType.DOUBLE if node.this == exp.Literal.string("NaN"):
            return value.cast(pa.float64())
        case exp.DType.BOOLEAN if is_truth or is_null:
            return value.cast(pa.bool_())
        case exp.DType.BOOLEAN if is_number:
            return pc.invert(_equal(value.cast(pa.float64(), safe=False), pa.repeat(0.0, len(value))))
        case exp.DType.TEXT | exp.DType.VARCHAR if is_text or is_whole or is_truth or is_null:
            return value.cast(pa.string())
        case exp.DType.TEXT | exp.DType.VARCHAR if pa.types.is_date32(value.type):
            return value.cast(pa.string())
        case target:
            raise pa.ArrowTypeError(
                f"{node.this.name or 'a part of it'} is {value.type} and cannot be read as {target.value}"
            )


_OPERATORS: Final[dict[type[exp.Expr], Callable[..., pa.Array]]] = {
    exp.And: pc.and_kleene,
    exp.Or: pc.or_kleene,
    exp.Not: pc.invert,
    exp.EQ: _equal,
    exp.NEQ: lambda left, right: pc.invert(_equal(left, right)),
    exp.LT: _less,
    exp.GT: lambda left, right: _less(right, left),
    exp.LTE: lambda left, right: pc.invert(_less(right, left)),
    exp.GTE: lambda left, right: pc.invert(_less(left, right)),
    exp.Between: lambda value, low, high: pc.and_kleene(pc.invert(_less(value, low)), pc.invert(_less(high, value))),
    exp.In: _is_in,
    exp.Neg: pc.negate,
    exp.Add: pc.add,
    exp.Sub: pc.subtract,
    exp.Mul: pc.multiply,
    exp.Div: pc.divide,
    exp.Mod: _remainder,
    exp.Pow: pc.power,
    exp.Abs: pc.abs,
    exp.Sqrt: pc.sqrt,
    exp.Ln: pc.ln,
    exp.Exp: pc.exp,
    exp.Floor: pc.floor,
    exp.Ceil: pc.ceil,
    exp.Coalesce: pc.coalesce,
    exp.Nullif: lambda value, unwanted: pc.if_else(pc.fill_null(_equal(value, unwanted), False), None, value),
    exp.Greatest: lambda *values: reduce(_greatest, values),
}
