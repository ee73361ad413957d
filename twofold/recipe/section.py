"""What every part of a recipe is, and the texts in it that are SQL."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from twofold.errors import RecipeError
from twofold.sql.portable import Kind
from twofold.sql.rules import check_rule


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def is_unasked(value: object) -> bool:
    """True of nothing: a field that came later is written only where it is used, so that no older digest changes."""
    return not value


def _vetted(text: str, result: Kind) -> str:
    try:
        check_rule(text, result=result)
    except RecipeError as error:
        raise ValueError(str(error)) from error  # what pydantic turns into an error of this field
    return text


Rule = Annotated[str, AfterValidator(lambda text: _vetted(text, "condition"))]
"""SQL that holds of an event, or does not; NULL counts as no."""

Expression = Annotated[str, AfterValidator(lambda text: _vetted(text, "number"))]
"""SQL that gives a number for an event, or NULL."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
"""What a recipe calls a column that it makes itself."""
