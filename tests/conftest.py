"""Fixtures of several packages: the shipped data, and the tiny worlds, each written once a session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import worlds
from tests.browser import CHROMIUM, Browser
from twofold.recipe.schema import Recipe

# Speed is not judged here, on busy cores least of all. What lands is tried on fixed examples, your own run on new ones.
settings.register_profile(
    "twofold", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("twofold")


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


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()
