"""Refusals of a recipe and its log before a row is read, with every message."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tests.prepare.tables import THREE_USERS, TRAIN, log_of
from tests.worlds import world_recipe, write_world
from twofold.errors import DataError, RecipeError, TwofoldError
from twofold.prepare.check import check_recipe
from twofold.recipe.evaluate import Evaluate
from twofold.recipe.index import Index
from twofold.recipe.schema import Recipe

ITEMS = pa.table({"item_id": [0, 1], "creator": [5, 6], "look": [[0.1, 0.2], [0.3, 0.4]], "tags": [["a"], ["b"]]})
ID = [{"kind": "id"}]
LIKES = [{"kind": "history", "events": "positives"}]


def recipe_with(
    folder: Path, features: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **prepare: Any
) -> Recipe:
    log = log_of([(1, 0, TRAIN, True)], watch_s=[1.0], length_s=[2.0], title=["a"])
    recipe = world_recipe(write_world(folder, log, ITEMS) | (data or {}))
    parts: dict[str, Any] = {"prepare": recipe.prepare.model_dump() | prepare}
    if features:
        parts["features"] = {"user": LIKES, "item": ID} | features
    return world_recipe(recipe.data.model_dump(), parts)


def test_a_slice_is_a_column_of_single_values(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path)
    check_recipe(recipe.model_copy(update={"evaluate": Evaluate(slices=("creator",))}))
    for column, message in (
        ("creatr", r"evaluate\.slices: neither the items nor the users have a column creatr \(nearest: creator"),
        ("tags", r"evaluate\.slices: tags is VARCHAR\[\]; groups are made of single values"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_recipe(recipe.model_copy(update={"evaluate": Evaluate(slices=(column,))}))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"where": "creatr = 5"}, r"index\.where reads `creatr`, which does not exist \(nearest: `creator`\)"),
        ({"where": "likes > 5"}, r"index\.where reads `likes`, which does not exist.*Available columns: creator"),
        ({"where": "tags = 'a'"}, r"index\.where reads tags, which is VARCHAR\[\]; a rule reads numbers"),
        (
            {"where": "3 IN tags"},
            r"index\.where looks for a number in tags, which is VARCHAR\[\]. Write 'text' IN column",
        ),
        ({"where": "'a' IN creator"}, r"index\.where looks for a text in creator, which is BIGINT"),
        (
            {"recent_counts": {"creator": {"days": 3}}},
            r"index\.recent_counts\.creator: the items have a column creator already",
        ),
    ],
)
def test_who_may_be_recommended_is_said_of_items_and_counts(
    index: dict[str, Any], message: str, tmp_path: Path
) -> None:
    recipe = recipe_with(tmp_path)
    counted = {
        "recent_counts": {"likes": {"events": "positives", "days": 3}},
        "where": "likes > 5 AND creator = 5 AND 'a' IN tags",
    }
    check_recipe(recipe.model_copy(update={"index": Index.model_validate(counted)}))
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe.model_copy(update={"index": Index.model_validate(index)}))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ({"where": "languge = 'hi'"}, r"prepare\.where reads `languge`, which does not exist"),
        ({"derive": {"half": "watch / 2"}}, r"prepare\.derive\.half reads `watch`, .*nearest: `watch_s`"),
        ({"derive": {"a": "b + 1", "b": "watch_s"}}, r"prepare\.derive\.a reads `b`, which does not exist"),
        ({"derive": {"watch_s": "length_s"}}, r"prepare\.derive\.watch_s: the log has a column watch_s already"),
        ({"labels": {"creator": {"kind": "pcc"}}}, r"prepare\.labels\.creator: the log has a column creator already"),
        ({"where": "wtg > 0", "labels": {"wtg": {"kind": "pcc"}}}, r"prepare\.where reads `wtg`, which does not exist"),
        ({"weight": "sqrt(wacth_s)"}, r"prepare\.weight reads `wacth_s`.*nearest: `watch_s`"),
        ({"target": "tags + 1"}, r"prepare\.target reads tags, which is VARCHAR\[\]; a rule reads numbers"),
        ({"outcomes": {"like": "likd"}}, r"prepare\.outcomes\.like reads `likd`, .*nearest: `liked`"),
        (
            {"counters": {"item_id": {"rates": {"like": "likd"}}}},
            r"prepare\.counters\.item_id\.rates\.like reads `likd`, .*nearest: `liked`",
        ),
        (
            {"counters": {"title": {"rates": {"like": "liked"}}}},
            r"prepare\.counters\.title: title is no column of the items, so no item would find its counts",
        ),
        (
            {"counters": {"author": {"rates": {"like": "liked"}}}},
            r"prepare\.counters\.author: there is no column author, which is the key of the counters",
        ),
        (
            {"labels": {"sooner": {"kind": "below_mean", "column": "title"}}},
            r"prepare\.labels\.sooner\.column: title is VARCHAR; a number is needed",
        ),
        (
            {"labels": {"wtg": {"kind": "wtg", "buckets": {"kind": "item", "creator": "creater"}}}},
            r"prepare\.labels\.wtg\.buckets\.creator: there is no column creater, .* \(nearest: creator",
        ),
        (
            {"split": {"kind": "last_n", "ties": "pos"}},
            r"prepare\.split\.ties: there is no column pos, which orders events with one timestamp",
        ),
    ],
)
def test_what_does_not_fit_the_log_is_named(tmp_path: Path, prepare: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe_with(tmp_path, **prepare))


def test_labels_need_watch_time_and_length(tmp_path: Path) -> None:
    data = write_world(tmp_path, log_of([(1, 0, TRAIN, True)], watch_s=[1.0]))
    plain = world_recipe(data).prepare.model_dump()
    recipe = world_recipe(data, {"prepare": plain | {"labels": {"wtg": {"kind": "pcc"}}}})
    with pytest.raises(RecipeError, match=r"labels\.wtg: there is no column length_s, .*prepare\.derive"):
        check_recipe(recipe)
    made = plain | {"derive": {"length_s": "watch_s * 2"}, "labels": {"wtg": {"kind": "pcc"}}}
    check_recipe(world_recipe(data, {"prepare": made}))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "price > 5",
            r"^index\.where reads price as a number, and the items have it as text, which a condition on items",
        ),
        (
            "NOT is_new",
            r"^index\.where reads is_new as true or false, and the items have it as text.* Write is_new as ",
        ),
        ("price = '7.5' AND is_new <> 'false'", None),
    ],
)
def test_a_condition_on_items_reads_no_text_as_a_number(tmp_path: Path, where: str, message: str | None) -> None:
    """An engine would cast them; what filters items without one does not, and would refuse after the training."""
    items = pa.table({"item_id": [0, 1, 2], "price": ["7.5", "3", None], "is_new": ["true", "false", None]})
    recipe = world_recipe(write_world(tmp_path, log_of(THREE_USERS), items), {"index": {"where": where}})
    with nullcontext() if message is None else pytest.raises(RecipeError, match=message):
        check_recipe(recipe)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"vectors": {"look": {}}, "item": [{"kind": "vector", "vectors": "look"}]}, None),
        (
            {"vectors": {"sound": {}}, "item": [{"kind": "vector", "vectors": "sound"}]},
            r"features\.vectors\.sound: the items of .* do not have it, and data\.vectors names no file of it",
        ),
        ({"vectors": {"tags": {}}}, r"features\.vectors\.tags: the items of .* have it as VARCHAR\[\]"),
        (
            {"user": [{"kind": "category", "column": "city"}]},
            r"features\.user\.0\.column reads city, which the users of .* do not have",
        ),
    ],
)
def test_features_of_either_tower_are_checked(tmp_path: Path, features: dict[str, Any], message: str | None) -> None:
    recipe = recipe_with(tmp_path, features)
    if message is None:
        check_recipe(recipe)
        return
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("creatr", r"train\.group_by: neither the items nor the users have a column creatr \(nearest: creator; "),
        ("look", r"train\.group_by: look is DOUBLE\[\]; rows are grouped by single values"),
        ("creator", None),
    ],
)
def test_columns_to_group_by_are_checked(tmp_path: Path, column: str, message: str | None) -> None:
    plain = recipe_with(tmp_path)
    recipe = plain.model_copy(update={"train": plain.train.model_copy(update={"group_by": (column,)})})
    if message is None:
        check_recipe(recipe)
        return
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            "creatr",
            r"retriever\.separate_towers_by: the items have no column creatr \(nearest: creator; columns available: "
            r".*item_id",
        ),
        ("look", r"retriever\.separate_towers_by: look is DOUBLE\[\]; towers are made for single values"),
        ("creator", None),
    ],
)
def test_a_column_to_make_towers_for_is_checked(tmp_path: Path, column: str, message: str | None) -> None:
    plain = recipe_with(tmp_path)
    recipe = plain.model_copy(update={"retriever": plain.retriever.model_copy(update={"separate_towers_by": column})})
    if message is None:
        check_recipe(recipe)
        return
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe)


def test_files_of_vectors_are_looked_for_before_rows_are_read(tmp_path: Path) -> None:
    features = {"vectors": {"sound": {}}}
    with pytest.raises(DataError, match=r"data\.vectors\.sound: there is no file .*sound\.npy"):
        check_recipe(recipe_with(tmp_path, features, {"vectors": {"sound": tmp_path / "sound.npy"}}))
    np.save(tmp_path / "sound.npy", np.zeros((2, 3)))
    check_recipe(recipe_with(tmp_path, features, {"vectors": {"sound": tmp_path / "sound.npy"}}))
    with pytest.raises(
        TwofoldError, match=r"has one row for each row of the items file; name that file in data\.items"
    ):
        check_recipe(recipe_with(tmp_path, features, {"vectors": {"sound": tmp_path / "sound.npy"}, "items": None}))


COUNTED = {"item_id": {"rates": {"like": "liked"}}, "user_id": {"rates": {"like": "liked"}}}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"item": [{"kind": "counter", "key": "creator", "statistic": "like"}]},
            r"features\.item\.0 reads counters by creator, but prepare\.counters counts by item_id, user_id",
        ),
        (
            {"item": [{"kind": "counter", "key": "item_id", "statistic": "share"}]},
            r"features\.item\.0: prepare\.counters\.item_id has no share; it has events, like",
        ),
        (
            {"user": [{"kind": "counter", "key": "item_id", "statistic": "like"}]},
            r"features\.user\.0 counts by item_id: the user tower reads counters by user_id, the item tower all others",
        ),
        (
            {"user": [{"kind": "clusters", "events": "positives", "vectors": "look"}]},
            r"positives_clusters_look reads the vectors 'look', which features\.vectors does not .*lists: none",
        ),
    ],
)
def test_features_refer_to_what_the_recipe_makes(tmp_path: Path, features: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe_with(tmp_path, features, counters=COUNTED)


def test_counters_count_something_under_one_name_each(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"no counter is defined; write rates: \{like: liked\}"):
        recipe_with(tmp_path, counters={"item_id": {}})
    with pytest.raises(ValidationError, match="watch is both a rate and a mean; rename one"):
        recipe_with(tmp_path, counters={"item_id": {"rates": {"watch": "liked"}, "means": {"watch": "watch_s"}}})
    with pytest.raises(ValidationError, match="half is both in derive and in labels; rename one"):
        recipe_with(tmp_path, derive={"half": "watch_s"}, labels={"half": {"kind": "pcc"}})


def test_rules_of_every_place_are_vetted(tmp_path: Path) -> None:
    attack = "(SELECT password FROM read_csv('secret.csv'))"
    places: list[dict[str, Any]] = [{name: attack} for name in ("where", "positive", "negative", "weight", "target")]
    places += [{"derive": {"x": attack}}, {"counters": {"item_id": {"rates": {"x": attack}}}}]
    places += [{"counters": {"item_id": {"means": {"x": attack}}}}, {"outcomes": {"x": attack}}]
    for place in places:
        with pytest.raises(ValidationError, match="A query cannot be part of a rule"):
            recipe_with(tmp_path, **place)
    for name in ('x" FROM secret --', "two words", "1st", ""):
        with pytest.raises(ValidationError, match="String should match pattern"):
            recipe_with(tmp_path, derive={name: "watch_s"})
