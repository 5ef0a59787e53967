"""What a command shows while it works: bars on a terminal, plain lines in a log.

Everything goes to standard error; standard output is for results.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

LINE_EVERY_S = 10.0  # in a log; a bar moves as it likes


class Screen:
    """Standard error, as a terminal or as a log."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)

    @property
    def live(self) -> bool:
        """Whether bars can be drawn."""
        return self._console.is_terminal

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(escape(text))

    def done(self, stage: str, seconds: float, *, cached: bool) -> None:
        """A stage's end."""
        how = "cached" if cached else f"{seconds:.1f} s"
        self._console.print(f"[bold]{escape(stage)}[/bold]: done, {how}")

    @contextmanager
    def bar(self, name: str, total: float, unit: str) -> Iterator[Callable[..., None]]:
        """A progress bar; call what is yielded with the amount done, and a word or two."""
        if self.live:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description:<9}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[words]}"),
            )
            with Progress(*columns, console=self._console, transient=True) as progress:
                task = progress.add_task(name, total=total, words="")

                def show(done: float, words: str = "") -> None:
                    progress.update(task, completed=done, words=escape(words))

                yield show
            return
        said_at = time.monotonic()

        def log(done: float, words: str = "") -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= LINE_EVERY_S:
                said_at = time.monotonic()
                self.say(f"{name}: {done:,.0f} of {total:,.0f} {unit} {words}".rstrip())

        yield log

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for k, column in enumerate(columns):
            table.add_column(column, justify="left" if k == 0 else "right")
        for row in rows:
            table.add_row(*map(escape, row))
        self._console.print(table)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Names and values, aligned."""
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            self._console.print(f"[bold]{escape(name):<{width}}[/bold]  {escape(str(value))}")
