"""Progress of long steps on stderr: a bar in a terminal, and lines where stderr is a file or a pipe.

Both show the share done, the rate and the remaining time; for a step without countable units, the time since its start.
Lines appear every 30 seconds, and at the end of an epoch.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

Advance = Callable[[int, str], None]
"""Callback that takes the units done since its last call and a short remark (the loss, the file). With 0 units, the
remark is a result to be kept, such as that of an epoch: it becomes a line of its own."""

EVERY_S: Final = 30.0
"""Seconds between two lines where stderr is no terminal."""


@contextmanager
def progress_bar(label: str, *, total: int, unit: str, done: int = 0, may_stop: bool = False) -> Iterator[Advance]:
    """Shows the progress while the block runs; `done` units were finished before (a resumed run).

    `may_stop` means that the work may end before `total` units are done.
    """
    if not sys.stderr.isatty():
        with _lines(_Work(label, total, unit, done, done, may_stop=may_stop)) as advance:
            yield advance
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

        def advance(units: int, remark: str) -> None:
            if units == 0:
                bar.console.print(Text(f"{label:<10} {remark}"))
            else:
                bar.update(task, advance=units, remark=remark)

        yield advance


@contextmanager
def heartbeat(label: str) -> Iterator[None]:
    """Shows for how long a step without countable units has been running."""
    if not sys.stderr.isatty():
        with _lines(_Work(label, 0, "", 0, 0)):
            yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:>10}"), SpinnerColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as spinner:
        spinner.add_task(label)
        yield


@dataclass
class _Work:
    """The state of a step: the units that are done, and the last remark."""

    label: str
    total: int
    unit: str
    first: int
    done: int
    remark: str = ""
    may_stop: bool = False

    def line(self, seconds: float) -> str:
        """Describes the state after so many seconds.

        >>> _Work("train", 400, "examples", 0, 100, "loss 2.1").line(50)
        'train       25%  2 examples/s  2 min 30 s left  loss 2.1'
        """
        parts, most = [f"{self.label:<10}"], "at most " if self.may_stop else ""
        rate = (self.done - self.first) / max(seconds, 1e-9)
        if self.total:
            parts.append(f"{self.done / self.total:>3.0%}")
        if rate > 0:
            shown = f"{rate:,.0f}" if rate >= 1 else f"{rate:.2f}"
            parts += [f"{shown} {self.unit}/s", f"{most}{duration((self.total - self.done) / rate)} left"]
        else:
            parts.append(f"running for {duration(seconds)}")
        return "  ".join([*parts, *([self.remark] if self.remark else [])])


def duration(seconds: float) -> str:
    """Returns a duration in words.

    >>> [duration(seconds) for seconds in (9.6, 150, 7260)]
    ['10 s', '2 min 30 s', '2 h 1 min']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def _lines(work: _Work) -> Iterator[Advance]:
    """Writes a line every `EVERY_S` seconds, from a thread, since a single statement may take minutes."""
    started, has_ended = time.monotonic(), threading.Event()

    def write_lines() -> None:
        while not has_ended.wait(EVERY_S):
            _write(work.line(time.monotonic() - started))

    def advance(units: int, remark: str) -> None:
        if units == 0:
            _write(f"{work.label:<10}  {remark}")
        else:
            work.done, work.remark = work.done + units, remark

    writer = threading.Thread(target=write_lines, daemon=True)
    writer.start()
    try:
        yield advance
    finally:
        has_ended.set()
        writer.join()


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
