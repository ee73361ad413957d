"""Values and names that would change a result in silence: each is read as documented, or refused with what to write."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tests.prepare.tables import TRAIN, column, log_of, prepared, rows_of
from tests.worlds import DAY_MS, FIRST_MS, world_recipe, write_world
from twofold.dataset.build import build_dataset
from twofold.errors import DataError, RecipeError
from twofold.prepare.check import check_recipe
from twofold.prepare.run_plan import prepare
from twofold.recipe.schema import Recipe

FEW = [(1, 0, TRAIN, True), (1, 1, TRAIN + 1, False), (2, 2, TRAIN + 2, True), (2, 3, TRAIN + 3, False)]


def recipe_of(
    folder: Path,
    events: pa.Table,
    items: pa.Table | None = None,
    *,
    data: dict[str, Any] | None = None,
    item: list[dict[str, Any]] | None = None,
    **parts: Any,
) -> Recipe:
    """A recipe over these tables; `data` and `parts` go to its parts of that name and `prepare`."""
    recipe = world_recipe(write_world(folder / "log", events, items) | (data or {}))
    features = recipe.features.model_dump() | ({"item": item} if item else {})
    return world_recipe(
        recipe.data.model_dump(), {"prepare": recipe.prepare.model_dump() | parts, "features": features}
    )


# --- NULL in LEAST and GREATEST ---------------------------------------------------------------------------------------


def test_the_documented_weight_target_and_outcome_are_null_of_what_is_unknown(tmp_path: Path) -> None:
    log = log_of(FEW, watch_s=[None, 9.0, 5.0, 400.0], length_s=[10.0, 0.0, 10.0, 100.0])
    out = prepared(
        tmp_path,
        log,
        derive={"gain": "watch_s / length_s - 1"},
        weight="LEAST(SQRT(watch_s), 8)",
        target="LEAST(GREATEST(gain, -3), 2)",
        outcomes={"share": "LEAST(watch_s / length_s, 1)"},
    )
    assert column(rows_of(out), "weight", "target", "outcome_share") == [
        (0, None, None),
        (3, None, None),
        (pytest.approx(math.sqrt(5)), -0.5, 0.5),
        (8, 2, 1),
    ]


# --- NaN and infinities -----------------------------------------------------------------------------------------------


def test_nan_and_infinities_are_null_and_counted(tmp_path: Path) -> None:
    watched = [math.nan, math.inf, -math.inf, 20.0]
    log = log_of(FEW, watch_s=watched, length_s=[10.0, 10.0, 10.0, 40.0])
    items = pa.table({"item_id": [0, 1, 2, 3, 100], "price": pa.array([math.nan, 1, 2, 3, None], pa.float32())})
    recipe = recipe_of(
        tmp_path,
        log,
        items,
        positive="watch_s >= 18 OR item_id = 100",
        weight="watch_s",
        labels={"gain": {"kind": "wtg", "buckets": {"kind": "equal_frequency", "n": 1}}},
    )
    facts = prepare(recipe, tmp_path)
    assert column(rows_of(tmp_path), "label", "watch_s") == [(False, None)] * 3 + [(True, 20.0)]
    assert facts["odd_rows"] == {
        "events: watch_s is NaN or infinite, read as NULL": 3,
        "items: price is NaN or infinite, read as NULL": 1,
    }
    assert facts["mean_weight"] == 5.0
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert pq.read_table(tmp_path / "items.parquet")["price"].to_pylist() == [None, 1, 2, 3, None]


def test_odd_lengths_are_counted_where_the_items_have_them(tmp_path: Path) -> None:
    items = pa.table({"item_id": [0, 1, 2, 3], "length_s": [10.0, 0.0, 30.0, None]})
    facts = prepare(recipe_of(tmp_path, log_of(FEW, watch_s=[11.0, 1.0, 20.0, 5.0]), items), tmp_path)
    assert facts["odd_rows"] == {"length of 0 or less": 1, "watched longer than long": 2}


@pytest.mark.parametrize("known", [20.0, 0.0, -3.0])
@pytest.mark.parametrize("type_", [pa.float64(), pa.float32()])
def test_nan_is_null_although_the_statistics_of_a_file_leave_it_out(
    tmp_path: Path, known: float, type_: pa.DataType
) -> None:
    """DuckDB decides ISNAN(x) and ABS(x) < infinity by the minimum and maximum of a Parquet file."""
    log = log_of(FEW)
    values = [known, math.nan, known, math.nan] + [known] * (len(log) - 4)
    out = prepared(tmp_path, log.append_column("watch_s", pa.array(values, type_)), weight="COALESCE(watch_s, 50) + 10")
    assert column(rows_of(out), "watch_s") == [known, None, known, None]
    assert column(rows_of(out), "weight") == [known + 10, 60, known + 10, 60]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"weight": "EXP(watch_s * 2)"}, r"prepare\.weight, EXP\(watch_s \* 2\), gives .* inf on average"),
        (
            {"target": "EXP(watch_s * 2)"},
            r"prepare\.target, EXP\(watch_s \* 2\), is infinite or NaN in 1 row of the windows\. Limit it, as LEAST",
        ),
        (
            {"outcomes": {"x": "EXP(watch_s * 2) - EXP(watch_s * 2)"}},
            r"prepare\.outcomes\.x, .* is 0 to nan in training",
        ),
    ],
)
def test_infinite_results_of_rules_are_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, log_of(FEW, watch_s=[1.0, 2.0, 3.0, 400.0]), **parts)


# --- names ------------------------------------------------------------------------------------------------------------

LABEL = {"kind": "pcc"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"labels": {"wtg": LABEL, "WTG": LABEL}}, "wtg and WTG differ in case alone, which SQL does not tell apart"),
        ({"derive": {"Half": "1"}, "labels": {"half": LABEL}}, "Half and half differ in case alone"),
        ({"outcomes": {"Like": "liked", "like": "liked"}}, "Like and like differ in case alone"),
        ({"counters": {"item_id": {"rates": {"a": "liked", "A": "liked"}}}}, "a and A differ in case alone"),
        (
            {"derive": {"_tf_split": "1"}},
            "names that begin with _tf_ are those of internal columns; choose another one",
        ),
        ({"labels": {"_TF_x": LABEL}}, "names that begin with _tf_ are those of internal columns"),
    ],
)
def test_names_of_a_recipe_that_sql_would_mix_up_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        world_recipe({"kind": "table", "events": "e.parquet"}, {"prepare": world_prepare() | parts})


def world_prepare() -> dict[str, Any]:
    return world_recipe({"kind": "table", "events": "e.parquet"}).prepare.model_dump()


def test_a_derived_column_that_differs_from_one_of_the_log_in_case_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, log_of(FEW, watch_s=[1.0] * 4), derive={"Watch_s": "watch_s * 1000"}, target="Watch_s")
    with pytest.raises(
        RecipeError,
        match=r"prepare\.derive\.Watch_s: the log has a column watch_s already, and SQL does not tell upper from lower",
    ):
        check_recipe(recipe)


def test_two_tables_that_spell_a_column_in_two_cases_are_refused_where_a_rule_reads_it(tmp_path: Path) -> None:
    log = log_of(FEW, Language=["a"] * 4)
    items = pa.table({"item_id": [0, 1, 2, 3, 100], "language": ["xx"] * 5})
    rule = "CASE WHEN language = 'xx' THEN 7 ELSE 1 END"
    message = (
        r"data\.events has a column Language and data\.items a column language; prepare reads language, and SQL does "
        r"not tell upper from lower case\. Rename one of them, as data\.columns: \{language_of_items: language\}\."
    )
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe_of(tmp_path, log, items, weight=rule))
    check_recipe(recipe_of(tmp_path, log, items))  # read by no rule
    renamed = recipe_of(tmp_path, log, items, data={"columns": {"of_user": "Language"}}, weight=rule)
    prepare(renamed, tmp_path)
    assert column(rows_of(tmp_path), "weight") == [7] * 4


@pytest.mark.parametrize("name", ["the split", "is kept", "is estimated", "watch in ms", "length in ms"])
def test_a_column_of_a_log_is_never_taken_for_an_internal_one(tmp_path: Path, name: str) -> None:
    watched = {"watch_s": [1.0, 5.0, 3.0, 4.0], "length_s": [5.0, 5.0, 6.0, 6.0]}
    outs = []
    for number, extra in enumerate(({}, {name: [1, 0, 1, 0]})):
        rule = {"positive": f'liked OR "{name}" = 5'} if extra else {}
        out = prepared(
            tmp_path / str(number),
            log_of(FEW, **watched, **extra),
            labels={"share": {"kind": "quantile"}},
            target="share",
            **rule,
        )
        outs.append(rows_of(out) + rows_of(out, "test"))
    assert outs[0] == outs[1]


def test_a_column_with_the_prefix_of_internal_ones_is_refused_and_can_be_renamed(tmp_path: Path) -> None:
    log = log_of(FEW, _TF_split=[1, 2, 3, 4])
    with pytest.raises(
        RecipeError, match=r"events\.parquet has a column _TF_split, .* as data\.columns: \{log_TF_split: _TF_split\}\."
    ):
        check_recipe(recipe_of(tmp_path, log))
    renamed = recipe_of(tmp_path, log, data={"columns": {"log_TF_split": "_TF_split"}}, weight="log_TF_split")
    prepare(renamed, tmp_path)
    assert column(rows_of(tmp_path), "weight") == [1, 2, 3, 4]


# --- order of the file ------------------------------------------------------------------------------------------------


def test_last_events_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    """Ratings of one user, item and time that were corrected: which one is the last must not depend on the file."""
    draw = np.random.default_rng(0)
    user, item, time = draw.integers((8, 3, 4), size=(200, 3)).T
    columns = {
        "user_id": user,
        "item_id": item,
        "at": FIRST_MS + time * DAY_MS,
        "rating": draw.integers(1, 6, size=200),
    }
    log = pa.table(columns | {"comment": [str(number) for number in range(200)]})
    files = []
    for number in range(3):
        rows = np.random.default_rng(number).permutation(200)
        recipe = recipe_of(
            tmp_path / str(number),
            log.take(pa.array(rows)),
            positive="rating >= 4",
            split={"kind": "last_n", "test": 5},
        )
        out = tmp_path / str(number) / "prepare"
        out.mkdir()
        prepare(recipe, out)
        files.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert files[0] == files[1] == files[2]


# --- units of times ---------------------------------------------------------------------------------------------------


def uploads(values: list[int | None]) -> pa.Table:
    return pa.table({"item_id": [0, 1, 2, 3, 100], "uploaded_at": pa.array(values, pa.int64())})


AGE = [{"kind": "id"}, {"kind": "age"}]


@pytest.mark.parametrize(
    ("per_second", "at_per_second", "units", "likely"),
    [(1, 1000, {}, "s"), (10**6, 1000, {}, "us"), (10**9, 1000, {}, "ns"), (1000, 1, {"at_unit": "s"}, "ms"),
     (1000, 1000, {"uploaded_at_unit": "s"}, "ms")],
)  # fmt: skip
def test_upload_times_in_another_unit_are_refused_and_the_unit_can_be_written(
    tmp_path: Path, per_second: int, at_per_second: int, units: dict[str, str], likely: str
) -> None:
    log = log_of(FEW)
    log = log.set_column(2, "at", pa.array(np.asarray(log["at"]) // 1000 * at_per_second + np.arange(len(log)) % 2))
    second = FIRST_MS // 1000
    items = uploads([None, *((second - day * 86400) * per_second for day in range(4))])
    latest = second * per_second
    message = (
        rf"items\.parquet: the latest uploaded_at is {latest}, which is no upload time in \w+ \(at begins with "
        rf"{FIRST_MS} ms\)\. Write data\.uploaded_at_unit: {likely}; an unknown upload time is NULL\."
    )
    with pytest.raises(DataError, match=message):
        prepare(recipe_of(tmp_path, log, items, data=units, item=AGE), tmp_path)
    facts = prepare(recipe_of(tmp_path, log, items, data=units | {"uploaded_at_unit": likely}, item=AGE), tmp_path)
    assert facts["splits"]["train"]["rows"] == 4
    found = pq.read_table(tmp_path / "items.parquet")["uploaded_at"].to_pylist()
    assert found == [None, *((second - day * 86400) * 1000 for day in range(4))]


def test_upload_times_that_no_feature_reads_are_let_be_and_unreadable_ones_are_to_be_converted(tmp_path: Path) -> None:
    items = uploads([7, 8, 9, 10, 11])
    prepare(recipe_of(tmp_path, log_of(FEW), items), tmp_path)
    with pytest.raises(DataError, match=r"the latest uploaded_at is 11, .* Convert the column; an unknown upload time"):
        prepare(recipe_of(tmp_path, log_of(FEW), items, item=AGE), tmp_path)


# --- numbers as conditions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"positive": "thumb"},
            r"prepare\.positive reads thumb as a condition, .* from -1 to 1: .* such as thumb > 0, ",
        ),
        (
            {"negative": "liked AND NOT stars"},
            r"prepare\.negative reads stars .* from 1 to 5: .* such as stars > 3, or",
        ),
        ({"where": "stars = TRUE"}, r"prepare\.where reads stars as a condition"),
        ({"relevant": "thumb"}, r"prepare\.relevant reads thumb as a condition"),
        ({"weight": "CASE WHEN stars THEN 2 ELSE 1 END"}, r"prepare\.weight reads stars as a condition"),
        ({"target": "COALESCE(stars, FALSE) + 1 > 1 AND stars"}, r"prepare\.target reads stars as a condition"),
        (
            {"derive": {"half": "stars / 2"}, "positive": "liked OR half"},
            r"prepare\.positive reads half as a condition, .* numbers from 0\.5 to 2\.5: .* such as half > 1\.5",
        ),
        (
            {"labels": {"gain": {"kind": "pcc"}}, "positive": "gain"},
            r"prepare\.positive reads gain as a condition, .* numbers from 0\.1 to 0\.4: .* such as gain > 0\.25",
        ),
        ({"positive": "price"}, r"prepare\.positive reads price as a condition, .* from 0 to 3: .* price > 1\.5, or"),
        (
            {"counters": {"item_id": {"rates": {"up": "thumb"}}}},
            r"prepare\.counters\.item_id\.rates\.up reads thumb as a condition",
        ),
    ],
)
def test_a_number_of_other_values_than_0_and_1_is_no_condition(
    tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    log = log_of(FEW, thumb=[-1, 0, 1, 1], stars=[1, 5, 3, 3], watch_s=[1.0, 2.0, 3.0, 4.0], length_s=[10.0] * 4)
    items = pa.table({"item_id": [0, 1, 2, 3, 100], "price": [0, 1, 2, 3, 1]})
    with pytest.raises(DataError, match=message):
        prepare(recipe_of(tmp_path, log, items, **parts), tmp_path)


def test_numbers_that_are_0_1_or_null_are_conditions(tmp_path: Path) -> None:
    log = log_of(FEW, flag=[0, 1, None, 1], share=[1.0, 0.0, None, 1.0])
    out = prepared(
        tmp_path,
        log,
        derive={"long": "share > 0.5"},
        positive="flag OR item_id = 100",
        weight="CASE WHEN long THEN 2 WHEN share THEN 3 ELSE 1 END",
    )
    assert column(rows_of(out), "label", "weight") == [(False, 2), (True, 1), (False, 1), (True, 2)]


# --- numbers as features ----------------------------------------------------------------------------------------------


def test_a_negative_number_on_a_log_scale_stops_the_dataset(tmp_path: Path) -> None:
    items = pa.table({"item_id": [0, 1, 2, 3, 100], "latitude": [52.5, -33.9, 0.0, 48.9, None]})
    out = prepared(tmp_path, log_of(FEW), items)
    feature = {"kind": "number", "column": "latitude", "scale": "log"}
    recipe = recipe_of(tmp_path, log_of(FEW), items, item=[feature])
    with pytest.raises(DataError, match=r"the column latitude has negative numbers, down to -33\.9"):
        build_dataset(out, recipe.features, tmp_path / "dataset", time_zone="UTC")
