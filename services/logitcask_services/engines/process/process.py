"""The service's side of an engine's process: started, fed, listened to, ended; it lives as long as its engine.

A process leads a group and a session of its own, so that it can be killed with all that it started, and no terminal's
signal reaches it. It is spoken to over a socket that no other process holds: when the service ends, in whatever way,
the process sees the socket close and ends too.
"""

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, Final, Generic, TypeVar

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.engines.engine import EngineError
from logitcask_services.engines.metrics import EngineMetrics, read_metrics
from logitcask_services.engines.process.frames import Connection, ConnectionGoneError, Frame, FrameError
from logitcask_services.engines.process.loads import loading
from logitcask_services.engines.process.log_lines import forward_lines
from logitcask_services.engines.process.messages import EngineFacts, read_error, read_facts
from logitcask_services.engines.process.progress import SeenProgress

logger = logging.getLogger(__name__)
CHILD: Final = "logitcask_services.engines.process.child"
CLOSE_SECONDS: Final = 3.0
"""In which a process may end in order; then it is killed. Nothing in it is worth more."""
_TAKE_SECONDS: Final = 1.0
"""In which a process takes the word that it should end, unless it stands still."""
TASKS_AHEAD: Final = 8
"""Tasks that wait in the process for its engine to draw them."""
TOKENS_AHEAD: Final = 1 << 12
"""Tokens of these, unless it is one alone: who is let in between others waits behind them."""
_LOOK_SECONDS: Final = 0.02

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class TaskCodec(Generic[TaskT, ResultT]):
    """How tasks and results of one kind travel."""

    frame_of: Callable[[TaskT, int, int], Frame]
    """A task, with its number and the stream's."""
    tokens_of: Callable[[TaskT], int]
    """How much of a task there is to read."""
    read: Callable[[Frame, TaskT], ResultT]
    """The result of a task."""


