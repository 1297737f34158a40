"""How the threads of one service tell each other that something happened. In memory; the database is the truth."""

import threading


class Signals:
    """Stop, cancel, and "something changed", for worker threads and event streams."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._condition = threading.Condition()
        self._versions: dict[str, int] = {}
        self._cancelled: set[str] = set()
        self._changes = 0

    def changed(self, extraction_id: str) -> None:
        """An extraction's row or log changed; wakes everyone who waits."""
        with self._condition:
            self._versions[extraction_id] = self._versions.get(extraction_id, 0) + 1
            self._changes += 1
            self._condition.notify_all()

    def version(self, extraction_id: str) -> int:
        """A number that grows with every change of the extraction in this process."""
        return self._versions.get(extraction_id, 0)

    @property
    def changes(self) -> int:
        """A number that grows with every change of anything. Read it before looking, give it to `wait`."""
        return self._changes

    def wait(self, seen: int, seconds: float) -> None:
        """Return when anything changed since `changes` was `seen`, or after `seconds`."""
        with self._condition:
            self._condition.wait_for(lambda: self._changes != seen or self.stopping.is_set(), timeout=seconds)

    def stop(self) -> None:
        """Tell everyone to end."""
        self.stopping.set()
        with self._condition:
            self._condition.notify_all()

    def cancel(self, extraction_id: str) -> None:
        """Tell the thread that works on an extraction to end it."""
        self._cancelled.add(extraction_id)
        self.changed(extraction_id)

    def ends(self, extraction_id: str) -> bool:
        """Whether work on the extraction should end now: it was cancelled, or the service stops."""
        return self.stopping.is_set() or extraction_id in self._cancelled

    def is_cancelled(self, extraction_id: str) -> bool:
        """Whether the extraction was cancelled in this process."""
        return extraction_id in self._cancelled
