"""SIGTERM and SIGINT end a run at the next step, with a checkpoint; again, they end it at once.

Two threads share the work. The main thread runs the handler, which notes the request, or leaves at once where no step
has begun: nothing is lost then. It runs between two Python instructions only; a process that is stuck in one, such as a
collective whose other side is gone, must still be ended by a second signal. So a thread reads the file descriptor that
the interpreter writes each signal's number to, whatever the main thread does.
"""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Final, Self

HANDLED: Final = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST_SECONDS: Final = 1.0
"""A signal that follows another this soon is the same request: `timeout` and others send one to the process and, again,
to its group."""

_AT_ONCE: Final = b"error: ended at once by a second signal; what followed the last checkpoint is lost\n"
_END: Final = b"\0"
"""Ends the thread; no signal has this number."""


class StoppedEarly(BaseException):
    """A signal came before the first step; like KeyboardInterrupt no Exception, so that nothing mistakes it for one."""


class StopSignals:
    """Handles the signals while it is entered; outside the main thread it does nothing."""

    def __init__(self) -> None:
        self._requested = False
        self._training = False
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal asked this process to stop."""
        return self._requested

    def training_begins(self) -> None:
        """From now on a signal waits for the end of a step."""
        self._training = True

    def training_ends(self) -> None:
        """From now on a signal ends what is done at once: it keeps what it has by itself. None may have come before."""
        self._training = self._requested

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._handle) for number in HANDLED}
        self._watcher = threading.Thread(target=self._watch, name="second signal", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_fd)
        os.write(self._writer, _END)  # closing would tell nobody: DataLoader workers have inherited it
        self._watcher.join()
        os.close(self._writer)
        os.close(self._reader)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if not self._training:
            self._training = True  # what cleans up now is not interrupted once more
            raise StoppedEarly

    def _watch(self) -> None:
        first: float | None = None
        while True:
            numbers, now = os.read(self._reader, 64), time.monotonic()
            for number in numbers:
                if number == _END[0]:
                    return
                if number not in HANDLED:
                    continue
                if first is None:
                    first = now
                elif now - first > SAME_REQUEST_SECONDS:
                    os.write(2, _AT_ONCE)
                    os._exit(128 + number)


def leave_signals_to_the_trainer(worker: int) -> None:
    """What a DataLoader worker does first: a signal to the whole process group must not end it before its trainer.

    torchrun sends one to the group of each of its processes, a terminal to all that run in it. A SIGTERM of the trainer
    itself is how multiprocessing ends a worker.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A handler is not told who sent a signal; who waits for a blocked one is.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for, args=(os.getppid(),), name="SIGTERM of the trainer", daemon=True).start()


def _end_for(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)
