"""Report section on the sources of candidates: recall of their union, against as many candidates of the retriever."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from twofold.candidate_sources import MergedCandidates
from twofold.evaluate.significance import Estimate, estimates_of
from twofold.evaluate.window import EvaluationWindow
from twofold.render.numbers import format_decimal, format_interval, format_signed, plural


@dataclass(frozen=True)
class SourceLine:
    """Candidates that one source brought. The retriever's line is first."""

    name: str
    places: float
    """Mean number of candidates of a user that the source brought."""
    recall: Estimate
    """Share of a user's positives among the candidates that the source brought."""
    alone: Estimate
    """Share of a user's positives that the source lists and no other source does, each with as many items as there are
    candidates.
    """


@dataclass(frozen=True)
class SourceSection:
    """Recall of the candidates of all sources, of as many candidates of the retriever, and their difference."""

    num_candidates: int
    users: int
    union: Estimate
    retriever: Estimate
    minus: Estimate
    lines: tuple[SourceLine, ...]
    sentence: str


def evaluate_sources(window: EvaluationWindow, candidates: MergedCandidates, names: Sequence[str]) -> SourceSection:
    """Evaluates the candidates of a window on the users with something to find; `names` are those of the lists."""
    relevant, top = window.relevant, candidates.num_candidates
    users = np.flatnonzero(relevant.sizes)
    rows, brought_by = candidates.item_rows[:, :top], candidates.brought_by[:, :top]

    def recall(is_found: Bool[np.ndarray, "pairs"]) -> Float64[np.ndarray, "users"]:
        counts = np.bincount(relevant.lines[is_found], minlength=len(relevant.sizes))
        return np.asarray(counts[users] / relevant.sizes[users])

    def contains(rows: Int64[np.ndarray, "users _"]) -> Bool[np.ndarray, "pairs"]:
        keys = np.arange(len(rows))[:, None] * window.num_items + rows
        return np.isin(relevant.lines * window.num_items + relevant.values, keys[rows >= 0])

    listed = np.stack([contains(each) for each in candidates.lists])
    columns = {("union", ""): recall(contains(rows)), ("retriever", ""): recall(listed[0])}
    columns["minus", ""] = columns["union", ""] - columns["retriever", ""]
    for number, name in enumerate(names):
        columns["recall", name] = recall(contains(np.where(brought_by == number, rows, -1)))
        columns["alone", name] = recall(listed[number] & (listed.sum(axis=0) == 1))
    found = estimates_of(columns)
    places = [float(((brought_by == number) & (rows >= 0))[users].sum() / len(users)) for number in range(len(names))]
    lines = tuple(
        SourceLine(name, each, found["recall", name], found["alone", name])
        for name, each in zip(names, places, strict=True)
    )
    union, retriever, minus = (found[name, ""] for name in ("union", "retriever", "minus"))
    sentence = _sentence(union, minus, lines, top)
    return SourceSection(top, len(users), union, retriever, minus, lines, sentence)


def _sentence(union: Estimate, minus: Estimate, lines: Sequence[SourceLine], top: int) -> str:
    """Sums up what the sources add to the retriever or cost, and what each of them brought."""
    brought = ", ".join(f"{line.name} brought {format_decimal(line.recall.value)}" for line in lines[1:])
    number = plural(len(lines) - 1, "further source")
    text = (
        f"Candidates: {format_decimal(union.value)} {format_interval(union.low, union.high)} of the positives are "
        f"among the {top} of the retriever and {number}, {format_signed(minus.value)} "
        f"{format_interval(minus.low, minus.high)} from {top} of the retriever alone; {brought}"
    )
    loses = minus.high is not None and minus.high < 0
    return f"{text}. The sources lose recall: lower their quotas." if loses else f"{text}."
