from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from twofold.recipe.features import (
    AgeFeature,
    BagFeature,
    HistoryFeature,
    NumberFeature,
    SequenceFeature,
    TimeFeature,
    feature_name,
    reads_time,
)
from twofold.recipe.prepare import Prepare
from twofold.recipe.schema import Recipe
from twofold.recipe.split import TemporalSplit, Window
from twofold.tables import DAY_MS, HOUR_MS


def recipe_tree(**changes: Any) -> dict[str, Any]:
    split = {
        "kind": "temporal",
        "train": {"first": "2022-04-09", "end": "2022-05-07"},
        "validation": {"first": "2022-05-07", "end": "2022-05-08"},
        "test": {"first": "2022-05-08", "end": "2022-05-09"},
    }
    whole = {
        "name": "tiny",
        "data": {"kind": "table", "events": "/data/events.parquet"},
        "prepare": {"positive": "long_view OR is_like", "split": split},
        "features": {"user": [{"kind": "history", "events": "positives"}], "item": [{"kind": "id"}]},
        "retriever": {"kind": "two_tower"},
        "train": {},
    }
    return whole | changes


def test_defaults_are_those_of_the_fields() -> None:
    recipe = Recipe.model_validate(recipe_tree())
    assert recipe.data.events == Path("/data/events.parquet")
    assert recipe.retriever.dim == 64
    assert recipe.features.user == (HistoryFeature(kind="history", events="positives", max_length=100),)
    assert recipe.prepare.filters == ()


def test_a_recipe_is_frozen_and_closed() -> None:
    recipe = Recipe.model_validate(recipe_tree())
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.epochs = 5  # type: ignore[misc]
    with pytest.raises(ValidationError, match="epoch"):
        Recipe.model_validate(recipe_tree(train={"epoch": 5}))


def test_days_begin_at_midnight_of_the_time_zone() -> None:
    days = {name: Window(first=date(2022, 5, day), end=date(2022, 5, day + 1)) for name, day in
            (("train", 6), ("validation", 7), ("test", 8))}  # fmt: skip
    split = TemporalSplit(kind="temporal", **days)
    utc, beijing = (Prepare(positive="liked", split=split, time_zone=zone) for zone in ("UTC", "Asia/Shanghai"))
    first, end = utc.bounds_ms("test")
    assert first == 1_651_968_000_000  # 8 May 2022, 00:00 UTC
    assert end - first == DAY_MS
    assert beijing.bounds_ms("test") == (first - 8 * 60 * 60 * 1000, end - 8 * 60 * 60 * 1000)
    assert utc.bounds_ms("train")[1] == utc.bounds_ms("validation")[0]
    india = Prepare(positive="liked", split=split, time_zone="Asia/Kolkata")
    assert india.bounds_ms("test")[0] == first - 11 * 30 * 60 * 1000  # 5 hours and a half


def test_a_day_on_which_the_clocks_change_has_23_or_25_hours() -> None:
    for month, day, hours in ((3, 27, 23), (10, 30, 25)):
        days = {name: Window(first=date(2022, month, at), end=date(2022, month, at) + timedelta(days=1)) for name, at in
                (("train", day - 2), ("validation", day - 1), ("test", day))}  # fmt: skip
        split = TemporalSplit(kind="temporal", **days)
        first, end = Prepare(positive="liked", split=split, time_zone="Europe/Berlin").bounds_ms("test")
        assert end - first == hours * HOUR_MS


def test_a_time_zone_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="'Asia/Kolkatta' is not an IANA time zone; nearest: Asia/Kolkata"):
        Recipe.model_validate(recipe_tree(prepare={"time_zone": "Asia/Kolkatta"}))


def test_windows_may_leave_a_gap_but_not_overlap() -> None:
    def split(validation_first: int) -> TemporalSplit:
        return TemporalSplit(
            kind="temporal",
            train=Window(first=date(2022, 5, 1), end=date(2022, 5, 5)),
            validation=Window(first=date(2022, 5, validation_first), end=date(2022, 5, 8)),
            test=Window(first=date(2022, 5, 8), end=date(2022, 5, 9)),
        )

    assert split(5).validation.first == split(5).train.end
    assert split(7).validation.first > split(7).train.end
    with pytest.raises(ValidationError, match=r"validation.first is 2022-05-04, but train.end is 2022-05-05"):
        split(4)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValidationError, match="the window is empty: first 2022-05-08 must lie before end 2022-05-08"):
        Window(first=date(2022, 5, 8), end=date(2022, 5, 8))


