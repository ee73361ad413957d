"""YAML files of recipes: safe reading, and the paths that they hold.

A recipe is a subset of YAML 1.2: no aliases (a few lines of them grow to gigabytes), no tags, no directives, and no key
twice in a mapping (YAML silently keeps the last). Only `true`, `false`, `null` and decimal numbers are no text: YAML
1.1 would read `010` as 8, `yes` as true, `12:30` as 750 and `2022-05-08` as a day.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from twofold.errors import RecipeError
from twofold.recipe.messages import did_you_mean
from twofold.tables import Json

MAX_BYTES: Final = 200_000  # a recipe of 400 columns has 60,000
MAX_DEPTH: Final = 64
"""Number of levels of lists and mappings, and of the steps of a field that `--set` names."""
_TABLES: Final = frozenset({".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson", ".gz"})
_MAX_DIGITS: Final = 100
_CONSTANTS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FRACTION: Final = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def read_mapping(path: Path) -> dict[str, Json]:
    """Reads the mapping in a YAML file and makes the paths in its data section absolute."""
    if not path.is_file():
        raise RecipeError(_not_found(path))
    draft = f"To draft a recipe from a log: twofold recipe new --log {path}"
    if path.suffix.lower() in _TABLES:
        raise RecipeError(f"{path} is a table, not a recipe. {draft}")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path} has {path.stat().st_size:,} bytes; a recipe has at most {MAX_BYTES:,}. {draft}")
    try:
        text = content.decode("utf-8-sig")
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
        return _document(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        line = text.splitlines()[mark.line].strip() if mark and mark.line < len(text.splitlines()) else ""
        raise RecipeError(f"{label}{where}: {error.problem or error.context}{_quotes_hint(line)}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{label}: is not YAML: {' '.join(str(error).split())}") from None


def _quotes_hint(line: str) -> str:
    """Returns what to write for a value that begins with a quotation mark, or has a colon, and goes on after it."""
    key, sign, value = line.partition(": ")
    value = value.strip()
    if not sign or not (value[:1] in ("'", '"') or ": " in value):
        return ""
    whole = "'" + value.replace("'", "''") + "'"
    return f". If {value[:60]} is one text, write it in quotation marks, its own ones doubled: {key}: {whole[:80]}"


def is_text(plain: str) -> bool:
    """Returns whether a scalar without quotation marks is read as text."""
    return (
        plain not in _CONSTANTS and plain != "<<" and not _INTEGER.fullmatch(plain) and not _FRACTION.fullmatch(plain)
    )


# --- events of the parser ---------------------------------------------------------------------------------------------


def _document(events: Iterator[Any]) -> Json:
    """Returns the value of the only document; `None` means that there is none."""
    value, documents = None, 0
    for event in events:
        match event:
            case yaml.DocumentStartEvent(version=None, tags=None) if documents == 0:
                documents += 1
            case yaml.DocumentStartEvent():
                raise _fault("directives (%) are not read" if documents == 0 else "a second document begins", event)
            case yaml.ScalarEvent() | yaml.SequenceStartEvent() | yaml.MappingStartEvent() | yaml.AliasEvent():
                value = _value(event, events, depth=0)
            case _:
                pass
    return value


def _value(event: Any, events: Iterator[Any], *, depth: int) -> Json:
    """Returns the value that begins with this event, and takes its further events."""
    if event.anchor or getattr(event, "tag", None):
        raise _fault("anchors (&), aliases (*) and tags (!) are not read; write the value out", event)
    if depth > MAX_DEPTH:
        raise _fault(f"is nested too deeply, in more than {MAX_DEPTH} levels", event)
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        ends = yaml.SequenceEndEvent
        return [_value(item, events, depth=depth + 1) for item in iter(lambda: _next(events, ends), None)]
    mapping: dict[str, Json] = {}
    while (key := _next(events, yaml.MappingEndEvent)) is not None:
        name = _value(key, events, depth=depth + 1) if isinstance(key, yaml.ScalarEvent | yaml.AliasEvent) else None
        if not isinstance(name, str) or key.implicit[0] and name == "<<":
            raise _fault("a key must be text", key)
        if name in mapping:
            raise _fault(f"the key {name} appears twice", key)
        mapping[name] = _value(next(events), events, depth=depth + 1)
    return mapping


def _next(events: Iterator[Any], end: type[Any]) -> Any:
    """Returns the next event; `None` means that the collection ends."""
    event = next(events)
    return None if isinstance(event, end) else event


def _scalar(event: Any) -> Json:
    text: str = event.value
    if not event.implicit[0] or is_text(text) or text == "<<":
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) > _MAX_DIGITS:
        raise _fault(f"a number that is too long: it has {len(text):,} digits", event)
    return int(text) if _INTEGER.fullmatch(text) else float(text)


def _fault(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


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
