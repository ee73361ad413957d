"""Loading of recipes: a YAML file on top of its `base:`, with changes from the command line; and writing them.

All problems of a recipe are reported in one RecipeError, one line each: where it was written, the field, what is wrong,
and what would be right.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml
from pydantic import ValidationError

from twofold.errors import RecipeError
from twofold.recipe.messages import MAX_PROBLEMS, Problem, problems_of
from twofold.recipe.schema import Recipe
from twofold.recipe.yaml_files import MAX_DEPTH, base_path, is_text, parse_yaml, read_mapping, with_absolute_paths
from twofold.tables import Json

_WITH_NAMES: Final = frozenset(
    {"columns", "vectors", "derive", "labels", "outcomes", "counters", "rates", "means", "recent_counts", "ranges"}
)
"""Fields whose value is a mapping with names as keys."""

# --- file → Recipe ----------------------------------------------------------------------------------------------------


def load_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Loads a YAML file on top of its `base`, if it names one, and applies `field=value` overrides last.

    Mappings are merged; lists, values and mappings of another `kind` are replaced. Paths under `data` are relative to
    the file that holds them, those of an override to the working directory; in the Recipe they are absolute.
    """
    path = Path(path)
    own = read_mapping(path)
    sources = [(str(path), own)]
    if "base" in own:
        base = base_path(path, own.pop("base"))
        inherited = read_mapping(base)
        if "base" in inherited:
            raise RecipeError(
                f"{path}: base: {base} has a base of its own, {inherited['base']} — only one level is read: name that "
                f"file as the base, or copy what you need into {base.name}"
            )
        sources.append((str(base), inherited))
        own = _merged(inherited, own)
    for override in overrides:
        own = _overridden(own, override)
    try:
        # As JSON, pydantic is strict about numbers, texts and flags, and still takes lists, paths and days.
        return Recipe.model_validate_json(json.dumps(with_absolute_paths(own, Path.cwd())), strict=True)
    except ValidationError as error:
        problems = problems_of(error, Recipe)
        more = error.error_count() - len(problems)
    listed = [f"{_source(problem, sources, overrides)}: {problem}" for problem in problems]
    raise RecipeError("\n".join([*listed, *([f"and {more:,} more"] if len(problems) == MAX_PROBLEMS and more else [])]))


def load_base(path: Path, *, overrides: Sequence[str] = ()) -> Recipe | None:
    """Loads the recipe that a file is compared with: its `base`; without a base, the file without the overrides.

    Returns None if there is neither a base nor an override, or if the base is not a whole recipe.
    """
    own = read_mapping(path)
    if "base" not in own:
        return load_recipe(path) if overrides else None
    try:
        return load_recipe(base_path(path, own["base"]))
    except RecipeError:
        return None


def _merged(base: Json, over: Json, *, has_names: bool = False) -> Json:
    """Returns `over` on top of `base`. A mapping of another `kind` has other keys, so it replaces the base's.

    `has_names` says that the keys are names of the log or of the recipe, where `kind` is one as any other.
    """
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if not has_names and over.get("kind", base.get("kind")) != base.get("kind"):
        return over
    merged = {
        key: _merged(base[key], value, has_names=not has_names and key in _WITH_NAMES) if key in base else value
        for key, value in over.items()
    }
    return base | merged


def _overridden(tree: Json, override: str) -> Json:
    """Returns a copy with one field set: `retriever.dim=96`, `features.user.0.max_length=50`."""
    field, sign, text = override.partition("=")
    keys = field.strip().split(".")
    if len(keys) > MAX_DEPTH:
        raise RecipeError(
            f"--set {override[:40]}…: names a field of {len(keys):,} steps; a recipe has at most {MAX_DEPTH}"
        )
    if not sign or not all(keys):
        raise RecipeError(f"--set {override}: cannot be read — write field=value, such as --set retriever.dim=96")
    value = _value_of(text, _label(override))

    def changed(node: Json, depth: int) -> Json:
        if depth == len(keys):
            return value
        key, above = keys[depth], ".".join(keys[:depth])
        if isinstance(node, list):
            if not (key.isdecimal() and int(key) < len(node)):
                raise RecipeError(
                    f"--set {override}: {above} has no element {key} — it has {len(node)}, counted from 0"
                )
            return [changed(item, depth + 1) if number == int(key) else item for number, item in enumerate(node)]
        if node is not None and not isinstance(node, dict):
            raise RecipeError(f"--set {override}: {above} is {node!r}, which has no field {key}")
        return (node or {}) | {key: changed((node or {}).get(key), depth + 1)}

    return changed(tree, 0)


