"""What an engine's process prints becomes lines of the service's log: marked, cut to a length, no more than so many."""

import logging
import time
from collections.abc import Iterator
from io import BufferedReader
from typing import Final

logger = logging.getLogger(__name__)
LINE_BYTES: Final = 2000
INTERVAL_SECONDS: Final = 10.0
LINES_PER_INTERVAL: Final = 200
_BLOCK_BYTES: Final = 1 << 16
"""What a pipe holds."""


def forward_lines(pipe: BufferedReader, mark: str) -> None:
    """Log each line until the pipe ends, whatever it holds: a process whose pipe nobody empties would stand still.

    Lines that are left out are counted and not looked at, so that a flood of them costs the service next to nothing.

    Args:
        pipe: Standard output and error of the process; closed at the end.
        mark: What each line begins with.
    """
    since, passed, left_out = time.monotonic(), 0, 0
    splitter = _LineSplitter()
    with pipe:
        while block := pipe.read1(_BLOCK_BYTES):
            if (now := time.monotonic()) - since >= INTERVAL_SECONDS:
                since, passed, left_out = now, 0, _tell(mark, left_out)
            if passed >= LINES_PER_INTERVAL:
                left_out += splitter.skip(block)
                continue
            for line in splitter.lines(block):
                passed += 1
                if passed > LINES_PER_INTERVAL:
                    left_out += 1
                else:
                    _log(mark, line)
        if (last := splitter.rest()) and passed < LINES_PER_INTERVAL:
            _log(mark, last)
        else:
            left_out += bool(last)
        _tell(mark, left_out)


class _LineSplitter:
    """Lines of blocks of bytes; of each line, what is needed to show its beginning and to know that it is longer."""

    def __init__(self) -> None:
        self._begun = b""

    def lines(self, block: bytes) -> Iterator[bytes]:
        """The lines that end in a block."""
        *ends, rest = block.split(b"\n")
        for end in ends:
            yield self._with_begun(end)
            self._begun = b""
        self._begun = self._with_begun(rest)

    def skip(self, block: bytes) -> int:
        """How many lines end in a block."""
        ended = block.count(b"\n")
        self._begun = self._with_begun(block) if not ended else block[block.rfind(b"\n") + 1 :][: LINE_BYTES + 1]
        return ended

    def rest(self) -> bytes:
        """The line that was begun last."""
        return self._begun

    def _with_begun(self, end: bytes) -> bytes:
        return (self._begun + end[: LINE_BYTES + 1])[: LINE_BYTES + 1]


def _log(mark: str, line: bytes) -> None:
    text = line[:LINE_BYTES].decode(errors="backslashreplace").rstrip()
    logger.info("[%s] %s%s", mark, text, " ..." if len(line) > LINE_BYTES else "")


def _tell(mark: str, left_out: int) -> int:
    if left_out:
        logger.info("[%s] (%d more lines left out)", mark, left_out)
    return 0
