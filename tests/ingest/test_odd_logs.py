"""Logs with odd values, as `twofold recipe new` drafts them: read as they are meant, or refused with what to write."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.ingest.test_inspect_log import drafted
from twofold.errors import DataError
from twofold.ingest.column_roles import GivenColumns
from twofold.ingest.draft_recipe import write_draft
from twofold.ingest.event_kinds import parse_weights
from twofold.ingest.inspect_log import Answers, log_facts, profile_log
from twofold.prepare.last_days import check_windows, with_dates
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe

FIRST = datetime(2024, 3, 1)  # noqa: DTZ001
ROWS = 600
MORE_NUMBERS = [pytest.param(each, marks=pytest.mark.slow) for each in ("null", "1e5", "true", "2024-03-01", "1.5")]

Row = Callable[[int, int, datetime, int], str]


def log(path: Path, head: str, row: Row) -> Path:
    """Writes 20 days of events: user, item, time and number of the row become a line."""
    moments = (FIRST + timedelta(minutes=48 * number) for number in range(ROWS))
    lines = (row(number * 7 % 40, number * 11 % 30, at, number) for number, at in enumerate(moments))
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def draft(path: Path) -> Recipe:
    return drafted(profile_log(path), path.parent)


# --- many kinds of event ----------------------------------------------------------------------------------------------

RARE = ["scroll", "search", "hover", "resize", "zoom", "addtocart", "purchase"]


def shop(path: Path) -> Path:
    """Writes a log whose purchases are the rarest of nine kinds of event."""

    def kind(number: int) -> str:
        rank = number % 60
        return RARE[min(rank // 3, 6)] if rank < 19 else ("view", "click")[rank % 2]

    return log(path, "user_id,item_id,ts,event", lambda user, item, at, number: f"{user},{item},{at},{kind(number)}")


def test_the_rarest_of_nine_kinds_of_event_train_with_the_highest_weight(tmp_path: Path) -> None:
    prepare = draft(shop(tmp_path / "shop.csv")).prepare
    assert prepare.positive == "event IN ('purchase', 'addtocart', 'click', 'view')"
    assert prepare.weight == "CASE WHEN event = 'purchase' THEN 10 WHEN event = 'addtocart' THEN 4 ELSE 1 END"


def test_a_weight_may_name_a_rare_kind_of_event(tmp_path: Path) -> None:
    columns = GivenColumns(weights=parse_weights("view=1,addtocart=4,purchase=10"))
    kinds = profile_log(shop(tmp_path / "shop.csv"), given_columns=columns).roles.signals.kinds
    assert kinds is not None
    assert kinds.weights == {"purchase": 10, "addtocart": 4, "view": 1}
    assert set(kinds.unknown) == {"click", *RARE[:5]}


# --- decimal commas ---------------------------------------------------------------------------------------------------

STARS = ["1", "2,5", "3", "4", "4,5", "5"]


def test_half_stars_with_a_decimal_comma_are_ratings(tmp_path: Path) -> None:
    rated = log(
        tmp_path / "stars.csv",
        "user_id;item_id;ts;rating",
        lambda user, item, at, number: f"{user};{item};{at};{STARS[number % 6]}",
    )
    recipe = draft(rated)
    assert (recipe.data.decimal_comma, recipe.prepare.positive) == (("events",), "rating >= 4")


def test_one_or_two_tags_between_commas_are_no_numbers(tmp_path: Path) -> None:
    tagged = log(
        tmp_path / "tagged.csv",
        "user_id,item_id,ts,tags",
        lambda user, item, at, number: f'{user},{item},{at},"{STARS[number % 6]}"',
    )
    assert draft(tagged).data.decimal_comma == ()


def test_a_decimal_comma_that_would_make_text_of_other_numbers_is_not_read(tmp_path: Path) -> None:
    mixed = log(
        tmp_path / "mixed.csv",
        "user_id;item_id;ts;tags;price",
        lambda user, item, at, number: f"{user};{item};{at};{STARS[number % 6]};{number % 7}.25",
    )
    recipe = draft(mixed)
    assert (recipe.data.decimal_comma, recipe.prepare.positive) == ((), "TRUE")


# --- ids that are missing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["NULL", "\\N", "", '""'])
def test_rows_without_a_user_are_counted_and_are_no_user(tmp_path: Path, missing: str) -> None:
    seen = profile_log(
        log(
            tmp_path / "log.csv",
            "user_id,item_id,ts",
            lambda user, item, at, number: f"{user if number % 5 else missing},{item},{at}",
        )
    )
    assert dict(log_facts(seen))["rows"] == "600; 120 lack user, item or time and are dropped"
    assert seen.events.users == 32


# --- times that stand for unknown ones --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentinel", "zone"),
    [
        ("9999-12-31 23:59:59", "Asia/Kolkata"),
        pytest.param("9999-12-31 23:59:59", "UTC", marks=pytest.mark.slow),
        pytest.param("0001-01-01 00:00:00", "America/New_York", marks=pytest.mark.slow),
        pytest.param("1970-01-01 00:00:00", "UTC", marks=pytest.mark.slow),
    ],
)
def test_a_time_that_no_log_has_is_refused_and_may_be_left_empty(tmp_path: Path, sentinel: str, zone: str) -> None:
    def write(name: str, time: str) -> Path:
        head = "user_id,item_id,ts"
        return log(tmp_path / name, head, lambda user, item, at, row: f"{user},{item},{at if row % 100 else time}")

    said = rf": ts is {sentinel.replace(' ', 'T')}\.000 UTC in some row, .* Leave the time of such rows empty"
    with pytest.raises(DataError, match=rf"log\.csv{said}"):
        profile_log(write("log.csv", sentinel), answers=Answers(time_zone=zone))
    seen = profile_log(write("empty.csv", ""), answers=Answers(time_zone=zone))
    assert dict(log_facts(seen))["rows"] == "600; 6 lack user, item or time and are dropped"
    recipe = with_dates(drafted(seen, tmp_path))
    assert recipe.prepare.split.kind == "temporal"
    write("empty.csv", sentinel)
    with pytest.raises(DataError, match=rf"empty\.csv{said}"):
        with_dates(load_recipe(tmp_path / "recipe.yaml"))
    check_windows(recipe)  # whose windows are written as days: prepare.where may leave such rows out


# --- names of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["20240301", *MORE_NUMBERS])
def test_a_file_may_be_called_like_a_number(tmp_path: Path, name: str) -> None:
    path = log(tmp_path / f"{name}.csv", "user_id,item_id,ts", lambda user, item, at, number: f"{user},{item},{at}")
    recipe = write_draft({"--log": path, "--items": None, "--users": None}, tmp_path / f"{name}.yaml", overwrite=False)
    assert recipe.name == name


# --- a broken time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "seconds"), [(1, "dwell_time"), (1000, "dwell_time / 1000")])
def test_one_broken_time_does_not_decide_the_unit_of_all(unit: int, seconds: str, tmp_path: Path) -> None:
    """Dwell times of up to two minutes, and one of two days."""

    def row(user: int, item: int, at: datetime, number: int) -> str:
        return f"{user},{item},{at},{(172_800 if number == 5 else number % 120) * unit}"

    prepare = draft(log(tmp_path / "dwell.csv", "user_id,item_id,ts,dwell_time", row)).prepare
    assert (prepare.derive, prepare.positive) == ({"watch_s": seconds}, "watch_s >= 18")
