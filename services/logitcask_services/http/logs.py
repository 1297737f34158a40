"""The log: lines that clients can cause come once in a while, and what they wrote does not steer a terminal."""

import logging
import sys
import time
from typing import Literal

import structlog

from logitcask_schemas.terminal import printable

INTERVAL_SECONDS = 10.0
LogFormat = Literal["text", "json"]


def configure_logging(limited: tuple[str, ...], log_format: LogFormat = "text") -> None:
    """Log lines on stderr; those of the loggers in `limited` under a LogLimit."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        json_lines() if log_format == "json" else PlainLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # A line for each request to a teacher, or for each connection to a store, is no news.
    for name in ("httpx2", "aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in limited:
        logger = logging.getLogger(name)
        if not any(isinstance(entry, LogLimit) for entry in logger.filters):
            logger.addFilter(LogLimit())


def json_lines() -> logging.Formatter:
    """One record, one JSON object: `timestamp` (UTC), `level`, `logger`, `event`, and what else is known.

    That is `request_id` within a request, `audit` of who did what, and `exception`, a traceback without values.
    """
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(allow=["audit"]),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )


class PlainLines(logging.Formatter):
    """One record, one line, with control characters escaped; a traceback follows as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # the base class's name
        """The line."""
        line = super().formatMessage(record).rstrip("\n")
        request = structlog.contextvars.get_contextvars().get("request_id")
        return printable(line if request is None else f"{line} [{request}]")


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
