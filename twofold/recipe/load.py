"""File → Recipe; one level of `base:`; changes from the command line; digest; difference of two recipes.

A recipe is YAML, less what a recipe has no use for: no aliases (a few lines of them grow to gigabytes), no tags, no key
twice in a mapping (YAML keeps the last and says nothing). What is wrong with it is said in one RecipeError, a line a
problem: where it was written, the field, what is wrong, what would be right.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import ValidationError

from twofold.digest import digest_of
from twofold.errors import RecipeError
from twofold.recipe.features import feature_name
from twofold.recipe.messages import Problem, did_you_mean, problems_of
from twofold.recipe.schema import Recipe
from twofold.tables import Json

MAX_BYTES: Final = 1_000_000
_ABSENT: Final = object()


# --- file → Recipe ----------------------------------------------------------------------------------------------------


def load_recipe(path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, on top of its `base` if it names one, with `field=value` overrides applied last.

    Mappings are merged; lists, values and mappings of another `kind` are replaced. Paths under `data` are relative to
    the file that names them, those of an override to the working directory; in the Recipe they are absolute.
    """
    own = _read(path)
    sources = [(str(path), own)]
    if "base" in own:
        base = _base_path(path, own.pop("base"))
        inherited = _read(base)
        if "base" in inherited:
            raise RecipeError(
                f"{path}: base: {base} has a base of its own, {inherited['base']} — one level is read: name that file "
                f"as the base, or copy what you need into {base.name}"
            )
        sources.append((str(base), inherited))
        own = _merged(inherited, own)
    for override in overrides:
        own = _overridden(own, override)
    try:
        return Recipe.model_validate(_with_absolute_paths(own, Path.cwd()))
    except ValidationError as error:
        problems = problems_of(error, Recipe)
    raise RecipeError("\n".join(f"{_source(problem, sources, overrides)}: {problem}" for problem in problems))


def load_base(path: Path, *, overrides: Sequence[str] = ()) -> Recipe | None:
    """What the recipe in a file departs from: its `base`; without one, what the file says without its overrides.

    None where it departs from nothing, or from a base that is no whole recipe.
    """
    own = _read(path)
    if "base" not in own:
        return load_recipe(path) if overrides else None
    try:
        return load_recipe(_base_path(path, own["base"]))
    except RecipeError:
        return None


def _base_path(path: Path, named: Json) -> Path:
    if not isinstance(named, str) or not named:
        raise RecipeError(f"{path}: base: is {named!r} — must be the path of another recipe, relative to this one")
    return Path(os.path.normpath(path.parent / os.path.expanduser(named)))


def _merged(base: Json, over: Json) -> Json:
    """`over` on top of `base`. Another `kind` has other keys, so it starts afresh."""
    if not (isinstance(base, dict) and isinstance(over, dict)) or over.get("kind", base.get("kind")) != base.get(
        "kind"
    ):
        return over
    return base | {key: _merged(base[key], value) if key in base else value for key, value in over.items()}


def _overridden(tree: Json, override: str) -> Json:
    """A copy with one field set: `retriever.dim=96`, `features.user.0.max_length=50`."""
    field, sign, text = override.partition("=")
    keys = field.strip().split(".")
    if not sign or not all(keys):
        raise RecipeError(f"--set {override}: cannot be read — write field=value, such as --set retriever.dim=96")
    value = _yaml(text, f"--set {override}")

    def changed(here: Json, depth: int) -> Json:
        if depth == len(keys):
            return value
        key, above = keys[depth], ".".join(keys[:depth])
        if isinstance(here, list):
            if not (key.isdecimal() and int(key) < len(here)):
                raise RecipeError(
                    f"--set {override}: {above} has no element {key} — it has {len(here)}, counted from 0"
                )
            return [changed(item, depth + 1) if place == int(key) else item for place, item in enumerate(here)]
        if here is not None and not isinstance(here, dict):
            raise RecipeError(f"--set {override}: {above} is {here!r}, which holds no field {key}")
        return (here or {}) | {key: changed((here or {}).get(key), depth + 1)}

    return changed(tree, 0)


def _with_absolute_paths(tree: dict[str, Json], folder: Path) -> dict[str, Json]:
    return _with_paths(tree, lambda value: _absolute(folder, value) if isinstance(value, str) else value)


def _absolute(folder: Path, value: str) -> str:
    return os.path.abspath(folder / os.path.expanduser(value))


def _with_paths(tree: dict[str, Json], change: Callable[[Json], Json]) -> dict[str, Json]:
    """A copy with every path under `data` changed, also those in mappings."""
    data = tree.get("data")
    if not isinstance(data, dict):
        return tree
    names = ("events", "items", "users", "published_negatives")
    changed = {name: change(data[name]) for name in names if name in data}
    if isinstance(vectors := data.get("vectors"), dict):
        changed["vectors"] = {name: change(path) for name, path in vectors.items()}
    return tree | {"data": data | changed}


def _source(problem: Problem, sources: Sequence[tuple[str, Json]], overrides: Sequence[str]) -> str:
    """Where a problem was written: an override that sets this field, else the file that says most of its path."""
    field = [str(step) for step in problem.path]
    for override in reversed(overrides):
        keys = override.partition("=")[0].strip().split(".")
        if field[: len(keys)] == keys:
            return f"--set {override}"

    def depth(tree: Json) -> int:
        for depth, step in enumerate(problem.path):
            is_there = step in tree if isinstance(tree, dict) else isinstance(tree, list) and step in range(len(tree))
            if not is_there:
                return depth
            tree = tree[step]
        return len(problem.path)

    return max(sources, key=lambda source: depth(source[1]))[0]


