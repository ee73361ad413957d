"""Rules of the house that no linter has a word for. The layers themselves are contracts of import-linter."""

import ast
from functools import cache
from pathlib import Path

from tests.source_files import MODULES, SCRIPTS, Rule, places_that_break, relative

SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "base", "misc", "manager", "types", "constants"}
MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 40
MOST_LINES_OF_THE_LOOP = 80
MOST_PARAMETERS = 6


# --- each rule takes a file and the nodes of its tree, and returns a line for each place that breaks it -----


def rooms_without_a_name(path: Path) -> list[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    found = ["name the file after what lives in it"] if path.stem in SAYS_NOTHING else []
    return [*found, f"{lines} lines"] if lines > MOST_LINES_OF_A_FILE else found


def long_functions(path: Path, nodes: list[ast.AST]) -> list[str]:
    longest = MOST_LINES_OF_THE_LOOP if relative(path) == "twofold/train/loop.py" else MOST_LINES_OF_A_FUNCTION
    # There, a parameter is an option of the verb.
    is_command_line = path.parent.name == "cli" or relative(path) == "twofold/__init__.py"
    found = []
    for function in nodes:
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        if lines > longest:
            found.append(f"{function.name} has {lines} lines")
        if function.args.kwarg is not None:
            found.append(f"{function.name} takes **{function.args.kwarg.arg}: name its parameters")
        parameters = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        parameters = [name for name in parameters if name not in ("self", "cls")]
        if not is_command_line and len(parameters) > MOST_PARAMETERS:
            found.append(f"{function.name}: {parameters}")
    return found


def unsafe_or_printed(path: Path, nodes: list[ast.AST]) -> list[str]:
    found = []
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if names & {"pickle", "cloudpickle", "joblib", "dill"}:
                found.append(f"line {node.lineno}: safetensors or JSON")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            banned = {"eval", "exec"} if path.parent.name == "cli" else {"eval", "exec", "print"}
            if node.func.id in banned:
                found.append(f"line {node.lineno}: {node.func.id}(…)")
    return found


def text_of_some_locale(path: Path, nodes: list[ast.AST]) -> list[str]:
    found = []
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = {keyword.arg for keyword in node.keywords}
            reads_text = node.func.attr == "read_text" or (node.func.attr == "write_text" and len(node.args) == 1)
            if reads_text and "encoding" not in keywords:
                found.append(f'line {node.lineno}: write encoding="utf-8"')
    return found


def packages_without_a_docstring(path: Path, nodes: list[ast.AST]) -> list[str]:
    module = nodes[0]
    assert isinstance(module, ast.Module)
    return ["no docstring"] if path.name == "__init__.py" and not ast.get_docstring(module) else []


@cache
def breaches() -> dict[Rule, list[str]]:
    of_modules = (long_functions, unsafe_or_printed, text_of_some_locale, packages_without_a_docstring)
    return places_that_break({rule: set(MODULES) for rule in of_modules})


def check(rule: Rule) -> None:
    found = breaches()[rule]
    assert not found, "\n".join(found)


def test_the_rules_are_tried_on_all_files() -> None:
    assert len(MODULES) > 200
    assert len(SCRIPTS) > 200


def test_a_file_is_one_room_with_a_name() -> None:
    found = [f"{relative(path)}: {each}" for path in (*MODULES, *SCRIPTS) for each in rooms_without_a_name(path)]
    assert not found, "\n".join(found)


def test_functions_are_short_and_say_what_they_take() -> None:
    check(long_functions)


def test_nothing_unsafe_and_nothing_printed_outside_the_command_line() -> None:
    check(unsafe_or_printed)


def test_text_is_read_and_written_as_utf_8_whatever_the_locale() -> None:
    check(text_of_some_locale)


def test_a_package_says_in_its_docstring_what_it_is_for() -> None:
    check(packages_without_a_docstring)
