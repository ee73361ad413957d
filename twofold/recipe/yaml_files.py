"""YAML files of recipes: safe reading, and the paths that they hold.

A recipe is a subset of YAML: no aliases (a few lines of them grow to gigabytes), no tags, and no key twice in a mapping
(YAML silently keeps the last).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

from twofold.errors import RecipeError
from twofold.recipe.messages import did_you_mean
from twofold.tables import Json

MAX_BYTES: Final = 1_000_000


class _Loader(yaml.SafeLoader):
    """YAML without anchors, aliases, tags and repeated keys. A date stays text, so that the schema can name a bad
    one.
    """

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
            is_text = key.tag == "tag:yaml.org,2002:str"
            if not is_text or key.value in seen:
                problem = f"the key {key.value} appears twice" if is_text else "a key must be text"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Json]:
    """Reads the mapping in a YAML file and makes the paths in its data section absolute."""
    if not path.is_file():
        raise RecipeError(_not_found(path))
    if (size := path.stat().st_size) > MAX_BYTES:
        raise RecipeError(f"{path} has {size:,} bytes; a recipe has at most {MAX_BYTES:,}. Is it a data file?")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text: byte {error.start} cannot be read. Save it as UTF-8.") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} holds {'nothing' if tree is None else 'no mapping'} — a recipe begins with name: …")
    return with_absolute_paths(tree, path.parent)


def _not_found(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    stems = sorted(file.stem for file in folder.glob("*.yaml"))
    listed = ", ".join(f"{stem}.yaml" for stem in stems)
    recipes = f"{did_you_mean(path.stem, stems)}recipes there: {listed}" if stems else "no *.yaml file is there"
    what = "is a folder, not a recipe" if path.is_dir() else "does not exist"
    return f"{path} {what}. Looked in {folder.absolute()} — {recipes}"


def parse_yaml(text: str, label: str) -> Json:
    """Parses YAML text; errors begin with the label and state line and column."""
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


# --- paths ------------------------------------------------------------------------------------------------------------


def base_path(path: Path, base: Json) -> Path:
    """Returns the path of the base that the recipe at `path` names."""
    if not isinstance(base, str) or not base:
        raise RecipeError(f"{path}: base: is {base!r} — must be the path of another recipe, relative to this one")
    return Path(os.path.normpath(path.parent / os.path.expanduser(base)))


def with_absolute_paths(tree: dict[str, Json], folder: Path) -> dict[str, Json]:
    """Makes the paths of the data section absolute; relative ones start at the folder."""
    return with_paths(
        tree, lambda value: os.path.abspath(folder / os.path.expanduser(value)) if isinstance(value, str) else value
    )


def with_paths(tree: dict[str, Json], change: Callable[[Json], Json]) -> dict[str, Json]:
    """Returns a copy in which every path of the data section is changed, those in mappings too."""
    data = tree.get("data")
    if not isinstance(data, dict):
        return tree
    names = ("events", "items", "users", "published_negatives")
    changed = {name: change(data[name]) for name in names if name in data}
    if isinstance(vectors := data.get("vectors"), dict):
        changed["vectors"] = {name: change(path) for name, path in vectors.items()}
    return tree | {"data": data | changed}
