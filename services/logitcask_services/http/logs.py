"""The log: lines that clients can cause come once in a while, and what they wrote does not steer a terminal."""

import logging
import sys
import time

from logitcask_schemas.terminal import printable

INTERVAL_SECONDS = 10.0


def configure_logging(limited: tuple[str, ...]) -> None:
    """Log lines on stderr; those of the loggers in `limited` under a LogLimit."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainLines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request to a teacher is no news
    for name in limited:
        logger = logging.getLogger(name)
        if not any(isinstance(entry, LogLimit) for entry in logger.filters):
            logger.addFilter(LogLimit())


class PlainLines(logging.Formatter):
    """One record, one line, with control characters escaped; a traceback follows as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # the base class's name
        """The line."""
        return printable(super().formatMessage(record).rstrip("\n"))


class LogLimit(logging.Filter):
    """Lets one line of each kind (message before its arguments) pass per interval; errors pass always."""

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        super().__init__()
        self._interval = interval_seconds
        self._passed: dict[str, tuple[float, int]] = {}
        """Kind to the moment one passed, and how many were left out since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.levelno > logging.WARNING:
            return True
        kind, now = str(record.msg), time.monotonic()
        moment, left_out = self._passed.get(kind, (-self._interval, 0))
        if now - moment < self._interval:
            self._passed[kind] = moment, left_out + 1
            return False
        self._passed[kind] = now, 0
        if left_out:
            record.msg = f"{kind} (and {left_out} more like it)"
        return True