def _value_of(text: str, label: str) -> Json:
    """Returns the value of an override: that of YAML, or, if the text is none and begins no list or mapping, the text.

    So a rule needs no quotation marks around its own: --set "prepare.positive='buy' = event". A mapping without braces
    that has them is one too: x = 'a: b'. There are no comments and no blocks: # and | are characters as any other.
    """
    plain = text.strip()
    if plain == "-" or plain[:1] in ("#", "|", ">"):
        return plain
    try:
        value = parse_yaml(text, label)
        if isinstance(value, str) and plain[:1] not in ("'", '"'):
            return plain
        is_rule = isinstance(value, dict) and plain[:1] != "{" and re.search("['\"]", text)
        return plain if is_rule else value
    except RecipeError:
        if plain[:1] in ("[", "{"):
            raise RecipeError(
                f"{label}: its value begins as a list or mapping and cannot be read as one. Write [a, b] or "
                f"{{key: value}} with every bracket closed, and quotation marks around texts with , : or brackets."
            ) from None
        return plain


def _label(override: str) -> str:
    return f"--set {override if len(override) <= 80 else override[:80] + '…'}"


def _source(problem: Problem, sources: Sequence[tuple[str, Json]], overrides: Sequence[str]) -> str:
    """Returns where a problem was written: an override that sets its field, else the file with most of its path."""
    field = [str(step) for step in problem.path]
    for override in reversed(overrides):
        keys = override.partition("=")[0].strip().split(".")
        if field[: len(keys)] == keys:
            return _label(override)

    def depth(tree: Json) -> int:
        for depth, step in enumerate(problem.path):
            is_present = step in tree if isinstance(tree, dict) else isinstance(tree, list) and step in range(len(tree))
            if not is_present:
                return depth
            tree = tree[step]
        return len(problem.path)

    return max(sources, key=lambda source: depth(source[1]))[0]


# --- Recipe → text, schema --------------------------------------------------------------------------------------------


def dump_recipe(recipe: Recipe) -> str:
    """Returns YAML text that loads to an equal recipe from any folder: all fields are written, all paths absolute.

    Characters that YAML reads as line ends (U+0085, U+2028) are not restored when written raw, so they are escaped.
    """
    tree = recipe.model_dump(mode="json")
    is_printable = recipe.about.isprintable() and json.dumps(tree, ensure_ascii=False).isprintable()
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=is_printable, width=120)


class _Dumper(yaml.SafeDumper):
    """A writer that quotes every text that `parse_yaml` would read as something else, such as 1e3."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        node = super().represent_str(data)
        if not is_text(data):
            node.style = "'"
        assert isinstance(node, yaml.ScalarNode)
        return node


_Dumper.add_representer(str, _Dumper.represent_str)


def recipe_schema() -> dict[str, Json]:
    """Returns the JSON Schema of a recipe file, for editors. No key is required, since a `base` may supply any."""
    schema: dict[str, Json] = _optional(Recipe.model_json_schema())
    base = {"type": "string", "description": "Path of another recipe, relative to this one: it supplies absent keys."}
    return schema | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A twofold recipe",
        "properties": {"base": base, **schema["properties"]},
    }


def _optional(schema: Json) -> Json:
    """Returns the schema without required keys; a section over a base may lack its kind, so any alternative fits."""
    if isinstance(schema, list):
        return [_optional(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {key: value for key, value in schema.items() if key not in ("required", "discriminator")}
    return {"anyOf" if key == "oneOf" else key: _optional(value) for key, value in kept.items()}
