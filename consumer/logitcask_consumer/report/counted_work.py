"""How far a report is with what takes long: a bar on a terminal, elsewhere a plain line every few seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from logitcask_consumer.training.progress_bar import duration_text

Done = Callable[[int], None]
"""Is told how much more has been done."""


class Counting(Protocol):
    """Shows how far a piece of work is while it lasts."""

    def __call__(self, what: str, total: int, unit: str) -> AbstractContextManager[Done]:
        """Begin a piece of work.

        Args:
            what: is being done, for people.
            total: of the units that there are to do.
            unit: what is counted, in the plural.
        """


@contextmanager
def uncounted(what: str, total: int, unit: str) -> Iterator[Done]:
    """Shows nothing."""
    del what, total, unit
    yield lambda more: None


def which_of(number: int, total: int) -> str:
    """Which of several models it is, behind a message; nothing where there is one alone."""
    return f" (model {number} of {total:,})" if total > 1 else ""


class CountedWork:
    """Shows each piece of work on a console; the bar is gone when the work is done."""

    def __init__(self, console: Console, *, line_seconds: float = 15.0) -> None:
        """Say where.

        Args:
            console: stderr.
            line_seconds: between two plain lines; what takes less time has none.
        """
        self._console = console
        self._line_seconds = line_seconds

    @contextmanager
    def __call__(self, what: str, total: int, unit: str) -> Iterator[Done]:
        """See `Counting`."""
        if not self._console.is_terminal:
            yield self._lines(what, total, unit)
            return
        bar = Progress(
            TextColumn(escape(what)),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        with bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)

    def _lines(self, what: str, total: int, unit: str) -> Done:
        began = last = time.monotonic()
        so_far = 0

        def done(more: int) -> None:
            nonlocal last, so_far
            so_far, now = so_far + more, time.monotonic()
            if now - last >= self._line_seconds and 0 < so_far < total:
                last = now
                left = duration_text((now - began) / so_far * (total - so_far))
                line = f"{what}: {so_far:,} of {total:,} {unit}, {left} left"
                self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

        return done
