"""Formulas over tensors, against what they say by hand; NULL comes last."""

import pytest
import torch

from twofold.model.formula import LAST, score_by
from twofold.recipe.ranker import Mlp
from twofold.sql.rules import rule_tree

SAID = {"relevance": torch.tensor([[4.0, -1.0]]), "long": torch.tensor([[0.8, 0.5]], dtype=torch.float64)}


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("long", [0.8, 0.5]),
        ("relevance + 0.5 * LN(long / (1 - long))", [4.6931, -1.0]),  # ln 4 = 1.3863, ln 1 = 0
        ("-relevance - (2 - long)", [-5.2, -0.5]),
        ("POWER(long, 2) * ABS(relevance)", [2.56, 0.25]),
        ("EXP(relevance)", [54.5982, 0.3679]),
        ("SQRT(relevance)", [2.0, LAST]),  # of what is below 0 there is none
        ("LN(relevance)", [1.3863, LAST]),
        ("COALESCE(LN(relevance), -9)", [1.3863, -9.0]),
        ("relevance / (long - 0.5)", [13.3333, LAST]),
        ("POWER(relevance, 0.5)", [2.0, LAST]),
        ("GREATEST(relevance, long, 1)", [4.0, 1.0]),
        ("LEAST(LN(relevance), long)", [0.8, LAST]),  # NULL if an argument is
        ("GREATEST(LN(relevance), long)", [1.3863, LAST]),
        ("LEAST(long, 0.7, 3)", [0.7, 0.5]),
        ("NULLIF(relevance, -1) + 1", [5.0, LAST]),
        ("EXP(300 * relevance)", [-LAST, 0.0]),  # no number is beyond
        ("7", [7.0, 7.0]),
    ],
)
def test_a_formula_is_what_it_says(formula, expected):
    Mlp.model_validate({"kind": "mlp", "heads": [{"outcome": "long"}], "formula": formula})  # may be asked for
    scores = score_by(rule_tree(formula, result="number"), SAID)
    assert scores.dtype == torch.float32
    assert scores[0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-12)
