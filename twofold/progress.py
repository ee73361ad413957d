"""Progress bars of long steps: share done, rate and remaining time.

Nothing is printed where stderr is no terminal (pipes, logs, notebook servers).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, str], None]
"""Callback that takes the units done since its last call and a short remark (the loss, the file)."""


@contextmanager
def progress_bar(label: str, *, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Shows a bar while the block runs; `done` units were finished before (a resumed run)."""
    if not sys.stderr.isatty():
        yield lambda units, remark: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f} {unit}/s", style="cyan")

    columns = (TextColumn("{task.description:>10}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), Rate())
    remark_column = TextColumn("{task.fields[remark]}", style="dim")
    with Progress(*columns, TimeRemainingColumn(), remark_column, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, completed=done, remark="")
        yield lambda units, remark: bar.update(task, advance=units, remark=remark)
