"""Tables and lines that the commands of the stages print: progress on stderr, results on stdout."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from twofold.render.numbers import format_decimal, format_signed, percent
from twofold.run_folder import Stage

if TYPE_CHECKING:
    from twofold.prepare.funnel import FunnelLine
    from twofold.tables import ModelPart


def print_stage(stage: Stage) -> None:
    """Prints one line for a complete stage: its name, its time and its folder."""
    duration = "unchanged" if stage.was_reused else f"{stage.seconds:.1f} s"
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(
        f"[green]✓[/] {escape(stage.folder.name):<10} {duration:>10}   [dim]{escape(str(stage.folder))}[/]", emoji=False
    )
    for note in stage.facts.get("notes", ()):
        console.print(f"  note: {note}", markup=False)


def print_funnel(steps: "Sequence[FunnelLine]") -> None:
    """Prints how many rows each step of preparation left."""
    table = Table("step", "rows", "removed", "users", "items", "positive", title="the funnel", box=SIMPLE_HEAD)
    scope = "log"
    for step in steps:
        if step.scope != scope:
            table.add_section()
        scope = step.scope
        removed = f"{step.removed:,}" if step.removed else ""
        counts = (f"{step.rows:,}", removed, f"{step.users:,}", f"{step.items:,}")
        table.add_row(Text(step.name), *counts, percent(step.positive_share))
    Console().print(table)


def print_labels(report: Mapping[str, Any]) -> None:
    """Prints how the label depends on an item's length, measured on rows that fitted nothing."""
    table = Table("length in s", "rows", "positive", "mean target", title="the label by length, on validation rows")
    for decile in report["deciles"]:
        length_and_rows = f"{decile['first_s']:g} to {decile['last_s']:g}", f"{decile['rows']:,}"
        table.add_row(*length_and_rows, percent(decile["positive_share"]), f"{decile['mean_target']:.3f}")
    table.box = SIMPLE_HEAD
    Console().print(table)
    for name in ("label", "target"):
        if (correlation := report[f"{name}_with_length"]) is not None:
            print(f"Spearman correlation of {name} and length: {correlation:+.3f} (0: no preference by length)")
    for remark in report["warnings"]:
        print(f"note: {remark}")


def print_model(parts: "Sequence[ModelPart]") -> None:
    """Prints each tower as a tree, from its features to its last layer."""
    for tower in dict.fromkeys(part.tower for part in parts):
        own = [part for part in parts if part.tower == tower]
        tree = Tree(f"[bold]{tower} tower[/]  {sum(part.parameters for part in own):,} parameters")
        for part in own:
            shape = Text(f"  {part.shape}", style="dim")
            tree.add(Text(part.name).append(shape).append(f"  {part.parameters:,}" if part.parameters else ""))
        Console(highlight=False).print(tree)


def print_training(model: str, facts: Mapping[str, Any]) -> None:
    """Prints loss and validation by epoch, from 1; an arrow marks the epoch whose weights are kept."""
    table = Table("epoch", "loss", "validation", "examples/s", title=f"training of the {model}")
    for epoch in facts["epochs"]:
        mark = " ←" if epoch["epoch"] == facts["best_epoch"] else ""
        numbers = (f"{epoch['loss']:.4f}", f"{epoch['validation']:.4f}{mark}", f"{epoch['examples_per_s']:,}")
        table.add_row(str(epoch["epoch"] + 1), *numbers)  # as the lines of progress count
    Console().print(table)


def print_explanation(facts: Mapping[str, Any]) -> None:
    """Prints the probes, warnings first, and the steps from training batches to served lists."""
    table = Table("probe", "model", "popular", "liked", "meaning", box=SIMPLE_HEAD)
    for probe in sorted(facts["probes"], key=lambda probe: not probe["is_alarming"]):
        numbers = (
            "" if probe[name] is None else format_decimal(probe[name]) for name in ("value", "popularity", "positives")
        )
        warning = f" Warning: {probe['next_step']}" if probe["is_alarming"] else ""
        table.add_row(
            Text(probe["name"]), *numbers, Text(probe["meaning"], overflow="fold").append(warning, style="bold red")
        )
    Console().print(table)
    gap = facts["gap"]
    title = "gap between batch and catalogue"
    steps = Table("difference, from training to serving", "hit rate", "change", title=title, box=SIMPLE_HEAD)
    steps.add_row(f"in batches of {gap['batch_size']:,}, top {gap['k']}", format_decimal(gap["in_batch"]), "")
    for step in (*gap["exam"], *gap["serving"]):
        steps.add_row(Text(step["cause"]), format_decimal(step["share"]), format_signed(step["change"]))
    Console().print(steps)
    for sentence in (*gap["verdict"], gap["about_exam"]):
        print(sentence)
