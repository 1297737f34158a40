"""What the cask commands print: tables that fit the terminal, JSON for programs, progress on stderr."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
CaskArgument = Annotated[
    str, typer.Argument(metavar="CASK", help="The cask: a folder, or a URL such as s3://bucket/folder.")
]

_PIPE_WIDTH: Final = 10_000
"""Programs that read a table want whole lines."""
_GAP: Final = "  "
_LEAST: Final = 8
"""Cells that a column of text keeps when there is no room."""


def console() -> Console:
    """Stdout, as wide as the terminal, or as COLUMNS says; in a pipe as wide as it takes."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(markup=False, emoji=False, highlight=False, width=None if has_width else _PIPE_WIDTH)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    json.dump(document, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """One line per row: numbers whole and to the right, texts to the left and cut where the terminal is too narrow."""
    out = console()
    cells = [[number(value) for value in row] for row in rows]
    numeric = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    widths = [max(cell_len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - out.width
    while excess > 0:
        texts = [i for i, width in enumerate(widths) if not numeric[i] and width > max(_LEAST, cell_len(columns[i]))]
        if not texts:
            break
        widths[max(texts, key=lambda i: widths[i])] -= 1
        excess -= 1
    for at, line in enumerate([columns, *cells]):
        fitted = [fit(cell, width, right=numeric[i]) for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
        print_line(out, Text(_GAP.join(fitted).rstrip(), style="bold" if at == 0 else ""))


def print_line(out: Console, line: Text) -> None:
    """A line as it is: what is wider than the terminal is the terminal's to wrap."""
    out.print(line, soft_wrap=True)


def fit(cell: str, width: int, *, right: bool = False) -> str:
    """A text in exactly so many cells of the terminal, cut with an ellipsis where it is wider."""
    size = cell_len(cell)
    if size > width:
        return set_cell_size(cell, width - 1) + "…"
    return " " * (width - size) + cell if right else cell + " " * (width - size)


def number(value: Any) -> str:
    """Counts with thousands separated, other numbers with three digits, anything else as it is."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def byte_progress() -> Progress:
    """A progress bar over bytes, on stderr where that is a terminal, gone when it is done."""
    stderr = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
