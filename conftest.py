"""Checks of types while tests run: every signature of twofold by beartype, those of arrays in a scope of jaxtyping.

The hook of jaxtyping, which --jaxtyping-packages installs, would bind the arguments of every call and check them twice,
arrays or not, which made the Python code of a run half as fast.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from inspect import isgeneratorfunction
from types import FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

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
        with _jaxtyped("context"):
            return function(*args, **named)

    return scoped


def scoped_or_checked(decorated: Any = None, *, typechecker: Any = None) -> Any:
    """Is called as `jaxtyped` is: with what is decorated, with "context", or with a type checker alone."""
    if decorated is None:
        return lambda later: checked(later, typechecker=typechecker)
    return _jaxtyped(decorated) if isinstance(decorated, str) else checked(decorated, typechecker=typechecker)


jaxtyping.jaxtyped = scoped_or_checked
