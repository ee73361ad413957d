"""What the tests of several packages use: the shipped data, and the tiny worlds, each written once a session."""

from pathlib import Path

import pytest

from tests import worlds
from twofold.recipe.schema import Recipe


@pytest.fixture(scope="session")
def kuairand_folder() -> Path:
    """The data set that the repository ships."""
    return Path(__file__).parents[1] / "data" / "kuairand-pure"


@pytest.fixture(scope="session")
def checkerboard(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return worlds.checkerboard(tmp_path_factory.mktemp("checkerboard"))


@pytest.fixture(scope="session")
def leak(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return worlds.leak(tmp_path_factory.mktemp("leak"))


@pytest.fixture(scope="session")
def popularity_only(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return worlds.popularity_only(tmp_path_factory.mktemp("popularity_only"))
