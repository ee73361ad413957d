"""Ranking formulas: a recipe's expression over the ranker's predictions for a pair, evaluated with torch.

A formula is an arithmetic expression of the recipe's SQL subset (`twofold/sql/rules.py`). The tree evaluated here is
the portable one that preparation passes to its SQL engine; torch takes the place of the engine and NaN that of NULL. So
the formula is part of the served graph, and the service does not need to evaluate it.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Final

import torch
from jaxtyping import Float, Float32, Float64
from sqlglot import exp
from torch import Tensor

LAST: Final = -1e30
"""Score of an item whose formula is NULL: the lowest score; its negative is the highest."""


def score_by(formula: exp.Expr, predicted: Mapping[str, Float[Tensor, "*batch"]]) -> Float32[Tensor, "*batch"]:
    """Evaluates the formula for every pair, from the predictions by name.

    Doubles are used, because floats cannot represent how far a probability close to 1 is from 1.
    """
    score = _evaluate(formula, {name: values.double() for name, values in predicted.items()})
    return torch.where(score.isnan(), LAST, score.clamp(LAST, -LAST)).float()


def _evaluate(node: exp.Expr, predicted: Mapping[str, Float64[Tensor, "*batch"]]) -> Float64[Tensor, "*batch"]:
    match node:
        case exp.Paren() | exp.Cast():  # every value is a DOUBLE already
            return _evaluate(node.this, predicted)
        case exp.Column():
            return predicted[node.name]
        case exp.Literal():  # also 'NaN', which the portable form of POWER contains
            return torch.full_like(next(iter(predicted.values())), float(node.name))
    return _calculate(node, [_evaluate(child, predicted) for child in node.iter_expressions()])


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
        case exp.Greatest():  # NaN is the greatest, for which the portable form uses it
            return reduce(lambda left, right: torch.where(left.isnan() | (left > right), left, right), parts)
    raise AssertionError(f"the recipe accepts {type(node).__name__}, which formulas do not implement")
