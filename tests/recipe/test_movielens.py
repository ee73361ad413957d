"""The MovieLens recipes: each says what to expect, and runs from a small zip, or a folder, of the published layout."""

from pathlib import Path

import numpy as np
import pytest

from tests.ingest.packed import SECOND, write, zipped
from twofold.dataset.dataset import load_dataset
from twofold.evaluate.window import evaluation_window
from twofold.ingest.public import find_set, make_tables
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder, report_of
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "movielens").glob("*.yaml"))
USERS, ITEMS, EACH = 24, 40, 16
# Small enough for a second, and everything that decides a protocol as it is.
SMALL = ("retriever.dim=8", "train.epochs=1", "train.batch_size=64", "features.user.0.max_length=20")


def ratings() -> list[tuple[int, int, float, int]]:
    """16 ratings a user, a minute apart; user u's nth is of 3.5 stars or more where u + n is even; user 24's never."""
    order = [np.random.default_rng(user).permutation(ITEMS)[:EACH] + 1 for user in range(USERS)]
    return [
        (user + 1, int(item), 4.5 if (user + n) % 2 == 0 and user + 1 < USERS else 2.0, SECOND + 60 * n)
        for user, items in enumerate(order)
        for n, item in enumerate(items)
    ]


def movies() -> list[tuple[int, str, str]]:
    return [(item, f"Film {item} ({1980 + item})", "Comedy|Drama" if item % 2 else "Crime") for item in range(1, 41)]


def published(name: str, folder: Path) -> Path:
    """A zip as GroupLens packs it; of ml-latest-small, the folder."""
    if name == "ml-1m":
        files = {
            "ratings.dat": "".join(f"{u}::{i}::{r:.0f}::{s}\n" for u, i, r, s in ratings()),
            "movies.dat": "".join(f"{i}::{title}::{genres}\n" for i, title, genres in movies()),
            "users.dat": "".join(f"{user}::F::25::1::12345\n" for user in range(1, USERS + 1)),
        }
    else:
        files = {
            "ratings.csv": "userId,movieId,rating,timestamp\n"
            + "".join(f"{u},{i},{r},{s}\n" for u, i, r, s in ratings()),
            "movies.csv": "movieId,title,genres\n" + "".join(f"{i},{t},{g}\n" for i, t, g in movies()),
        }
    if name == "ml-latest-small":
        return write(folder / name, files)
    return zipped(folder / f"{name}.zip", {f"{name}/{path}": text for path, text in files.items()})


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("movielens")
    for name in ("ml-1m", "ml-20m", "ml-latest-small"):
        assert make_tables(find_set(name), published(name, folder), folder / "data" / name).rows["events"] == 16 * 24
    return folder


def small(recipe: Path, tables: Path, *more: str) -> Recipe:
    """The recipe over the small tables of its own set."""
    data = load_recipe(recipe).data
    at = tables / "data" / data.events.parent.name
    return load_recipe(
        recipe, overrides=[f"data.events={at}/events.parquet", f"data.items={at}/items.parquet", *SMALL, *more]
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_what_to_expect_and_is_called_as_its_file(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    opening = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for word in ("shows", "expected", "time", "cores", "command"):
        assert word in opening, f"the opening comment of {recipe.name} does not state: {word}"
    assert load_recipe(recipe).name == recipe.stem
    assert f"recipes/movielens/{recipe.name}" in opening


@pytest.mark.parametrize("name", ["ml-1m-temporal", "ml-20m-temporal", "ml-latest-small-temporal"])
def test_in_time_the_last_five_test_and_who_likes_none_of_them_is_not_judged(
    name: str, tables: Path, tmp_path: Path
) -> None:
    (recipe,) = (path for path in RECIPES if path.stem == name)
    job = pipeline.Job(small(recipe, tables), tmp_path / "run")
    job.folder.mkdir()
    arrays = load_dataset(pipeline.build_dataset(job, pipeline.prepare(job)).folder)
    assert {split: len(rows) for split, rows in arrays.examples.items()} == {
        "train": 6 * USERS,
        "validation": 5 * USERS,
        "test": 5 * USERS,
    }
    window = evaluation_window(arrays, "test")
    liked = {
        user: {item for u, item, stars, at in ratings() if u == user and at >= SECOND + 60 * 11 and stars >= 3.5}
        for user in range(1, USERS + 1)
    }
    ids, users = arrays.items.ids.to_pylist(), arrays.users.ids_of(window.user_rows).to_pylist()
    found: dict[int, set[int]] = {user: set() for user in users}
    for line, row in zip(window.relevant.lines, window.relevant.values, strict=True):
        found[users[line]].add(ids[row])
    assert found == liked
    assert not liked[USERS]
    assert (window.seen.sizes == 11).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ml-1m-leave-one-out", "ml-20m-leave-one-out", "ml-latest-small-leave-one-out"])
def test_leave_one_out_judges_every_rating_among_all_and_among_sampled(name: str, tables: Path, tmp_path: Path) -> None:
    (recipe,) = (path for path in RECIPES if path.stem == name)
    counts = ("evaluate.sampled.0.count=10", "evaluate.sampled.1.count=10")
    job = pipeline.Job(small(recipe, tables, *counts), tmp_path / "run")
    job.folder.mkdir()
    claim_folder(job, overwrite=False)  # the page of the run reads the recipe there
    pipeline.evaluate(job, *pipeline.up_to_training(job))
    report = report_of(job.folder)
    assert report.catalogue.users_judged == USERS
    assert [(section.draw, section.users_judged) for section in report.sampled] == [
        ("popularity", USERS),
        ("uniform", USERS),
    ]
