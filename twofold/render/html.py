"""What all pages of a run share: their style, how they write numbers and a recipe's settings, and that text is text."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel

from twofold.recipe.features import feature_name
from twofold.recipe.schema import Recipe
from twofold.render.numbers import (
    format_decimal,
    format_interval,
    format_signed,
    in_full,
    in_short,
    percent,
    plural,
    probability,
    ratio,
)
from twofold.tables import Json


def fill_page(package: str, template: str, values: Mapping[str, Any]) -> str:
    """A template of a package, filled: HTML, in which all text is escaped, or Markdown, in which `md` does that.

    A page of HTML needs nothing but a browser: no request leaves it, and its style is `style.css`, as `style`.
    """
    environment = Environment(
        autoescape="html" in template, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "bracket": format_interval,
        "counted": plural,
        "decimal": format_decimal,
        "md": as_markdown,
        "in_full": in_full,
        "in_short": in_short,
        "percent": percent,
        "probability": probability,
        "ratio": ratio,
        "signed": format_signed,
    }
    style = Markup((files("twofold.render") / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    source = (files(package) / template).read_text(encoding="utf-8")
    return environment.from_string(source).render(**values, style=style)


def setting(recipe: Recipe, field: str, value: Json) -> str:
    """What a recipe says in a field in which it differs from another, as its file would have it; `value` in full.

    Of a part, what is as by default is left out.
    """
    part: Any = recipe
    for name in field.split("."):
        if isinstance(part, Mapping):
            part = part.get(name)
        elif isinstance(part, tuple):
            part = next((each for each in part if field.startswith("features.") and feature_name(each) == name), None)
        else:
            part = getattr(part, name, None)
    if isinstance(part, BaseModel):
        value = part.model_dump(mode="json", exclude_defaults=True)
    if not isinstance(value, dict | list):
        return value if isinstance(value, str) else json.dumps(value)
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=None, allow_unicode=True, width=90).rstrip()


def as_markdown(value: Json) -> str:
    """Untrusted text on one line of Markdown that shows it and means nothing by it."""
    escaped = re.sub(r"([\\`*#|~])", r"\\\1", str(value))
    escaped = re.sub(r"\](?=[(\[:])", r"\\]", escaped)  # [.1, .2] is no link where nothing is called so
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)  # within a word it means nothing
    return " ".join(escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
