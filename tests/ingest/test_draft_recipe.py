from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.ingest.test_column_roles import flag, fraction, integer, log, moment, text
from tests.ingest.test_data_and_split import events, side
from twofold.ingest.column_roles import GivenColumns, guess_roles
from twofold.ingest.draft_questions import questions
from twofold.ingest.draft_recipe import draft_recipe, recipe_name, scalar
from twofold.ingest.draft_split import check_test_days, choose_split
from twofold.ingest.inspect_log import LogProfile, data_section, log_facts
from twofold.ingest.table_profile import Column, EventFacts, TableProfile
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe
from twofold.recipe.split import LastDays, LastEvents
from twofold.recipe.yaml_files import parse_yaml

KEYS = integer("user_id"), integer("item_id"), moment("ts")


def seen(
    *columns: Column,
    facts: EventFacts | None = None,
    items: TableProfile | None = None,
    users: TableProfile | None = None,
    given_columns: GivenColumns | None = None,
) -> LogProfile:
    """A log with a user, an item, a time and these columns, of ten days of 100 events."""
    facts = facts or events([100] * 10)
    looked = replace(log(*KEYS, *columns), rows=facts.rows)
    roles = guess_roles(looked, given_columns or GivenColumns())
    return LogProfile(looked, items, users, roles, data_section(looked, items, users, roles), facts)


def loaded(folder: Path, what: LogProfile) -> tuple[Recipe, str]:
    """The recipe as it loads from a file, and its text."""
    drafted = draft_recipe(what, name="drafted", folder=folder)
    (folder / "recipe.yaml").write_text(drafted, encoding="utf-8")
    assert max(len(line) for line in drafted.splitlines()) <= 160
    return load_recipe(folder / "recipe.yaml"), drafted


# --- a whole recipe ---------------------------------------------------------------------------------------------------


def test_a_draft_loads_and_says_what_it_rests_on(tmp_path: Path) -> None:
    recipe, drafted = loaded(tmp_path, seen(integer("play_ms", 0, 9e5), flag("is_like"), integer("watch_ms", 0, 9e5)))
    assert recipe.data.columns == {"at": "ts"}
    assert recipe.data.at_unit == "s"
    assert recipe.prepare.derive == {"watch_s": "watch_ms / 1000"}
    assert recipe.prepare.positive == "is_like OR watch_s >= 18"
    assert recipe.prepare.split == LastDays(kind="last_days", test=1, validation=1)
    assert [feature.kind for feature in recipe.features.user] == ["history", "time"]
    assert [feature.kind for feature in recipe.features.item] == ["id", "counter", "counter"]
    assert recipe.retriever.kind == "best"
    assert recipe.train.patience == 3
    assert recipe.train.batch_size == 128
    for said in (
        "kind: best",
        "# popularity in the last 3 days",
        "#   rows       1,000",
        "#   days       2024-01-01 to 2024-01-10 (UTC), 10 days; 100 rows on a median day",
        "at_unit: s  ",
        "# 7 of 80 items have one event",
        "half of the users have 20 events or fewer, one in 1,000 more than 90",
        "# test: last day",
        "# days: 2024-01-10; 100 events",
        "  # weight: LEAST(SQRT(watch_s), 8)",
    ):
        assert said in drafted


@pytest.mark.parametrize(
    ("facts", "hours"),
    [
        (events([100] * 2), []),  # nothing to count yet
        (events([100] * 30), [24, 72]),
        (events([100] * 300), [168, 720]),  # a long log changes slowly
        (replace(events([100] * 30), positives=100), [24, 72, 72]),  # and the rate of positives
    ],
)
def test_recent_events_of_items_are_counted_over_spans_that_fit_the_log(
    tmp_path: Path, facts: EventFacts, hours: list[int]
) -> None:
    recipe, _ = loaded(tmp_path, seen(facts=facts))
    counters = [feature for feature in recipe.features.item if feature.kind == "counter"]
    assert [feature.hours for feature in counters] == hours
    assert [feature.statistic for feature in counters] == ["events", "events", "positive_rate"][: len(hours)]
    assert set(recipe.prepare.counters) == ({"item_id"} if hours else set())


def test_what_is_not_known_is_not_asked_for(tmp_path: Path) -> None:
    facts = replace(events([]), positives=1, lone_items=60, median_events=2)
    recipe, drafted = loaded(tmp_path, seen(integer("pos"), facts=facts, given_columns=GivenColumns(time="pos")))
    assert isinstance(recipe.prepare.split, LastEvents)
    assert "this leaks the future" in drafted
    assert "time_zone" not in drafted
    assert [feature.kind for feature in recipe.features.user] == ["history"]
    assert [filter_.min_events for filter_ in recipe.prepare.filters] == [1, 1]


