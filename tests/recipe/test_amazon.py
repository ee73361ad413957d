"""The recipe of Amazon Toys: its opening comment, and what it prepares from a file of that layout."""

from pathlib import Path

import pytest

from twofold.dataset.dataset import load_dataset
from twofold.ingest.public import find_set, make_tables
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import Job
from twofold.recipe.load import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "amazon" / "toys.yaml"
USERS, EVENTS = 40, 6


def test_it_opens_with_what_to_expect_and_is_called_as_its_file() -> None:
    opening = "\n".join(line for line in RECIPE.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    for word in ("shows", "expected", "time", "command", "recipes/amazon/toys.yaml"):
        assert word in opening
    assert load_recipe(RECIPE).name == RECIPE.stem


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_last_two_items_of_a_line_order_validate_and_test(tmp_path: Path, split: str) -> None:
    pairs = [(user, 1 + (user + 7 * step) % 30) for user in range(USERS) for step in range(EVENTS)]
    (tmp_path / "toys.txt").write_text("".join(f"{user} {item}\n" for user, item in pairs), encoding="utf-8")
    make_tables(find_set("sequences"), tmp_path / "toys.txt", tmp_path / "tables")
    recipe = load_recipe(RECIPE, overrides=[f"data.events={tmp_path / 'tables' / 'events.parquet'}"])
    job = Job(recipe, tmp_path / "run")
    job.folder.mkdir()
    dataset = load_dataset(pipeline.build_dataset(job, pipeline.prepare(job)).folder)
    assert len(dataset.examples["train"]) == USERS * (EVENTS - 2)
    rows, last = dataset.examples[split], {"validation": EVENTS - 2, "test": EVENTS - 1}[split]
    ids = dataset.items.ids.to_pylist()
    users = dataset.users.ids_of(rows.user_rows).to_pylist()
    expected = {
        user: item for (user, item), step in zip(pairs, list(range(EVENTS)) * USERS, strict=True) if step == last
    }
    assert {user: ids[item] for user, item in zip(users, rows.item_rows.tolist(), strict=True)} == expected
