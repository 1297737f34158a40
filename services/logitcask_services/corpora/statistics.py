"""Rows of a corpus by number, and what its lines are: forms, sizes, names, faults. Without a teacher."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from logitcask_schemas.api.corpus_rows import CorpusRow as RowObject
from logitcask_schemas.api.corpus_rows import CorpusStatistics, LengthBin
from logitcask_services.corpora.corpus_lines import CorpusLines
from logitcask_services.corpora.line_problems import LineProblem, is_too_deep
from logitcask_services.corpora.lines import ChatLine, ParsedLine, TextLine, decode_line, parse_line

MAX_LINES, MAX_BYTES = 100_000, 64 << 20
"""So much of a corpus is looked at."""
SHOWN_BYTES = 64 << 10
"""A longer line is shown by its beginning."""


def rows_of(corpus: Path, max_line_bytes: int, *, offset: int, length: int) -> tuple[list[RowObject], bool]:
    """Lines that are not blank, from the one after `offset` others on, and whether there are more.

    Raises NotJsonLinesError, OSError. Reads all lines before them.
    """
    shown = [_shown(*entry) for entry in islice(CorpusLines(corpus, max_line_bytes), offset, offset + length + 1)]
    return shown[:length], len(shown) > length


def _shown(number: int, start: int, content: bytes | None) -> RowObject:
    if content is None:
        return RowObject(
            line=number, bytes=None, row=None, text=None, code="line_too_long", message="the line is too long"
        )
    try:
        row = decode_line(content) if len(content) <= SHOWN_BYTES else None
        row = None if is_too_deep(row) else row
        parse_line(content)
    except LineProblem as problem:
        code, message = problem.code, problem.message[:500]
        return RowObject(line=number, bytes=len(content), row=None, text=_head(content), code=code, message=message)
    text = None if row is not None else _head(content)
    return RowObject(line=number, bytes=len(content), row=row, text=text, code=None, message=None)


def _head(content: bytes) -> str:
    return content[:SHOWN_BYTES].decode("utf-8", "replace")


@dataclass(slots=True)
class _Counts:
    lines: int = 0
    size: int = 0
    named: int = 0
    shortest: int | None = None
    longest: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    bins: Counter[int] = field(default_factory=Counter)

    def add(self, content: bytes) -> None:
        size = len(content)
        self.lines, self.size = self.lines + 1, self.size + size
        self.shortest = size if self.shortest is None else min(self.shortest, size)
        self.longest = max(self.longest, size)
        self.bins[max(size.bit_length() - 1, 0)] += 1
        try:
            line = parse_line(content)
        except LineProblem as problem:
            self.faults[problem.code] += 1
            return
        self.forms[_form(line)] += 1
        self.named += line.custom_id is not None


def statistics_of(corpus: Path, max_line_bytes: int) -> CorpusStatistics:
    """What the lines of a corpus are; of a long one, its first MAX_LINES lines and MAX_BYTES bytes.

    Raises NotJsonLinesError, OSError.
    """
    counts, is_whole = _Counts(), True
    lines = iter(CorpusLines(corpus, max_line_bytes))
    for _, _, content in lines:
        if content is None:
            counts.lines += 1
            counts.faults["line_too_long"] += 1
        else:
            counts.add(content)
        if counts.lines >= MAX_LINES or counts.size >= MAX_BYTES:
            is_whole = next(lines, None) is None
            break
    return CorpusStatistics(
        lines=counts.lines,
        is_whole=is_whole,
        forms=dict(sorted(counts.forms.items())),
        with_custom_id=counts.named,
        bad_lines=dict(sorted(counts.faults.items())),
        shortest_bytes=counts.shortest or 0,
        longest_bytes=counts.longest,
        mean_bytes=round(counts.size / counts.lines, 1) if counts.lines else 0.0,
        lengths=[LengthBin(below_bytes=2 << power, lines=number) for power, number in sorted(counts.bins.items())],
    )


def _form(line: ParsedLine) -> str:
    if isinstance(line, ChatLine):
        return "prompt_messages" if line.is_completion else "messages"
    if isinstance(line, TextLine):
        return "text" if line.answer_start is None else "prompt"
    return "input_ids"
