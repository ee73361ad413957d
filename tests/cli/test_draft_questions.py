"""`twofold recipe new` on a terminal: it asks what it is unsure of, and the answers are in the recipe."""

import sys

import pytest
import typer

from tests.logs.shop import write_shop
from twofold.cli import main as cli


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def drafted(files, tmp_path, monkeypatch):
    """Drafts a recipe of a shop as if on a terminal, with these lines typed → (recipe, prompts)."""

    def run(*typed, options=(), is_terminal=True):
        lines, prompts = iter(typed), []

        def prompt(text, **_):
            prompts.append(text)
            return next(lines, "")

        monkeypatch.setattr(typer, "prompt", prompt)
        for stream in (sys.stdin, sys.stdout):
            monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
        out = tmp_path / "recipe.yaml"
        out.unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", ["twofold", "recipe", "new", *files, "--out", str(out), *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return out.read_text(), prompts

    return run


def test_answers_are_in_the_recipe_and_are_not_asked_again(drafted, capsys):
    recipe, prompts = drafted(
        "view=1,addtocart=2,transaction=8", "event IN ('transaction', 'addtocart')", "n", "Europe/Paris", "3"
    )
    assert "WHEN event = 'transaction' THEN 8 WHEN event = 'addtocart' THEN 2" in recipe
    assert "relevant: \"event IN ('transaction', 'addtocart')\"" in recipe
    assert "include_seen: true" not in recipe
    assert "time_zone: Europe/Paris" in recipe
    assert "    test: 3" in recipe
    assert len(prompts) == 5
    assert "Guessed Europe/Berlin" in (said := capsys.readouterr().out)
    assert (
        "Unsure of" not in said.partition("rows        30,000")[2]
        or "--time-zone" not in said.rpartition("Unsure of")[2]
    )


def test_an_empty_line_keeps_the_guess(drafted):
    guessed, _ = drafted(is_terminal=False)
    kept, prompts = drafted()
    assert kept == guessed
    assert len(prompts) == 5
    assert prompts[2].strip() == "your answer, y or n"


def test_an_answer_that_cannot_be_read_is_asked_for_again(drafted, capsys):
    recipe, prompts = drafted("view=many", "", "", "maybe", "no", "Berlin", "Europe/Rome", "soon", "")
    assert len(prompts) == 9
    assert "include_seen: true" not in recipe
    assert "time_zone: Europe/Rome" in recipe
    said = " ".join(capsys.readouterr().out.split())
    for message in (
        "--weights view=many: 'view=many' is no weight",
        "maybe is neither y nor n.",
        "soon is no number of",
    ):
        assert message in said


@pytest.mark.parametrize(("options", "is_terminal"), [(("--yes",), True), ((), False)])
def test_nothing_is_asked_with_yes_or_without_a_terminal(drafted, options, is_terminal):
    assert drafted(options=options, is_terminal=is_terminal)[1] == []
