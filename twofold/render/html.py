"""Jinja pages: the shared style, filters for numbers, escaping, and the text of a recipe's settings."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel

from twofold.recipe.features import feature_name
from twofold.recipe.schema import Recipe
from twofold.render.numbers import (
    format_decimal,
    format_interval,
    format_signed,
    format_significant,
    in_full,
    in_short,
    percent,
    plural,
    probability,
    ratio,
    skipped_text,
)
from twofold.tables import Json


def fill_page(packages: Sequence[str], template: str, values: Mapping[str, Any]) -> str:
    """Fills a template: HTML with all text escaped, or Markdown, whose filter `md` escapes text.

    A template, and those that it includes, is searched in `packages`, then among those that all pages share. An HTML
    page is self-contained: it makes no request, and `style` is the text of `style.css`.
    """
    environment = _environment(tuple(packages), autoescape="html" in template)
    style = Markup((files("twofold.render") / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    return environment.get_template(template).render(**values, style=style)


@cache
def _environment(packages: tuple[str, ...], *, autoescape: bool) -> Environment:
    """Returns the templates of these packages, each compiled once a process."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "") for package in (*packages, "twofold.render")]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bracket": format_interval,
        "counted": plural,
        "decimal": format_decimal,
        "md": as_markdown,
        "in_full": in_full,
        "in_short": in_short,
        "percent": lambda share: percent(share).replace(" ", "\N{NO-BREAK SPACE}"),
        "probability": probability,
        "ratio": ratio,
        "signed": format_signed,
        "significant": format_significant,
        "skipped": skipped_text,
        "whole": "{:,.0f}".format,
    }
    return environment


def setting(recipe: Recipe, field: str, value: Json) -> str:
    """Returns the `value` of a recipe's field as YAML; defaults within a section are left out."""
    section: Any = recipe
    for name in field.split("."):
        if isinstance(section, Mapping):
            section = section.get(name)
        elif isinstance(section, tuple):
            section = next(
                (each for each in section if field.startswith("features.") and feature_name(each) == name), None
            )
        else:
            section = getattr(section, name, None)
    if isinstance(section, BaseModel):
        value = section.model_dump(mode="json", exclude_defaults=True)
    if not isinstance(value, dict | list):
        return value if isinstance(value, str) else json.dumps(value)
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=None, allow_unicode=True, width=90).rstrip()


def as_markdown(value: Json) -> str:
    """Escapes untrusted text to one line of Markdown without markup."""
    escaped = re.sub(r"([\\`*#|~])", r"\\\1", str(value))
    escaped = re.sub(r"\](?=[(\[:])", r"\\]", escaped)  # [.1, .2] is no link without a definition
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)  # within a word it is no markup
    return " ".join(escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
