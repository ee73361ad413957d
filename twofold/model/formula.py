"""What candidates are ordered by, where a recipe writes a formula over what the ranker says of a pair.

A formula is a rule of the recipe's SQL subset (`twofold/sql/rules.py`) that calculates. What is evaluated here is
the same portable tree that preparation gives to its engine, with torch in the engine's place and NaN for NULL. So it is
part of the graph that is served, and no server need know of it.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Final

import torch
from jaxtyping import Float, Float32, Float64
from sqlglot import exp
from torch import Tensor

LAST: Final = -1e30
"""The score of an item whose formula is NULL; no other is below it, nor above its negative."""


def score_by(formula: exp.Expr, said: Mapping[str, Float[Tensor, "*pairs"]]) -> Float32[Tensor, "*pairs"]:
    """The formula of every pair, from the names it reads.

    It is computed in doubles: of the nearly certain a float does not know how far they are from 1.
    """
    score = _evaluate(formula, {name: values.double() for name, values in said.items()})
    return torch.where(score.isnan(), LAST, score.clamp(LAST, -LAST)).float()


def _evaluate(node: exp.Expr, said: Mapping[str, Float64[Tensor, "*pairs"]]) -> Float64[Tensor, "*pairs"]:
    match node:
        case exp.Paren() | exp.Cast():  # a cast to DOUBLE of what is one
            return _evaluate(node.this, said)
        case exp.Column():
            return said[node.name]
        case exp.Literal():  # 'NaN' is one, in what POWER is written as
            return torch.full_like(next(iter(said.values())), float(node.name))
    return _calculate(node, [_evaluate(child, said) for child in node.iter_expressions()])


def _calculate(node: exp.Expr, parts: list[Tensor]) -> Tensor:
    match node:
        case exp.Neg():
            return -parts[0]
        case exp.Abs():
            return parts[0].abs()
        case exp.Sqrt():
            return parts[0].sqrt()
        case exp.Ln():
            return parts[0].log()
        case exp.Exp():
            return parts[0].exp()
        case exp.Add():
            return parts[0] + parts[1]
        case exp.Sub():
            return parts[0] - parts[1]
        case exp.Mul():
            return parts[0] * parts[1]
        case exp.Div():
            return parts[0] / parts[1]
        case exp.Pow():
            return parts[0] ** parts[1]
        case exp.Nullif():
            return torch.where(parts[0] == parts[1], torch.nan, parts[0])
        case exp.Coalesce():
            return reduce(lambda left, right: torch.where(left.isnan(), right, left), parts)
        case exp.Greatest():  # both pass over NULL
            return reduce(lambda left, right: torch.where(left.isnan() | (right > left), right, left), parts)
        case exp.Least():
            return reduce(lambda left, right: torch.where(left.isnan() | (right < left), right, left), parts)
    raise AssertionError(f"the recipe lets {type(node).__name__} through, which formulas do not know")
