"""Processes whose engines are being loaded, by the thread that waits for them, so that others can end such a load."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from logitcask_services.engines.process.progress import SeenProgress


class LoadingProcess(Protocol):
    """A process whose engine is not there yet."""

    seen: SeenProgress

    def interrupt(self) -> bool:
        """Kill it."""
        ...


_LOCK: Final = threading.Lock()
_LOADING: Final[dict[int, list[LoadingProcess]]] = {}
_ORDERED_BY: Final[dict[int, int]] = {}
"""The thread for which another one loads."""


@contextmanager
def loading(process: LoadingProcess) -> Iterator[None]:
    """While the block runs, this thread waits for the process, or the one for which it loads does."""
    me = threading.get_ident()
    with _LOCK:
        waiting = _ORDERED_BY.get(me, me)
        _LOADING.setdefault(waiting, []).append(process)
    try:
        yield
    finally:
        with _LOCK:
            _LOADING[waiting].remove(process)
            if not _LOADING[waiting]:
                del _LOADING[waiting]


@contextmanager
def loading_for(thread: int) -> Iterator[None]:
    """While the block runs, what this thread loads counts as the other thread's, which waits for several."""
    me = threading.get_ident()
    _ORDERED_BY[me] = thread
    try:
        yield
    finally:
        del _ORDERED_BY[me]


def interrupt_loading(thread: int) -> bool:
    """Kill the processes of engines that a thread waits for to be loaded; False where it waits for none."""
    interrupted = [process.interrupt() for process in _of(thread)]
    return any(interrupted)


def stillness_of_loading(thread: int) -> float:
    """Seconds since a process that a thread waits for to be loaded said anything; 0 where it waits for none."""
    return max((process.seen.stillness for process in _of(thread)), default=0.0)


def _of(thread: int) -> list[LoadingProcess]:
    with _LOCK:
        return list(_LOADING.get(thread, ()))
