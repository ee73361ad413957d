"""The README holds: its recipe is the shipped one, its numbers are measured, its Python runs, its links exist."""

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from tests.logs.shop import write_shop
from twofold.cli import main as cli
from twofold.recipe.load import dump_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(found)


def test_it_takes_five_minutes():
    assert len(README.splitlines()) <= 200


def test_the_recipe_is_the_shipped_one():
    shipped = yaml.safe_load((ROOT / "recipes" / "kuairand.yaml").read_text(encoding="utf-8"))
    shown = yaml.safe_load(block("yaml"))
    assert shown == {name: value for name, value in shipped.items() if name != "about"}


def test_the_results_are_those_of_the_benchmark():
    table = runpy.run_path(str(ROOT / "docs" / "make_results.py"))["readme_table"]()
    assert table in README


def transcript():
    """Commands of the page and the lines shown under each; a line that ends in … is the beginning of one."""
    parts = re.split(r"^\$ ", block("console"), flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].split("  #")[0].rstrip(): part.strip().splitlines()[1:] for part in parts}


def test_the_first_commands_print_what_the_page_shows():
    saved = json.loads((ROOT / "benchmarks" / "first_log.json").read_text(encoding="utf-8"))["printed"]
    for command, lines in transcript().items():
        printed = iter(saved.get(command, []))
        for line in filter(None, lines):
            if line != "…":
                assert any(real.startswith(line.removesuffix("…")) for real in printed), (command, line)
    assert list(transcript())[2] == "twofold serve runs/shop"
    assert len(transcript()) == 4


def test_the_draft_of_the_page_is_made_today(tmp_path, monkeypatch, capsys):
    (tmp_path / "shop").mkdir()
    write_shop(tmp_path / "shop")
    monkeypatch.chdir(tmp_path)
    command, lines = next(iter(transcript().items()))
    monkeypatch.setattr("sys.argv", shlex.split(command))
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert set(lines) - {"…", ""} <= {line.rstrip() for line in capsys.readouterr().out.splitlines()}


def test_every_package_is_named_and_nothing_else():
    packages = {f"twofold.{path.parent.name}" for path in (ROOT / "twofold").glob("*/__init__.py")}
    named = set(re.findall(r"`(twofold\.\w+)`", README.split("## The packages")[1].split("\n## ")[0]))
    assert named | {"twofold.render"} == packages


@pytest.mark.slow
def test_the_python_runs(checkerboard, solved, tmp_path, monkeypatch):
    """The calls are those of the page, on a small world whose stages are finished, instead of the shipped log."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "kuairand.yaml").write_text(dump_recipe(checkerboard))
    shutil.copytree(solved.folder, tmp_path / "runs" / solved.folder.name)
    exec(compile(block("python"), "README.md", "exec"), {})  # noqa: S102 - our own file


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_are_there(command):
    assert command in README
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
