"""Base class of the sections of a recipe, and the types of their fields that hold SQL."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from functools import partial
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from twofold.errors import RecipeError
from twofold.local_time import check_time_zone
from twofold.sql.rules import check_item_condition, check_rule
from twofold.tables import INTERNAL


class Section(BaseModel):
    """A section of a recipe: unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def _checked(text: str, check: Callable[[str], None]) -> str:
    try:
        check(text)
    except RecipeError as error:
        raise ValueError(str(error)) from error  # pydantic turns it into an error of this field
    return text


Rule = Annotated[str, AfterValidator(lambda text: _checked(text, partial(check_rule, result="condition")))]
"""SQL condition on an event; NULL counts as false."""

ItemRule = Annotated[str, AfterValidator(lambda text: _checked(text, check_item_condition))]
"""SQL condition on an item, which may read columns of lists; NULL counts as false."""

Expression = Annotated[str, AfterValidator(lambda text: _checked(text, partial(check_rule, result="number")))]
"""SQL expression that is a number, or NULL, for each event."""

TimeZone = Annotated[str, AfterValidator(check_time_zone)]
"""IANA time zone, such as Asia/Kolkata."""


def _not_internal(name: str) -> str:
    if name.lower().startswith(INTERNAL):
        raise ValueError(f"names that begin with {INTERNAL} are those of internal columns; choose another one")
    return name


def _read_day(value: object) -> object:
    """Reads a day that is written as text; pydantic would also take 1704585600 for one, as seconds since 1970."""
    if not isinstance(value, str):
        return value
    with suppress(ValueError):
        if re.fullmatch(r"\d{4}-\d\d-\d\d", value):
            return date.fromisoformat(value)
    raise ValueError(f"is {value!r} — must be a day such as 2022-05-08")


Day = Annotated[date, BeforeValidator(_read_day)]
"""Day, written as 2022-05-08."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"), AfterValidator(_not_internal)]
"""Name of a column that a recipe computes."""
