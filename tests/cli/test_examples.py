"""The examples of the help, run in their order in an empty folder."""

import re
import shlex

import pytest
from typer.testing import CliRunner

from twofold.cli.examples import EXAMPLES
from twofold.cli.main import app

SERVES = "serve"  # it does not end by itself; tests/serve starts it


@pytest.mark.slow
def test_each_example_prints_what_its_help_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    runner = CliRunner()
    for name, example in EXAMPLES.items():
        if name == SERVES:
            continue
        program, *arguments = shlex.split(example.command)
        assert program == "twofold"
        if name == "compare":  # a second run, which the session has not
            second = ["run", "world.yaml", "--set", "train.epochs=1", "--set", "retriever.dim=16", "--run", "other"]
            assert runner.invoke(app, second).exit_code == 0
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, (example.command, result.output, result.exception)
        pattern = ".*".join(map(re.escape, re.sub(r"\s+", " ", example.output).split("…")))
        assert re.search(pattern, re.sub(r"\s+", " ", result.output)), (example, result.output)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_help_of_a_command_ends_with_its_example(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    help_text = re.sub(r"\s+", " ", CliRunner().invoke(app, [*name.split(), "--help"]).output)
    assert EXAMPLES[name].command.startswith(f"twofold {name}")
    assert f"Example: {EXAMPLES[name].command}" in help_text
    assert re.sub(r"\s+", " ", EXAMPLES[name].output) in help_text
