"""The README is true: its recipe is the shipped one, its numbers measured, its tree the package, its Python runs."""

import json
import re
import runpy
from pathlib import Path

import pytest

from twofold.recipe.load import dump_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(found)


def test_the_whole_recipe_is_the_shipped_one():
    shipped = (ROOT / "recipes" / "kuairand.yaml").read_text(encoding="utf-8")
    without_opening = re.sub(r"\A(#.*\n)+", "", shipped)
    assert block("yaml") == without_opening


def test_the_results_are_those_of_the_benchmark():
    saved = json.loads((ROOT / "benchmarks" / "quality.json").read_text())
    tables = runpy.run_path(str(ROOT / "benchmarks" / "quality.py"))["tables"](saved)
    assert all(table in README for table in tables.split("\n\n"))
    assert all(digest[:12] in README for digest in saved["recipes"].values())


def test_every_file_of_the_package_is_in_the_tree_and_nothing_else():
    tree = block("text")
    files = {path.name for path in (ROOT / "twofold").rglob("*.py") if not path.name.startswith("__")}
    listed = set(re.findall(r"(\w+\.py)\b", tree))
    assert files - listed == set()
    assert listed - files == set()


def test_the_python_runs(checkerboard, tmp_path, monkeypatch):
    """On a small world instead of the shipped log: the same calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "kuairand.yaml").write_text(dump_recipe(checkerboard))
    exec(compile(block("python"), "README.md", "exec"), {})  # noqa: S102 - our own file


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_are_there(command):
    assert command in README
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
