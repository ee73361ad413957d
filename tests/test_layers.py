"""Rules of the house that no linter has a word for. The layers themselves are contracts of import-linter."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "twofold").rglob("*.py"))
FILES = MODULES + sorted(path for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py"))

SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "base", "misc", "manager", "types", "constants"}
MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 40
MOST_LINES_OF_THE_LOOP = 80
MOST_PARAMETERS = 6


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_module = pytest.mark.parametrize("path", MODULES, ids=relative)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_is_one_room_with_a_name(path: Path) -> None:
    assert path.stem not in SAYS_NOTHING, "name the file after what lives in it"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES_OF_A_FILE


@every_module
def test_functions_are_short_and_say_what_they_take(path: Path) -> None:
    longest = MOST_LINES_OF_THE_LOOP if relative(path) == "twofold/train/loop.py" else MOST_LINES_OF_A_FUNCTION
    # There, a parameter is an option of the verb.
    is_command_line = path.parent.name == "cli" or relative(path) == "twofold/__init__.py"
    for function in functions(path):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        assert lines <= longest, f"{function.name} has {lines} lines"
        assert function.args.kwarg is None, f"{function.name} takes **{function.args.kwarg}: name its parameters"
        parameters = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        parameters = [name for name in parameters if name not in ("self", "cls")]
        assert is_command_line or len(parameters) <= MOST_PARAMETERS, f"{function.name}: {parameters}"


@every_module
def test_nothing_unsafe_and_nothing_printed_outside_the_command_line(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "cloudpickle", "joblib", "dill"}, f"line {node.lineno}: safetensors or JSON"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            banned = {"eval", "exec"} if path.parent.name == "cli" else {"eval", "exec", "print"}
            assert node.func.id not in banned, f"line {node.lineno}: {node.func.id}(…)"


@every_module
def test_text_is_read_and_written_as_utf_8_whatever_the_locale(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = {keyword.arg for keyword in node.keywords}
            reads_text = node.func.attr == "read_text" or (node.func.attr == "write_text" and len(node.args) == 1)
            assert not reads_text or "encoding" in keywords, f'line {node.lineno}: write encoding="utf-8"'


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=relative)
def test_a_package_says_in_its_docstring_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
