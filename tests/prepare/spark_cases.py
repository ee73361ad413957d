"""Recipes and logs for the comparison of Spark with DuckDB, and the comparison itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tests.worlds import DAY_MS, FIRST_MS


def assert_same_rows(expected: pa.Table, found: pa.Table, path: Path, *, float_rtol: float) -> None:
    assert [(field.name, str(field.type)) for field in expected.schema] == [
        (field.name, str(field.type).replace(" not null", "")) for field in found.schema
    ], path
    assert expected.num_rows == found.num_rows, path
    for name in expected.column_names:
        first, second = expected[name], found[name]
        if float_rtol and pa.types.is_float32(first.type):
            assert pc.is_null(first).equals(pc.is_null(second)), (path, name)
            np.testing.assert_allclose(pc.drop_null(first), pc.drop_null(second), rtol=float_rtol, err_msg=name)
        elif not first.equals(second):
            pairs = zip(first.to_pylist(), second.to_pylist(), strict=True)
            row, values = next((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
            raise AssertionError(f"{path}, {name}, row {row}: {values[0]} on DuckDB, {values[1]} on Spark")


COUNTED = {
    "rates": {"like": "liked", "whole": "done > 0.9", "long": "done > 0.5"},
    "means": {"watch": "watch_s", "gain": "gain_5s"},
}


def everything(creator: str) -> dict[str, Any]:
    """`prepare` with every kind of label, rule, filter, draw and counter."""
    return {
        "derive": {"fraction": "watch_s / length_s", "twice": "fraction * 2 - 1"},
        "labels": {
            "gain_1s": {"kind": "wtg", "buckets": {"kind": "width", "seconds": 1}},
            "gain_5s": {"kind": "wtg", "buckets": {"kind": "width", "seconds": 5}, "shrink": 0},
            "gain": {"kind": "wtg", "buckets": {"kind": "equal_frequency", "n": 20}},
            "item_gain": {"kind": "wtg", "buckets": {"kind": "item", "creator": creator}},
            "done": {"kind": "pcc"},
            "share": {"kind": "quantile"},
            "long": {"kind": "long_view"},
            "below": {"kind": "below_mean"},
        },
        "positive": "long OR liked OR gain_5s > 1.5 OR share > 0.95",
        "negative": "below AND item_gain < 0 OR twice < -0.9",
        "weight": "CASE WHEN liked THEN 3 WHEN gain_1s > 1 THEN 2.5 WHEN done > 0.8 THEN 1.2 "
        "ELSE LEAST(SQRT(watch_s), 8) END",
        "target": "LEAST(GREATEST(COALESCE(gain, item_gain), -3), 3)",
        "filters": [
            {"kind": "items", "min_events": 3},
            {"kind": "users", "min_events": 3, "max_percentile": 99.5, "min_positives": 1, "min_negatives": 1},
        ],
        "filter_rounds": 2,
        "sample": {"users": 0.7},
        "positive_share": 0.6,
        "counters": {"item_id": COUNTED, "user_id": COUNTED, creator: COUNTED},
    }


ODD_NAME = 'a "b" `c` ${d}.e'


def odd_log(seed: int, *, rows: int = 600) -> pa.Table:
    """NULLs, zeros of both signs, negatives, replays, many events at one moment, and every row up to three times."""
    draw = np.random.default_rng(seed)

    def any_of(*values: Any) -> list[Any]:
        return [values[place] for place in draw.integers(0, len(values), size=rows)]

    log = pa.table(
        {
            "user_id": any_of(*range(14), None),
            "item_id": any_of(*range(-3, 25), 2**62, None),
            "at": any_of(*(FIRST_MS + half * DAY_MS // 2 + odd for half in range(-1, 13) for odd in (0, 1)), None),
            "at_is_estimated": any_of(False, False, False, True, None),
            "liked": any_of(True, False, False, None),
            "watch_s": any_of(None, -3.5, -0.0, 0.0, 0.0005, 1.25, 7.0, 17.9995, 18.0, 40.0, 1e6),
            "length_s": any_of(None, -1.0, 0.0, 0.4, 7.0, 7.0, 18.0, 18.5, 60.0),
            "note": any_of(None, "", "it's", "a\\n", "${x}", "é", 'a"`'),
            ODD_NAME: pa.array(any_of(None, 0, 7, 2**32 - 1), pa.uint32()),
            "fine": pa.array(any_of(None, 0.1, -0.3, 1e-30), pa.float32()),
        }
    )
    return log.take(pa.array(draw.integers(0, rows, size=rows * 3 // 2)))


ODD_ITEMS = pa.table(
    {
        "item_id": pa.array(range(-5, 20), pa.int64()),
        "creator": [None if row % 5 == 0 else f"creator {row % 4}" for row in range(25)],
        "day": pa.array(range(25), pa.int32()).cast(pa.date32()),
        "made": pa.array(range(25), pa.timestamp("us", tz="Asia/Shanghai")),
        "price": pa.array(range(25), pa.int32()).cast(pa.decimal128(12, 2)),
        "vector": pa.array([[row / 7, None] if row % 3 else None for row in range(25)], pa.list_(pa.float32())),
        "uploaded_at": pa.array([FIRST_MS * 1_000_000 + row for row in range(25)], pa.timestamp("ns")),
    }
)
