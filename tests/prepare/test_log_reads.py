"""Preparation reads the log a few times, and computes the shard of a user once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prepare.spark_cases import everything
from tests.worlds import world_recipe
from twofold.ingest import world_events as world
from twofold.prepare.check import check_recipe
from twofold.prepare.duckdb_engine import duckdb_engine
from twofold.prepare.odd_values import oddities_sql
from twofold.prepare.plan import build_plan
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe with every kind of label, rule, filter and counter."""
    data = world.write_world(tmp_path_factory.mktemp("world") / "log", world.World(rows=5_000)).model_dump()
    given = world_recipe(data)
    days = {"train": (1, 25), "validation": (25, 27), "test": (27, 29)}
    windows = {name: {"first": f"2024-01-{first:02}", "end": f"2024-01-{end}"} for name, (first, end) in days.items()}
    parts = everything("creator_id") | {"split": {"kind": "temporal"} | windows}
    return Recipe.model_validate(given.model_dump() | {"prepare": given.prepare.model_dump() | parts})


def reads_of_the_log(recipe: Recipe, out: Path) -> list[set[str]]:
    """Returns the columns of each scan of the events' files, in the plans that DuckDB makes of all statements.

    Scans without columns count rows, which the footers of the files say.
    """
    source = check_recipe(recipe)
    plan, of_others = build_plan(recipe.prepare, source), (set(source.items.own), set(source.users.own))
    scans: list[set[str]] = []
    with duckdb_engine(source, out) as engine:

        def count(sql: str) -> None:
            tree = json.loads(engine.query(f"EXPLAIN (FORMAT json) {sql}")[0][1])
            columns = [scan["extra_info"]["Projections"] for scan in scans_of(tree)]
            read = [{each} - {""} if isinstance(each, str) else set(each) for each in columns]
            scans.extend(each for each in read if not any(each <= own for own in of_others))

        for step in plan.steps:
            if step.is_stored:
                count(step.sql)
            engine.create(step)
        for sql in (*(count.sql for count in plan.counts), *plan.priors.values()):
            count(sql)
        for _, sql in oddities_sql(source):
            count(sql)
        for output in plan.outputs:
            count(output.sql)
        engine.create(plan.shards.rows)
        count(plan.shards.events.sql)
    return scans


def scans_of(nodes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the scans of Parquet files in a plan."""
    for node in nodes:
        if "READ_PARQUET" in node["name"]:
            yield node
        yield from scans_of(node["children"])


def test_a_log_with_labels_and_counters_is_read_four_times(tmp_path: Path, recipe: Recipe) -> None:
    """Keys that repeat; rows with a unique key, and the others; odd values."""
    found = reads_of_the_log(recipe, tmp_path)
    assert [scan for scan in found if scan == {"user_id", "item_id", "at"}]
    assert len(found) == 4, found


def test_the_recipe_with_most_labels_and_counters_reads_the_log_four_times(tmp_path: Path, recipe: Recipe) -> None:
    study = load_recipe(ROOT / "recipes" / "studies" / "watch-time" / "c08.yaml")
    given = Recipe.model_validate(study.model_dump() | {"data": recipe.data.model_dump()})
    assert len(reads_of_the_log(given, tmp_path)) == 4


def test_the_shard_of_a_user_with_an_id_of_text_is_computed_once_a_user(tmp_path: Path, recipe: Recipe) -> None:
    source = check_recipe(recipe)
    log = pq.read_table(recipe.data.events)
    text = log.set_column(log.column_names.index("user_id"), "user_id", log["user_id"].cast(pa.string()))
    pq.write_table(text, tmp_path / "events.parquet")
    users = pq.read_table(recipe.data.users or "")
    users = users.set_column(users.column_names.index("user_id"), "user_id", users["user_id"].cast(pa.string()))
    pq.write_table(users, tmp_path / "users.parquet")
    data = recipe.data.model_dump() | {name: tmp_path / f"{name}.parquet" for name in ("events", "users")}
    texts = check_recipe(Recipe.model_validate(recipe.model_dump() | {"data": data}))
    prepare = recipe.prepare.model_copy(update={"sample": None, "positive_share": None})  # which draw by hash as well
    plan = build_plan(prepare, texts, shards=12)
    assert [step.name for step in plan.steps if "MD5" in step.sql] == ["user_shards"]
    assert "MD5" not in plan.shards.rows.sql + plan.shards.events.sql
    assert plan.shards.count == 12
    assert "user_shards" not in [step.name for step in build_plan(prepare, source, shards=12).steps]
