"""A run in which half of the items have no row of their own: it trains, is judged, and is served as any other."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import twofold
from tests.worlds import checkerboard
from twofold.dataset.mapped_vocabulary import MappedVocabulary
from twofold.pipeline.run import run
from twofold.recipe.schema import Recipe
from twofold.serve.bundle import open_bundle

NUM_ITEMS = 32


def with_text_ids(folder: Path) -> Recipe:
    """Returns the checkerboard with ids that are texts, which the service maps."""
    recipe = checkerboard(folder, num_users=48, num_items=NUM_ITEMS)
    for name in ("events", "items"):
        table = pq.read_table(folder / f"{name}.parquet")
        texts = pa.array([f"item {each}" for each in table["item_id"].to_pylist()])
        number = table.schema.get_field_index("item_id")
        pq.write_table(table.set_column(number, "item_id", texts), folder / f"{name}.parquet")
    return recipe


@pytest.mark.usefixtures("small_ials")
def test_an_item_without_a_row_is_recommended_and_read_in_a_history(tmp_path: Path) -> None:
    recipe = with_text_ids(tmp_path / "log").model_dump()
    parts = {
        "features": recipe["features"] | {"item_ids": {"min_count": 30}},
        "train": recipe["train"] | {"epochs": 1},
    }
    done = run(Recipe.model_validate(recipe | parts), runs=tmp_path / "runs")
    bundle = open_bundle(done.folder)
    own, ids = bundle.features.own_ids["item"], bundle.items.ids.to_pylist()
    assert isinstance(bundle.items, MappedVocabulary)
    assert 1 < own < bundle.items.num_known - 1 == NUM_ITEMS - 1
    recommender = twofold.load(done.folder)
    answers = [
        recommender.recommend_for_history([id_], k=NUM_ITEMS, exclude_seen=False) for id_ in (*ids[:2], *ids[-2:])
    ]
    assert all(sorted(each["item_id"].to_pylist()) == sorted(ids) for each in answers)
    scores = [dict(zip(each["item_id"].to_pylist(), each["score"].to_pylist(), strict=True)) for each in answers]
    assert scores[0] != scores[1]  # of frequent items
    assert scores[2] == scores[3]  # items without a row read the same one
    page = (done.folder / "run.html").read_text(encoding="utf-8")
    assert f"{NUM_ITEMS - own} of {NUM_ITEMS} items have no row of their own (fewer than 30 training examples)" in page
