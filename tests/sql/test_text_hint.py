"""A text that was written without quotes."""

import pytest

from twofold.errors import RecipeError
from twofold.sql.rules import check_columns, check_rule


@pytest.mark.parametrize("rule", ["event = purchase", "NOT event <> purchase"])
def test_a_text_without_quotes_is_told_to_have_them(rule: str) -> None:
    with pytest.raises(RecipeError, match=r"If purchase is a text, write it in single quotes: event = 'purchase'\."):
        check_columns(rule, ["event", "price"], field="prepare.positive")


def test_another_missing_name_is_no_text() -> None:
    with pytest.raises(RecipeError) as refused:
        check_columns("purchase > 3", ["event"], field="prepare.positive")
    assert "single quotes" not in str(refused.value)


def test_a_cast_is_answered_with_the_decimal_comma() -> None:
    with pytest.raises(RecipeError, match=r"For numbers such as 13,27 in a CSV file, write data\.decimal_comma"):
        check_rule("CAST(price AS DOUBLE) > 3", result="condition")
