"""The keys that a running service accepts: those of its start, or those of a file, read anew when it changes."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from logitcask_schemas.api.key_file import KeyFileError
from logitcask_services.keys import ANONYMOUS, ApiKey, match, read_key_file

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
Signature = tuple[int, int, int] | None
"""Number, size and time of change of a file; None where it is not there."""


class KeyRing:
    """The accepted keys.

    Args:
        keys: At the start; none: everybody is `ANONYMOUS`, also later.
        file: Where they came from. A change is seen within a second or two. A file that is gone, or cannot be read,
            changes nothing but the log.
        clock: Seconds.
    """

    def __init__(
        self, keys: Sequence[ApiKey], file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys = tuple(keys)
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._signature: Signature = None  # the first look reads: the file may have changed since the keys were
        self._looked_at = clock()

    @property
    def open(self) -> bool:
        """Whether the service runs without keys."""
        return not self._keys

    def find(self, presented: str | None) -> ApiKey | None:
        """The key that was presented, or None; as fast for a nearly right one as for a wrong one."""
        if self.open:
            return ANONYMOUS
        self._look()
        return match(self._keys, presented)

    def principal(self, presented: str | None) -> str | None:
        """The name of the key that was presented, or None."""
        key = self.find(presented)
        return None if key is None else key.name

    def _look(self) -> None:
        if self._file is None or self._clock() - self._looked_at < LOOK_SECONDS or not self._lock.acquire(False):
            return
        try:
            self._looked_at = self._clock()
            if (signature := _signature(self._file)) == self._signature:
                return
            self._signature = signature
            if (keys := read_key_file(self._file)) != self._keys:
                self._keys = keys
                logger.info("%s has changed: %d keys", self._file, len(keys))
        except KeyFileError as error:
            logger.error("the key file changed and cannot be used, so the keys of before stay valid: %s", error)
        finally:
            self._lock.release()


def _signature(file: Path) -> Signature:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
