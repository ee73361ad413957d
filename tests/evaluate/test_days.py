"""Several test days: every user asked anew on each, peers fitted on all days before, and one pooled interval."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tests import worlds
from tests.dataset.prepared import FEATURES, random_events, write_prepared
from tests.evaluate.test_compare import vocabulary
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.evaluate.days import DayValues, day_sentences, evaluate_day, pool_days
from twofold.evaluate.per_user_values import load_row_values, save_row_values
from twofold.evaluate.significance import mean_intervals
from twofold.evaluate.window import DayBounds, PerUser, evaluation_window
from twofold.page.run_page import write_run_page
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder, report_of
from twofold.run_folder import locked
from twofold.tables import DAY_MS

METRIC = "catalogue/recall@5"
NAMES = ("EASE", "kNN")  # of the baselines


def values_of(day, users, **rows):
    evaluated = int((~np.isnan(rows["model"])).sum())
    values = {name: PerUser({METRIC: np.array(row)}, evaluated, {}) for name, row in rows.items()}
    return DayValues(day, np.array(users), values)


@pytest.fixture
def two_days():
    return [
        values_of("2024-01-06", [1, 2, 3], model=[0.5, 0.7, np.nan], EASE=[0.4, 0.6, np.nan], kNN=[0.1, 0.1, np.nan]),
        values_of("2024-01-07", [2, 3, 4], model=[0.3, 0.5, 0.1], EASE=[0.4, 0.5, 0.3], kNN=[0.1, 0.2, 0.0]),
    ]


def test_all_days_together_count_every_request_and_cluster_by_user(two_days):
    section = pool_days(two_days)
    model, ease, _ = section.pooled
    assert (section.requests, section.users, section.metrics) == (5, 4, (METRIC,))
    values, users = np.array([0.5, 0.7, 0.3, 0.5, 0.1]), np.array([1, 2, 2, 3, 4])
    found = mean_intervals(values[:, None], users)
    assert (model.metrics[METRIC].value, model.metrics[METRIC].low) == pytest.approx((found.value[0], found.low[0]))
    gaps = mean_intervals(np.array([0.1, 0.1, -0.1, 0.0, -0.2])[:, None], users)
    minus = ease.model_minus[METRIC]
    assert (minus.value, minus.low, minus.high) == pytest.approx((gaps.value[0], gaps.low[0], gaps.high[0]))


def test_each_day_has_its_own_rows_and_paired_differences(two_days):
    first, second = pool_days(two_days).days
    assert [(day.day, day.users) for day in (first, second)] == [("2024-01-06", 2), ("2024-01-07", 3)]
    assert first.rows[1].model_minus[METRIC].value == pytest.approx(0.1)
    assert second.rows[1].model_minus[METRIC].value == pytest.approx(-0.1)


def test_rows_whose_order_changes_are_named(two_days):
    section = pool_days(two_days)
    assert section.order_changes == (("model", "EASE"),)
    sentence = "The order of these rows by catalogue recall@5 changes between the days: model and EASE."
    assert day_sentences(section, NAMES)[-1] == sentence
    alone = pool_days(two_days[:1] * 2)
    assert alone.order_changes == ()
    assert day_sentences(alone, NAMES)[-1] == "The order of the rows by catalogue recall@5 is the same on every day."
    assert day_sentences(section, NAMES)[0].startswith(
        "Pooled over 2 test days (5 requests of 4 users), catalogue recall@5 of "
    )
    assert "not significantly different from EASE 0.440" in day_sentences(section, NAMES)[0]


def test_a_row_that_a_day_lacks_is_left_out(two_days):
    del two_days[1].rows["kNN"]
    section = pool_days(two_days)
    assert [row.name for row in section.pooled] == ["model", "EASE"]
    assert all([row.name for row in day.rows] == ["model", "EASE"] for day in section.days)


def test_on_a_later_day_a_user_is_asked_again_with_all_that_came_before(tmp_path):
    out, offset = tmp_path / "prepare", 8 * 3_600_000
    out.mkdir()
    write_prepared(out, random_events(3))
    build_dataset(out, FEATURES, tmp_path / "dataset", time_zone="Asia/Shanghai")
    arrays = load_dataset(tmp_path / "dataset")
    rows = arrays.examples["test"]
    whole, at = evaluation_window(arrays, "test"), np.asarray(rows.at)
    first = (at.min() + offset) // DAY_MS * DAY_MS - offset
    middle = int(np.median(at))
    parts = [DayBounds("before", int(first), middle), DayBounds("after", middle, int(at.max()) + 1)]
    before, after = (evaluation_window(arrays, "test", part) for part in parts)
    assert (before.name, after.name) == ("before", "after")
    for window, part in ((before, parts[0]), (after, parts[1])):
        is_in = (at >= part.first_at) & (at < part.end_at)
        assert window.user_rows.tolist() == sorted(set(np.asarray(rows.user_rows)[is_in].tolist()))
        for number, user in enumerate(window.user_rows):
            own = is_in & (np.asarray(rows.user_rows) == user)
            assert window.query_at[number] == at[own].min()
            met = arrays.events
            mine = slice(met.offsets[user], met.offsets[user + 1])
            seen = np.asarray(met.item_rows)[mine][np.asarray(met.at)[mine] < window.query_at[number]]
            bounds = window.seen.offsets[number : number + 2]
            assert window.seen.values[slice(*bounds)].tolist() == sorted(set(seen.tolist()))
    both = np.intersect1d(before.user_rows, after.user_rows)
    assert len(both)
    assert len(after.seen.values) > 0
    assert len(before.user_rows) + len(after.user_rows) > len(whole.user_rows)


def test_rows_of_several_runs_are_read_with_one_number_per_user(tmp_path, two_days):
    ids = vocabulary([f"u{number}" for number in range(5)])
    for day in two_days:
        (tmp_path / day.day).mkdir()
        saved = [DayValues("test", day.users, day.rows), DayValues("2023-01-01", day.users[:1], {})]
        save_row_values(saved, tmp_path / day.day, users=ids, metrics=[METRIC])
    read = load_row_values({day.day: tmp_path / day.day for day in two_days})
    assert pool_days(read) == pool_days(two_days)


def recipe_of(folder, **evaluate):
    """The checkerboard with a test window of two days: on the second, users meet further items that they had not met
    before.
    """
    recipe = worlds.checkerboard(folder, num_users=48, num_items=32)
    log = pq.read_table(folder / "events.parquet")
    items, at = log["item_id"].to_numpy(), log["at"].to_numpy()
    is_later = at >= worlds.FIRST_MS + worlds.TEST * DAY_MS
    further = (items[is_later] + 4) % 32
    new = set(zip(log["user_id"].to_numpy()[is_later].tolist(), further.tolist(), strict=True))
    is_met = [pair in new for pair in zip(log["user_id"].to_pylist(), items.tolist(), strict=True)]
    moved = log.filter(is_later).set_column(1, "item_id", pa.array(further))
    moved = moved.set_column(2, "at", pa.array(at[is_later] + DAY_MS))
    pq.write_table(pa.concat_tables([log.filter(~np.array(is_met)), moved]), folder / "events.parquet")
    parts = recipe.model_dump(mode="json", exclude_unset=True)
    parts["prepare"]["split"]["test"]["end"] = "2024-01-08"
    return type(recipe).model_validate(parts | {"evaluate": evaluate, "train": {"epochs": 1, "batch_size": 64}})


@pytest.mark.usefixtures("small_ials")
def test_a_run_judges_every_day_and_the_peers_of_a_later_day_know_the_earlier_one(tmp_path):
    recipe = recipe_of(tmp_path / "log", windows=["2024-01-06", "2024-01-07"])
    job = pipeline.Job(recipe, tmp_path / "run")
    with locked(job.folder):
        claim_folder(job, overwrite=False)
        pipeline.evaluate(job, *pipeline.up_to_training(job))
    report = report_of(job.folder)
    assert report.question.dates == "2024-01-06 to 2024-01-07"
    first, second = report.days.days
    assert (first.day, second.day) == ("2024-01-06", "2024-01-07")
    assert [row.name for row in first.rows] == [row.name for row in report.catalogue.rows]
    assert report.days.requests == first.users + second.users > report.days.users
    assert report.verdict[-3].startswith(f"Pooled over 2 test days ({report.days.requests} requests of ")
    page = write_run_page(job.folder).read_text()
    assert '<h2 id="days">Days</h2>' in page
    assert f"2024-01-07<small>{second.users} users</small>" in page

    # A run that is tested on the second day alone has the same peers there, by the same protocol.
    parts = recipe.model_dump(mode="json", exclude_unset=True)
    del parts["evaluate"]
    parts["prepare"]["split"]["test"] |= {"first": "2024-01-07"}
    alone = pipeline.Job(type(recipe).model_validate(parts), tmp_path / "alone")
    with locked(alone.folder):
        claim_folder(alone, overwrite=False)
        pipeline.evaluate(alone, *pipeline.up_to_training(alone))
    rows = {row.name: row for row in report_of(alone.folder).catalogue.rows}
    for row in second.rows:
        for metric, estimate in row.metrics.items():
            assert estimate.value == pytest.approx(rows[row.name].metrics[metric].value), row.name


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (["2024-01-06"], "one day, 2024-01-06, is no comparison of days: name two or more, or delete windows"),
        (["2024-01-07", "2024-01-06"], "2024-01-06 follows 2024-01-07: name each day once, in the order of time"),
        (["2024-01-06", "2024-01-06"], "2024-01-06 follows 2024-01-06: name each day once, in the order of time"),
        (
            ["2024-01-06", "2024-01-08"],
            "evaluate.windows names 2024-01-08, and prepare.split.test covers 2024-01-06 to 2024-01-07",
        ),
    ],
)
def test_days_outside_the_test_window_are_refused(tmp_path, days, message):
    with pytest.raises(ValidationError) as refused:
        recipe_of(tmp_path / "log", windows=days)
    assert message in str(refused.value)


def test_days_need_a_split_of_days(tmp_path):
    recipe = worlds.checkerboard(tmp_path / "log", num_users=8, num_items=32)
    parts = recipe.model_dump(mode="json", exclude_unset=True)
    parts["prepare"]["split"] = {"kind": "last_n"}
    with pytest.raises(
        ValidationError, match=r"evaluate\.windows names days, and prepare\.split of kind last_n has none"
    ):
        type(recipe).model_validate(parts | {"evaluate": {"windows": ["2024-01-06", "2024-01-07"]}})


def test_a_day_is_evaluated_by_the_named_metrics_alone():
    from tests.evaluate.windows import random_scores, random_window, scorer

    window = random_window(0)
    found = evaluate_day(window, {"model": scorer(random_scores(window))}, [METRIC, "catalogue/ndcg@10"])
    assert list(found.rows["model"].values) == [METRIC, "catalogue/ndcg@10"]
    assert json.dumps(found.day) == '"test"'
