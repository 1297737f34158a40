"""Log lines that a client can cause as often as it likes: one in a while, with the number of those left out."""

import logging
import time

INTERVAL_SECONDS = 10.0


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
