"""Filters in Qdrant's language: an SQL condition of the recipe's subset, compiled to conditions on payload fields.

A comparison of a column with constants becomes a field condition; AND, OR and NOT become `must`, `should` and
`must_not`. SQL has a third value, NULL, which Qdrant has not: so NOT is moved to the comparisons, and a negated
comparison is false for an item without a value.

What this does not do: LIKE (Qdrant compares words), arithmetic, functions, CASE, comparisons of two columns, and the
order of texts, which are refused with a message; and NaN, which SQL places above every number, and which `export.py`
writes as null.
"""

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from sqlglot import exp

from twofold.errors import RequestError
from twofold.sql.rules import rule_tree

if TYPE_CHECKING:
    from qdrant_client import models

Comparison = Callable[[Any, Any], bool]
_COMPARISONS: Final[dict[type[exp.Expr], Comparison]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
}
_MIRRORED: Final[dict[type[exp.Expr], type[exp.Expr]]] = {
    exp.LT: exp.GT,
    exp.LTE: exp.GTE,
    exp.GT: exp.LT,
    exp.GTE: exp.LTE,
}
_RANGES: Final = {operator.lt: "lt", operator.le: "lte", operator.gt: "gt", operator.ge: "gte"}


def qdrant_filter(text: str, schema: pa.Schema) -> "models.Filter":
    """Returns the filter that is true where an SQL condition over columns of `schema` is; RequestError if Qdrant cannot
    evaluate it.
    """
    try:
        return _filter(rule_tree(text, result="condition"), schema, is_true=True)
    except _RefusedError as refused:
        raise RequestError(
            f"The filter {text!r} cannot be evaluated by Qdrant, because of {refused}. Compare a column with numbers "
            f"by = <> < <= > >=, IN or BETWEEN, with 'texts' by = <> or IN, or use 'text' IN list_column or IS NULL; "
            f"join by AND, OR and NOT."
        ) from None


class _RefusedError(Exception):
    """A part of a condition that Qdrant cannot evaluate."""

    def __init__(self, node: exp.Expr) -> None:
        super().__init__(node.sql(dialect="duckdb")[:200])


def _filter(node: exp.Expr, schema: pa.Schema, *, is_true: bool) -> "models.Filter":
    """Returns the items for which a condition is true, or those for which it is false; neither holds where it is
    NULL.
    """
    match node:
        case exp.Paren():
            return _filter(node.this, schema, is_true=is_true)
        case exp.Not():
            return _filter(node.this, schema, is_true=not is_true)
        case exp.And() | exp.Or():
            parts = [_filter(side, schema, is_true=is_true) for side in (node.this, node.expression)]
            return _all(parts) if isinstance(node, exp.And) == is_true else _any(parts)
        case exp.Boolean():
            return _every_item() if bool(node.this) == is_true else _no_item()
        case exp.Null() | exp.Cast(this=exp.Null()):
            return _no_item()
        case exp.Is() if isinstance(node.expression, exp.Null):
            is_empty = _is_empty(_column(node.this, schema))
            return is_empty if is_true else _none_of([is_empty])
        case exp.Is():  # IS TRUE and IS FALSE are never NULL
            same = _filter(node.this, schema, is_true=bool(node.expression.this))
            return same if is_true else _none_of([same])
        case exp.Cast():  # a column read as a condition
            return _values(_column(node, schema), schema, operator.ne, 0.0, is_true=is_true)
        case exp.Between():
            name = _column(node.this, schema)
            low, high = (_constant(node.args[each]) for each in ("low", "high"))
            ends = ((operator.ge, low), (operator.le, high))
            parts = [_values(name, schema, *end, is_true=is_true) for end in ends]
            return _all(parts) if is_true else _any(parts)
        case exp.In() if node.args.get("field") is not None:
            return _listed(_column(node.args["field"], schema), schema, _constant(node.this), is_true=is_true)
        case exp.In():
            name = _column(node.this, schema)
            parts = [_values(name, schema, operator.eq, _constant(each), is_true=is_true) for each in node.expressions]
            return _any(parts) if is_true else _all(parts)
        case _ if type(node) in _COMPARISONS:
            return _comparison(node, schema, is_true=is_true)
        case _:
            raise _RefusedError(node)