# --- YAML -------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML without anchors, aliases, tags and doubled keys. A day stays text, so that the schema can name a bad one."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise yaml.composer.ComposerError(
                None, None, "anchors (&), aliases (*) and tags (!) are not read; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            problem = (
                "a key must be text" if key.tag != "tag:yaml.org,2002:str" else f"the key {key.value} is there twice"
            )
            if key.tag != "tag:yaml.org,2002:str" or key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Json]:
    """The mapping in a YAML file, the paths it names made absolute."""
    if not path.is_file():
        raise RecipeError(_not_there(path))
    if (size := path.stat().st_size) > MAX_BYTES:
        raise RecipeError(f"{path} has {size:,} bytes; a recipe has at most {MAX_BYTES:,}. Is it a data file?")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text: byte {error.start} cannot be read. Save it as UTF-8.") from None
    tree = _yaml(text, str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} holds {'nothing' if tree is None else 'no mapping'} — a recipe begins with name: …")
    return _with_absolute_paths(tree, path.parent)


def _not_there(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    beside = sorted(file.stem for file in folder.glob("*.yaml"))
    listed = ", ".join(f"{stem}.yaml" for stem in beside)
    found = f"{did_you_mean(path.stem, beside)}recipes there: {listed}" if beside else "no *.yaml file is there"
    what = "is a folder, not a recipe" if path.is_dir() else "does not exist"
    return f"{path} {what}. Looked in {folder.absolute()} — {found}"


def _yaml(text: str, label: str) -> Json:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{label}{where}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{label}: is not YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError):
        raise RecipeError(f"{label}: is nested too deeply or holds a number that is too long") from None


# --- Recipe → digest, difference, text, schema ------------------------------------------------------------------------


def recipe_digest(recipe: Recipe) -> str:
    """What the recipe asks for, as one number: not what it says of itself in `about`, what could be tried instead
    (`tune`), who keeps a copy (`mlflow`), nor where its data lie.
    """
    return digest_of(_essence(recipe))


def _essence(recipe: Recipe) -> dict[str, Json]:
    """As JSON, without what is no part of a run; of a data path only its last name: content has a fingerprint."""
    tree: dict[str, Json] = recipe.model_dump(mode="json", exclude={"about", "tune", "mlflow"})
    return _with_paths(tree, lambda path: path and Path(path).name)


@dataclass(frozen=True)
class Difference:
    """One field in which two recipes differ; `old` is None where it was added, `new` where it was removed."""

    field: str
    old: Json
    new: Json
    kind: Literal["added", "removed", "changed"]


def recipe_differences(old: Recipe, new: Recipe) -> list[Difference]:
    """The fields in which two recipes ask for something else; empty exactly when their digests are equal.

    Features are compared by name: one that is added shows as added, not as a shift of all that follow.
    """
    return list(_differences("", _by_name(old), _by_name(new)))


def _by_name(recipe: Recipe) -> dict[str, Json]:
    """The essence, each tower's features keyed by name, with their order beside them."""
    tree = _essence(recipe)
    for tower in ("user", "item"):
        names = [feature_name(feature) for feature in getattr(recipe.features, tower)]
        tree["features"][tower] = dict(zip(names, tree["features"][tower], strict=True))
    return tree


def _differences(field: str, old: Json, new: Json) -> Iterator[Difference]:
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(part, dict) for part in old + new):
        old, new = ({str(place): part for place, part in enumerate(parts)} for parts in (old, new))
    are_mappings = isinstance(old, dict) and isinstance(new, dict)
    if old is _ABSENT:
        yield Difference(field, None, new, "added")
    elif new is _ABSENT:
        yield Difference(field, old, None, "removed")
    elif not are_mappings or old.get("kind") != new.get("kind"):
        if old != new:
            yield Difference(field, old, new, "changed")
    else:
        before, after = ([key for key in one if key in other] for one, other in ((old, new), (new, old)))
        if before != after:
            yield Difference(f"{field} (order)", before, after, "changed")
        for key in old | new:
            name = f"{field}.{key}" if field else key
            yield from _differences(name, old.get(key, _ABSENT), new.get(key, _ABSENT))


def dump_recipe(recipe: Recipe) -> str:
    """YAML text that loads to an equal recipe, wherever it is put: every field is written, every path absolute.

    Characters that YAML reads as line ends (U+0085, U+2028) do not come back when written raw, so they are escaped.
    """
    return yaml.safe_dump(
        recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=recipe.about.isprintable(), width=120
    )


def recipe_schema() -> dict[str, Json]:
    """The JSON Schema of a recipe file, for editors: whole, or over a `base` that supplies what it leaves out."""
    whole = Recipe.model_json_schema()
    parts = whole.pop("$defs")
    base = {"type": "string", "description": "Another recipe, relative to this one: what is not said here is as there."}
    over = _loosened(whole)
    over["properties"] = {"base": base, **over["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A twofold recipe",
        "if": {"required": ["base"]},
        "then": over,
        "else": whole,
        "$defs": parts | {f"{name}_over_base": _loosened(part) for name, part in parts.items()},
    }


def _loosened(schema: Json) -> Json:
    """The same schema with nothing required, so that a part may say only what it changes."""
    if isinstance(schema, list):
        return [_loosened(part) for part in schema]
    if not isinstance(schema, Mapping):
        return f"{schema}_over_base" if isinstance(schema, str) and schema.startswith("#/$defs/") else schema
    kept = {key: value for key, value in schema.items() if key not in ("required", "discriminator")}
    return {"anyOf" if key == "oneOf" else key: _loosened(value) for key, value in kept.items()}
