"""The recipes of Amazon Toys and Gowalla: their opening comments, and what they prepare from files of that layout."""

from pathlib import Path

import pytest

from twofold.dataset.dataset import load_dataset
from twofold.ingest.public import find_set, make_tables
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import Job
from twofold.prepare.last_days import with_dates
from twofold.recipe.load import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TOYS, GOWALLA = RECIPES / "amazon" / "toys.yaml", RECIPES / "gowalla.yaml"
USERS, EVENTS = 40, 6


@pytest.mark.parametrize("recipe", [TOYS, GOWALLA], ids=lambda path: path.stem)
def test_it_opens_with_what_to_expect_and_is_called_as_its_file(recipe: Path) -> None:
    opening = "\n".join(line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    for word in ("shows", "expected", "time", "command", f"recipes/{recipe.relative_to(RECIPES)}"):
        assert word in opening
    assert load_recipe(recipe).name == recipe.stem


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_last_two_items_of_a_line_order_validate_and_test(tmp_path: Path, split: str) -> None:
    pairs = [(user, 1 + (user + 7 * step) % 30) for user in range(USERS) for step in range(EVENTS)]
    (tmp_path / "toys.txt").write_text("".join(f"{user} {item}\n" for user, item in pairs), encoding="utf-8")
    make_tables(find_set("sequences"), tmp_path / "toys.txt", tmp_path / "tables")
    recipe = load_recipe(TOYS, overrides=[f"data.events={tmp_path / 'tables' / 'events.parquet'}"])
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


def test_the_test_pairs_are_tested_and_a_tenth_of_the_others_validates(tmp_path: Path) -> None:
    train, test = (
        [(user, (user * step) % 97) for user in range(1, 41) for step in steps] for steps in (range(1, 26), (26, 27))
    )
    for name, pairs in (("train", train), ("test", test)):
        rows = [f"{user} {' '.join(str(item) for each, item in pairs if each == user)}" for user in range(1, 41)]
        (tmp_path / f"{name}.txt").write_text("\n".join(rows), encoding="utf-8")
    make_tables(find_set("pairs"), tmp_path, tmp_path / "tables")
    recipe = load_recipe(GOWALLA, overrides=[f"data.events={tmp_path / 'tables' / 'events.parquet'}"])
    job = Job(with_dates(recipe), tmp_path / "run")
    job.folder.mkdir()
    dataset = load_dataset(pipeline.build_dataset(job, pipeline.prepare(job)).folder)
    rows, ids = dataset.examples["test"], dataset.items.ids.to_pylist()
    users = dataset.users.ids_of(rows.user_rows).to_pylist()
    assert sorted(zip(users, (ids[row] for row in rows.item_rows), strict=True)) == sorted(test)
    assert len(dataset.examples["train"]) + len(dataset.examples["validation"]) == len(train)
    assert 0.05 < len(dataset.examples["validation"]) / len(train) < 0.15