def test_a_tower_reads_nothing_twice() -> None:
    twice = {"user": [{"kind": "history", "events": "positives"}], "item": [{"kind": "id"}, {"kind": "id"}]}
    with pytest.raises(ValidationError, match="the item tower reads 'id' twice"):
        Recipe.model_validate(recipe_tree(features=twice))


def test_a_rule_is_vetted_when_the_recipe_is_read() -> None:
    prepare = recipe_tree()["prepare"]
    with pytest.raises(ValidationError, match=r"READ_CSV\(…\) cannot be part of a rule"):
        Recipe.model_validate(recipe_tree(prepare=prepare | {"positive": "read_csv('x')"}))
    with pytest.raises(ValidationError, match="a number where a condition is needed"):
        Recipe.model_validate(recipe_tree(prepare=prepare | {"negative": "LEAST(watch_s, 8)"}))


@pytest.mark.parametrize(
    ("feature", "name"),
    [
        (HistoryFeature(kind="history", events="negatives"), "negatives"),
        (TimeFeature(kind="time", part="hour"), "hour"),
        (BagFeature(kind="bag", column="tag"), "tag"),
        (NumberFeature(kind="number", column="duration_ms", scale="log"), "duration_ms"),
        (AgeFeature(kind="age"), "age"),
    ],
)
def test_feature_names(feature: Any, name: str) -> None:
    assert feature_name(feature) == name


def test_a_feature_depends_on_the_time_of_the_request_only_with_a_time_bias() -> None:
    plain = SequenceFeature(kind="sequence")
    timed = SequenceFeature(kind="sequence", time_bias=True)
    assert (reads_time(plain), reads_time(timed)) == (False, True)


@pytest.mark.parametrize("name", ["", "A", "../up", "a b", "-a", "a/b", "x" * 101])
def test_a_name_is_a_safe_folder_name(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        Recipe.model_validate(recipe_tree(name=name))


def test_published_negatives_need_a_file() -> None:
    published = {"sampled": [{"kind": "published"}]}
    with pytest.raises(
        ValidationError, match=r"data\.published_negatives names no file\. Name it there, or draw some: {k"
    ):
        Recipe.model_validate(recipe_tree(evaluate=published))
    data = {"kind": "table", "events": "a.parquet", "published_negatives": "b.parquet"}
    assert Recipe.model_validate(recipe_tree(evaluate=published, data=data)).evaluate.sampled[0].kind == "published"


def test_two_draws_whose_metrics_would_have_one_name_are_refused() -> None:
    draws = [{"kind": "drawn", "draw": "uniform", "seed": seed} for seed in (0, 1)]
    with pytest.raises(ValidationError, match="100 uniform negatives are listed 2 times, and their metrics have one"):
        Recipe.model_validate(recipe_tree(evaluate={"sampled": draws}))
    others = [draws[0], draws[1] | {"count": 50}, draws[1] | {"draw": "popularity"}]
    assert len(Recipe.model_validate(recipe_tree(evaluate={"sampled": others})).evaluate.sampled) == 3


@pytest.mark.parametrize("feature", [{"kind": "age"}, {"kind": "counter", "key": "item_id", "statistic": "events"}])
def test_item_features_that_depend_on_the_time_need_requests_of_one_time(feature: dict[str, Any]) -> None:
    """Items are evaluated as of one time; with last_n, requests lie anywhere in the log."""
    features = {
        "user": [{"kind": "history", "events": "positives", "max_length": 100}],
        "item": [{"kind": "id"}, feature],
    }
    counters = {"item_id": {"rates": {"like": "liked"}}}
    split = recipe_tree()["prepare"]["split"]
    for kind in (split, {"kind": "last_n"}):
        prepare = {"positive": "liked", "counters": counters, "split": kind}
        if kind == split:
            Recipe.model_validate(recipe_tree(features=features, prepare=prepare))
            continue
        with pytest.raises(ValidationError) as refused:
            Recipe.model_validate(recipe_tree(features=features, prepare=prepare))
        assert f"features.item.1 of kind {feature['kind']} depends on the time of the request" in str(refused.value)
        assert "Delete the feature, or choose a temporal split." in str(refused.value)