@pytest.mark.parametrize(
    ("facts", "kinds"),
    [
        (events([100] * 2), ["history"]),
        (events([100] * 14), ["history", "hour", "weekday"]),
        (replace(events([100] * 14), hours=1), ["history", "weekday"]),  # days, no hours
        (replace(events([100] * 14), positives=100), ["history", "history", "hour", "weekday"]),
    ],
)
def test_hours_and_days_are_features_where_they_are_known(tmp_path: Path, facts: EventFacts, kinds: list[str]) -> None:
    recipe, _ = loaded(tmp_path, seen(facts=facts))
    assert [f.part if f.kind == "time" else f.kind for f in recipe.features.user] == kinds


# --- items and users --------------------------------------------------------------------------------------------------


def items_table() -> TableProfile:
    return side(
        integer("item_id", distinct=80),
        Column("genres", "VARCHAR[]", "list", 0.0, 40),
        Column("vector", "FLOAT[]", "list", 0.0, 80),
        integer("author_id", 0, 9e6, distinct=30),
        text("language", "hi", "en", distinct=2),
        text("title", "a", distinct=80),
        text("tags", "a|b", distinct=30, separator="|"),
        fraction("length", 3, 900),
        fraction("warmth", -1, 1),
        fraction("play_cnt", 0, 1e6),
        integer("rating", 1, 5, distinct=5),
        text("made", "2024-01-01", distinct=9, dates=1.0),
        integer("same", 3, 3, distinct=1),
        replace(integer("rare", distinct=30), nulls=0.95),
        moment("uploaded_at"),
    )


def test_columns_of_items_become_features(tmp_path: Path) -> None:
    recipe, drafted = loaded(tmp_path, seen(items=items_table()))
    found = {getattr(f, "column", f.kind): f.kind for f in recipe.features.item if f.kind != "counter"}
    assert found == {
        "id": "id",
        "age": "age",
        "genres": "bag",
        "author_id": "category",
        "language": "category",
        "tags": "bag",
        "length": "number",
        "warmth": "number",
    }
    assert {f.column: f.scale for f in recipe.features.item if f.kind == "number"} == {
        "length": "log",
        "warmth": "standard",
    }
    assert 'column: tags, sep: "|"' in drafted
    assert "not used, counts of events, which include the future: play_cnt, rating" in drafted
    assert "not used, almost unique per row: title" in drafted
    (words,) = (line for line in drafted.splitlines() if "words of the title" in line)
    (tmp_path / "words.yaml").write_text(drafted.replace(words, words.replace("# ", "", 1)), encoding="utf-8")
    titles = [
        each for each in load_recipe(tmp_path / "words.yaml").features.item if getattr(each, "column", "") == "title"
    ]
    assert [(each.kind, each.sep) for each in titles] == [("bag", " ")]


def test_counts_over_the_whole_log_are_no_features(tmp_path: Path) -> None:
    names = ["item_orders", "number_of_reviews", "sold", "revenue_eur", "followers", "total_visits"]
    counted = side(integer("item_id", distinct=80), *(integer(name, 0, 50, distinct=20) for name in names))
    recipe, drafted = loaded(tmp_path, seen(items=counted))
    assert {feature.kind for feature in recipe.features.item} <= {"id", "counter"}
    assert f"not used, counts of events, which include the future: {', '.join(names)}" in " ".join(
        line.strip().removeprefix("# ") for line in drafted.splitlines()
    )
    bought = side(integer("user_id", distinct=80), integer("user_total_purchases", 0, 50, distinct=20))
    assert "include the future: user_total_purchases" in loaded(tmp_path, seen(users=bought))[1]


def test_columns_of_users_become_features_and_names_are_not_taken_twice(tmp_path: Path) -> None:
    users = side(integer("user_id"), text("country", "in", distinct=9), text("hour", "x", distinct=9))
    recipe, drafted = loaded(tmp_path, seen(users=users))
    assert [f.column for f in recipe.features.user if f.kind == "category"] == ["country"]
    assert "not used, same name as another feature: hour" in drafted


def test_many_columns_are_cut_and_said(tmp_path: Path) -> None:
    wide = side(integer("item_id"), *(text(f"attribute_{number}", "x", distinct=3) for number in range(30)))
    recipe, drafted = loaded(tmp_path, seen(items=wide))
    assert len([each for each in recipe.features.item if each.kind != "counter"]) == 1 + 12
    assert "not used, more than 12 columns: attribute_12, " in drafted
    assert "and 10 more" in drafted


# --- what was counted -------------------------------------------------------------------------------------------------


