"""The pages hold: what is generated is up to date, every field and command is described, links and widths are right."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from twofold.cli.main import app
from twofold.prepare.check import check_recipe
from twofold.recipe.diff import recipe_differences
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]


def verbs(group: Any, prefix: str = "twofold") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}"


def fields() -> list[str]:
    schema = Recipe.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    return sorted({field for part in parts for field in part["properties"]})


def test_the_page_of_the_recipe_is_what_the_types_say() -> None:
    recipe_page = runpy.run_path(str(ROOT / "docs" / "make_recipe.py"))["recipe_page"]
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == recipe_page(), "run `make docs`"


@pytest.mark.parametrize("field", fields())
def test_every_field_of_a_recipe_is_on_its_page(field: str) -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert f"`{field}`" in page or f"`{field}:" in page


def test_the_page_of_results_is_what_the_benchmarks_say() -> None:
    results_page = runpy.run_path(str(ROOT / "docs" / "make_results.py"))["results_page"]
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == results_page(), "run `make docs`"


def test_the_tables_of_the_benchmarks_are_what_their_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    made = runpy.run_path(str(ROOT / "docs" / "make_benchmarks.py"))
    assert made["page_with_tables"](page) == page, "run `make docs`"
    assert set(re.findall(r"<!-- table: ([\w ]+) -->", page)) == made["TABLES"].keys()
    prose = re.sub(r"<!-- table: .*?<!-- end -->", "", page, flags=re.DOTALL)
    assert "| --" not in prose, "a table that no file of benchmarks/ is behind"


def test_the_page_of_the_studies_is_what_their_recipes_and_runs_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    studies_page = runpy.run_path(str(ROOT / "docs" / "make_studies.py"))["studies_page"]
    assert (ROOT / "docs" / "studies.md").read_text(encoding="utf-8") == studies_page(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_lines_are_at_most_120_wide(page: Path) -> None:
    """Quoted output aside; rows of tables may be 160 wide, and what needs more is a list. Nobody writes the rows of
    docs/studies.md: an experiment has a row, and each cell a value, chance and a difference.
    """
    is_generated = page.name == "studies.md"
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    wide = [
        line
        for line in text.splitlines()
        if len(line) > (160 if line.startswith("|") else 120)
        and not line.startswith("<!--")
        and not (is_generated and line.startswith("|"))
    ]
    assert not wide


@pytest.mark.parametrize("verb", list(verbs(typer.main.get_command(app))))
def test_every_verb_is_written_about(verb: str) -> None:
    assert any(verb in path.read_text(encoding="utf-8") for path in DOCS if path.exists()), (
        f"describe `{verb}` in README.md or docs/"
    )


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_recipe_opens_with_what_to_expect(recipe: Path) -> None:
    opening = "\n".join(line for line in recipe.read_text(encoding="utf-8").splitlines()[:30] if line.startswith("#"))
    for word in ("shows", "expected", "time", "cores", "command"):
        assert word in opening.lower(), f"the opening comment of {recipe.name} does not state: {word}"


COOKBOOK = re.findall(
    r"## ([^\n]+)\n(?:(?!\n## ).)*?```yaml\n(.*?)```", (ROOT / "docs" / "cookbook.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("block", [block for _, block in COOKBOOK], ids=[name for name, _ in COOKBOOK])
def test_the_shipped_recipe_is_valid_with_each_block_of_the_cookbook(block: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"base: {ROOT / 'recipes' / 'kuairand.yaml'}\nname: changed\n{block}")
    changed = load_recipe(tmp_path / "recipe.yaml")
    assert recipe_differences(load_recipe(ROOT / "recipes" / "kuairand.yaml"), changed)
    check_recipe(changed)