def _comparison(node: exp.Expr, schema: pa.Schema, *, is_true: bool) -> "models.Filter":
    left, right, kind = node.this, node.expression, type(node)
    if not _is_constant(right):
        left, right, kind = right, left, _MIRRORED.get(kind, kind)
    if not _is_constant(right):
        raise _RefusedError(node)
    value = _constant(right)
    if isinstance(value, bool):  # a condition compared with TRUE or FALSE
        if kind not in (exp.EQ, exp.NEQ):
            raise _RefusedError(node)
        return _filter(left, schema, is_true=(value == (kind is exp.EQ)) == is_true)
    return _values(_column(left, schema), schema, _COMPARISONS[kind], value, is_true=is_true)


def _is_constant(node: exp.Expr) -> bool:
    while isinstance(node, exp.Neg | exp.Paren | exp.Cast):
        node = node.this
    return isinstance(node, exp.Literal | exp.Boolean)


def _constant(node: exp.Expr) -> float | str | bool:
    match node:
        case exp.Paren():
            return _constant(node.this)
        case exp.Neg():
            return -float(_constant(node.this))
        case exp.Cast() if isinstance(node.this, exp.Boolean):  # beside a number
            return float(bool(node.this.this))
        case exp.Boolean():
            return bool(node.this)
        case exp.Literal():
            return str(node.name) if node.is_string else float(node.name)
        case _:
            raise _RefusedError(node)


def _column(node: exp.Expr, schema: pa.Schema) -> str:
    """Returns the name of a column, with or without a cast."""
    inner = node.this if isinstance(node, exp.Cast) else node
    if not isinstance(inner, exp.Column) or inner.name not in schema.names:
        raise _RefusedError(node)
    return str(inner.name)


# --- conditions on one field ------------------------------------------------------------------------------------------


def _values(
    name: str, schema: pa.Schema, compare: Comparison, value: float | str | bool, *, is_true: bool
) -> "models.Filter":
    """Returns the items whose value compares so with the constant; without `is_true`, those whose value does not."""
    from qdrant_client import models

    kind = schema.field(name).type
    if pa.types.is_boolean(kind) and not isinstance(value, str):
        kept = [each for each in (True, False) if compare(float(each), float(value)) == is_true]
        return _any([models.FieldCondition(key=name, match=models.MatchValue(value=each)) for each in kept])
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    is_equality = compare in (operator.eq, operator.ne)
    if is_number == isinstance(value, str) or (isinstance(value, str) and not is_equality):
        raise _RefusedError(exp.column(name))
    if isinstance(value, str):
        condition = models.FieldCondition(key=name, match=models.MatchValue(value=value))
    else:
        ends = {"gte": value, "lte": value} if is_equality else {_RANGES[compare]: value}
        condition = models.FieldCondition(key=name, range=models.Range(**ends))
    if is_true == (compare is not operator.ne):
        return _all([condition])
    return _none_of([condition, _is_empty(name)])


def _listed(name: str, schema: pa.Schema, value: float | str | bool, *, is_true: bool) -> "models.Filter":
    """Returns the items whose list contains a constant: Qdrant's conditions hold if they do for one of the values."""
    from qdrant_client import models

    kind = schema.field(name).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise _RefusedError(exp.column(name))
    listed = _values(name, pa.schema([(name, kind.value_type)]), operator.eq, value, is_true=True)
    no_list = models.IsNullCondition(is_null=models.PayloadField(key=name))
    return listed if is_true else _none_of([listed, no_list])


def _is_empty(name: str) -> "models.Filter":
    from qdrant_client import models

    return _all([models.IsEmptyCondition(is_empty=models.PayloadField(key=name))])


def _all(conditions: Sequence[Any]) -> "models.Filter":
    from qdrant_client import models

    return models.Filter(must=[*conditions])


def _any(conditions: Sequence[Any]) -> "models.Filter":
    from qdrant_client import models

    return models.Filter(should=[*conditions]) if conditions else _no_item()


def _none_of(conditions: Sequence[Any]) -> "models.Filter":
    from qdrant_client import models

    return models.Filter(must_not=[*conditions])


def _no_item() -> "models.Filter":
    from qdrant_client import models

    return models.Filter(must=[models.HasIdCondition(has_id=[])])


def _every_item() -> "models.Filter":
    from qdrant_client import models

    return models.Filter(must_not=[models.HasIdCondition(has_id=[])])
