"""What a person sees while a run goes on: stage lines, progress bars with the time left, a last table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Advance = Callable[[int, int, dict[str, float]], None]
"""Called with (done, total, figures to show)."""


class Screen:
    """The terminal of a run. Bars are drawn on a terminal only; a log file gets one line a stage."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """One line of plain text."""
        self.console.print(text, markup=False)

    @contextmanager
    def bar(self, what: str) -> Iterator[Advance]:
        """A progress bar with the time left; gone when its work is done."""
        columns = (
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[figures]}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(what, total=None, figures="")

            def advance(done: int, total: int, figures: dict[str, float]) -> None:
                shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
                progress.update(task, completed=done, total=total, figures=shown)

            yield advance

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        """A table; the first column is text, the others are numbers. However narrow the terminal, nothing is cut."""
        table = Table(title=title, title_justify="left")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        needed = Console(width=1000).measure(table).maximum
        wide = Console(file=self.console.file, width=max(needed, self.console.width), markup=False, emoji=False)
        wide.print(table)


def counted(advance: Advance) -> Callable[[int, int], None]:
    """The same bar for work that reports (done, total) alone."""
    return lambda done, total: advance(done, total, {})
