"""What a person at a terminal sees of a job: phases with a bar on stderr, results on stdout.

One switch silences the bars; where stderr is no terminal there are none either, only one line per finished phase.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from lightning.pytorch import Callback

WIDTH = 110  # of a table that goes to a file or a pipe


@dataclass(eq=False)
class Phase:
    """One part of a job, with as many steps as its bar has."""

    name: str
    progress: Progress | None = None
    task: TaskID | None = None

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self.progress is not None and self.task is not None:
            self.progress.advance(self.task, steps)


@dataclass(eq=False)
class Screen:
    """The terminal of one job; keeps how long each phase took, in seconds of wall clock."""

    quiet: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open both streams as they are now."""
        wide = None if Console().is_terminal else WIDTH
        self.results, self.status = Console(highlight=False, width=wide), Console(stderr=True, highlight=False)

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """Show and time a part of the job; `total` is the number of `advance` steps, None where it is not known."""
        began = time.perf_counter()
        if self.quiet:
            yield Phase(name)
        elif not self.status.is_terminal:
            yield Phase(name)
            self.status.print(f"{name}: {time.perf_counter() - began:.1f} s", soft_wrap=True)
        else:
            columns = (SpinnerColumn(), TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(),
                       TimeElapsedColumn())  # fmt: skip
            with Progress(*columns, console=self.status) as progress:
                task = progress.add_task(name, total=total)
                yield Phase(name, progress, task)
                done = progress.tasks[0].completed
                progress.update(task, total=done or 1, completed=done or 1)
        self.seconds[name] = time.perf_counter() - began

    def say(self, line: str) -> None:
        """Print a line of result as it is: a target such as count[UA] is no markup."""
        self.results.print(line, soft_wrap=True, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]], *, first: str = "") -> None:
        """Print one table; the row called `first` in the first column is set in bold."""
        table = Table(title=title, title_justify="left", header_style="bold")
        for number, name in enumerate(columns):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*(escape(row[name]) for name in columns), style="bold" if row[columns[0]] == first else "")
        self.results.print(table)


def training_callback(phase: Phase) -> Callback:
    """A Lightning callback that moves the bar with every training step."""
    from lightning.pytorch import Callback

    class Bar(Callback):
        def on_train_batch_end(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002
            phase.advance()

    return Bar()
