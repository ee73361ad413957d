"""Digest of a recipe, and the differences of two recipes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from twofold.digest import digest_of
from twofold.recipe.features import feature_name
from twofold.recipe.schema import Recipe
from twofold.recipe.yaml_files import with_paths
from twofold.tables import Json

_ABSENT: Final = object()
_TOWERS: Final = ("user", "item")
_ADDED_LATER: Final[Mapping[tuple[str, ...], Json]] = {
    ("rerank",): None,
    ("features", "item_ids"): None,
    ("features", "user_ids"): None,
    ("data", "item_columns"): [],
    ("data", "user_columns"): [],
    ("ranker", "candidates", "sources"): [],
    ("ranker", "best_epoch_by"): "ndcg",
    ("retriever", "frequency_power"): 0.0,
    ("retriever", "start_from"): None,
}
"""Fields that a digest leaves out where they have their default, so that saved results state the digest that they had.
"""
_ORDERED: Final = tuple(f"features.{tower}" for tower in _TOWERS)
"""Mappings whose order counts, because the recipe has lists in their place: see `_by_name`."""


def recipe_digest(recipe: Recipe) -> str:
    """Returns the digest of all that determines a run: neither `about`, `page`, `tune` and `mlflow`, nor the folders
    of the data.
    """
    return digest_of(_essence(recipe))


def _essence(recipe: Recipe) -> dict[str, Json]:
    """Returns as JSON what determines a run; of a data path only its file name, since content has its own digest."""
    tree: dict[str, Json] = recipe.model_dump(mode="json", exclude={"about", "page", "tune", "mlflow"})
    for (*sections, name), default in _ADDED_LATER.items():
        part: Any = tree
        for section in sections:
            part = part.get(section) or {}
        if part.get(name, _ABSENT) == default:
            del part[name]
    return with_paths(tree, lambda path: path and Path(path).name)


@dataclass(frozen=True)
class Difference:
    """A field in which two recipes differ. `old` is `None` if the field was added, `new` if it was removed."""

    field: str
    old: Json
    new: Json
    kind: Literal["added", "removed", "changed"]


def recipe_differences(old: Recipe, new: Recipe) -> list[Difference]:
    """Returns the fields in which two recipes differ; none exactly if their digests are equal.

    Features are compared by name, so an added one is one difference and not a shift of all that follow.
    """
    return list(_differences("", _by_name(old), _by_name(new)))


def _by_name(recipe: Recipe) -> dict[str, Json]:
    """Returns the essence with each tower's features as a mapping by name, in their order."""
    tree = _essence(recipe)
    for tower in _TOWERS:
        names = [feature_name(feature) for feature in getattr(recipe.features, tower)]
        tree["features"][tower] = dict(zip(names, tree["features"][tower], strict=True))
    return tree


def _differences(field: str, old: Json, new: Json) -> Iterator[Difference]:
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(part, dict) for part in old + new):
        old, new = ({str(number): part for number, part in enumerate(parts)} for parts in (old, new))
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
        if before != after and field in _ORDERED:
            yield Difference(f"{field} (order)", before, after, "changed")
        for key in old | new:
            name = f"{field}.{key}" if field else key
            yield from _differences(name, old.get(key, _ABSENT), new.get(key, _ABSENT))
