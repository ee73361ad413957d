"""Checks of a recipe against its log before a row is read: columns, types, rules, references."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, Literal, assert_never

from twofold.errors import DataError, RecipeError
from twofold.prepare.plan import used_columns
from twofold.prepare.rule_types import check_types
from twofold.prepare.sources import FRACTIONS, Source, SourceTable, is_number, open_source, table_paths
from twofold.recipe.features import (
    AgeFeature,
    BagFeature,
    CategoryFeature,
    ClusterFeature,
    CounterFeature,
    HistoryFeature,
    IdFeature,
    ItemFeature,
    NumberFeature,
    PopularityFeature,
    ProfileFeature,
    SequenceFeature,
    TimeFeature,
    UserFeature,
    VectorFeature,
)
from twofold.recipe.index import Index
from twofold.recipe.labels import BelowMean, ItemBuckets, Label, WatchTimeGain
from twofold.recipe.messages import did_you_mean
from twofold.recipe.prepare import Prepare
from twofold.recipe.rerank import AGE, Limit
from twofold.recipe.retriever import TwoTower
from twofold.recipe.schema import Recipe
from twofold.recipe.split import LastEvents
from twofold.sql.rules import check_columns, columns_read_as, listed_columns
from twofold.tables import split_side

_NUMBER: Final = "DOUBLE"
_READ_AS: Final[Mapping[Literal["number", "condition"], str]] = {"number": "a number", "condition": "true or false"}


def check_recipe(recipe: Recipe) -> Source:
    """Returns the recipe's source after every check that needs no rows."""
    source = open_source(recipe.data)
    _check_dates(recipe, source)
    columns = _check_columns(recipe.prepare, source)
    _check_rules(recipe.prepare, columns, source)
    paths = table_paths(recipe.data)
    for tower, own, path in (
        ("user", source.users.columns, paths["users"]),
        ("item", source.items.columns, paths["items"]),
    ):
        for field, features in recipe.read_features():
            for number, feature in enumerate(getattr(features, tower)):
                _check_feature(feature, own, field=f"{field}.{tower}.{number}", path=path)
    _check_vectors(recipe, source, paths["items"])
    _check_index(recipe.index, source.items)
    _check_rerank(recipe, source.items)
    _check_page(recipe, source.items.columns)
    both = {**source.users.columns, **source.items.columns}
    for field, parting, use in (
        ("train.group_by", recipe.train.group_by, "rows are grouped by"),
        ("evaluate.slices", recipe.evaluate.slices, "groups are made of"),
    ):
        for name in parting:
            side, column = split_side(name) if field == "train.group_by" else (None, name)
            own = both if side is None else source.users.columns if side == "user" else source.items.columns
            lacking = "neither the items nor the users have a" if side is None else f"the {side}s have no"
            _check_values(column, own, field=field, lacking=lacking, use=use)
    if isinstance(recipe.retriever, TwoTower) and recipe.retriever.separate_towers_by is not None:
        _check_values(
            recipe.retriever.separate_towers_by,
            source.items.columns,
            field="retriever.separate_towers_by",
            lacking="the items have no",
            use="towers are made for",
        )
    return source


def _check_page(recipe: Recipe, columns: Mapping[str, str]) -> None:
    """Raises RecipeError if the items lack a column that the page shows."""
    for field, column in recipe.page.model_dump(exclude_none=True).items():
        if column not in columns:
            raise RecipeError(
                f"page.{field}: the items have no column {column} ({did_you_mean(column, columns)}columns "
                f"available: {', '.join(sorted(columns))})."
            )


def _check_dates(recipe: Recipe, source: Source) -> None:
    """Raises RecipeError if the times are dates, which are the same day everywhere, and days are those of a zone."""
    column = recipe.data.columns.get("at", "at")
    if source.events.own.get(column) == "DATE" and recipe.prepare.time_zone != "UTC":
        raise RecipeError(
            f"prepare.time_zone is {recipe.prepare.time_zone}, but {column} of {recipe.data.events} holds dates, which "
            f"begin at midnight UTC: in another zone they could be the day before. Write time_zone: UTC."
        )


# --- rules ------------------------------------------------------------------------------------------------------------


def _check_columns(prepare: Prepare, source: Source) -> dict[str, str]:
    """Returns name → SQL type of every column that a rule may read; RecipeError if a name of the recipe is taken."""
    columns = {**source.users.columns, **source.items.columns, **source.events.columns}
    _check_free(prepare, columns)
    _check_case(prepare, source)
    columns |= dict.fromkeys(prepare.derive, _NUMBER)
    for name, label in prepare.labels.items():
        _check_label(label, columns, field=f"prepare.labels.{name}")
    if isinstance(prepare.split, LastEvents):
        _need(
            prepare.split.ties,
            source.events.columns,
            field="prepare.split.ties",
            why="orders events with one timestamp",
        )
    for key in prepare.counters:
        _need(key, columns, field=f"prepare.counters.{key}", why="is the key of the counters")
        if key != "user_id" and key not in source.items.columns:
            raise RecipeError(
                f"prepare.counters.{key}: {key} is no column of the items, so no item would find its counts. Count by "
                f"user_id, item_id or a column of data.items."
            )
    return columns | {
        name: "BOOLEAN" if label.kind in ("long_view", "below_mean") else _NUMBER
        for name, label in prepare.labels.items()
    }


