"""Rules for names and docstrings, so that a competent stranger reads each once: CONTRIBUTING.md states them."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jaxtyping

from tests.source_files import MODULES, ROOT, SCRIPTS, Rule, places_that_break

FRAGMENT = re.compile(r"(Of|What|Those|Who|Whose|Whether|The same|How many|How|None[:;]|Where|As|In|With|One,)\b")
FIELD_FRAGMENT = re.compile(r"(Of|What|Those|Who|Whose|The same|How many|None\b(?! means))")
# fmt: off
DIMENSIONS = {
    "batch", "users", "items", "queries", "dim", "k", "length", "events", "examples", "pairs", "features", "bins",
}
"""Each is defined in docs/semantics.md; a size that no other array shares is `_`."""
ARRAY_KINDS = {name for name in dir(jaxtyping) if name[0].isupper()}
NAMED_BY_STAGE = {"recipe", "pipeline", "cli"}
"""Packages whose modules bear the name of a section of the recipe or of a stage, as modules of other packages may."""
NAMED_IN_EACH_STAGE = {"ranker"}
"""One thing in several stages: `model/ranker.py` defines it, `train/ranker.py` trains it."""
RETIRED = {
    "_answer_soon", "_answering", "_call_ranks", "_Lesson", "_notice_the_end", "_what_is_judged",
    "_who_may_be_recommended", "ALONE", "Ask", "asked", "Asked", "Asker", "Asking", "assist", "at_once", "AT_ONCE",
    "blocks", "bracket", "CELLS", "Crosses", "decimal", "Details", "dirt", "Eligible", "everything", "failed",
    "Found", "Gate", "gathered", "given", "hard_of", "headline", "hear", "HELD", "holds", "in_words", "is_unasked",
    "joined_ranks", "judge_catalogue", "judge_filtered", "judge_impressions", "judge_in_batch", "Judged",
    "JudgedWindow", "Kept", "kept_memory", "Known", "learner", "LengthGuess", "lent", "Line", "Lists", "LookedAt",
    "Made", "make", "may_be_recommended", "Met", "Meters", "Mined", "mistake", "moment", "moments", "nobody",
    "Only", "only_mask", "only_rows", "Open", "open_answers", "Optimiser", "optimiser", "outlook", "PAIRS",
    "parted_by", "passing", "passing_in_words", "PerValue", "Piece", "place_of", "Position", "Put", "Question",
    "Ranks", "reaching", "regularisation", "said", "saying", "Seen", "settle", "Shown", "SideBySide", "signed",
    "sketch", "spelling", "spoilt", "spread", "Stages", "summed", "tell", "to_find", "told", "told_by_first",
    "Track", "trust", "try_again", "twins", "Wanted", "wide",
}
# fmt: on
VERB = re.compile(r"[A-Z][a-z-]*s$")
NOT_A_VERB = {"This", "Its", "Items", "Users", "Rows", "Events", "Vectors", "Scores", "Examples", "Ids", "Values"}


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(each).split(".")[-1] in ("property", "cached_property") for each in function.decorator_list)


def field_docs(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """Texts that follow an assignment: what sphinx calls attribute docstrings."""
    for node in nodes:
        body = getattr(node, "body", None)
        for before, after in zip(body, body[1:], strict=False) if isinstance(body, list) else ():
            if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                text = getattr(after.value, "value", None)
                if isinstance(text, str):
                    yield after.lineno, text


# --- each rule takes a file and the nodes of its tree, and returns a line for each place that breaks it ---------------


def fragments(path: Path, nodes: list[ast.AST]) -> list[str]:
    found = []
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node) or ""
            if FRAGMENT.match(text):
                found.append(f"line {getattr(node, 'lineno', 1)}: {text.splitlines()[0]}")
    fields = [(line, text) for line, text in field_docs(nodes) if FIELD_FRAGMENT.match(text)]
    return [*found, *(f"line {line}: {text.splitlines()[0]}" for line, text in fields)]


def docstrings_without_a_verb(path: Path, nodes: list[ast.AST]) -> list[str]:
    found = []
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property(node):
            first = ((ast.get_docstring(node) or "").split() or ["Returns"])[0].rstrip(",;:.")
            is_verb = VERB.match(first) is not None and first not in NOT_A_VERB
            if not is_verb and path.parent.name != "cli":
                found.append(f"line {node.lineno}: {node.name}: {(ast.get_docstring(node) or '').splitlines()[0]}")
    return found


def retired_words(path: Path, nodes: list[ast.AST]) -> list[str]:
    retired = RETIRED - {"tell"} if path.name == "tune.py" else RETIRED  # Optuna's Study.tell
    return [name for name in names_in(nodes, frozenset({"id", "arg", "attr", "name", "asname"})) if name in retired]


def names_that_are_asked(path: Path, nodes: list[ast.AST]) -> list[str]:
    return [name for name in names_in(nodes, frozenset({"id", "arg", "name", "asname"})) if name == "asked"]


def names_in(nodes: list[ast.AST], fields: frozenset[str]) -> Iterator[str]:
    """Yields the identifiers in these fields of the nodes."""
    for node in nodes:
        for field in named_fields(type(node), fields):
            if isinstance(name := getattr(node, field), str):
                yield name


@cache
def named_fields(kind: type[ast.AST], fields: frozenset[str]) -> tuple[str, ...]:
    return tuple(field for field in kind._fields if field in fields)


def undefined_dimensions(path: Path, nodes: list[ast.AST]) -> list[str]:
    found = []
    for node in nodes:
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2:
            shape = node.slice.elts[1]
            kind = ast.unparse(node.value).split(".")[-1]
            text = getattr(shape, "value", None)
            if isinstance(text, str) and kind in ARRAY_KINDS:
                found += [word for word in text.split() if not is_dimension(word)]
    return found


@cache
def breaches() -> dict[Rule, list[str]]:
    everywhere, in_modules, in_scripts = {*MODULES, *SCRIPTS}, set(MODULES), set(SCRIPTS)
    return places_that_break(
        {
            fragments: everywhere,
            docstrings_without_a_verb: in_modules,
            retired_words: in_modules,
            undefined_dimensions: in_modules,
            names_that_are_asked: in_scripts,
        }
    )


def check(rule: Rule) -> None:
    found = breaches()[rule]
    assert not found, "\n".join(found)


def test_the_rules_are_tried_on_all_files() -> None:
    assert len(MODULES) > 200
    assert len(SCRIPTS) > 200


def test_a_docstring_is_no_fragment() -> None:
    check(fragments)


def test_the_docstring_of_a_function_begins_with_a_verb() -> None:
    """The verb is in the third person; on the command line, where it is the help text, also in the imperative."""
    check(docstrings_without_a_verb)


def test_no_identifier_is_a_retired_word() -> None:
    check(retired_words)


def test_no_identifier_of_a_test_is_asked() -> None:
    """It has meant a recipe, a section of one, users, items and a request: name what it holds."""
    check(names_that_are_asked)


def test_dimensions_have_one_of_the_defined_names() -> None:
    check(undefined_dimensions)


def is_dimension(word: str) -> bool:
    word = word.removeprefix("*").removeprefix("#")
    return word in ("...", "_") or re.fullmatch(r"\d+", word) is not None or word.removesuffix("+1") in DIMENSIONS


def test_every_dimension_is_defined() -> None:
    page = (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8")
    assert not {word for word in DIMENSIONS if f"`{word}`" not in page}


def test_the_name_of_a_module_is_unique() -> None:
    names = Counter(path.stem for path in MODULES if path.stem != "__init__" and path.parent.name not in NAMED_BY_STAGE)
    names -= Counter(dict.fromkeys(NAMED_IN_EACH_STAGE, 1))
    assert not {name: count for name, count in names.items() if count > 1}
