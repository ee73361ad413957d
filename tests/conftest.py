"""Fixtures of several packages: the shipped data, the tiny worlds, and two finished runs, each made once a session."""

import gc
import os
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests import worlds
from tests.browser import CHROMIUM, Browser
from tests.small_peers import shrink_ials
from twofold.recipe.schema import Recipe

if TYPE_CHECKING:
    from twofold.pipeline.run_result import RunResult

HOSTILE = "<script>alert(1)</script> | [x](javascript:alert(1)) **bold**"

# Speed is not judged here, on busy cores least of all. What lands is tried on fixed examples, your own run on new ones.
settings.register_profile(
    "twofold", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("twofold")


def pytest_collection_finish() -> None:
    """Leaves what the imports have made, which lasts as long as the process, out of each search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Lets torch and onnxscript read the operators that they know once a process: each export does so, in 0.8 s."""
    values = sys.modules.get("onnxscript._internal.values")  # only in a process that has exported a graph
    operators = getattr(values, "TracedOnnxFunction", None)
    if operators is not None and isinstance(operators.function_ir, property):
        operators.function_ir = cached_property(operators.function_ir.fget)
        operators.function_ir.__set_name__(operators, "function_ir")
        registry = sys.modules["torch.onnx._internal.exporter._registration"].ONNXRegistry
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))
        torch_operators = sys.modules["torch._export.utils"]
        torch_operators._materialize_cpp_cia_ops = cache(torch_operators._materialize_cpp_cia_ops)


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
def small_ials(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_ials(monkeypatch)


@pytest.fixture(scope="session")
def solved(checkerboard: Recipe, tmp_path_factory: pytest.TempPathFactory) -> "RunResult":
    """The finished run of the checkerboard."""
    import twofold

    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink_ials(monkeypatch)
        return twofold.run(checkerboard, runs=tmp_path_factory.mktemp("solved"))


@pytest.fixture(scope="session")
def explained(tmp_path_factory: pytest.TempPathFactory) -> "RunResult":
    """A finished run with everything that a page shows; tests that change it copy it.

    A category and tags that are unrelated to who likes what, a sampled ranking, and a text that no page may believe.
    """
    import twofold

    folder = tmp_path_factory.mktemp("explained")
    data = worlds.checkerboard(folder / "log", num_users=48, num_items=32).data.model_dump()
    parts = {
        "about": HOSTILE,
        "features": {
            "user": [{"kind": "history", "events": "positives", "max_length": 100}],
            "item": [{"kind": "id"}, {"kind": "category", "column": "creator"}, {"kind": "bag", "column": "tags"}],
        },
        "evaluate": {"sampled": [{"kind": "drawn", "draw": "uniform", "count": 3}]},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "seed": 0},
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink_ials(monkeypatch)
        return twofold.run(worlds.world_recipe(data, parts), runs=folder / "runs")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.close()