def _check_label(label: Label, columns: Mapping[str, str], *, field: str) -> None:
    match label:
        case BelowMean():
            _need(label.column, columns, field=f"{field}.column", why="is averaged", numeric=True)
            _need(label.key, columns, field=f"{field}.key", why="is averaged over")
        case _:
            for needed in ("watch_s", "length_s"):
                _need(needed, columns, field=field, why="the label needs", numeric=True)
            if isinstance(label, WatchTimeGain) and isinstance(label.buckets, ItemBuckets) and label.buckets.creator:
                _need(label.buckets.creator, columns, field=f"{field}.buckets.creator", why="is the creator")


def _check_free(prepare: Prepare, columns: Collection[str]) -> None:
    """Raises RecipeError if a name of `derive` or `labels` is that of a column of the log."""
    by_lower = {name.lower(): name for name in columns}
    for part, names in (("derive", prepare.derive), ("labels", prepare.labels)):
        for name in names:
            if (taken := by_lower.get(name.lower())) is not None:
                raise RecipeError(
                    f"prepare.{part}.{name}: the log has a column {taken} already"
                    f"{'' if taken == name else ', and SQL does not tell upper from lower case'}. "
                    f"Choose another name for yours."
                )


def _check_case(prepare: Prepare, source: Source) -> None:
    """Raises RecipeError if `prepare` reads a column whose name another table spells in another case."""
    spelled = [(table, name) for table, own in source.tables.items() for name in own.columns]
    for read in sorted(used_columns(prepare)):
        first, *others = [(table, name) for table, name in spelled if name.lower() == read.lower()] or [("", read)]
        for table, name in others:
            if name != first[1]:
                raise RecipeError(
                    f"data.{first[0]} has a column {first[1]} and data.{table} a column {name}; prepare reads {read}, "
                    f"and SQL does not tell upper from lower case. Rename one of them, as "
                    f"data.columns: {{{name}_of_{table}: {name}}}."
                )


def _need(name: str, columns: Mapping[str, str], *, field: str, why: str, numeric: bool = False) -> None:
    if name not in columns:
        raise RecipeError(
            f"{field}: there is no column {name}, which {why} ({did_you_mean(name, columns)}columns available: "
            f"{', '.join(sorted(columns))}). Name one of them, or define it in prepare.derive."
        )
    if numeric and not is_number(columns[name]):
        raise RecipeError(f"{field}: {name} is {columns[name]}; a number is needed.")


def _check_rules(prepare: Prepare, columns: Mapping[str, str], source: Source) -> None:
    """Raises RecipeError if a rule reads a column that does not exist before the rule is applied, or has another type.

    A derived column reads those of the log and those derived above it; `where` reads no label.
    """
    derived = list(prepare.derive)
    log_columns = {name: type_ for name, type_ in columns.items() if name not in (*derived, *prepare.labels)}
    for number, rule in enumerate(prepare.rules()):
        available = columns
        if number < len(derived) or rule.field == "prepare.where":
            available = log_columns | dict.fromkeys(derived[:number], _NUMBER)
        check_columns(rule.text, available, field=rule.field)
        check_types(rule.text, columns, source.tables, field=rule.field, result=rule.result)


def _check_index(index: Index, items: SourceTable) -> None:
    """Raises RecipeError if `where` reads an unknown column, or a recent count has the name of a column."""
    own = items.columns
    for name in index.recent_counts:
        if name in own:
            raise RecipeError(
                f"index.recent_counts.{name}: the items have a column {name} already. Choose another name for yours."
            )
    if index.where is not None:
        columns = _described(index, own)
        check_columns(index.where, columns, field="index.where")
        _check_item_types(index.where, columns, items, field="index.where")


def _described(index: Index, own: Mapping[str, str]) -> dict[str, str]:
    """Returns the columns that conditions on items may read: see `described_items`."""
    columns = {**own, **dict.fromkeys(index.recent_counts, "BIGINT")}
    return {AGE: _NUMBER, **columns} if "uploaded_at" in own else columns


def _check_rerank(recipe: Recipe, items: SourceTable) -> None:
    """Raises RecipeError if a rule after ranking or a source of candidates reads a column that the items do not have or
    that does not fit.
    """
    own = items.columns
    columns = _described(recipe.index, own)
    of_rules = () if recipe.rerank is None else recipe.rerank.conditions
    of_sources = () if recipe.ranker is None else recipe.ranker.candidates.conditions
    for section, conditions in (("rerank.rules", of_rules), ("ranker.candidates.sources", of_sources)):
        for number, condition in conditions:
            check_columns(condition, columns, field=f"{section}.{number}.when")
            _check_item_types(condition, columns, items, field=f"{section}.{number}.when")
    for number, rule in enumerate(() if recipe.rerank is None else recipe.rerank.rules):
        if isinstance(rule, Limit):
            field = f"rerank.rules.{number}.column"
            values = {name: type_.removesuffix("[]") for name, type_ in own.items()}
            _check_values(rule.column, values, field=field, lacking="the items have no", use="limits count")


