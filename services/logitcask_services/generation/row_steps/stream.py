"""What row steps share: going over rows, the samples of one row together, and words for messages."""

from collections.abc import Iterator

from logitcask_services.generation.rows import Dropped, Row, Staged

_SHOWN = 120
"""Characters of a value in a message."""


def samples_together(stream: Iterator[Staged]) -> Iterator[list[Staged]]:
    """Adjacent rows with the same `parent`, with the dropped ones among them; each list has one parent's rows.

    A dropped row never parts the samples of a row. One of another line ends their group, since all rows of one parent
    are of one line; so a long run of dropped rows is not gathered.
    """
    group: list[Staged] = []
    first: Row | None = None
    for staged in stream:
        if isinstance(staged, Dropped):
            if first is None or _elsewhere(staged.row, first):
                if group:
                    yield group
                group, first = [], None
                yield [staged]
                continue
        else:
            if first is not None and staged.parent != first.parent:
                yield group
                group = []
            first = staged if first is None or staged.parent != first.parent else first
        group.append(staged)
    if group:
        yield group


def rows_of(group: list[Staged]) -> list[Row]:
    """The rows of a group that are not dropped."""
    return [staged for staged in group if isinstance(staged, Row)]


def place(row: Row) -> str:
    """Where a row is: its line and, of what the teacher wrote last, the sample."""
    samples = [written.sample for written in row.written.values()]
    where = f"line {row.line}" if row.line else f"row {row.id[:12]}"
    return f"{where}, sample {samples[-1]}" if samples else where


def shown(value: object) -> str:
    """A value in a message: short, and in one line. Of a long text the end, where answers are."""
    text = repr(value[-4 * _SHOWN :] if isinstance(value, str) else value)
    if len(text) <= _SHOWN and not (isinstance(value, str) and len(value) > 4 * _SHOWN):
        return text
    return f"…{text[-_SHOWN:]}" if isinstance(value, str) else f"{text[:_SHOWN]}…"


def _elsewhere(row: Row, other: Row) -> bool:
    if row.line or other.line:
        return row.line != other.line
    return row.parent != other.parent