def test_counts_of_a_share_of_the_users_are_scaled_and_said_to_be() -> None:
    facts = replace(events([100] * 10), compared=250, duplicates=5, repeats=10)
    said = dict(log_facts(seen(facts=facts)))
    assert said["duplicates"].startswith("about 20 rows")
    assert said["repeats"].startswith("about 40 rows")
    assert dict(log_facts(seen()))["duplicates"].startswith("0 rows")


def test_rows_without_keys_are_counted() -> None:
    what = seen()
    assert dict(log_facts(replace(what, log=replace(what.log, rows=1007))))["rows"] == (
        "1,007; 7 lack user, item or time and are dropped"
    )


# --- YAML -------------------------------------------------------------------------------------------------------------

HOSTILE = [
    ".5",
    ".5e3",
    "u'; DROP TABLE x; --",
    'a "quoted" name',
    "item: [id] #1",
    "no",
    "null",
    "1e3",
    "- x",
    "{a: b}",
    "*alias",
    "!!python/object",
    "a\nevil: 1",
    "\u2028line",
    "\x85next",
    "\x1b[31m",
    "back\\slash",
    "😀",
    " space ",
    "%directive",
    "@at",
    "`tick`",
    "a # comment",
    "a: b",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_reads_back(name: str) -> None:
    assert yaml.safe_load(scalar(name)) == parse_yaml(scalar(name), "recipe") == name
    assert yaml.safe_load(f"{{column: {scalar(name)}, x: 1}}") == {"column": name, "x": 1}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_reads_back(name: str) -> None:
    assert yaml.safe_load(f"a:\n  b: {scalar(name)}  # so it is") == {"a": {"b": name}}
    assert yaml.safe_load(f"{{a: {scalar(name)}, b: 1}}") == {"a": name, "b": 1}
    assert parse_yaml(f"{{a: {scalar(name)}, b: 1}}", "recipe") == {"a": name, "b": 1}


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_a_recipe_over_hostile_names_loads(tmp_path: Path, name: str) -> None:
    odd = integer(name), integer(f"{name} item"), moment(f"{name} time")
    looked = log(*odd, flag(f"{name} like"), flag("like"))
    roles = guess_roles(looked, GivenColumns(*(column.name for column in odd)))
    items = side(integer(f"{name} item"), text(f"{name} kind", name, f"{name}\n", distinct=9), fraction(name, 0, 9))
    what = LogProfile(looked, items, None, roles, data_section(looked, items, None, roles), events([100] * 10))
    recipe, _ = loaded(tmp_path, what)
    assert recipe.data.columns == {"user_id": name, "item_id": f"{name} item", "at": f"{name} time"}
    assert [f.column for f in recipe.features.item if f.kind == "category"] == [f"{name} kind"]


# --- names and paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Log 2024.csv", "log-2024"),
        ("../x/KuaiRand_Pure.parquet", "kuairand_pure"),
        ("日本.csv", "log"),
        ("-a-.csv", "a"),
    ],
)
def test_the_log_names_the_recipe(path: str, name: str) -> None:
    assert recipe_name(Path(path)) == name


def test_paths_are_relative_to_the_recipe_or_absolute_without_one(tmp_path: Path) -> None:
    what = seen()
    inside = replace(what, log=replace(what.log, path=tmp_path / "data" / "log.csv"))
    assert "\n  events: ../data/log.csv\n" in draft_recipe(inside, name="x", folder=tmp_path / "recipes")
    assert f"\n  events: {tmp_path}/data/log.csv\n" in draft_recipe(inside, name="x", folder=None)
    elsewhere = replace(what, log=replace(what.log, path=Path("/nowhere/log.csv")))
    assert "\n  events: /nowhere/log.csv\n" in draft_recipe(elsewhere, name="x", folder=tmp_path)


# --- what the questions suggest ---------------------------------------------------------------------------------------


def test_a_longer_window_is_suggested_than_the_guessed_one() -> None:
    for days in (10, 40, 180):
        what = seen(facts=replace(events([20] * days), users_from=(9,) * days))
        split, _ = choose_split(what.events)
        option = next(each.option for each in questions(what) if "--test-days" in each.option)
        suggested = int(option.removeprefix("--test-days "))
        assert suggested != (split.test.end - split.test.first).days
        check_test_days(what.events, suggested)


def test_a_time_zone_is_suggested_in_which_the_quiet_hours_are_the_night() -> None:
    what = seen(facts=replace(events([100] * 10), quiet_hour=6))
    (question,) = (each for each in questions(what) if "time zone" in each.text)
    assert "at about UTC-5" in question.text
    assert question.option == "--time-zone America/New_York"


def test_purchases_are_not_questioned_because_most_are_no_returns() -> None:
    facts = events([100] * 10, positives=97)
    assert [each for each in questions(seen(facts=facts)) if "really positive" in each.text]
    assert not [each for each in questions(seen(integer("Quantity", -3, 9), facts=facts)) if "positive" in each.text]
