"""Local time in NumPy and SQL equals `zoneinfo`'s, in every zone and across every change of its offset."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import duckdb
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.dataset.column_encoders import clock_rows
from twofold.local_time import _NOT_PORTABLE, check_time_zone, local_ms, local_ms_sql, midnight_ms, midnights_before
from twofold.tables import DAY_MS, HOUR_MS

ZONES = sorted(name for name in available_timezones() - _NOT_PORTABLE if not name.startswith(("posix/", "right/")))
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_MS, END_MS = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1000 for year in (1901, 2199))


def local(at, zone):
    return (EPOCH + timedelta(milliseconds=at)).astimezone(ZoneInfo(zone))


def wall_ms(at, zone):
    """Local time as if it were UTC."""
    return (local(at, zone).replace(tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)


@st.composite
def zones_and_times(draw):
    """Times of a year or of centuries, some of them right before and at a change of the offset."""
    zone, first = draw(st.sampled_from(ZONES)), draw(st.integers(FIRST_MS, END_MS - 1))
    last = draw(st.sampled_from([first, min(first + 400 * DAY_MS, END_MS - 1), END_MS - 1]))
    times = draw(st.lists(st.integers(first, last), min_size=1, max_size=20))
    return zone, times + [at + shift for at in changes(zone, min(times)) for shift in (-1, 0)]


def changes(zone, at):
    """Returns the next change of the offset within 400 days, if there is one, found without a table."""

    def offset(second):
        return (EPOCH + timedelta(seconds=second)).astimezone(ZoneInfo(zone)).utcoffset()

    before = at // 1000
    for after in range(before + 86_400, before + 400 * 86_400, 86_400):
        if offset(after) != offset(before):
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (middle, after) if offset(middle) == offset(before) else (before, middle)
            return [after * 1000]
        before = after
    return []


INDIA, LORD_HOWE, SAMOA = "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia"  # half hours; 30 minutes; a lost day


@given(zones_and_times())
@example((INDIA, [1_651_948_199_999, 1_651_948_200_000]))
@example((LORD_HOWE, [1_648_911_599_999, 1_648_911_600_000]))
@example((SAMOA, [1_325_239_199_999, 1_325_239_200_000]))
def test_numpy_equals_zoneinfo(case):
    zone, times = case
    found = local_ms(np.array(times, np.int64), zone)
    assert found.tolist() == [wall_ms(at, zone) for at in times]
    assert (clock_rows("hour", found) - 1).tolist() == [local(at, zone).hour for at in times]
    assert clock_rows("weekday", found).tolist() == [local(at, zone).isoweekday() for at in times]
    days = [(local(at, zone).date() - date(1970, 1, 1)).days for at in times]
    assert (found // DAY_MS).tolist() == days


@given(zones_and_times())
def test_sql_equals_numpy(case):
    zone, times = case
    sql = local_ms_sql('"at"', zone, first_ms=min(times), last_ms=max(times))
    listed = ", ".join(f"({at}::BIGINT)" for at in times)
    found = duckdb.sql(f'SELECT {sql} FROM (VALUES {listed}) AS "times"("at")').fetchall()
    assert [value for (value,) in found] == local_ms(np.array(times, np.int64), zone).tolist()


@given(st.sampled_from(ZONES), st.dates(date(1970, 1, 3), date(2037, 12, 30)))
@example("America/Sao_Paulo", date(2018, 11, 4))  # midnight is skipped: the day begins at 01:00
@example("Asia/Beirut", date(2022, 3, 27))
@example(SAMOA, date(2011, 12, 31))
def test_a_day_begins_at_the_first_moment_that_is_not_before_it(zone, day):
    first = midnight_ms(day, zone)
    assert local(first, zone).date() >= day
    assert local(first - 1, zone).date() < day


def test_the_midnight_of_each_timestamp():
    at = [midnight_ms(date(2022, 3, day), "Europe/Berlin") for day in (26, 27, 28)]
    assert np.diff(at).tolist() == [DAY_MS, 23 * HOUR_MS]  # the clocks go forward on the 27th
    times = np.array([at[2], at[2] - 1, at[1], at[1] + 5, at[0] + 1], np.int64)
    assert midnights_before(times, "Europe/Berlin").tolist() == [at[2], at[1], at[1], at[1], at[0]]


def test_empty_and_absurd_times_are_no_error():
    assert local_ms(np.zeros(0, np.int64), INDIA).tolist() == []
    far = np.array([-(2**60), 0, 2**60], np.int64)
    assert (local_ms(far, INDIA) - far)[1:].tolist() == [int(5.5 * HOUR_MS)] * 2


@pytest.mark.parametrize("name", ["UTC", INDIA, "Etc/GMT-8", "America/Argentina/Ushuaia"])
def test_names_of_the_database_are_zones(name):
    assert check_time_zone(name) == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Asia/Kolkatta", "nearest: Asia/Kolkata"),
        ("asia/kolkata", "nearest: Asia/Kolkata"),
        ("+05:30", "write a name such as Asia/Kolkata"),
        ("", "'' is not an IANA time zone"),
        ("Asia", "write a name"),
        ("../../etc/passwd", "is not an IANA time zone"),
        ("/etc/localtime", "is not an IANA time zone"),
        ("localtime", "is not an IANA time zone"),
        ("right/Europe/Berlin", "is not an IANA time zone"),
        ("a\0b", "is not an IANA time zone"),
        ("x" * 5000, "is not an IANA time zone"),
    ],
)
def test_other_names_are_refused(name, says):
    with pytest.raises(ValueError, match="time zone") as refused:
        check_time_zone(name)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 300
