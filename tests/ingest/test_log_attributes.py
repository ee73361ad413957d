"""Attributes of items and users that stand in the log itself."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twofold.errors import RecipeError
from twofold.ingest.draft_recipe import draft_recipe
from twofold.ingest.inspect_log import LogProfile, profile_log
from twofold.prepare.run_plan import prepare
from twofold.prepare.sources import open_source
from twofold.recipe.load import load_recipe
from twofold.tables import DAY_MS

GENRES = ("rock", "pop", "jazz", "folk")
FIRST_MS = 1_704_067_200_000  # 1 January 2024
NUM = 3000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with attributes in each event: genre and price of the item, country of the user. A rating and a time played
    differ by event, an offer differs for one item in ten, and `sold` is 1 in five events."""
    draw = np.random.default_rng(0)
    users, items = draw.integers(60, size=NUM), draw.integers(40, size=NUM)
    times = np.sort(draw.integers(28 * DAY_MS, size=NUM))
    rare = (np.arange(NUM) % (NUM // 5) == 0).astype(int)
    table = {
        "user_id": users,
        "item_id": items,
        "at": FIRST_MS + times,
        "genre": [GENRES[item % 4] if draw.random() < 0.9 else None for item in items.tolist()],
        "price": items * 1.5 + 3,
        "country": [("de", "in")[user % 2] for user in users.tolist()],
        "rating": draw.integers(1, 6, size=NUM),
        "offer": np.where(items % 10 == 0, draw.integers(1, 4, size=NUM), items),
        "sold": rare,
    }
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="module")
def seen(log: Path) -> LogProfile:
    return profile_log(log)


def test_constant_columns_are_attributes_and_outcomes_are_not(seen: LogProfile) -> None:
    assert seen.data.items is None
    assert seen.data.item_columns == ("genre", "price")
    assert seen.data.user_columns == ("country",)
    assert seen.varying == ("offer",)
    assert [table.path.name for table in seen.tables] == ["log.parquet"]


def test_the_draft_has_their_features_and_prepares(seen: LogProfile, log: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(draft_recipe(seen, name="log", folder=tmp_path), encoding="utf-8")
    text, recipe = path.read_text(encoding="utf-8"), load_recipe(path)
    assert "not used, some items have several values: offer; --items FILE" in text
    columns = [getattr(feature, "column", None) for feature in (*recipe.features.item, *recipe.features.user)]
    assert {"genre", "price", "country"} <= set(columns)
    assert not {"rating", "offer", "sold"} & set(columns)

    (tmp_path / "out").mkdir()
    dated = load_recipe(path, overrides=("prepare.split={kind: last_n, test: 1, validation: 1}", *_without_counters()))
    prepare(dated, tmp_path / "out", source=open_source(dated.data))
    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert items == [{"item_id": i, "genre": GENRES[i % 4], "price": i * 1.5 + 3} for i in range(40)]
    users = pq.read_table(tmp_path / "out" / "users.parquet").to_pylist()
    assert users == [{"user_id": user, "country": ("de", "in")[user % 2]} for user in range(60)]


def _without_counters() -> tuple[str, ...]:
    return ("prepare.counters={}", "features.item=[{kind: id}]")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_columns": ("gnre",)}, "data.item_columns: the events have no column gnre (nearest: genre; columns: "),
        ({"user_columns": ("town",)}, "data.user_columns: the events have no column town"),
    ],
)
def test_a_missing_column_is_named(seen: LogProfile, columns: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        open_source(seen.data.model_copy(update=columns))
    assert message in str(error.value)


def test_a_table_and_columns_of_the_events_are_not_both_given(seen: LogProfile, log: Path) -> None:
    with pytest.raises(ValueError, match="data.item_columns takes attributes from the events, and data.items names"):
        type(seen.data).model_validate({**seen.data.model_dump(), "items": log})
