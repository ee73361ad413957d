"""Checks of types while tests run: every signature of twofold by beartype, those of arrays in a scope of jaxtyping.

The hook of jaxtyping, which --jaxtyping-packages installs, would bind the arguments of every call and check them twice,
arrays or not, which made the Python code of a run half as fast. And each array would be matched again with the text of
its type: here only its sizes are looked at if an array of its kind has fitted the same annotation before.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache, wraps
from inspect import isgeneratorfunction
from types import FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import _array_types, _storage

_jaxtyped = jaxtyping.jaxtyped
_beartype = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def checked(decorated: Any, *, typechecker: Any) -> Any:
    """Takes the place of the decorator that the hook writes over each function and class, and checks the same types."""
    if isinstance(decorated, type):
        init = decorated.__dict__.get("__init__")
        if is_dataclass(decorated) and init is not None and not hasattr(init, "__wrapped__"):
            decorated.__init__ = checked(init, typechecker=typechecker)
        return decorated
    if not isinstance(decorated, FunctionType) or isgeneratorfunction(decorated):
        return _jaxtyped(decorated, typechecker=typechecker)
    types = [each if isinstance(each, str) else repr(each) for each in decorated.__annotations__.values()]
    if any(isinstance(each, str) for each in decorated.__annotations__.values()) or "ForwardRef" in "".join(types):
        return _jaxtyped(decorated, typechecker=typechecker)  # a type that is not known yet, which jaxtyping resolves
    return in_a_scope(_beartype(decorated)) if "jaxtyping." in "".join(types) else _beartype(decorated)


def in_a_scope(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with dimensions of its own: a name is one size in all its arguments and what it returns."""

    @wraps(function)
    def scoped(*args: Any, **named: Any) -> Any:
        _storage.push_shape_memo({})
        try:
            return function(*args, **named)
        finally:
            _storage.pop_shape_memo()

    return scoped


def scoped_or_checked(decorated: Any = None, *, typechecker: Any = None) -> Any:
    """Is called as `jaxtyped` is: with what is decorated, with "context", or with a type checker alone."""
    if decorated is None:
        return lambda later: checked(later, typechecker=typechecker)
    return _jaxtyped(decorated) if isinstance(decorated, str) else checked(decorated, typechecker=typechecker)


Array = _array_types._MetaAbstractArray
_matched = Array.__instancecheck_str__
_fitting: dict[tuple[Any, ...], tuple[str | int | None, ...]] = {}


@cache
def dimensions(annotation: Any) -> tuple[str | int | None, ...] | None:
    """Returns the name or the size of each dimension, None for `_`; None for an annotation with any other dimension."""
    found: list[str | int | None] = []
    for each in annotation.dims if annotation.index_variadic is None else ("...",):
        match each:
            case _array_types._NamedDim(name, broadcastable=False) if not each.treepath:
                found.append(name)
            case _array_types._FixedDim(size, broadcastable=False):
                found.append(size)
            case _array_types._anonymous_dim:
                found.append(None)
            case _:
                return None
    return tuple(found)


def problem_of(annotation: Any, value: Any) -> str:
    """Takes the place of jaxtyping's check of one array: returns why it does not fit, or an empty text if it does."""
    kind = (annotation, type(value), getattr(value, "dtype", None))
    expected = _fitting.get(kind)
    if expected is not None and len(expected) == len(value.shape):
        scopes = getattr(_storage._shape_storage, "memo_stack", None)
        sizes, new = scopes[-1][0] if scopes else {}, {}
        for name, size in zip(expected, value.shape, strict=True):
            if name is not None:
                known = name if type(name) is int else sizes.get(name, new.get(name))
                if known is None:
                    new[name] = size
                elif known != size:
                    break
        else:
            sizes.update(new)
            return ""
    problem = _matched(annotation, value)
    if problem == "" and dimensions(annotation) is not None:
        _fitting[kind] = dimensions(annotation)
    return problem


jaxtyping.jaxtyped = scoped_or_checked
Array.__instancecheck_str__ = problem_of
