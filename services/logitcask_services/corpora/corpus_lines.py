"""The lines of a corpus on the disk, read one by one whatever their size, and found again by where they begin."""

from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from logitcask_services.corpora.file_kind import SNIFFED_BYTES, require_lines
from logitcask_services.corpora.lines import parse_line

BOM = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 16
_BLANK = b" \t\r\n\v\f"


class CorpusLines:
    """Iterates once over (number from 1, first byte, content) of every line that is not blank.

    Content is without line end and byte order mark, and None where it is longer than the limit. Memory is one line.
    """

    def __init__(self, corpus: Path, max_line_bytes: int) -> None:
        self._corpus = corpus
        self._max_line_bytes = max_line_bytes
        self.lines = 0
        """Lines up to the last one that is not blank, so far."""
        self.blank_lines = 0
        """Blank lines before another line, so far."""
        self.marked_lines = 0
        """Lines but the first that began with a byte order mark, as where files were joined, so far."""

    def __iter__(self) -> Iterator[tuple[int, int, bytes | None]]:
        """Raises NotJsonLinesError where the file is of another format as a whole."""
        with BufferedReader(FileIO(self._corpus), _BUFFER_BYTES) as file:
            require_lines(file.peek(SNIFFED_BYTES)[:SNIFFED_BYTES])
            number = start = blank = 0
            while block := file.readline(self._max_line_bytes + 1):
                number += 1
                size, too_long = len(block), len(block) > self._max_line_bytes and not block.endswith(b"\n")
                while too_long and not block.endswith(b"\n") and (block := file.readline(1 << 20)):
                    size += len(block)
                content = None if too_long else _content(block)
                if content is not None and not content.strip(_BLANK):
                    skipped, passed = _skip_blank(file)
                    number, start, blank = number + skipped, start + size + passed, blank + 1 + skipped
                    continue
                self.lines, self.blank_lines, blank = number, self.blank_lines + blank, 0
                self.marked_lines += number > 1 and content is not None and block.startswith(BOM)
                yield number, start, content
                start += size


def custom_id_at(corpus: Path, line_start: int, max_line_bytes: int) -> str | None:
    """The `custom_id` of the line that starts at a byte of the corpus, which gave a document before."""
    with corpus.open("rb") as file:
        file.seek(line_start)
        return parse_line(_content(file.readline(max_line_bytes + 1))).custom_id


def _content(block: bytes) -> bytes:
    content = block.rstrip(b"\r\n")
    while content.startswith(BOM):
        content = content.removeprefix(BOM)
    return content


def _skip_blank(file: "BufferedReader[Any]") -> tuple[int, int]:
    """Pass over blank lines, whole buffers at a time: a gigabyte of newlines takes seconds. Returns lines and bytes."""
    lines = size = 0
    while ahead := file.peek():
        blank = len(ahead) - len(ahead.lstrip(_BLANK))
        stop = ahead.rfind(b"\n", 0, blank) + 1
        if not stop:
            break
        file.read(stop)
        lines, size = lines + ahead.count(b"\n", 0, stop), size + stop
    return lines, size
