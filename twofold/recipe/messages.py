"""Messages for the errors that pydantic finds in a recipe: the field, what is wrong, and what would be right.

pydantic reports tuples, tags and inputs; a recipe has lists, kinds and values. Where a field is a choice of kinds,
pydantic's location names the kind (`features.user.0.history.max_length`); the path shown is that of the file.
"""

import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from twofold.sql.rules import nearest_names

FieldPath = tuple[str | int, ...]
MAX_PROBLEMS: Final = 50
"""Number of errors that a message lists; the search for similar names takes time for each."""

_TYPES: Final[Mapping[str, str]] = {
    "int": "must be a whole number",
    "float": "must be a number",
    "string": "must be text; put it in quotation marks",
    "date": "must be a day such as 2022-05-08",
    "datetime": "must be a day such as 2022-05-08",
    "bool": "must be true or false",
    "path": "must be a path",
    "tuple": "must be a list",
    "model": "must be a mapping",
    "dict": "must be a mapping",
    "finite": "must be a finite number",
}
_LIMITS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than_equal": ("must be at least", "ge"),
    "greater_than": ("must be above", "gt"),
    "less_than_equal": ("must be at most", "le"),
    "less_than": ("must be below", "lt"),
    "string_too_short": ("its number of characters must be at least", "min_length"),
    "string_too_long": ("its number of characters must be at most", "max_length"),
    "too_short": ("must hold at least", "min_length"),
    "too_long": ("must hold at most", "max_length"),
}

_KEY: Final = "[key]"  # pydantic's last step for an error in a key of a mapping, which is the step before

RENAMED: Final[Mapping[str, Mapping[str, str]]] = {
    "Recipe": {"judge": "evaluate"},
    "Table": {"sampled_negatives": "published_negatives"},
    "BelowMean": {"of": "column", "by": "key"},
    "Prepare": {"rounds": "filter_rounds", "utc_offset_h": "time_zone"},
    "HistoryFeature": {
        **{"of": "events", "last": "max_length", "over": "vectors"},
        "table": "share_item_embedding",
    },
    "SequenceFeature": {
        **{"last": "max_length", "depth": "num_layers", "heads": "num_heads"},
        "table": "share_item_embedding",
    },
    "ClusterFeature": {"of": "events", "last": "max_length", "over": "vectors", "k": "num_clusters"},
    "TimeFeature": {"of": "part"},
    "VectorFeature": {"of": "vectors"},
    "IdFeature": {"dropout": "unknown_rate"},
    "AgeFeature": {"expand": "hidden_dim"},
    "NumberFeature": {"expand": "hidden_dim"},
    "CounterFeature": {"by": "key", "of": "statistic", "alpha": "smoothing", "expand": "hidden_dim"},
    "TwoTower": {"per": "separate_towers_by", "output": "output_norm"},
    "Ials": {"regularisation": "regularization"},
    "FullSoftmax": {"prior": "logit_adjustment"},
    "HardNegatives": {"easy": "easy_per_hard"},
    "Train": {"clip_norm": "max_grad_norm"},
    "Candidates": {
        **{"top": "num_candidates", "skip": "skip_top", "retrieved": "num_retrieved", "asked_at": "request_time"},
        **{"days": "last_days", "requests": "max_requests"},
    },
    "Head": {"of": "outcome"},
    "Index": {"counts": "recent_counts"},
    "Recent": {"of": "events"},
}
"""Keys that were renamed, by the section that holds them: section → old key → new key."""
REMOVED: Final[Mapping[str, Mapping[str, str]]] = {
    "SequenceFeature": {
        "events": "a sequence holds positives: delete the key; negatives are read by {kind: history, events: negatives}"
    },
}
"""Keys that no longer exist: section → key → the reason and what to write instead."""


@dataclass(frozen=True)
class Problem:
    """An error in a recipe: where, what is wrong, and what would be right."""

    path: FieldPath
    wrong: str
    right: str

    def __str__(self) -> str:
        field = ".".join(map(str, self.path))
        return ": ".join(filter(None, (field, self.wrong))) + (f" — {self.right}" if self.right else "")