class EngineProcess:
    """One process with an engine, or a generator, in it. `interrupt` and `silence` are for all threads."""

    def __init__(self, loader: str, document: dict[str, Any], environment: Mapping[str, str] | None = None) -> None:
        """Start the process and wait until the engine is loaded.

        Args:
            loader: What the process calls, see `loading.load_part`.
            document: With what; JSON.
            environment: Variables of the process, besides those of this one.

        Raises:
            ModelError, CaptureSpecError: the engine said so while it was loaded.
            EngineError: the process ended, or the engine could not be loaded for another reason.
            OSError: no process can be started now.
        """
        self._connection, theirs = Connection.pair()
        try:
            with theirs:
                self._process = _start(theirs, environment or {})
        except BaseException:  # no descriptor or process is left: this one descriptor must not stay open for each try
            self._connection.close()
            raise
        self.pid = self._process.pid
        self.seen = SeenProgress()
        self.metrics: EngineMetrics | None = None
        """What the engine keeps of itself, as it was told last."""
        self._events: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._is_over = False
        """Whether nothing more is heard of the process."""
        self._misspoke: str | None = None
        """What it said that is no message; nothing more is heard then."""
        self._ending = threading.Lock()
        self._streaming = False
        self._serial = 0
        assert isinstance(self._process.stdout, BufferedReader)  # it is a pipe
        self._threads = (
            threading.Thread(target=self._receive, name="logitcask-engine-events", daemon=True),
            threading.Thread(
                target=forward_lines,
                args=(self._process.stdout, f"engine {self.pid}"),
                name="logitcask-engine-log",
                daemon=True,
            ),
        )
        with loading(self):
            self.facts = self._load(loader, document)

    def stream(
        self, order: dict[str, Any], tasks: Iterable[TaskT | None], codec: TaskCodec[TaskT, ResultT]
    ) -> Iterator[ResultT]:
        """Results of tasks, in order of completion.

        Args:
            order: What the process is to do.
            tasks: Drawn as the engine draws them, a few ahead; None: none just now.
            codec: Of these tasks.

        Raises:
            EngineError: the engine raised or its process ended, or another stream is still open.
        """
        if self._streaming:
            raise EngineError(
                f"another {order['do']} of this engine is still open; exhaust or close its generator first"
            )
        self._streaming, self._serial = True, self._serial + 1
        stream, is_over = self._serial, False
        waiting: dict[int, TaskT] = {}
        ahead: deque[int] = deque()
        source, number, draws = iter(tasks), 0, True
        try:
            self._send(Frame(head={**order, "stream": stream}))
            while True:
                while draws and (not ahead or (len(ahead) < TASKS_AHEAD and sum(ahead) < TOKENS_AHEAD)):
                    try:
                        task = next(source)
                    except StopIteration:
                        draws = False
                        self._send(Frame(head={"do": "end", "stream": stream}))
                        break
                    if task is None:
                        draws = False
                        self._send(Frame(head={"do": "none", "stream": stream}))
                        break
                    number += 1
                    waiting[number] = task
                    ahead.append(codec.tokens_of(task))
                    self._send(codec.frame_of(task, number, stream))
                frame = self._next_event()
                if frame.head.get("stream") != stream:
                    continue  # of a stream that was closed
                match frame.head["is"]:
                    case "drawn" | "more" as what:
                        with self._understood(what):
                            for _ in range(frame.head["tasks"]):
                                ahead.popleft()
                        draws = draws or what == "more"
                    case "result":
                        with self._understood("result"):
                            result = codec.read(frame, waiting.pop(frame.head["number"]))
                        yield result
                    case "failed":
                        is_over = True
                        with self._understood("failed"):
                            error = read_error(frame)
                        raise error
                    case "ended":
                        is_over = True
                        return
                    case what:
                        with self._understood(what):
                            raise ValueError("there is no such message")
        finally:
            self._streaming = False
            if not is_over:
                with suppress(ConnectionGoneError):
                    self._connection.send(Frame(head={"do": "abort", "stream": stream}))

    def interrupt(self) -> bool:
        """Kill the process and all that it started, so that whoever waits for it is told. True, see `Engine`."""
        with self._ending:
            if self._process.returncode is None:
                self._kill_group()
        return True

    def close(self) -> None:
        """End the process: in order where it follows, by force otherwise. Idempotent."""
        try:
            self._connection.send(Frame(head={"do": "close"}), seconds=_TAKE_SECONDS)
            seconds = CLOSE_SECONDS
        except ConnectionGoneError:
            seconds = 0.0
        self._end(seconds)
        self._connection.close()
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(CLOSE_SECONDS)

    @property
    def ended(self) -> str | None:
        """How the process ended; None while it runs."""
        return str(self._death()) if self._is_over else None

    # -- the process ---------------------------------------------------------------------------------------------

    def _load(self, loader: str, document: dict[str, Any]) -> EngineFacts:
        try:
            for thread in self._threads:
                thread.start()
            self._send(Frame(head={"do": "load", "loader": loader, "document": document}))
            answer = self._next_event()
            if answer.head["is"] == "refused":
                raise read_error(answer)
            with self._understood(answer.head["is"]):
                return read_facts(answer)
        except BaseException:
            self.interrupt()
            self.close()
            raise

    def _send(self, frame: Frame) -> None:
        try:
            self._connection.send(frame)
        except ConnectionGoneError as error:
            raise self._death() from error

    def _next_event(self) -> Frame:
        frame = self._events.get()
        if frame is None:
            self._events.put(None)  # for whoever asks again
            raise self._death()
        return frame

    def _receive(self) -> None:
        """In a thread of its own: beats and metrics are heard, everything else waits for the stream."""
        try:
            for frame in self._connection.frames():
                match frame.head:
                    case {"is": "beat", "age": int() | float() as age}:
                        self.seen.hear(age)
                    case {"is": "metrics"} as head:  # no sign that a step was made
                        self.metrics = read_metrics(head)
                    case {"is": str() as what} if what != "beat":
                        self.seen.hear()
                        self._events.put(frame)
                    case head:
                        raise FrameError(f"a message should say what it `is`; this one says {str(head)[:200]}")
        except Exception as error:  # noqa: BLE001 - also a senseless size; whoever waits must hear of the end
            self._misspoke = f"{type(error).__name__}: {error}"
            logger.error("engine %d says what is no message, and is ended: %s", self.pid, error)
            self.interrupt()
        finally:
            self._is_over = True
            self._events.put(None)

    @contextmanager
    def _understood(self, what: str) -> Iterator[None]:
        """While the block runs, a message is read. Raises EngineError where it is not as such messages are."""
        try:
            yield
        except (LookupError, TypeError, ValueError) as error:
            text = f"{type(error).__name__}: {error}"
            raise EngineError(
                f"the engine's process {self.pid} sent a message ({what!r}) that cannot be read: {text}"
            ) from error

    def _death(self) -> LogitcaskError:
        """Why there is nothing more to be had, as the engine's protocol has it."""
        self._end(CLOSE_SECONDS)
        if self._misspoke is not None:
            return EngineError(
                f"the engine's process {self.pid} sent what is no message, and was ended ({self._misspoke}). Results "
                "handed over so far are complete"
            )
        code = self._process.returncode
        how = f"exit code {code}" if code >= 0 else _signal_name(-code)
        return EngineError(
            f"the engine's process {self.pid} ended ({how}); out of memory is the usual cause of SIGKILL. Lines of the "
            f"log that are marked [engine {self.pid}] may say more. Results handed over so far are complete"
        )

    def _end(self, seconds: float) -> None:
        """Wait so long for the process to end, then kill it; what it started is killed in any case."""
        deadline = time.monotonic() + seconds
        with self._ending:
            while self._process.returncode is None:
                # The group is killed before the process is reaped: until then nobody else can have its number.
                has_ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
                if has_ended or time.monotonic() > deadline:
                    self._kill_group()
                    self._process.wait()
                    return
                time.sleep(_LOOK_SECONDS)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _start(theirs: socket.socket, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process with the other end of the connection. Raises OSError."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", CHILD, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
            **environment,
        },
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
