"""docs/tutorials.md: each command writes a recipe with the lines that the page shows, and asks what the page says."""

import re
import shlex
from pathlib import Path

import pytest

from tests.logs.__main__ import WRITERS
from twofold.cli import main as cli

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
TITLES = {"shop": "A shop", "music": "Music", "video": "Short video", "ratings": "Ratings", "news": "News"}


def blocks(section: str, language: str) -> list[str]:
    """Lines of the section's blocks of code in this language, without the spaces around them."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line.strip() for of, block in found if of == language for line in block.splitlines()]


@pytest.mark.parametrize("name", WRITERS)
def test_the_draft_is_what_the_tutorial_shows(name, tmp_path, monkeypatch, capsys):
    (tmp_path / name).mkdir()
    WRITERS[name](tmp_path / name)
    (command,) = [line for line in blocks(SECTIONS[TITLES[name]], "") if line.startswith("twofold recipe new")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    drafted = [
        re.sub(r"(?<=\S)  +#.*$", "", line).strip() for line in (tmp_path / "recipe.yaml").read_text().splitlines()
    ]
    for line in blocks(SECTIONS[TITLES[name]], "yaml"):
        assert line in drafted
    for line in blocks(SECTIONS[TITLES[name]], "text"):
        assert line in printed
    for line in blocks(SECTIONS[TITLES[name]], "csv"):
        assert line in (tmp_path / name / "events.csv").read_text().splitlines()


def test_every_log_has_a_section_with_lines_to_compare():
    assert TITLES.keys() == WRITERS.keys()
    for title in TITLES.values():
        assert len(blocks(SECTIONS[title], "yaml")) >= 4