def problems_of(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Returns the first `MAX_PROBLEMS` errors, in the order of the fields, each once.

    A list that is too short because elements are wrong is no error of its own. Where a value may have several types,
    pydantic has an error for each of them: together they are one.
    """
    errors = error.errors(include_url=False)
    parents = {each["loc"][:length] for each in errors for length in range(len(each["loc"]))}
    problems = [each for each in errors if not (each["type"] == "too_short" and each["loc"] in parents)]
    found: dict[tuple[FieldPath, str], Problem] = {}
    for each in problems[:MAX_PROBLEMS]:
        problem = _problem(each, root)
        first = found.get(key := (problem.path, problem.wrong))
        found[key] = problem if first is None else replace(problem, right=f"{first.right}, or {problem.right}")
    return [*found.values()]


def _members(annotation: Any) -> tuple[Any, ...]:
    """Returns the types of a field: the members of a union, without None and annotations."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in _members(part))
    return () if annotation is type(None) else (annotation,)


def did_you_mean(name: str, names: Collection[str]) -> str:
    """Returns the names that resemble one that does not exist, as a phrase, or an empty text."""
    near = nearest_names(name, names)
    return f"nearest: {', '.join(near)}; " if near else ""


def _problem(fault: Mapping[str, Any], root: type[BaseModel]) -> Problem:
    path, parent, here = _locate(fault["loc"], root)
    value, facts = _shown(fault["input"]), fault.get("ctx", {})
    last = str(path[-1]) if path else ""
    match fault["type"]:
        case "value_error":
            return Problem(path, str(facts["error"]), "")
        case "extra_forbidden":
            for part in _parts(parent):
                if last in (renamed := RENAMED.get(part.__name__, {})):
                    return Problem(path, f"is now {'.'.join(map(str, (*path[:-1], renamed[last])))}", "")
                if last in (removed := REMOVED.get(part.__name__, {})):
                    return Problem(path, "was removed", removed[last])
            keys = [name for part in _parts(parent) for name in part.model_fields]
            return Problem(path, "does not exist", f"{did_you_mean(last, keys)}what may stand here: {', '.join(keys)}")
        case "missing":
            return Problem(path, "is missing", _expected(parent, last))
        case "union_tag_not_found":
            return Problem((*path, "kind"), "is missing", f"kinds: {', '.join(_kinds(here))}")
        case "union_tag_invalid":
            return Problem((*path, "kind"), f"{facts['tag']} does not exist", _choice(facts["tag"], _kinds(here)))
        case "literal_error":
            choices = [str(choice) for member in _members(here) for choice in get_args(member)]
            return Problem(path, f"{value} does not exist", _choice(str(fault["input"]), choices))
        case "string_pattern_mismatch" if fault["loc"][-1] == _KEY:
            return Problem(path, f"{value} is no name", "write letters, digits and _; the first is no digit")
        case "string_pattern_mismatch":
            return Problem(path, f"is {value}", _expected(parent, last))
        case kind if kind in _LIMITS:
            words, limit = _LIMITS[kind]
            return Problem(path, f"is {value}", f"{words} {facts[limit]}")
        case "dict_type" if kinds := _kinds(here):
            return Problem(path, f"is {value}", f"write {{kind: …}}; kinds: {', '.join(kinds)}")
        case "string_type" if Path in _members(here):
            return Problem(path, f"is {value}", _TYPES["path"])
        case kind:
            return Problem(path, f"is {value}", _TYPES.get(kind.partition("_")[0], fault["msg"]))


def _choice(value: str, choices: Sequence[str]) -> str:
    return f"{did_you_mean(value, choices)}choose from: {', '.join(choices)}"


def _expected(parent: Any, field: str) -> str:
    """Returns the choices and the description of a field, from the schema."""
    for part in _parts(parent):
        if field in part.model_fields:
            about = part.model_fields[field]
            choices = [*_kinds(about.annotation), *_literals(about.annotation)]
            chosen_from = f"choose from: {', '.join(choices)}" if choices else ""
            return ". ".join(filter(None, (chosen_from, about.description))) or f"write {field}: …"
    return ""


def _locate(location: FieldPath, root: type[BaseModel]) -> tuple[FieldPath, Any, Any]:
    """Returns the path in the file, the type that holds its last step, and the type at its end."""
    path: FieldPath = ()
    parent, here = None, root
    for step in location:
        if step == _KEY:
            continue
        parts = _parts(here)
        chosen = (
            [part for part in parts if step in _literals(part.model_fields["kind"].annotation)]
            if len(parts) > 1
            else []
        )
        if chosen:
            here = chosen[0]
        elif parts or len(_members(here)) <= 1:  # else the step names one of several types of a value
            path, parent, here = (*path, step), here, _inside(here, step)
    return path, parent, here


def _inside(annotation: Any, step: str | int) -> Any:
    if isinstance(step, int):
        return next((get_args(member)[0] for member in _members(annotation) if get_args(member)), None)
    values = [get_args(member)[1] for member in _members(annotation) if get_origin(member) is Mapping]
    if values:
        return values[0]
    fields = (part.model_fields.get(step) for part in _parts(annotation))
    return next((field.annotation for field in fields if field is not None), None)


def _parts(annotation: Any) -> list[type[BaseModel]]:
    return [member for member in _members(annotation) if isinstance(member, type) and issubclass(member, BaseModel)]


def _kinds(annotation: Any) -> list[str]:
    parts = [part for part in _parts(annotation) if "kind" in part.model_fields]
    return [kind for part in parts for kind in _literals(part.model_fields["kind"].annotation)]


def _literals(annotation: Any) -> list[str]:
    return [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