def _check_item_types(rule: str, columns: Mapping[str, str], items: SourceTable, *, field: str) -> None:
    """Raises RecipeError if a condition on items reads a list as a value, a value as a list, or a list of others."""
    listed = listed_columns(rule)
    for column, kind in listed.items():
        type_ = columns[column]
        if not type_.endswith("[]") or (kind == "text") != type_.startswith("VARCHAR"):
            raise RecipeError(
                f"{field} looks for a {kind} in {column}, which is {type_}. Write 'text' IN column for lists of texts, "
                f"3 IN column for lists of numbers, and column = 'text' where there are no lists. Rule: {rule}"
            )
    single = {name: "VARCHAR" if name in listed else type_ for name, type_ in columns.items()}
    check_types(rule, single, {"items": items}, field=field, result="condition")
    for kind, meaning in _READ_AS.items():
        for column in sorted(columns_read_as(kind, rule, result="condition")):
            if single[column].startswith(("VARCHAR", "ENUM")):
                raise RecipeError(
                    f"{field} reads {column} as {meaning}, and the items have it as text, which a condition on items "
                    f"only compares with texts. Write {column} as {meaning} in the items table. Rule: {rule}"
                )


# --- features ---------------------------------------------------------------------------------------------------------


def _check_feature(feature: UserFeature | ItemFeature, own: Mapping[str, str], *, field: str, path: Path) -> None:
    match feature:
        case IdFeature() | TimeFeature() | VectorFeature() | CounterFeature():
            return  # they read ids, times and counters, which are checked elsewhere
        case HistoryFeature() | SequenceFeature() | ClusterFeature() | PopularityFeature():
            return  # they read events, which every log has
        case CategoryFeature() | BagFeature() | NumberFeature() | ProfileFeature():
            column, where = feature.column, f"{field}.column"
        case AgeFeature():
            column, where = "uploaded_at", f"{field}, the item's age,"
        case _:
            assert_never(feature)
    if column not in own:
        tower = field.split(".")[-2]
        raise RecipeError(
            f"{where} reads {column}, which the {tower}s of {path} do not have "
            f"({did_you_mean(column, own)}columns available: {', '.join(sorted(own))})."
        )
    type_ = own[column]
    is_right, wanted = {
        "category": (_is_plain(type_), "a plain column; a list is read by kind: bag"),
        "bag": _bag_type(feature, type_),
        "number": (is_number(type_), "a number; text is read by kind: category"),
        "profile": (type_.startswith(FRACTIONS) and type_.endswith("]"), "a list of FLOAT or DOUBLE"),
        "age": (type_ == "BIGINT", "UTC milliseconds as BIGINT, or timestamps"),
    }[feature.kind]
    if not is_right:
        raise RecipeError(f"{where} reads {column} of {path}, which is {type_}; kind: {feature.kind} needs {wanted}.")


def _bag_type(feature: UserFeature | ItemFeature, type_: str) -> tuple[bool, str]:
    """Returns whether a bag can read a column of this type, and which columns it can read, in words."""
    if isinstance(feature, BagFeature) and feature.sep is not None:
        return type_ == "VARCHAR", "a text column where it has a sep"
    return (
        type_.endswith("[]") and _is_plain(type_[:-2]),
        "a list column of plain values, such as VARCHAR[]; a text such as pop|rock is read with sep: '|', and a single "
        "value by kind: category",
    )


def _check_values(column: str, columns: Mapping[str, str], *, field: str, lacking: str, use: str) -> None:
    """Raises RecipeError if a column of single values is missing or contains lists."""
    if column not in columns:
        raise RecipeError(
            f"{field}: {lacking} column {column} ({did_you_mean(column, columns)}columns available: "
            f"{', '.join(sorted(columns))})."
        )
    if not _is_plain(columns[column]):
        raise RecipeError(f"{field}: {column} is {columns[column]}; {use} single values.")


def _is_plain(type_: str) -> bool:
    return not type_.endswith("]") and not type_.startswith(("STRUCT", "MAP", "UNION", "BLOB", "INTERVAL"))


def _check_vectors(recipe: Recipe, source: Source, path: Path) -> None:
    for name in recipe.features.vectors:
        type_ = source.items.columns.get(name)
        if name in recipe.data.vectors:
            if not recipe.data.vectors[name].is_file():
                raise DataError(f"data.vectors.{name}: there is no file {recipe.data.vectors[name]}.")
            if not source.items.files or source.items.grouped_by is not None:
                raise DataError(
                    f"data.vectors.{name} has one row for each row of the items file; name that file in data.items."
                )
        elif type_ is None or not type_.startswith(FRACTIONS) or not type_.endswith("]"):
            found = "do not have it" if type_ is None else f"have it as {type_}"
            raise RecipeError(
                f"features.vectors.{name}: the items of {path} {found}, and data.vectors names no file of it. "
                f"A vector is a list of FLOAT or DOUBLE, or a row of a .npy file."
            )
