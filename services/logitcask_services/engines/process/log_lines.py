"""What an engine's process prints becomes lines of the service's log: marked, cut to a length, no more than so many."""

import logging
import time
from typing import IO, Final

logger = logging.getLogger(__name__)
LINE_BYTES: Final = 2000
INTERVAL_SECONDS: Final = 10.0
LINES_PER_INTERVAL: Final = 200


def forward_lines(pipe: IO[bytes], mark: str) -> None:
    """Log each line until the pipe ends, whatever it holds: a process whose pipe nobody empties would stand still.

    Args:
        pipe: Standard output and error of the process; closed at the end.
        mark: What each line begins with.
    """
    since, passed, left_out = time.monotonic(), 0, 0
    with pipe:
        while line := pipe.readline(LINE_BYTES):
            is_cut = _drop_rest(pipe, line)
            if (now := time.monotonic()) - since >= INTERVAL_SECONDS:
                since, passed, left_out = now, 0, _tell(mark, left_out)
            passed += 1
            if passed > LINES_PER_INTERVAL:
                left_out += 1
                continue
            text = line.decode(errors="backslashreplace").rstrip()
            logger.info("[%s] %s%s", mark, text, " ..." if is_cut else "")
        _tell(mark, left_out)


def _drop_rest(pipe: IO[bytes], line: bytes) -> bool:
    """Read on to the end of a line that is too long; whether it was."""
    is_cut = not line.endswith(b"\n") and len(line) == LINE_BYTES
    rest = line
    while rest and not rest.endswith(b"\n"):
        rest = pipe.readline(LINE_BYTES)
    return is_cut


def _tell(mark: str, left_out: int) -> int:
    if left_out:
        logger.info("[%s] (%d more lines left out)", mark, left_out)
    return 0
