"""The files of the project, and the places in them that break a rule, for the tests of names and layers."""

import ast
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "twofold").rglob("*.py"))
SCRIPTS = sorted(path for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py"))

Rule = Callable[[Path, list[ast.AST]], list[str]]
"""A function from a file and the nodes of its tree to a line for each place that breaks a rule."""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def places_that_break(rules: Mapping[Rule, Collection[Path]]) -> dict[Rule, list[str]]:
    """Parses each file once, for all rules that are tried on it; returns the places that break each rule."""
    found: dict[Rule, list[str]] = {rule: [] for rule in rules}
    for path in sorted({path for paths in rules.values() for path in paths}):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        for rule, paths in rules.items():
            if path in paths:
                found[rule] += [f"{relative(path)}: {each}" for each in rule(path, nodes)]
    return found
