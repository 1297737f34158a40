"""What threads of one service tell each other in memory: signals, progress between commits, the teacher's heartbeat.

The database is the truth; nothing here outlives the process.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Signals:
    """Stop, cancel, and "something changed", for worker threads and event streams."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._condition = threading.Condition()
        self._versions: dict[str, int] = {}
        self._cancelled: set[str] = set()
        self._paused: set[str] = set()
        self.queue_paused = False
        """Whether the worker is to do no job; set from the database at the start, and by `pause_queue`."""
        self._changes = 0

    def changed(self, job_id: str) -> None:
        """A job's row or log changed; wakes everyone who waits."""
        with self._condition:
            self._versions[job_id] = self._versions.get(job_id, 0) + 1
            self._changes += 1
            self._condition.notify_all()

    def version(self, job_id: str) -> int:
        """A number that grows with every change of the job in this process."""
        return self._versions.get(job_id, 0)

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

    def cancel(self, job_id: str) -> None:
        """Tell the thread that works on a job to end it."""
        self._cancelled.add(job_id)
        self.changed(job_id)

    def pause(self, job_id: str) -> None:
        """Tell the thread that works on a job to leave it for now."""
        self._paused.add(job_id)
        self.changed(job_id)

    def release(self, job_id: str) -> None:
        """The job may be worked on again."""
        self._paused.discard(job_id)
        self.changed(job_id)

    def pause_queue(self, *, paused: bool) -> None:
        """Tell the worker to do no job, or to do them again."""
        self.queue_paused = paused
        self.changed("")

    def ends(self, job_id: str) -> bool:
        """Whether the teacher's work on the job should end now: cancelled, paused, or nothing is to be done."""
        return self.queue_paused or self.ends_preparation(job_id)

    def ends_preparation(self, job_id: str) -> bool:
        """The same for its preparation, which needs no teacher and goes on in a paused queue."""
        return self.stopping.is_set() or job_id in self._cancelled or job_id in self._paused

    def is_cancelled(self, job_id: str) -> bool:
        """Whether the job was cancelled in this process."""
        return job_id in self._cancelled


WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """A moment of a running job."""

    uncommitted_tokens: int
    tokens_per_second: float | None
    """None until two documents, or texts, have come back."""


class LiveProgress:
    """The one running job. Written by the worker, read by anyone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: str | None = None
        self._uncommitted = 0
        self._samples: deque[tuple[float, int]] = deque()

    def begin(self, job_id: str) -> None:
        """A run starts; the meter starts from nothing."""
        with self._lock:
            self._running, self._uncommitted = job_id, 0
            self._samples.clear()
            self._samples.append((time.monotonic(), 0))

    def captured(self, tokens: int) -> None:
        """A document, or text, of that many tokens came back from the teacher."""
        now = time.monotonic()
        with self._lock:
            self._uncommitted += tokens
            self._samples.append((now, tokens))
            while len(self._samples) > 2 and self._samples[0][0] < now - WINDOW_SECONDS:
                self._samples.popleft()

    def committed(self, tokens: int) -> None:
        """Tokens that now count in the database."""
        with self._lock:
            self._uncommitted -= tokens

    def end(self) -> None:
        """The run is over."""
        with self._lock:
            self._running, self._uncommitted = None, 0
            self._samples.clear()

    @property
    def running(self) -> str | None:
        """Id of the job that runs now."""
        return self._running

    def pace(self, job_id: str) -> Pace | None:
        """Where the job is right now, or None when it is not running."""
        with self._lock:
            if self._running != job_id:
                return None
            span = time.monotonic() - self._samples[0][0]
            # The first sample only marks where the window starts: its tokens were captured before it.
            tokens = sum(tokens for _, tokens in self._samples) - self._samples[0][1]
            rate = tokens / span if len(self._samples) > 1 and span > 0 else None
            return Pace(uncommitted_tokens=max(self._uncommitted, 0), tokens_per_second=rate)


class Heartbeat:
    """When the teacher last showed life while somebody waits for it."""

    def __init__(self) -> None:
        self._since: float | None = None

    @contextmanager
    def expected(self) -> Iterator[None]:
        """While the block runs, the teacher has something to do."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    @contextmanager
    def excused(self) -> Iterator[None]:
        """While the block runs, within `expected`, others keep the teacher waiting."""
        waited_for, self._since = self._since is not None, None
        try:
            yield
        finally:
            self._since = time.monotonic() if waited_for else None

    def beat(self) -> None:
        """It shows life, or is given more time."""
        if self._since is not None:
            self._since = time.monotonic()

    @property
    def is_expected(self) -> bool:
        """Whether somebody waits for the teacher."""
        return self._since is not None

    @property
    def silence(self) -> float:
        """Seconds without life; 0 while nobody waits."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since
